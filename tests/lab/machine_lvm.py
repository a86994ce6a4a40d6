"""Runs in the guest: what lvmsync changes in LVM, on real volumes."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lvmsync.errors import ChangesLost, CommandError, ConflictError, DeviceError
from lvmsync.jobs import create
from lvmsync.jobs.standing import standing
from lvmsync.system import activation, fill, fill_watch, lvm, lvm_commands, lvm_lock, snapshot_advice
from tests.lab.in_guest import Cases, sh, until

case = Cases()
M = 1 << 20


def names() -> list[str]:
    return sorted(one.name for one in lvm.list_volumes("vg") if "private" not in one.role)


def as_lvm_tells(made: lvm.LogicalVolume) -> bool:
    """Tell whether what the kernel tells of a snapshot that was made just now is what LVM does."""
    told = lvm.find_volume(made.full_name)
    print(made, told, sep="\n")
    assert abs((made.created or 0) - (told.created or 0)) <= 2
    return replace(told, created=made.created, data_percent=made.data_percent) == made


@case("takes a classic snapshot, read-only, tagged, with a store that cannot be full")
def classic() -> None:
    data = lvm.find_volume("vg/data")
    found = lvm_commands.take_snapshot(
        data, "snap", tags=[lvm_commands.replica_tag("00ff"), lvm_commands.role_tag("head")]
    )
    assert found.tags == {"lvmsync", "lvmsync.replica=00ff", "lvmsync.role=head"}
    assert found.is_classic_snapshot
    assert found.origin_id == data.id
    assert found.attr[1] == "r"
    assert found.number
    lvm.require_usable_snapshot(found)
    assert found.size >= snapshot_advice.whole_store(16 * M, 4096), found.size
    assert found.data_percent is not None
    assert as_lvm_tells(found)
    assert [one.id for one in lvm_commands.list_ours("vg")] == [found.id]
    assert [one.id for one in lvm_commands.list_ours()] == [found.id]


@case("never overflows a store that holds the whole volume")
def whole_store() -> None:
    snap = lvm.find_volume("vg/snap")
    before = sh("sha256sum </dev/vg/snap")
    sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=16 oflag=direct status=none")
    used = fill.store_fill(snap)
    assert used.percent > 99
    assert sh("sha256sum </dev/vg/snap") == before
    lvm.require_usable_snapshot(lvm.find_volume("vg/snap"))


@case("changes tags in one step, of this very volume only")
def tags() -> None:
    snap = lvm.find_volume("vg/snap")
    changed = lvm_commands.change_tags(snap, [lvm_commands.role_tag("base")], [lvm_commands.role_tag("head")])
    assert changed.tags == {"lvmsync", "lvmsync.replica=00ff", "lvmsync.role=base"}
    assert lvm_commands.change_tags(snap) == changed
    sh("lvrename -q vg snap other; lvcreate -q -y -s -L 4m -n snap vg/data")  # the name is another's now
    with pytest.raises(DeviceError, match="was not tagged as wanted"):
        lvm_commands.change_tags(snap, ["x"])
    assert not lvm.find_volume("vg/snap").tags


@case("removes by id, not by name, and only what is ours")
def remove() -> None:
    mine, users = lvm.find_volume("vg/other"), lvm.find_volume("vg/snap")
    with pytest.raises(ConflictError, match="vg/snap is not a read-only snapshot with the tag 'lvmsync'"):
        lvm_commands.remove_snapshot(users)
    sh("lvchange -q -y --addtag lvmsync vg/data")  # a tag alone makes no snapshot
    with pytest.raises(ConflictError, match="vg/data is not a read-only snapshot"):
        lvm_commands.remove_snapshot(lvm.find_volume("vg/data"))
    assert [one.name for one in lvm_commands.list_ours("vg")] == ["other"]
    sh("lvchange -q -y --deltag lvmsync vg/data; lvrename -q vg other renamed")
    lvm_commands.remove_snapshot(mine)  # as it was called before
    assert names() == ["data", "snap"], names()
    lvm_commands.remove_snapshot(mine)  # it is gone: no error
    sh("lvremove -q -y vg/snap")


@case("waits for a snapshot that is open for a moment, and says so of one that stays open")
def busy() -> None:
    data = lvm.find_volume("vg/data")
    snap = lvm_commands.take_snapshot(data, "snap", tags=[], size=4 * M, chunk=8192)
    assert (snap.size, sh("lvs --noheadings --units b --nosuffix -o chunk_size vg/snap")) == (4 * M, "8192")
    # lvremove itself tries for 5 s otherwise
    conf = Path("/etc/lvm/lvmlocal.conf")
    conf.write_text(conf.read_text() + "activation { retry_deactivation=0 }\n")
    fd = os.open("/dev/vg/snap", os.O_RDONLY)
    tries, lvm_commands.TRIES = lvm_commands.TRIES, 1
    try:
        with pytest.raises(CommandError, match="vg/snap in use"):
            lvm_commands.remove_snapshot(snap)
    finally:
        lvm_commands.TRIES = tries
    threading.Timer(0.5, os.close, [fd]).start()
    lvm_commands.remove_snapshot(snap)
    assert names() == ["data"], names()


@case("refuses a name that is there, and leaves that volume alone")
def name_taken() -> None:
    sh("lvcreate -q -y -L 4m --addtag lvmsync -n mine vg")
    with pytest.raises(ConflictError, match="there is a volume vg/mine already"):
        lvm_commands.take_snapshot(lvm.find_volume("vg/data"), "mine", tags=[])
    with pytest.raises(ConflictError, match="there is a volume vg/mine already"):
        lvm_commands.create_volume("vg/mine", 4 * M)
    assert names() == ["data", "mine"], names()
    sh("lvremove -q -y vg/mine")


@case("leaves nothing of a snapshot that lvcreate could not activate")
def half_made() -> None:
    Path("/run/bin").mkdir()
    real = sh("command -v lvcreate")
    fake = Path("/run/bin/lvcreate")  # makes it, and then fails
    fake.write_text(f'#!/bin/sh\n{real} "$@"\necho "  it went wrong" >&2\nexit 5\n')
    fake.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"/run/bin:{path}"
    try:
        with pytest.raises(CommandError, match="it went wrong"):
            lvm_commands.take_snapshot(lvm.find_volume("vg/data"), "snap", tags=["a=b"], size=4 * M, chunk=4096)
    finally:
        os.environ["PATH"] = path
    assert names() == ["data"], names()


@case("makes a store larger, up to what it can ever need")
def extend() -> None:
    data = lvm.find_volume("vg/data")
    snap = lvm_commands.take_snapshot(data, "snap", tags=[], size=4 * M, chunk=4096)
    larger = lvm_commands.extend_volume(snap, 1_000_001)
    assert 4 * M + 1_000_001 <= larger.size < 5 * M + 4096
    assert fill.store_fill(larger).total == larger.size
    with pytest.raises(DeviceError, match=r"the volume group 'vg' has .* free, and more of vg/snap needs"):
        lvm_commands.extend_volume(snap, 1 << 40)


@case("tells of a store that is full")
def overflow() -> None:
    snap = lvm.find_volume("vg/snap")
    assert 0 < fill.store_fill(snap).percent < 5
    sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=8 oflag=direct status=none")
    with pytest.raises(ChangesLost, match="vg/snap"):
        fill.store_fill(snap)
    lvm_commands.remove_snapshot(snap)
    with pytest.raises(DeviceError, match="vg/snap is not active"):
        fill.store_fill(snap)


@case("extends a store in time, by itself or by the user's command, and stops before it is full")
def watch() -> None:
    snap = lvm_commands.take_snapshot(lvm.find_volume("vg/data"), "snap", tags=[], size=4 * M, chunk=4096)
    watch = fill_watch.FillWatch([fill_watch.store_gauge(snap)], extend=fill_watch.grow_stores(4 * M), every=0)
    watch.check()
    sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=3 oflag=direct status=none")
    watch.check()
    assert lvm.find_volume("vg/snap").size == 8 * M
    assert watch.notes == ["the store of vg/snap was 75.5% full; lvmsync extended it, and it is 37.7% full now"], (
        watch.notes
    )
    command = "echo $LVMSYNC_VOLUME ${LVMSYNC_PERCENT%.*} >/run/extended"
    watch = fill_watch.FillWatch(
        [fill_watch.store_gauge(snap)], extend=fill_watch.extend_command(f"sh -c '{command}'"), every=0
    )
    sh("dd if=/dev/urandom of=/dev/vg/data bs=1M count=3 seek=3 oflag=direct status=none")
    watch.check()
    assert Path("/run/extended").read_text() == "vg/snap 75\n"
    assert watch.notes == ["the store of vg/snap is 75.4% full, and 'sh' did not make it larger"], watch.notes
    sh("dd if=/dev/urandom of=/dev/vg/data bs=512k count=3 seek=12 oflag=direct status=none")
    with pytest.raises(DeviceError, match=r"the store of vg/snap is 94.2% full \(7.5 MiB of 8.0 MiB\), over .* 90%"):
        fill_watch.FillWatch([fill_watch.store_gauge(snap)], limit=90, every=0).check()
    lvm_commands.remove_snapshot(snap)


@case("takes a thin snapshot, read-only and not active")
def thin() -> None:
    sh("lvcreate -q -q -y --type thin-pool --poolmetadataspare n -L 32m -n pool vg")
    made = lvm_commands.create_volume("vg/thin", 48 * M, pool="pool")
    assert (made.pool, made.size, set(made.tags)) == ("pool", 48 * M, {"lvmsync.created"})
    snap = lvm_commands.take_snapshot(made, "tsnap", tags=[lvm_commands.role_tag("base")])
    assert snap.is_thin
    assert (snap.origin_id, snap.number, snap.attr[1]) == (made.id, None, "r")
    assert snap.tags == {"lvmsync", "lvmsync.role=base"}
    with activation.activated(snap) as active:
        assert active.number
        assert fill.pool_fill_of(active.number) == fill.pool_fill_of(made.number or (0, 0))
    lvm_commands.remove_snapshot(snap)
    snap = lvm_commands.take_snapshot(made, "asnap", tags=[lvm_commands.role_tag("base")], active=True)
    assert as_lvm_tells(snap)
    assert snap.number
    assert sh("lvs --noheadings -o lv_skip_activation vg/asnap").strip() == "skip activation"
    lvm_commands.remove_snapshot(snap)
    assert lvm_commands.leave_snapshot(made, "later", tags=[lvm_commands.role_tag("back")]) is None
    lvm_commands.remove_snapshot(lvm.find_volume("vg/later"))


@case("watches a thin pool, data and metadata")
def pool() -> None:
    made = lvm.find_volume("vg/thin")
    number = made.number
    assert number
    found = fill.pool_fill_of(number)
    assert found
    assert found.chunk == 65536
    assert found.data == fill.Fill(0, 32 * M)
    sh("dd if=/dev/urandom of=/dev/vg/thin bs=1M count=31 oflag=direct status=none")
    found = fill.pool_fill_of(number)
    assert found
    assert found.data.used == 31 * M
    with pytest.raises(
        DeviceError, match=r"the data of thin pool vg/pool is 96.9% full .* 'lvextend -L \+SIZE vg/pool'"
    ):
        fill_watch.FillWatch([fill_watch.pool_gauge(number)]).check()


@case("removes a volume that it made, and none that was given into use")
def created() -> None:
    made = lvm.find_volume("vg/thin")
    kept = lvm_commands.change_tags(made, drop=[lvm_commands.CREATED_TAG])
    with pytest.raises(ConflictError, match=r"vg/thin has no tag 'lvmsync.created'"):
        lvm_commands.remove_volume(kept)
    with pytest.raises(ConflictError, match=r"has lost its tag 'lvmsync.created' meanwhile"):
        lvm_commands.remove_volume(made)
    lvm_commands.remove_volume(lvm_commands.change_tags(made, [lvm_commands.CREATED_TAG]))
    thick = lvm_commands.create_volume("vg/new", 5 * M + 1)
    assert 5 * M < thick.size <= 5 * M + 4096
    lvm_commands.remove_volume(thick)
    with pytest.raises(DeviceError, match=r"the volume group 'vg' has .* free, and the volume 'new' needs 1.0 TiB"):
        lvm_commands.create_volume("vg/new", 1 << 40)
    with pytest.raises(CommandError, match="vg/data is not a thin pool"):
        lvm_commands.create_volume("vg/new", M, pool="vg/data")
    assert names() == ["data"], names()


@case("takes a volume whose maker was killed as made, until somebody writes to it")
def left() -> None:
    state = Path("/tmp/state")

    def make(pool: str | None = None) -> None:
        """Make it as a run does that is killed right after that."""
        create._write(create._making(state, "vg/new"))
        lvm_commands.create_volume("vg/new", 4 * M, pool=pool)

    make("vg/pool")
    assert standing("vg/new", state).is_blank
    create.create_volume("vg/new", 4 * M, None, state)
    found = standing("vg/new", state)
    assert (found.made, found.is_blank) == (True, False), found
    lvm_commands.remove_volume(lvm.find_volume("vg/new"))
    make()
    assert standing("vg/new", state).is_blank
    sh("dd if=/dev/urandom of=/dev/vg/new bs=64K seek=1 count=2 oflag=direct status=none")
    assert not standing("vg/new", state).is_blank
    with pytest.raises(ConflictError, match="there is"):
        create.create_volume("vg/new", 4 * M, None, state)
    lvm_commands.remove_volume(lvm.find_volume("vg/new"))


@case("lets jobs that change LVM at the same time do so one after the other")
def parallel() -> None:
    data = lvm.find_volume("vg/data")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            snap = lvm_commands.take_snapshot(data, f"s{number}", tags=[], size=M, chunk=4096)
            lvm_commands.remove_snapshot(lvm_commands.change_tags(snap, ["x"]))
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names() == ["data"], names()


@case("finishes a command that a signal comes into")
def interrupted() -> None:
    Path("/run/bin/lvcreate").write_text(f'#!/bin/sh\nkill -TERM $PPID\nsleep 0.3\n{sh("command -v lvcreate")} "$@"\n')
    child = os.fork()
    if not child:
        os.environ["PATH"] = f"/run/bin:{os.environ['PATH']}"
        lvm_commands.take_snapshot(lvm.find_volume("vg/data"), "snap", tags=[], size=M, chunk=4096)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == -signal.SIGTERM, ended
    assert names() == ["data", "snap"], names()
    lvm_commands.remove_snapshot(lvm.find_volume("vg/snap"))


@case("leaves a command that takes too long to run, and says so")
def slow() -> None:
    Path("/run/bin/lvcreate").write_text(f'#!/bin/sh\nsleep 1\n{sh("command -v lvcreate")} "$@"\ntouch /run/is-made\n')
    path, timeout = os.environ["PATH"], lvm_lock.TIMEOUT
    os.environ["PATH"], lvm_lock.TIMEOUT = f"/run/bin:{path}", 0.3
    try:
        with pytest.raises(CommandError, match=r"did not end within 0.3 s and still runs as process"):
            lvm_commands.take_snapshot(lvm.find_volume("vg/data"), "snap", tags=[], size=M, chunk=4096)
    finally:
        os.environ["PATH"], lvm_lock.TIMEOUT = path, timeout
    until(Path("/run/is-made").exists, "the snapshot")
    lvm_commands.remove_snapshot(lvm.find_volume("vg/snap"))


def prepare() -> None:
    sh("make_vg vg /dev/ubda; lvcreate -q -y -W n -L 16m -n data vg")
