"""A line that carries no more than so many bytes a second, a rate that may change while it is used.

What a rate is, on the command line and in a file:

    512K  10M  1GiB               bytes a second
    0  none                       no limit
    08:00,512K 18:00,none         by the local time of day: each rate holds until the next one's time
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmsync.errors import DeviceError, UsageError
from lvmsync.interfaces import Transport
from lvmsync.names import parse_size

LOWEST = 1 << 10
"""Bytes a second of the lowest limit: with less, a stream looks like one that hangs."""

_LOOK_EVERY = 1.0  # seconds between two looks at the file and the clock
_NAP = 0.25  # seconds of sleep at the most: a new rate holds at once
_CREDIT = 0.1  # seconds of the rate that may be made up for: a sleep that was too long, a reader that was slow
_PIECE_SECONDS = 0.05  # a piece takes so long: a frame of 1 MiB does not leave in one burst
_PIECE_MIN, _PIECE_MAX = 256, 256 << 10
_LONGEST_FILE = 4096

_TIMED = re.compile(r"([01]?\d|2[0-3]):([0-5]\d),(.+)", re.ASCII)


@dataclass(frozen=True)
class Rates:
    """Rates by the time of day.

    Attributes:
        entries: (minute of the day, bytes a second or None for no limit), ascending; never empty.
    """

    entries: tuple[tuple[int, int | None], ...]

    def at(self, minute: int) -> int | None:
        """Return the rate that holds at a minute of the day, 0 to 1439; None: no limit."""
        held = [rate for start, rate in self.entries if start <= minute]
        return (held or [self.entries[-1][1]])[-1]  # before the first time, yesterday's last rate holds


def parse_rates(text: str) -> Rates:
    """Read a rate, or rates with their times of the day.

    Raises:
        UsageError: neither of these, or a rate out of range.
    """
    words = text.split()
    if len(words) == 1 and "," not in words[0]:
        return Rates(((0, _parse_rate(words[0])),))
    entries: dict[int, int | None] = {}
    for word in words:
        match = _TIMED.fullmatch(word)
        if not match:
            raise UsageError(f"'{word}' is not a time and a rate: write HH:MM,RATE, as in 08:00,512K 18:00,none")
        minute = 60 * int(match[1]) + int(match[2])
        if minute in entries:
            raise UsageError(f"two rates for {match[1]}:{match[2]}; give one")
        entries[minute] = _parse_rate(match[3])
    if not entries:
        raise UsageError("no rate: write bytes a second, as in 10M, or none")
    return Rates(tuple(sorted(entries.items())))


def _parse_rate(word: str) -> int | None:
    rate = 0 if word == "none" else parse_size(word)
    if 0 < rate < LOWEST:
        raise UsageError(f"a rate of {rate} bytes a second is out of range: the lowest is 1K; 0 or none is no limit")
    return rate or None


class Limit:
    """The rate that holds now; one for all lines of a job.

    Args:
        rates: what holds until the file says something else; None: the file is read now.
        file: rates to read when `reload` asks for it; None: there is none.
        is_watched: whether the file is also read by itself, now and when it has changed.
        say: gets a line when the file gave other rates, or cannot be read: the last rates hold then.

    Raises:
        UsageError, DeviceError: no rates were given, and the file has none.
    """

    def __init__(
        self,
        rates: Rates | None,
        file: Path | None = None,
        *,
        is_watched: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._is_watched = is_watched
        self._say = say
        self._busy = threading.Lock()  # held by the thread that looks
        self._is_asked = False
        self._seen: object = None  # what the file was when it was last read
        self._complaint = ""
        if rates is None:
            assert file
            self._seen = _state_of(file)
            rates = _read_rates(file)
        self._rates = rates
        self._rate = rates.at(_minute())
        self._look_at = -math.inf

    @property
    def file(self) -> Path | None:
        """Where other rates may be written."""
        return self._file

    def reload(self) -> None:
        """Ask for the file to be read again soon; for signal handlers: takes no lock, does no work."""
        self._is_asked = True

    def rate(self) -> int | None:
        """Return the bytes a second that are allowed now; None: as many as there are."""
        if (self._is_asked or time.monotonic() >= self._look_at) and self._busy.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._busy.release()
        return self._rate

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_EVERY
        is_asked, self._is_asked = self._is_asked, False
        if self._file and (is_asked or self._is_watched):
            state = _state_of(self._file)
            if is_asked or state != self._seen:
                self._seen = state
                self._read(self._file)
        self._rate = self._rates.at(_minute())

    def _read(self, file: Path) -> None:
        try:
            rates = _read_rates(file)
        except (UsageError, DeviceError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._say(f"{error}; the rate stays {_shown(self._rate)}")
            return
        self._complaint = ""
        if rates != self._rates:
            self._rates = rates
            self._say(f"the rate is {_shown(rates.at(_minute()))} now, says {file}")


def _state_of(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_rates(file: Path) -> Rates:
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST_FILE).decode("ascii", "replace")
    except OSError as error:
        raise DeviceError(f"cannot read the rate in {file}: {error.strerror}") from error
    try:
        return parse_rates(text)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _minute() -> int:
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


def _shown(rate: int | None) -> str:
    return "not limited" if rate is None else f"{rate} bytes a second"


class _Pace:
    """When the next bytes of one direction may move; for one thread at a time."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._free_at = -math.inf

    def wait(self) -> int | None:
        """Wait until bytes may move, and return how many at the most; None: any number."""
        while True:
            rate = self._limit.rate()
            if rate is None:
                return None
            left = self._free_at - time.monotonic()
            if left <= 0:
                return min(max(int(rate * _PIECE_SECONDS), _PIECE_MIN), _PIECE_MAX)
            time.sleep(min(left, _NAP))

    def moved(self, count: int) -> None:
        """Note that so many bytes moved."""
        rate = self._limit.rate()
        now = time.monotonic()
        self._free_at = now if rate is None else max(self._free_at, now - _CREDIT) + count / rate


class Throttled:
    """A Transport that moves the bytes of another one no faster than a limit, each direction by itself."""

    def __init__(self, line: Transport, limit: Limit) -> None:
        self._line = line
        self._out = _Pace(limit)
        self._in = _Pace(limit)

    @property
    def stall_timeout(self) -> float | None:
        """Seconds that a blocked call of the line below sees no byte move."""
        return self._line.stall_timeout

    @stall_timeout.setter
    def stall_timeout(self, seconds: float | None) -> None:
        self._line.stall_timeout = seconds

    def send_all(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send every byte of ``buffers``, in order, in pieces at their time."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            piece = list(_cut(views, self._out.wait()))
            self._line.send_all(piece)
            self._out.moved(sum(map(len, piece)))

    def receive_some(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer`` and return how many; 0 at the end."""
        count = self._line.receive_some(buffer[: self._in.wait()])
        self._in.moved(count)
        return count

    def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        self._line.send_eof()

    def aclose(self) -> int:
        """Close the line and return the far side's exit status."""
        return self._line.aclose()


def _cut(views: list[memoryview], size: int | None) -> Iterator[memoryview]:
    """Take up to ``size`` bytes from the front of ``views``."""
    left = math.inf if size is None else size
    while views and left:
        view = views.pop(0)
        if len(view) > left:
            views.insert(0, view[int(left) :])
            view = view[: int(left)]
        left -= len(view)
        yield view
