"""Archives in an object store: Ceph's gateway, and what a store and its line can do to them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lvmsync.chain.keys import KEY_FILE, Secret
from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, TransportError, UsageError
from lvmsync.jobs.archive.keys import add_key, init_sealed, open_sealed, remove_key, require_keys
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.places import BucketPlace
from lvmsync.stores import open_store
from lvmsync.stores.bucket import BucketStore
from lvmsync.stores.sealed import SealedStore
from tests.archive_history import Forward, History, require_whole
from tests.ceph.conftest import Ceph
from tests.http_gate import Gate, run_gate
from tests.proxy import Proxy, run_proxy
from tests.stores.contract import StoreContract

MIB = 1 << 20


@pytest.fixture
def place(ceph: Ceph) -> BucketPlace:
    return BucketPlace(ceph.env["S3_BUCKET"], f"tests/{uuid.uuid4().hex}")


@pytest.fixture
def store(place: BucketPlace) -> Iterator[BucketStore]:
    with open_store(place) as found:
        assert isinstance(found, BucketStore)
        yield found


@pytest.fixture
def gate(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with run_gate(ceph.env["AWS_ENDPOINT_URL"]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture
def proxy(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with run_proxy(urlsplit(ceph.env["AWS_ENDPOINT_URL"]).port or 0) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
        yield found


def run(words: str, env: dict[str, str], status: int = 0) -> str:
    """Run a command line of the installed program, and return what it says."""
    argv = [str(Path(sys.executable).with_name("lvmsync")), *words.split()]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **env}, timeout=120)
    assert done.returncode == status, f"{words}: {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


class TestBucket(StoreContract):
    """An object store does what every store has to do."""

    can_refuse_members = False


def test_an_archive_that_is_encrypted_has_the_same_bytes_and_its_keys_can_be_changed(
    place: BucketPlace, store: BucketStore, tmp_path: Path
) -> None:
    first, second = Secret(KEY_FILE, bytes(32)), Secret(KEY_FILE, bytes(33))
    shelf = init_sealed(store, lambda: first)
    history = History.make(9, 6)
    for number in range(6):
        take(shelf, history.delta(number) if number else history.full(0), StreamOptions(), ignore)
    add_key(store, first, second)
    remove_key(store, second, 1)
    with pytest.raises(UsageError, match="that key file does not open"):
        open_sealed(store, require_keys(store), first)
    assert verify(Shelf.open(open_sealed(store, require_keys(store), second)), ignore, is_restoring=True).restored
    assert sum(name.startswith("keys-") for name in store.list_objects()) == 1
    with open_store(BucketPlace(place.bucket, f"{place.prefix}/history")) as other:
        archive = Forward(tmp_path, History.make(8, 8), store=SealedStore(other, bytes(32)))
        require_whole(archive)
        data = [other.read(name) for name in other.list_objects()]
    assert all(one and one.startswith(b"lvsseal1") for one in data)


def test_archives_below_one_another_do_not_see_each_other(place: BucketPlace, store: BucketStore) -> None:
    for prefix in (f"{place.prefix}/below", f"{place.prefix}x"):
        with open_store(BucketPlace(place.bucket, prefix)) as other:
            Shelf.init(other)
    assert store.list_objects() == {}
    Shelf.init(store)
    with pytest.raises(ConflictError, match="there is an archive at s3://"):
        Shelf.init(store)
    assert list(store.list_objects()) == ["catalogue-000000000001.json"]


def test_an_upload_that_is_larger_than_it_was_said_to_be_is_refused(
    store: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvmsync.stores.bucket._MOST_PARTS", 3)

    def fill(most: int | None) -> None:
        with store.create("large", most) as blob:
            for _ in range(30):
                blob.write([bytes(MIB)])

    with pytest.raises(DeviceError, match="3 parts at the most, and this stream has more than 25165824 bytes"):
        fill(None)
    assert store.list_objects() == {}
    fill(30 * MIB)
    assert store.list_objects() == {"large": 30 * MIB}


def test_what_the_store_refuses_is_told_with_the_way_out(
    place: BucketPlace, store: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(BucketPlace("no-such-bucket", "x")) as other:
        for act in (other.make, other.list_objects, lambda: other.put_new("x", b"")):
            with pytest.raises(DeviceError, match=r"NoSuchBucket.*there is no such bucket: make it"):
                act()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with open_store(place) as other, pytest.raises(DeviceError, match=r"403.*look at AWS_ACCESS_KEY_ID"):
        Shelf.open(other)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LVMSYNC_S3_TIMEOUT", "1")
    with open_store(place) as other, pytest.raises(TransportError, match="no answer from the store"):
        Shelf.open(other)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with open_store(place) as other, pytest.raises(UsageError, match="set AWS_ALLOW_HTTP=true"):
        Shelf.open(other)
    monkeypatch.setenv("LVMSYNC_S3_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="LVMSYNC_S3_TIMEOUT=soon"):
        open_store(place).__enter__()


def test_a_store_that_overwrites_what_should_be_new_cannot_hold_an_archive(
    place: BucketPlace, store: BucketStore, gate: Gate
) -> None:
    def make_room(method: str, path: str) -> None:
        """What the server would refuse to overwrite is gone before it is asked."""
        if method == "PUT":
            store.delete(path.rpartition("/")[2])

    gate.refuse = make_room
    with open_store(place) as other:
        with pytest.raises(DeviceError, match=r"If-None-Match.*two writers would lose each other's points"):
            Shelf.init(other)
        assert other.list_objects() == {}
    gate.refuse = lambda _method, _path: None
    with open_store(place) as other:
        Shelf.init(other)


def test_an_answer_that_is_lost_on_its_way_is_no_other_writer(place: BucketPlace, gate: Gate) -> None:
    lost: list[str] = []

    def lose_once(method: str, path: str) -> bool:
        name = path.rpartition("/")[2]
        if method == "PUT" and name.startswith("catalogue-") and name not in lost:
            lost.append(name)
            return True
        return False

    gate.lose = lose_once
    with open_store(place) as store:
        shelf = Shelf.init(store)
        history = History.make(1, 4)
        for number in range(4):
            take(shelf, history.delta(number) if number else history.full(0), StreamOptions(), ignore)
        assert len(lost) == 5
        assert [one.number for one in shelf.catalogue.points] == [1, 2, 3, 4]
        assert verify(Shelf.open(store), ignore, is_restoring=True).faults == []


@pytest.mark.parametrize("seed", range(1))
def test_a_store_that_answers_500_now_and_then_loses_nothing(
    place: BucketPlace, gate: Gate, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    gate.refuse = lambda _method, _path: 500 if chance.random() < 0.1 else None
    with open_store(place) as store:
        archive = Forward(tmp_path, History.make(seed, 5), store=store)
        require_whole(archive)


def take_fails(archive: Forward) -> LvmsyncError | None:
    try:
        archive.take(5)
    except LvmsyncError as error:
        return error
    return None


def test_a_store_that_answers_500_all_the_time_is_told_and_the_archive_is_as_it_was(
    place: BucketPlace, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVMSYNC_S3_TIMEOUT", "1")
    with open_store(place) as store:
        archive = Forward(tmp_path, History.make(4, 5), store=store)
        archive.history.step()
        before = store.list_objects()
        # From each request of a take on, nothing works any more
        gate.seen.clear()
        number, broken = 0, 0
        while True:
            start = len(gate.seen) + number
            gate.refuse = lambda _method, _path, start=start: 503 if len(gate.seen) > start else None  # type: ignore[misc]
            failure = take_fails(archive)
            assert isinstance(failure, TransportError), failure
            assert "the store answers 503 (Refused), again and again: run it again later" in str(failure)
            broken += 1
            gate.refuse = lambda _method, _path: None
            archive.shelf = Shelf.open(store)
            assert before.keys() <= store.list_objects().keys()
            if len(archive.shelf.catalogue.points) == 6:
                break  # the step that counts was done, and only what comes behind it failed
            assert len(archive.shelf.catalogue.points) == 5
            number += 1
        assert broken >= 4
        gate.refuse = lambda _method, _path: None
        archive.shelf = Shelf.open(store)
        verdict = verify(archive.shelf, ignore, is_repairing=True, is_restoring=True)
        assert verdict.faults == []
        assert verdict.restored == [1, 2, 3, 4, 5, 6]


def test_a_store_that_stalls_or_is_cut_off_is_given_up(
    place: BucketPlace, proxy: Proxy, ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVMSYNC_S3_TIMEOUT", "1")
    with open_store(place) as store:
        Shelf.init(store)

        def upload() -> None:
            with store.create("large") as blob:
                blob.write([os.urandom(9 * MIB)])
                proxy.stall()
                for _ in range(40):
                    blob.write([os.urandom(MIB)])

        with pytest.raises(TransportError, match="cannot write large: no answer from the store"):
            upload()
        with pytest.raises(TransportError, match="cannot list its objects: no answer from the store"):
            store.list_objects()
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.env["AWS_ENDPOINT_URL"])
    with open_store(place) as store:
        assert list(store.list_objects()) == ["catalogue-000000000001.json"]


def test_the_command_line_keeps_an_archive_in_a_bucket(place: BucketPlace, tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    data = bytearray(random.Random(1).randbytes(5 * MIB + 512))
    image.write_bytes(data)
    env = {"LVMSYNC_STATE": str(tmp_path / "state")}
    run(f"archive init {place}", env)
    run(f"archive take {place} full:{image}", env)
    states = [bytes(data)]
    for number in range(2):
        old = tmp_path / f"old{number}"
        old.write_bytes(data)
        data[number * MIB : number * MIB + 5000] = os.urandom(5000)
        image.write_bytes(data)
        run(f"archive take {place} full:{image} --label p{number}", env)
        states.append(bytes(data))
    assert len(json.loads(run(f"archive list {place} --json", env))["points"]) == 3
    for number, state in enumerate(states):
        run(f"archive restore {place} --at {number + 1} --to {out} --create", env)
        assert out.read_bytes() == state
        out.unlink()
    run(f"archive prune {place} --keep-last 2", env)
    assert "is whole: 2 members" in run(f"archive verify {place} --restore-test", env)
    said = run(f"archive list s3://{place.bucket}/tests/none", env, 3)
    assert "there is no archive at s3://" in said
    assert "AWS_SECRET_ACCESS_KEY" in run(f"archive list {place}", {**env, "AWS_SECRET_ACCESS_KEY": "x"}, 3)
    assert "no answer from the store" in run(
        f"archive list {place}", {**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "LVMSYNC_S3_TIMEOUT": "1"}, 7
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_take_that_is_ended_in_the_middle_leaves_the_archive_as_it_was(
    place: BucketPlace, proxy: Proxy, tmp_path: Path, how: signal.Signals
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(48 * MIB))
    env = {"LVMSYNC_STATE": str(tmp_path / "state")}
    run(f"archive init {place}", {})
    proxy.rate = 8 * MIB
    argv = [str(Path(sys.executable).with_name("lvmsync")), *f"archive take {place} full:{image}".split()]
    before = proxy.moved
    with subprocess.Popen(argv, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as taking:
        until = time.monotonic() + 60
        while proxy.moved < before + 10 * MIB:
            assert time.monotonic() < until
            time.sleep(0.02)
        taking.send_signal(how)
        _, said = taking.communicate(timeout=60)
    assert taking.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert "Traceback" not in said
    proxy.rate = None
    assert "is whole: 0 members" in run(f"archive verify {place}", env)
    run(f"archive take {place} full:{image}", env)
    assert "is whole: 1 member" in run(f"archive verify {place} --restore-test", env)


@pytest.mark.parametrize("verb", ["list", "take"])
def test_who_waits_for_a_store_that_says_nothing_can_be_interrupted(
    place: BucketPlace, proxy: Proxy, tmp_path: Path, verb: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(30 * MIB))
    env = {"LVMSYNC_STATE": str(tmp_path / "state"), "LVMSYNC_S3_TIMEOUT": "600"}
    run(f"archive init {place}", env)
    before = proxy.moved
    proxy.stall(behind=0 if verb == "list" else 3 * MIB)
    words = f"archive list {place}" if verb == "list" else f"archive take {place} full:{image}"
    argv = [str(Path(sys.executable).with_name("lvmsync")), *words.split()]
    with subprocess.Popen(argv, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as waiting:
        until = time.monotonic() + 60
        while proxy.connections < 2 or (verb == "take" and proxy.moved < before + 3 * MIB):
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(1)  # it waits
        waiting.send_signal(signal.SIGINT)
        try:
            waiting.wait(60)
        finally:
            waiting.kill()
    assert waiting.returncode == 130
