"""How blksnap is asked: one request, one command of its filter, one list; pointers and refusals included.

What a request looks like is the affair of `formats.blksnap_abi`; what its refusal means, of `blksnap_refusals`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lvmsync.errors import DeviceError, LvmsyncError, UsageError
from lvmsync.formats.blksnap_abi import COMMANDS, FILTER_NAME, PROBE, REQUESTS, VERSION, Abi, Layout
from lvmsync.system.blksnap_refusals import explain
from lvmsync.system.device import opening_failed

Call = Callable[[int, int, bytearray], int]
"""ioctl(2): descriptor, request number, and the struct, which is changed in place; raises OSError."""

Opener = Callable[[str, int], int]
"""open(2): path and flags."""

_NODES = (("dev/blksnap-control", (Abi.UP,)), ("dev/veeamblksnap", (Abi.V1, Abi.V7)), ("dev/blksnap", (Abi.V1,)))
_FILTER_NODE = "dev/bdevfilter"
_LOAD = "load the module: 'modprobe veeamblksnap', or 'modprobe blksnap', whichever this machine has"
_ATTEMPTS = 5  # to count things and then list them, if there are more each time


class DeviceName(NamedTuple):
    """A block device, as blksnap is told of it; made by `name_device`.

    Attributes:
        path: absolute, with no symbolic link in it: V7 looks it up again at each request.
        number: ``(major, minor)``.
    """

    path: str
    number: tuple[int, int]

    @property
    def word(self) -> str:
        """The number, as in sysfs: ``MAJOR:MINOR``."""
        return f"{self.number[0]}:{self.number[1]}"


class Version(NamedTuple):
    """What a module says it is; ``major`` tells the ABI."""

    major: int
    minor: int
    revision: int
    build: int

    def __str__(self) -> str:
        return ".".join(map(str, self))


def name_device(path: str) -> DeviceName:
    """Return the block device that a path leads to.

    Raises:
        DeviceError: it does not lead to one.
    """
    real = os.path.realpath(path)
    try:
        state = Path(real).stat()
    except OSError as error:
        raise opening_failed(path, error) from error
    if not stat.S_ISBLK(state.st_mode):
        raise DeviceError(f"{path} is no block device, and blksnap tracks nothing else", device=path)
    return DeviceName(real, (os.major(state.st_rdev), os.minor(state.st_rdev)))


def check_number(device: DeviceName, state: os.stat_result) -> None:
    """Raise DeviceError if what a path leads to is another block device by now."""
    number = os.major(state.st_rdev), os.minor(state.st_rdev)
    if stat.S_ISBLK(state.st_mode) and number != device.number:
        raise DeviceError(
            f"{device.path} is {number[0]}:{number[1]} now, and was {device.number[0]}:{device.number[1]}: another"
            " device has its name; run this again",
            device=device.path,
        )


def call_ioctl(fd: int, number: int, argument: bytearray) -> int:
    """Call ioctl(2); what the kernel writes is then in ``argument``."""
    return int(fcntl.ioctl(fd, number, argument, True))


class Asking:
    """The open nodes of blksnap, and how they are asked. Keeps all that a pointer leads to until the answer is there.

    Attributes:
        abi: its generation.
        version: what the module says.
        node: path of its control node.
        notes: what the user should know of the choice of the node.
    """

    def __init__(self, kind: Abi, version: Version, node: Path, fds: list[int], call: Call, open_path: Opener) -> None:
        """Take over descriptors: of the control node, and for V7 of the filter's node."""
        self.abi = kind
        self.version = version
        self.node = node
        self.notes: tuple[str, ...] = ()
        self._fds = fds
        self._call = call
        self._open_path = open_path

    def close(self) -> None:
        """Close the nodes."""
        while self._fds:
            os.close(self._fds.pop())

    def send(
        self,
        name: str,
        what: str,
        *,
        fd: int | None = None,
        key: str | None = None,
        about: str | None = None,
        **values: Any,
    ) -> tuple[bytearray, int]:
        """Make a request; return its struct as the kernel left it, and what ioctl(2) returned.

        Args:
            name: of the request in `REQUESTS`.
            what: it is for, to be read after "cannot".
            fd: where it goes; None: the control node.
            key: what it is called where refusals are explained; None: ``name``.
            about: path of the device that it is about, if it is about one.
            values: of its struct; the others are zero.
        """
        request = REQUESTS[self.abi].get(name)
        if request is None:  # never a number that this module may not know
            raise UsageError(f"blksnap {self.version} cannot {what}: there is no such request")
        argument = bytearray(request.layout.encode(**values))
        try:
            return argument, self._call(self._fds[0] if fd is None else fd, request.number, argument)
        except OSError as error:
            raise explain(self.abi, key or name, error, what, about) from error

    def ask(self, name: str, what: str, **values: Any) -> tuple[dict[str, Any], int]:
        """Make a request; return its values as the kernel left them, and what ioctl(2) returned."""
        argument, result = self.send(name, what, **values)
        return REQUESTS[self.abi][name].layout.decode(argument), result

    def collect(self, name: str, what: str, item: Layout, **values: Any) -> list[dict[str, Any]]:
        """Return what a request lists: it is asked for the count, then for so many."""
        for _ in range(_ATTEMPTS):
            try:
                count = self.ask(name, what, **values)[0]["count"]
                if not count:
                    return []
                room = ctypes.create_string_buffer(count * item.size)
                got = self.ask(name, what, **values, count=count, address=ctypes.addressof(room))[0]["count"]
            except DeviceError as error:
                if errno_of(error) in (errno.ENOBUFS, errno.ENODATA):  # there are more by now
                    continue
                raise
            return [
                item.decode(room.raw[at : at + item.size]) for at in range(0, min(got, count) * item.size, item.size)
            ]
        raise DeviceError(f"blksnap cannot {what}: their number changes all the time; try again")

    def ask_filter(self, name: str, what: str, device: DeviceName, *, key: str | None = None, **values: Any) -> None:
        """Make a request of the filter: of its own node, or of the device."""
        values["filter"] = FILTER_NAME
        if self.abi is Abi.V1:
            raise UsageError(f"blksnap {self.version} cannot {what}: there is no such request")
        if self.abi is Abi.V7:
            self.check(device)
            path = ctypes.create_string_buffer(os.fsencode(device.path))
            values["device"] = ctypes.addressof(path)
            self.send(name, what, fd=self._fds[1], key=key, about=device.path, **values)
            return
        with self._opened(device, os.O_RDONLY | os.O_NONBLOCK) as fd:
            self.send(name, what, fd=fd, key=key, about=device.path, **values)

    def command(self, name: str, what: str, device: DeviceName, **values: Any) -> dict[str, Any]:
        """Ask the filter something about a device, and return the values of the answer."""
        number, layout = COMMANDS[name]
        option = ctypes.create_string_buffer(layout.encode(**values), layout.size)
        address = ctypes.addressof(option)
        self.ask_filter("control", what, device, key=name, command=number, length=layout.size, address=address)
        return layout.decode(option.raw)

    def check(self, device: DeviceName) -> None:
        """Raise unless the path still leads to the device: V7 looks it up anew at each request."""
        with self._opened(device, os.O_PATH):
            pass

    @contextmanager
    def _opened(self, device: DeviceName, flags: int) -> Iterator[int]:
        try:
            fd = self._open_path(device.path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise opening_failed(device.path, error) from error
        try:
            check_number(device, os.fstat(fd))
            yield fd
        finally:
            os.close(fd)


def errno_of(error: LvmsyncError) -> int | None:
    """Return the errno of the refused request that an error tells of; None: it tells of something else."""
    cause = error.__cause__
    # An open that failed has a file name: that a device is not there must not be read as "not tracked".
    return cause.errno if isinstance(cause, OSError) and cause.filename is None else None


def open_nodes(root: Path, call: Call, open_path: Opener) -> Asking:
    """Find the control node of blksnap, and which ABI it has; see `blksnap.open_control`."""
    found = [(root / name, abis) for name, abis in _NODES if (root / name).exists()]
    refusals = []
    for path, abis in found:
        try:
            asking = _open_node(path, abis, root, call, open_path)
        except DeviceError as error:
            refusals.append(error)
            continue
        if len(found) > 1:
            nodes = " and ".join(str(path) for path, _ in found)
            asking.notes = (f"There are control nodes {nodes}; {path} is used.",)
        return asking
    if refusals:
        raise refusals[0]
    names = ", ".join(f"/{name}" for name, _ in _NODES)
    raise DeviceError(f"blksnap has no control node here ({names}): {_LOAD}")


def _open_node(path: Path, abis: tuple[Abi, ...], root: Path, call: Call, open_path: Opener) -> Asking:
    """Open one control node and ask for its version; see `open_nodes`."""
    fds: list[int] = []
    try:
        fds.append(_open(open_path, path))
        answer = bytearray(VERSION.size)
        try:
            call(fds[0], PROBE, answer)
        except OSError as error:
            raise DeviceError(
                f"{path} does not tell its version ({error.strerror}): this is no blksnap that lvmsync knows",
                device=str(path),
            ) from error
        version = Version(**VERSION.decode(answer))
        known = next((one for one in abis if one.value == version.major), None)
        if known is None:
            expected = " or ".join(str(one.value) for one in abis)
            raise DeviceError(
                f"{path} is of blksnap {version}; expected major version {expected}: this lvmsync does not know it,"
                " and sends nothing to what it does not know",
                device=str(path),
            )
        if known is Abi.V7:
            fds.append(_open(open_path, root / _FILTER_NODE))
        return Asking(known, version, path, fds, call, open_path)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _open(open_path: Opener, path: Path) -> int:
    try:
        return open_path(str(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DeviceError(
            f"there is no {path}, which blksnap 7 needs: load the module, 'modprobe bdevfilter'", device=str(path)
        ) from error
    except OSError as error:
        raise opening_failed(str(path), error) from error
