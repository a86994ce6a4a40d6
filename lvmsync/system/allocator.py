"""How this process gets its memory from the kernel."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_LARGE = 32 << 20
_KEPT = 256 << 20


def reuse_buffers() -> None:
    """Keep the memory of buffers that come and go, up to 32 MiB each, instead of giving it back each time.

    New memory is zeroed by the kernel, a page at a time: that costs a server as much as what it does with it. Where
    the C library is not glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
