"""Runs in the guest: writes what others put on a device where their programs are not there.

moving_signs.py luks1|luks2|gpt|dos|md1.2|md1.1|md1.0|md0.90 DEVICE
"""

from __future__ import annotations

import binascii
import os
import struct
import sys
import uuid

_SECTOR = 512


def luks(version: int) -> bytes:
    """Return a header: of LUKS1 phdr, of LUKS2 the binary one."""
    if version == 1:
        return struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return struct.pack(">6sHQQ", b"LUKS\xba\xbe", 2, 16384, 1)


def gpt(size: int) -> tuple[bytes, bytes]:
    """Return a protective MBR with the primary header and its entries; and the backup of both."""
    sectors, label = size // _SECTOR, uuid.uuid4().bytes_le
    kind = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    entries = struct.pack("<16s16sQQQ72s", kind, uuid.uuid4().bytes_le, 2048, sectors - 34, 0, b"").ljust(16384, b"\0")

    def header(at: int, other: int, table: int) -> bytes:
        def pack(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, at, other, 34, sectors - 34, label, table, 128,
                128, binascii.crc32(entries),
            )  # fmt: skip

        return pack(binascii.crc32(pack(0))).ljust(_SECTOR, b"\0")

    start = dos(0xEE, 1, sectors - 1) + header(1, sectors - 1, 2) + entries
    return start, entries + header(sectors - 1, 1, sectors - 33)


def dos(kind: int, first: int, count: int) -> bytes:
    """Return a DOS partition table with one partition."""
    return bytes(446) + struct.pack("<B3sB3sII", 0, b"", kind, b"", first, count) + bytes(48) + b"\x55\xaa"


def md(version: str, size: int) -> tuple[int, bytes]:
    """Return where the superblock of an array is, and it. Source: Linux v6.1, include/uapi/linux/raid/md_p.h."""
    sectors = size // _SECTOR
    if version == "0.90":
        words = [0xA92B4EFC, 0, 90, 0, 0, 1, 0, 1, 0, 2, 2, 0, 0, 0, 0, 0]
        return (sectors // 128 * 128 - 128) * _SECTOR, struct.pack("<16I", *words).ljust(4096, b"\0")
    at = {"1.1": 0, "1.2": 8, "1.0": (sectors - 16) // 8 * 8}[version]
    block = bytearray(256 + 2)
    struct.pack_into("<4I16s32sQIIQ", block, 0, 0xA92B4EFC, 1, 0, 0, uuid.uuid4().bytes, b"a", 0, 1, 0, 16)
    struct.pack_into("<QQQ", block, 128, 2048, sectors - 2048, at)
    struct.pack_into("<I", block, 220, 1)  # max_dev
    total = sum(struct.unpack("<64I", block[:256])) + struct.unpack("<H", block[256:])[0]
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return at * _SECTOR, bytes(block)


def main() -> None:
    """Write it."""
    kind, path = sys.argv[1:]
    fd = os.open(path, os.O_RDWR)
    size = os.lseek(fd, 0, os.SEEK_END)
    if kind.startswith("luks"):
        os.pwrite(fd, luks(int(kind[-1])), 0)
    elif kind == "gpt":
        start, end = gpt(size)
        os.pwrite(fd, start, 0)
        os.pwrite(fd, end, size - len(end))
    elif kind == "dos":
        os.pwrite(fd, dos(0x83, 2048, size // _SECTOR - 2048), 0)
    else:
        at, block = md(kind.removeprefix("md"), size)
        os.pwrite(fd, block, at)
    os.fsync(fd)
    os.close(fd)


main()
