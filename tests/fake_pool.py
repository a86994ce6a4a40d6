"""A thin pool that is not there: a dmsetup that keeps in mind whether its metadata snapshot is reserved.

Its metadata is a real block device (a loop device), so that all but the kernel's pool is real.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from tests.sources.machine import number_of

GROUP, POOL = "AFRDyDkPK0Y6LyvpH4SyOEh91K7k8fDr", "cGc3caX1bx14bfvtMEvqeF610TCs1Q31"
BUSY = "device-mapper: message ioctl on vg-pool-tpool  failed: Device or resource busy\nCommand failed."

_SCRIPT = """#!/bin/sh
cd {here} || exit 9
say() {{ echo "$*" >>calls; }}
say "$*"
now() {{ [ -e "$1" ] && . ./"$1"; }}
case $1 in
    info | table) cat "$1" ;;
    status) now on-status; sed "s/@HELD@/$(cat held)/" status ;;
    message)
        now on-message
        [ -e refusal ] && {{ cat refusal >&2; exit 1; }}
        case $4 in
            reserve_metadata_snap)
                now on-reserve
                [ "$(cat held)" = - ] || {{ echo "{busy}" >&2; exit 1; }}
                cat root >held ;;
            release_metadata_snap)
                now on-release
                [ "$(cat held)" = - ] && {{ echo "Invalid argument" >&2; exit 1; }}
                echo - >held ;;
        esac ;;
    *) exit 3 ;;
esac
exit 0
"""


class FakePool:
    """One pool, ``vg-pool-tpool``, and thin devices of it.

    Attributes:
        folder: what the fake dmsetup answers with; a file ``on-...`` in it is shell code that runs then.
    """

    def __init__(self, folder: Path, metadata: Path, root: int, *, own: Path | None = None) -> None:
        """Let the block device ``metadata`` be a pool's; a metadata snapshot of it begins at block ``root``.

        Args:
            folder: where the fake dmsetup is made.
            metadata: a loop device.
            root: see above.
            own: the pool's own device, for tests that open it.
        """
        self.folder = folder / "pool"
        self.folder.mkdir()
        self._metadata = number_of(metadata)
        self._number = number_of(own) if own else "254:2"
        self._devices: dict[str, tuple[Path, int]] = {}
        script = folder / "dmsetup"
        script.write_text(_SCRIPT.format(here=shlex.quote(str(self.folder)), busy=BUSY))
        script.chmod(0o755)
        self.put("root", f"{root}\n")
        self.put("held", "-\n")
        self.put("status", "0 32768 thin-pool 8 66/512 46/256 @HELD@ rw discard_passdown queue_if_no_space - 128\n")
        self._describe()

    def put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def add_thin(self, name: str, device: Path, thin_id: int, nodes: Path) -> None:
        """Let a block device be a thin device of the pool."""
        nodes.mkdir(exist_ok=True)
        (nodes / name).symlink_to(device)
        self._devices[name] = (device, thin_id)
        self._describe()

    def _describe(self) -> None:
        info = [f"vg-pool-tpool|LVM-{GROUP}{POOL}-tpool|{self._number.replace(':', '|')}|3"]
        table = [f"vg-pool-tpool: 0 32768 thin-pool {self._metadata} 254:1 128 0 0 "]
        for name, (device, thin_id) in self._devices.items():
            number = number_of(device)
            info.append(f"{name}|LVM-{GROUP}{name:x<32}|{number.replace(':', '|')}|0")
            table.append(f"{name}: 0 16384 thin {self._number} {thin_id}")
        self.put("info", "\n".join(info) + "\n")
        self.put("table", "\n".join(table) + "\n")

    @property
    def held(self) -> str:
        """The block of the metadata snapshot, as status shows it: "-" is none."""
        return (self.folder / "held").read_text().strip()

    def hold(self, root: int) -> None:
        """Let another program have taken it."""
        self.put("held", f"{root}\n")

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def messages(self) -> list[str]:
        """Return the messages that the pool got, in their order, and what hooks said."""
        return [
            call.removeprefix("message vg-pool-tpool 0 ")
            for call in self.calls()
            if not call.startswith(("info", "table", "status"))
        ]


def notes(state: Path) -> list[dict[str, object]]:
    """Return the notes about metadata snapshots that are in a state folder."""
    return [json.loads(path.read_text()) for path in (state / "reservations").glob("*.json")]


def is_locked(state: Path) -> bool:
    """Tell whether a run holds a lock on a metadata snapshot; asked from another process's view."""
    return any(
        os.system(f"flock -n {shlex.quote(str(path))} true") != 0 for path in (state / "reservations").glob("*.lock")
    )
