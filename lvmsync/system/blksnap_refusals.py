"""What it means when blksnap refuses a request, and what to do next.

The errno of each case was seen on the real modules; see fixtures/blksnap/FORMAT.md.
"""

from __future__ import annotations

import errno

from lvmsync.errors import ChangesLost, DeviceError, LvmsyncError
from lvmsync.formats.blksnap_abi import Abi

_UNTRACKED = "it is not tracked; begin with 'lvmsync blksnap attach', and a full copy"
_NO_SNAPSHOT = "there is no such snapshot; it was destroyed, or lost with the module; see 'lvmsync blksnap status'"
_MAP_LOST = (
    "the map does not hold any more (the device was resized, or tracking began anew); the next snapshot begins"
    " a new generation: take it, and send everything"
)
_PAST_END = "a range is behind its end, as it was when this generation began; after a resize, take a snapshot first"
_IN_SNAPSHOT = "a device is in a snapshot already, and can be in one only; see 'lvmsync blksnap status'"
_NO_ROOM = "there is no room for old content; name another place, or a smaller limit"

_REASONS: dict[tuple[str, int], str] = {
    ("attach", errno.EALREADY): "it is tracked already; nothing to do",
    ("detach", errno.EBUSY): "a snapshot of it is held; release it first: 'lvmsync blksnap release'",
    ("detach", errno.ENODATA): _UNTRACKED,
    ("detach", errno.ENOENT): _UNTRACKED,
    ("read_map", errno.ENOENT): _UNTRACKED,
    ("read_map", errno.ENODATA): _MAP_LOST,
    ("read_map", errno.EINVAL): _MAP_LOST,
    ("read_map", errno.EFAULT): _MAP_LOST,
    ("mark_dirty", errno.ENOENT): _UNTRACKED,
    ("mark_dirty", errno.ENODEV): _UNTRACKED,
    ("mark_dirty", errno.EINVAL): _PAST_END,
    ("create", errno.EALREADY): _IN_SNAPSHOT,
    ("create", errno.EINVAL): "a device is named twice, or is none that can be tracked",
    ("create", errno.EFAULT): "a place for old content is needed: a folder or file on another device",
    ("create", errno.ENOENT): "there is no such place for old content, or no such device",
    ("create", errno.EBUSY): "the place for old content is in use",
    ("create", errno.ENOSPC): _NO_ROOM,
    ("add", errno.EALREADY): _IN_SNAPSHOT,
    ("add", errno.ESRCH): _NO_SNAPSHOT,
    ("add", errno.ENOENT): _UNTRACKED,
    ("append_storage", errno.ESRCH): _NO_SNAPSHOT,
    ("append_storage", errno.ENOSPC): _NO_ROOM,
    ("take", errno.EALREADY): "it has been taken already",
    ("take", errno.ESRCH): _NO_SNAPSHOT,
    ("take", errno.EFAULT): "it had no room for old content, and is gone; tracking goes on: make another",
    ("take", errno.ENOSPC): _NO_ROOM,
    ("destroy", errno.ENODEV): _NO_SNAPSHOT,
    ("destroy", errno.ESRCH): _NO_SNAPSHOT,
    ("list_images", errno.ENODEV): "it has not been taken yet",
    ("list_images", errno.ESRCH): _NO_SNAPSHOT,
    ("read_image", errno.ENOENT): _UNTRACKED,
    ("read_image", errno.ESRCH): "no snapshot of it is held",
    ("wait_event", errno.ESRCH): _NO_SNAPSHOT,
}

_REASONS_V1: dict[tuple[str, int], str] = {
    ("read_map", errno.ENODATA): _UNTRACKED,
    ("read_map", errno.EPERM): "no snapshot of it is held, and this blksnap gives its map only then; take one: 'lvmsync"
    " blksnap take'",
}


def explain(abi: Abi, name: str, error: OSError, what: str, device: str | None) -> LvmsyncError:
    """Return our error for a refused request.

    Args:
        abi: which of the ABIs.
        name: of the request or command, as in `REQUESTS` and `COMMANDS`.
        error: what ioctl(2) raised.
        what: was wanted, to be read after "cannot".
        device: path of the device that it is about, if it is about one.
    """
    number = error.errno or 0
    reason = _REASONS_V1.get((name, number)) if abi is Abi.V1 else None
    reason = reason or _REASONS.get((name, number))
    if reason is None:
        match number:
            case errno.EPERM | errno.EACCES:
                reason = "permission denied; run as root"
            case errno.ENOTTY:
                reason = "this module does not know the request; it is another version, or blksnap does not filter here"
            case errno.ENODEV | errno.ENXIO | errno.ENOTBLK:
                reason = "there is no such block device"
            case _:
                reason = error.strerror or str(error)
    kind = ChangesLost if reason is _MAP_LOST else DeviceError
    return kind(f"blksnap: cannot {what}: {reason}", device=device)
