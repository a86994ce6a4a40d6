"""What opens an encrypted archive: added, removed, refused; killed at every step, it opens as before or as then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lvmsync.chain.keys import KEY_FILE, PASSPHRASE, KeyRing, Secret
from lvmsync.errors import ConflictError, FormatError, LvmsyncError, UsageError
from lvmsync.interfaces import Store
from lvmsync.jobs.archive import keys
from lvmsync.jobs.archive.keys import add_key, init_sealed, load_keys, open_sealed, remove_key, require_keys
from lvmsync.jobs.archive.shelf import Shelf
from lvmsync.jobs.archive.take import take
from lvmsync.jobs.archive.verify import verify
from lvmsync.jobs.progress import ignore
from lvmsync.jobs.send import StreamOptions
from lvmsync.stores.folder import FolderStore
from tests.archive_history import History
from tests.killed import killed_at

FIRST, SECOND, THIRD = (Secret(KEY_FILE, bytes([number]) * 40) for number in (1, 2, 3))
WORD = Secret(PASSPHRASE, b"correct horse")
CHEAP = 1 << 10


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path / "archive")
    init_sealed(store, lambda: FIRST, label="first")
    return store


def names(store: FolderStore) -> list[str]:
    return sorted(path.name for path in Path(store.name).iterdir())


def opens(store: Store, secret: Secret) -> bool:
    """Tell whether a secret opens the archive; all that is in it is read then."""
    ring = require_keys(store)
    if ring.open(secret) is None:
        with pytest.raises(UsageError, match=f"that {secret.kind} does not open"):
            open_sealed(store, ring, secret)
        return False
    assert verify(Shelf.open(open_sealed(store, ring, secret)), ignore, is_restoring=True).faults == []
    return True


def test_keys_come_and_go_and_no_member_is_written_anew(store: FolderStore, tmp_path: Path) -> None:
    sealed = open_sealed(store, require_keys(store), FIRST)
    shutil.rmtree(store.name)
    init_sealed(store, lambda: FIRST)
    with pytest.raises(FormatError, match=r"the newest catalogue is damaged: .*or another one"):
        Shelf.open(sealed)  # the same place and secret; but each archive has a key of its own
    before = names(store)
    assert add_key(store, FIRST, WORD, label="a word", cost=CHEAP).number == 2
    assert add_key(store, WORD, SECOND).number == 3
    assert [opens(store, one) for one in (FIRST, SECOND, THIRD, WORD)] == [True, True, False, True]
    assert remove_key(store, SECOND, 1).kind == KEY_FILE
    assert [opens(store, one) for one in (FIRST, SECOND, WORD)] == [False, True, True]
    assert [name for name in names(store) if name not in before] == ["keys-000000000004.json"]
    assert add_key(store, SECOND, FIRST).number == 4
    assert [(one.number, one.label) for one in require_keys(store).slots] == [(2, "a word"), (3, None), (4, None)]


def test_what_would_lock_somebody_out_is_refused(store: FolderStore) -> None:
    before = names(store)
    with pytest.raises(UsageError, match="key 1 is the last"):
        remove_key(store, FIRST, 1)
    add_key(store, FIRST, SECOND)
    for secret, number, message in (
        (FIRST, 1, "opens only key 1, which is to go"),
        (THIRD, 1, "that key file does not open .*its keys are: 2 by key file"),
        (WORD, 1, "that passphrase does not open"),
        (FIRST, 3, "has no key 3; it has 1, 2"),
    ):
        with pytest.raises(UsageError, match=message):
            remove_key(store, secret, number)
    for secret, new, label, message in (
        (THIRD, WORD, None, "does not open"),
        (FIRST, SECOND, None, "opens .* already: it is key 2"),
        (FIRST, THIRD, "\n", "--label"),
        (FIRST, THIRD, "x" * 201, "--label"),
    ):
        with pytest.raises(UsageError, match=message):
            add_key(store, secret, new, label=label)
    for number in range(30):
        add_key(store, FIRST, Secret(KEY_FILE, bytes([9, number]) * 20))
    with pytest.raises(UsageError, match="has 32 keys, which is the most"):
        add_key(store, FIRST, THIRD)
    assert len(names(store)) == len(before)


def test_an_archive_is_encrypted_from_its_beginning_or_never(store: FolderStore, tmp_path: Path) -> None:

    def never() -> Secret:
        raise AssertionError("a key file would have been made for nothing")

    with pytest.raises(ConflictError, match="there is an archive"):
        init_sealed(store, never)
    with pytest.raises(FormatError, match="not a catalogue, or a damaged one"):
        Shelf.open(store)
    plain = FolderStore(tmp_path / "plain")
    Shelf.init(plain)
    with pytest.raises(ConflictError, match="there is an archive"):
        init_sealed(plain, never)
    assert load_keys(plain) is None
    with pytest.raises(UsageError, match="is not encrypted"):
        require_keys(plain)
    Path(plain.name, "catalogue-000000000001.json").rename(Path(plain.name, "x"))
    with pytest.raises(ConflictError, match="is not empty"):
        init_sealed(plain, never)


def test_what_an_init_that_was_cut_off_has_left_is_gone_on_with(store: FolderStore) -> None:
    Path(store.name, "catalogue-000000000001.json").unlink()
    with pytest.raises(ConflictError, match="is not empty"):
        Shelf.init(store)
    with pytest.raises(UsageError, match="left by an 'archive init' that was cut off, and what was given does not"):
        init_sealed(store, lambda: SECOND)
    assert init_sealed(store, lambda: FIRST).catalogue.number == 1
    assert opens(store, FIRST)


def test_keys_that_are_damaged_missing_renamed_or_another_archives_are_told(store: FolderStore, tmp_path: Path) -> None:
    add_key(store, FIRST, SECOND)
    (name,) = (name for name in names(store) if name.startswith("keys"))
    path = Path(store.name, name)
    good = path.read_bytes()
    for bad in (b"", good[:-40], good.replace(b'"number": 1', b'"number": 4', 1)):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match=f"{path}: not the keys of an archive, or damaged ones"):
            load_keys(store)
    path.write_bytes(good)
    path.rename(path.with_name("keys-000000000009.json"))
    with pytest.raises(LvmsyncError, match=r"it says that it is keys-000000000002.json"):
        load_keys(store)
    path.with_name("keys-000000000009.json").unlink()
    other = FolderStore(tmp_path / "other")
    init_sealed(other, lambda: FIRST)
    add_key(other, FIRST, SECOND)
    shutil.copy(Path(other.name, name), path)
    with pytest.raises(FormatError, match=r"the newest catalogue is damaged: .*another one"):
        Shelf.open(open_sealed(store, require_keys(store), FIRST))
    path.write_bytes(good)
    assert opens(store, FIRST)


def test_two_who_change_the_keys_at_once_both_have_their_way(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.put_new
    todo = [lambda: add_key(FolderStore(Path(store.name)), FIRST, SECOND)]

    def late(name: str, data: bytes) -> bool:
        if todo:
            todo.pop()()
        return real(name, data)

    monkeypatch.setattr(store, "put_new", late)
    assert add_key(store, FIRST, THIRD).number == 3
    assert [opens(store, one) for one in (FIRST, SECOND, THIRD)] == [True, True, True]
    todo.append(lambda: remove_key(FolderStore(Path(store.name)), FIRST, 2))
    remove_key(store, FIRST, 3)
    assert [one.number for one in require_keys(store).slots] == [1]


def test_who_was_far_behind_changes_the_keys_that_hold(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number was used and removed long ago, so that its keys can be made, and do not hold."""
    old = require_keys(store)
    for secret in (SECOND, THIRD):
        add_key(store, FIRST, secret)
    stale = [old]
    real = keys.require_keys
    monkeypatch.setattr(keys, "require_keys", lambda store: stale.pop() if stale else real(store))
    add_key(store, FIRST, WORD, cost=CHEAP)
    assert [opens(store, one) for one in (FIRST, SECOND, THIRD, WORD)] == [True] * 4
    assert sum(name.startswith("keys") for name in names(store)) == 1


