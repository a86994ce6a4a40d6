"""Which blocks of a device are overlaid, and by what: two bits a block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BELOW, WRITTEN, ZEROED = 0, 1, 2
"""A block is as it was, or was written to, or was made zeros."""

States = npt.NDArray[np.uint8]


class Blocks:
    """The state of each block; memory is taken only where one is not ``BELOW``."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._written = np.zeros(count // 8 + 1, np.uint8)
        self._zeroed = np.zeros(count // 8 + 1, np.uint8)

    def get(self, first: int, end: int) -> States:
        """Return the states of some blocks, one byte each."""
        return _bits(self._written, first, end) + ZEROED * _bits(self._zeroed, first, end)

    def set(self, first: int, end: int, state: int) -> None:
        """Give some blocks a state."""
        _fill(self._written, first, end, is_set=state == WRITTEN)
        _fill(self._zeroed, first, end, is_set=state == ZEROED)


def runs(states: States) -> list[tuple[int, int, int]]:
    """Return the runs of equal states: first, end and state of each; there is at least one state."""
    cuts = np.flatnonzero(states[1:] != states[:-1]) + 1
    starts = [0, *cuts.tolist()]
    return list(zip(starts, [*starts[1:], len(states)], states[starts].tolist(), strict=True))


def _bits(field: States, first: int, end: int) -> States:
    start = first // 8
    return np.unpackbits(field[start : -(-end // 8)], count=end - start * 8, bitorder="little")[first - start * 8 :]


def _fill(field: States, first: int, end: int, *, is_set: bool) -> None:
    """Set or clear bits; whole bytes at once."""
    whole, behind = -(-first // 8), end // 8
    if whole > behind:  # all in one byte
        return _mask(field, behind, first % 8, end % 8, is_set=is_set)
    if first % 8:
        _mask(field, whole - 1, first % 8, 8, is_set=is_set)
    field[whole:behind] = 0xFF if is_set else 0
    if end % 8:
        _mask(field, behind, 0, end % 8, is_set=is_set)


def _mask(field: States, at: int, first: int, end: int, *, is_set: bool) -> None:
    mask = (1 << end) - (1 << first)
    field[at] = field[at] | mask if is_set else field[at] & (0xFF ^ mask)
