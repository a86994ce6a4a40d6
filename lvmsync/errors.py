"""Every exception of lvmsync, one class per reaction of the user, with its exit code.

    LvmsyncError                    the root; never raised itself
    ├── UsageError          2       fix the command line
    ├── DeviceError         3       fix the machine: a device, a file, space, permission
    │   └── SyncFailed      3       the same, and what the target holds is not known
    ├── CommandError        3       fix the machine: another program failed
    ├── FormatError         4       wrong or damaged metadata
    ├── ChangesLost         5       the tracker lost track: compare the whole device
    ├── StreamError         6       resend: bytes bad or cut short
    ├── TransportError      7       retry: the line to the peer failed (``transient``)
    ├── ConflictError       8       choose which history wins
    ├── VerifyError         9       do not use the target
    └── PeerError           2-9     the far side failed; the code is the far side's

0 is done, 130 is interrupted, 1 is anything that is not ours: a bug to report.
"""

from __future__ import annotations


class LvmsyncError(Exception):
    """Root of all errors that lvmsync raises on purpose.

    Args:
        message: one line: what, where, found, expected, and what to do next.
        device: path of the device or file it is about, where there is one.
        offset: byte position in ``device`` or stream, where there is one.
    """

    exit_code = 1
    transient = False

    def __init__(self, message: str, *, device: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.device = device
        self.offset = offset


class UsageError(LvmsyncError):
    """The command line cannot be carried out as written."""

    exit_code = 2


class DeviceError(LvmsyncError):
    """A device, file, permission or amount of space is not as needed."""

    exit_code = 3


class SyncFailed(DeviceError):
    """The kernel could not make writes durable; what the device holds is not known, and a retry proves nothing."""


class CommandError(LvmsyncError):
    """Another program (lvs, dmsetup) failed or is missing."""

    exit_code = 3


class FormatError(LvmsyncError):
    """Metadata is not what it should be: wrong file, damaged, or an unknown version."""

    exit_code = 4


class ChangesLost(LvmsyncError):
    """The change tracker lost changes; only a compare of the whole device helps."""

    exit_code = 5


class StreamError(LvmsyncError):
    """A stream is damaged, cut short or out of order."""

    exit_code = 6


class TransportError(LvmsyncError):
    """The line to the far side failed; trying again may help."""

    exit_code = 7
    transient = True


class ConflictError(LvmsyncError):
    """Two histories meet: the user must choose which wins."""

    exit_code = 8


class VerifyError(LvmsyncError):
    """Data is not what it was said to be: do not use the target."""

    exit_code = 9


class PeerError(LvmsyncError):
    """The far side failed; its exit code becomes ours.

    Args:
        message: one line, with the far side's own last words.
        code: the far side's exit status. 2-9 are kept; everything else (255, 127, 128+n of a
            remote shell) becomes 7, the code of a failed line.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if 2 <= code <= 9 else TransportError.exit_code