@pytest.mark.parametrize("job", ["init", "add", "remove"])
def test_a_change_that_is_killed_at_any_step_leaves_the_old_keys_or_the_new(job: str, tmp_path: Path) -> None:
    made = FolderStore(tmp_path / "made" / "archive")
    shelf, history = init_sealed(made, lambda: FIRST), History.make(3, 3, 32 << 10)
    for number in range(3):
        take(shelf, history.delta(number) if number else history.full(0), StreamOptions(), ignore)
    add_key(made, FIRST, SECOND)
    assert opens(made, FIRST)  # the digests of all points are remembered
    step, seen = 0, set[bool]()
    while True:
        folder = tmp_path / str(step)
        if job != "init":
            shutil.copytree(made.name, folder)
        store = FolderStore(folder)
        jobs: dict[str, Callable[[], object]] = {
            "init": lambda: init_sealed(store, lambda: FIRST),  # noqa: B023
            "add": lambda: add_key(store, FIRST, THIRD),  # noqa: B023
            "remove": lambda: remove_key(store, FIRST, 2),  # noqa: B023
        }
        was_killed = killed_at(step, jobs[job])
        if job == "init":
            with suppress(ConflictError):  # it was killed when all was done
                init_sealed(store, lambda: FIRST)
        else:
            new = {"add": THIRD, "remove": SECOND}[job]
            has = opens(store, new)
            seen.add(has)
            assert opens(store, FIRST)
            sealed = open_sealed(store, require_keys(store), FIRST)
            verify(Shelf.open(sealed), ignore, is_repairing=True)
            assert sum(name.startswith("keys") for name in names(store)) == 1  # a secret that went opens nothing
            if has != (job == "add"):
                jobs[job]()
            assert opens(store, new) == (job == "add")
        assert opens(store, FIRST)
        assert (
            verify(Shelf.open(open_sealed(store, require_keys(store), FIRST)), ignore, is_repairing=True).faults == []
        )
        assert not [name for name in names(store) if name.startswith(".new")]
        if not was_killed:
            break
        step += 1
    assert step >= 5
    assert seen == ({True, False} if job != "init" else set())


def test_a_ring_that_could_not_be_read_again_is_not_written(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(store)
    monkeypatch.setattr(KeyRing, "with_slot", lambda ring, slot: KeyRing(2, (slot, slot), 2))
    with pytest.raises(FormatError):
        add_key(store, FIRST, SECOND)
    assert names(store) == before
