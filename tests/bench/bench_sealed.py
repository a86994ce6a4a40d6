"""What sealing costs: 1 GiB written to and read from a store in memory, frames of 1 MiB, beside AES-256-GCM alone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lvmsync.interfaces import Store
from lvmsync.stores.folder import FolderStore
from lvmsync.stores.sealed import SealedStore
from tests.bench.common import GIB, alternate, report

_FRAME = (1 << 20) + 77  # they never begin where a chunk does


def main(runs: int = 5) -> None:
    """Run and report."""
    frame = os.urandom(_FRAME)
    with tempfile.TemporaryDirectory(prefix="lvmsync-bench-", dir="/dev/shm") as name:
        plain, sealed = FolderStore(Path(name) / "plain"), SealedStore(FolderStore(Path(name) / "sealed"), bytes(32))
        cipher = AESGCM(bytes(32))
        secret = cipher.encrypt(bytes(12), frame[: 64 << 10], None)

        def write(store: Store) -> None:
            store.make()
            store.delete("x")
            with store.create("x") as blob:
                for _ in range(GIB // _FRAME):
                    blob.write([frame])

        def read(store: Store) -> None:
            with store.open("x") as blob:
                at = 0
                while count := len(blob.read_at(at, _FRAME)):
                    at += count

        def alone(call: Callable[[], bytes]) -> None:
            for _ in range(GIB // (64 << 10)):
                call()

        rows: list[dict[str, object]] = []
        for what, job, raw in (
            ("write", write, lambda: cipher.encrypt(bytes(12), frame[: 64 << 10], None)),
            ("read", read, lambda: cipher.decrypt(bytes(12), secret, None)),
        ):
            ours, bare, crypto = alternate(
                runs,
                lambda job=job: timed(lambda: job(sealed)),  # type: ignore[misc]
                lambda job=job: timed(lambda: job(plain)),  # type: ignore[misc]
                lambda raw=raw: timed(lambda: alone(raw)),  # type: ignore[misc]
            )
            rows.append(
                {
                    "job": what,
                    "sealed_mb_s": GIB / ours / 1e6,
                    "plain_mb_s": GIB / bare / 1e6,
                    "aes_gcm_mb_s": GIB / crypto / 1e6,
                    "sealing_to_aes_gcm": (ours - bare) / crypto,
                }
            )
        report("1 GiB of a store in memory, of the process's own time", rows)


def timed(job: Callable[[], None]) -> float:
    """Return the seconds of processor that a job took."""
    began = time.process_time()
    job()
    return time.process_time() - began


if __name__ == "__main__":
    main()
