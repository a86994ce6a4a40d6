"""How much of a stream may be on its way: what a cut would lose, though it was sent.

Between two lvmsyncs lie buffers of many MiB: pipes, windows of ssh, sockets. A line that is cut loses what is in them,
and so does a receiver that is killed. So a resumable stream is told how far the receiver has applied it, and its sender
waits when more than a window of it is not applied yet.
"""

from __future__ import annotations

import threading
from collections import deque

SMALLEST = 64 << 10
"""Bytes of the smallest window."""
STEPS = 8
"""A receiver says so many times in a window how far it is. Frames have an eighth of a window, too, where they can."""

_FIRST = 1 << 20  # bytes of the smallest window of a stream that was never cut
_FIRST_PART = 64  # of a stream that was never cut: the windows of all of it cost so many round trips at the most
_LATER_PART = 160  # of one that was cut once, twice, ...: this part of it, halved, by three, ...
_SUSPICIOUS = 1.0  # seconds without a word that something was applied


def window_for(total: int, cuts: int) -> int:
    """Return how many bytes of a stream may be on their way.

    Each cut loses a window at the most. Fifty of them in one transfer lose a 64th and 3.5 times a 160th of it: less
    than 4 %, if it is 500 MiB or more, and half of that in the mean. A line that is never cut waits for no
    more than 64 round trips in all, or one for each MiB.

    Args:
        total: bytes of changes in the whole transfer, those that have got across before included.
        cuts: how often it was cut so far.
    """
    if not cuts:
        return max(total // _FIRST_PART, _FIRST)
    return max(total // _LATER_PART // (cuts + 1), SMALLEST)


class Window:
    """What of a stream is on its way; one thread sends, and another one hears how far the receiver is.

    Attributes:
        size: bytes of the stream that may be on their way.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        # From here on: under the condition
        self._sent: deque[tuple[int, int]] = deque()  # (bytes of changes, bytes of the stream) behind each frame
        self._sent_bytes = 0
        self._applied_bytes = 0
        self._is_open = False

    def wait(self, length: int, patience: float = _SUSPICIOUS) -> bool:
        """Wait until so many bytes may be sent; False: nothing was applied for ``patience`` seconds, so wait again.

        Args:
            length: bytes of the stream; more than a window go once nothing else is on its way.
            patience: seconds.
        """
        with self._changed:
            while not self._has_room(length):
                if not self._changed.wait(patience):
                    return self._has_room(length)
        return True

    def sent(self, length: int, changed_bytes: int) -> None:
        """Take note of a frame that was sent.

        Args:
            length: bytes of it in the stream.
            changed_bytes: bytes of changes of the stream so far, with it.
        """
        with self._changed:
            self._sent_bytes += length
            self._sent.append((changed_bytes, self._sent_bytes))

    def applied(self, changed_bytes: int) -> None:
        """Take note that the receiver has applied so many bytes of changes."""
        with self._changed:
            while self._sent and self._sent[0][0] <= changed_bytes:
                self._applied_bytes = self._sent.popleft()[1]
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything through: nobody will say any more what was applied."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _has_room(self, length: int) -> bool:
        return self._is_open or not self._sent or self._sent_bytes - self._applied_bytes + length <= self.size
