"""Blocks of dm-thin and dm-era metadata, read from a device or a file in batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lvmsync.errors import FormatError
from lvmsync.extents import Offsets
from lvmsync.formats.pdata import BATCH, BLOCK_SIZE, Blocks
from lvmsync.system.device import Device, aligned_buffer

_TASK = 32  # blocks that one thread reads one after the other


class MetadataReader:
    """Reads metadata blocks by number (a `ReadBlocks`); a context manager, which ends its threads.

    Attributes:
        nr_blocks: whole blocks that the device has.
    """

    def __init__(self, device: Device) -> None:
        """Prepare to read from ``device``, which stays its caller's."""
        self._device = device
        self.nr_blocks = device.size // BLOCK_SIZE
        self._buffer = aligned_buffer(BATCH * BLOCK_SIZE)
        self._blocks: Blocks = np.frombuffer(self._buffer, np.uint8).reshape(-1, BLOCK_SIZE)
        self._pool = ThreadPoolExecutor(device.depth) if device.depth > 1 else None

    def __enter__(self) -> MetadataReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, numbers: Offsets) -> Blocks:
        """Return blocks by their numbers, at most `BATCH`; good until the next call.

        Raises:
            FormatError: one lies past the end of the metadata.
            DeviceError: the device fails.
        """
        if (numbers >= self.nr_blocks).any():
            raise FormatError(
                f"block {int(numbers.max())} is needed, and there are {self.nr_blocks} blocks: cut short, or damaged"
            )
        offsets, lengths = _join_neighbours(numbers)
        buffer = self._buffer[: sum(lengths)]
        if self._device.read_cached(offsets, lengths, buffer):
            return self._blocks[: len(numbers)]
        self._device.prefetch(offsets, lengths)
        if self._pool is None or len(offsets) <= 2:
            self._device.read(offsets, lengths, buffer)
            return self._blocks[: len(numbers)]
        jobs, at = [], 0
        for begin in range(0, len(offsets), _TASK):
            part = slice(begin, begin + _TASK)
            end = at + sum(lengths[part])
            jobs.append(self._pool.submit(self._device.read, offsets[part], lengths[part], self._buffer[at:end]))
            at = end
        for job in jobs:
            job.result()
        return self._blocks[: len(numbers)]

    def read_block(self, number: int) -> bytes:
        """Return one block, as bytes that stay.

        Raises:
            FormatError: it lies past the end of the metadata.
        """
        return bytes(self(np.array([number], np.uint64))[0].data)


def _join_neighbours(numbers: Offsets) -> tuple[list[int], list[int]]:
    """Return the byte ranges of blocks in the order given; each run of blocks that follow each other is one."""
    breaks = np.flatnonzero(np.diff(numbers.astype(np.int64)) != 1) + 1
    starts = np.concatenate([[0], breaks])
    counts = np.diff(np.concatenate([starts, [len(numbers)]]))
    offsets = numbers[starts] * np.uint64(BLOCK_SIZE)
    return offsets.tolist(), (counts * BLOCK_SIZE).tolist()
