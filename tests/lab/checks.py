"""What ``plan``, ``verify``, ``repair`` and ``doctor`` do with real LVM, in one process: the agent is a thread.

/dev/ubda is for LVM, /dev/ubdb is noise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmsync.errors import LvmsyncError
from lvmsync.jobs.agent.client import Agent, open_agent
from lvmsync.jobs.doctor.examine import examine
from lvmsync.jobs.doctor.volumes import check_before
from lvmsync.jobs.plan import Forecast, plan_volume
from lvmsync.jobs.progress import Receipt, ignore
from lvmsync.jobs.repair import open_whole, repair, repair_volume
from lvmsync.jobs.replica.copy import PassOptions
from lvmsync.jobs.replica.run import sync_volume
from lvmsync.jobs.send import StreamOptions
from lvmsync.jobs.verify import Verdict, verify_changes, verify_volume, verify_whole
from lvmsync.names import Volume
from lvmsync.sources import Reading, open_source
from lvmsync.system import lvm
from lvmsync.system.ledger import state_folder
from tests.agent_line import agent_peer
from tests.lab.in_guest import Cases, sh

case = Cases()

STATE = state_folder()
MIB = 1 << 20


@contextmanager
def agent() -> Iterator[Agent]:
    """Yield an agent that a thread is."""
    with agent_peer(STATE, "the copy") as (_, peer):
        yield open_agent(peer)


def plan(name: str, target: str) -> Forecast:
    with agent() as there:
        return plan_volume(there, lvm.find_volume(name), target, target, STATE, PassOptions())


def sync(name: str, target: str) -> Receipt:
    with agent() as there:
        volume = lvm.find_volume(name)
        return sync_volume(lambda: there, volume, target, target, STATE, PassOptions(), ignore, retries=0)


def verify(name: str, target: str) -> Verdict:
    with agent() as there:
        return verify_volume(there, target, lvm.find_volume(name), ignore)


def mend(name: str, target: str, *, dry_run: bool = False) -> Receipt:
    with agent() as there:
        volume = lvm.find_volume(name)
        return repair_volume(there, target, volume, target, STATE, PassOptions(), ignore, dry_run=dry_run)


def refusal(work: object, *arguments: object) -> str:
    """Return what a function refuses with."""
    assert callable(work)
    try:
        work(*arguments)
    except LvmsyncError as error:
        return f"{error.exit_code}: {error}"
    raise AssertionError("it was not refused")


def put(volume: str, *blocks: int) -> None:
    """Write another 4 KiB of noise at each."""
    for block in blocks:
        skip = 9000 + block
        sh(f"dd if=/dev/ubdb of=/dev/{volume} bs=4k skip={skip} seek={block} count=1 oflag=direct status=none")


def read(volume: str, length: int | None = None) -> bytes:
    sh(f"blockdev --flushbufs /dev/{volume}")
    with Path(f"/dev/{volume}").open("rb") as file:
        return file.read(length)


def ours(selection: str = "") -> list[str]:
    return sh(f"lvs --noheadings -o lv_full_name -S 'tags=lvmsync {selection}' my-vg").split()


def whole_state() -> str:
    files = sorted(path for path in STATE.rglob("*.json"))
    return sh("lvs --noheadings -o lv_name,lv_tags,lv_size my-vg") + "".join(path.read_text() for path in files)


def found(*kinds: str) -> dict[str, str]:
    """Return what doctor finds, and what mends it."""
    return {one.what: one.remedy for one in examine(STATE, ["my-vg"]) if one.kind in kinds}


@case("plans the first copy, a delta and nothing, and changes nothing")
def plans() -> None:
    sh(
        "make_vg my-vg /dev/ubda;"
        "lvcreate -q -y -W n -L 12m -n plain-vol my-vg; lvcreate -q -y -W n -L 12m -n copy my-vg;"
        "lvcreate -q -y -L 24m --poolmetadatasize 4m --poolmetadataspare n -c 64k -T my-vg/pool;"
        "lvcreate -q -y -V 16m -T my-vg/pool -n thin-vol; lvcreate -q -y -V 16m -T my-vg/pool -n thin-copy;"
        "dd if=/dev/ubdb of=/dev/my-vg/plain-vol bs=1M count=12 oflag=direct status=none;"
        "dd if=/dev/ubdb of=/dev/my-vg/thin-vol bs=1M seek=4 count=4 oflag=direct status=none"
    )
    before = whole_state()
    made = plan("my-vg/plain-vol", "my-vg/copy")
    assert (made.kind, made.changed_bytes, made.error) == ("first", 12 * MIB, None)
    assert made.snapshot is not None
    made = plan("my-vg/thin-vol", "my-vg/thin-copy")
    assert (made.kind, made.changed_bytes) == ("first", 4 * MIB)
    assert whole_state() == before
    sync("my-vg/plain-vol", "my-vg/copy")
    sync("my-vg/thin-vol", "my-vg/thin-copy")
    assert plan("my-vg/thin-vol", "my-vg/thin-copy").kind == "nothing"
    put("my-vg/plain-vol", 3, 40, 41)
    put("my-vg/thin-vol", 1100)
    before = whole_state()
    made = plan("my-vg/plain-vol", "my-vg/copy")
    assert (made.kind, made.changed_bytes, made.granularity) == ("delta", 3 * 4096, 4096)
    made = plan("my-vg/thin-vol", "my-vg/thin-copy")
    assert (made.kind, made.changed_bytes, made.granularity) == ("delta", 64 << 10, 64 << 10)
    assert whole_state() == before


@case("verifies a copy against the snapshot that it was brought to, however the volume was written to since")
def verifies() -> None:
    before = whole_state()
    for one, other in (("plain-vol", "copy"), ("thin-vol", "thin-copy")):
        verdict = verify(f"my-vg/{one}", f"my-vg/{other}")
        assert verdict.is_equal
        assert verdict.root == verdict.far_root
        assert read(f"my-vg/{one}") != read(f"my-vg/{other}")
    assert whole_state() == before


@case("finds what else was written to a copy, and refuses one that is mounted")
def finds_what_was_written() -> None:
    put("my-vg/copy", 77)
    put("my-vg/thin-copy", 2)
    assert list(verify("my-vg/plain-vol", "my-vg/copy").differing) == [(77 * 4096, 4096)]
    assert list(verify("my-vg/thin-vol", "my-vg/thin-copy").differing) == [(2 * 4096, 4096)]
    with agent() as there:
        assert there.standing("my-vg/copy").dirty
    sh("lvcreate -q -y -W n -L 12m -n busy my-vg; mkfs.ext4 -q -F /dev/my-vg/busy; mkdir -p /run/mounted")
    sh("mount /dev/my-vg/busy /run/mounted")
    with agent() as there:
        assert "in use" in refusal(verify_whole, there, "my-vg/busy", "/dev/ubdb", ignore)
    assert "in use" in refusal(mend, "my-vg/plain-vol", "my-vg/busy")
    assert not ours("&& tags=lvmsync.role=head")
    sh("umount /run/mounted; lvremove -q -y my-vg/busy")


@case("repairs a copy that was written to, sends only what differs, and goes on with deltas from there")
def repairs() -> None:
    assert refusal(sync, "my-vg/plain-vol", "my-vg/copy").startswith("8: ")
    before = whole_state()
    # The block that was spoilt, and what was written to the volume since the last sync.
    assert mend("my-vg/plain-vol", "my-vg/copy", dry_run=True).bytes == 4 * 4096
    assert whole_state() == before
    for one, other in (("plain-vol", "copy"), ("thin-vol", "thin-copy")):
        receipt = mend(f"my-vg/{one}", f"my-vg/{other}")
        assert receipt.kind == "repair"
        assert receipt.bytes <= 5 * 4096
        assert read(f"my-vg/{one}") == read(f"my-vg/{other}")
        assert len(ours(f"&& origin={one}")) == 1
    put("my-vg/thin-vol", 500)
    receipt = sync("my-vg/thin-vol", "my-vg/thin-copy")
    assert (receipt.kind, receipt.bytes) == ("delta", 4096)
    assert read("my-vg/thin-vol") == read("my-vg/thin-copy")


@case("repairs after the base was removed, when the copy is another device, and when the records are lost")
def repairs_after() -> None:
    sh("lvremove -q -y " + " ".join(ours("&& origin=plain-vol")))
    assert "no snapshot of my-vg/plain-vol holds that state" in refusal(verify, "my-vg/plain-vol", "my-vg/copy")
    put("my-vg/plain-vol", 900)
    error = plan("my-vg/plain-vol", "my-vg/copy").error
    assert error
    assert error.exit_code == 8
    assert mend("my-vg/plain-vol", "my-vg/copy").bytes == 4096
    assert read("my-vg/plain-vol") == read("my-vg/copy")
    sh("lvremove -q -y my-vg/copy; lvcreate -q -y -W n -L 13m -n copy my-vg")
    assert "another device" in refusal(sync, "my-vg/plain-vol", "my-vg/copy")
    mend("my-vg/plain-vol", "my-vg/copy")
    assert read("my-vg/plain-vol") == read("my-vg/copy", 12 * MIB)
    put("my-vg/plain-vol", 901)
    sh(f"rm -rf {STATE}/replicas {STATE}/targets")
    assert mend("my-vg/plain-vol", "my-vg/copy").bytes == 4096
    assert sync("my-vg/plain-vol", "my-vg/copy").kind == "nothing"


@case("leaves no snapshot behind when a repair fails")
def fails() -> None:
    sh("lvcreate -q -y -W n -L 8m -n short my-vg")
    before = ours()
    assert "too small" in refusal(mend, "my-vg/plain-vol", "my-vg/short")
    assert ours() == before
    sh("lvremove -q -y my-vg/short")


@case("gives a snapshot that was named the point that later deltas start from")
def gives_a_point() -> None:
    sh("lvcreate -q -y -s -p r -L 4m -n by-hand my-vg/plain-vol; lvcreate -q -y -W n -L 12m -n other my-vg")
    with agent() as there, open_whole("my-vg/by-hand") as whole:
        repair(there, "my-vg/other", whole, StreamOptions(), ignore)
    put("my-vg/plain-vol", 1000, 1001)
    sh("lvcreate -q -y -s -p r -L 4m -n later my-vg/plain-vol")
    reading = Reading(data_source="my-vg/later")
    with agent() as there, open_source(Volume("my-vg/by-hand"), reading) as source:
        there.receive("my-vg/other", source, StreamOptions(), ignore, orders={"require_base": True})
    assert read("my-vg/other") == read("my-vg/later")
    with agent() as there, open_source(Volume("my-vg/by-hand"), reading) as source:
        assert verify_changes(there, "my-vg/other", source, ignore).is_equal
    with agent() as there:
        assert verify_whole(there, "my-vg/other", "my-vg/later", ignore).is_equal
        verdict = verify_whole(there, "my-vg/other", "/dev/my-vg/by-hand", ignore)
    assert list(verdict.differing) == [(1000 * 4096, 2 * 4096)]
    sh("lvremove -q -y my-vg/later my-vg/by-hand my-vg/other")


@case("diagnoses what fills up, what is broken and what is left, and nothing else")
def diagnoses() -> None:
    kinds = ("leftover", "full", "broken", "unfinished")
    mine = lvm.find_volume("my-vg/plain-vol")
    orphans = found(*kinds)  # their records went with the state folder
    assert len(orphans) == 2, orphans
    assert all("if it is not needed: lvmsync cleanup --replica" in remedy for remedy in orphans.values())
    sh("lvcreate -q -y -s -L 1m -n tight my-vg/plain-vol")
    noise = "dd if=/dev/ubdb of=/dev/my-vg/plain-vol bs=4k skip=3000 seek=2000 oflag=direct status=none"
    sh(f"{noise} count=215")
    assert found(*kinds)["my-vg/tight"] == "lvextend -l +25%LV my-vg/tight"
    sh(f"lvextend -q -l +25%LV my-vg/tight; {noise} count=900")
    assert found(*kinds)["my-vg/tight"] == "lvremove my-vg/tight"
    sh("lvremove -q -y my-vg/tight; dmsetup suspend my--vg-copy")
    assert found(*kinds)["/dev/mapper/my--vg-copy"] == "dmsetup resume my--vg-copy"
    sh("dmsetup resume my--vg-copy")
    assert check_before(mine) == []
    thin = lvm.find_volume("my-vg/thin-vol")
    sh("dd if=/dev/ubdb of=/dev/my-vg/thin-vol bs=1M count=13 oflag=direct status=none")
    assert found(*kinds)["my-vg/pool"] == "lvextend -l +25%LV my-vg/pool"
    assert [line.partition(":")[0] for line in check_before(thin)] == ["my-vg/pool"]
    sh("lvextend -q -l +25%LV my-vg/pool")
    assert "my-vg/pool" not in found(*kinds)


if __name__ == "__main__":
    sys.exit(case.run())
