"""Finish or undo what a crash has left of a receive: the target becomes wholly old or wholly new."""

from __future__ import annotations

from pathlib import Path

from lvmsync.errors import ConflictError, DeviceError, LvmsyncError, VerifyError
from lvmsync.jobs.keeping import pay
from lvmsync.jobs.prepared import list_members, settle, was_written
from lvmsync.jobs.progress import Receipt, Report, Stopwatch
from lvmsync.jobs.samples import find_different
from lvmsync.jobs.spool import open_spool, read_spool
from lvmsync.jobs.transaction import Transaction, Undo
from lvmsync.jobs.way_back import can_go_back, forget_unnoted, go_back, prove_undo, restore
from lvmsync.stream.frames import FULL, Header
from lvmsync.system import record as records
from lvmsync.system import seen
from lvmsync.system.identity import is_weak
from lvmsync.system.ledger import Ledger, open_ledger
from lvmsync.targets.block import BlockTarget, open_target

_BACK = "rolled back: the target is as it was"


def recover(
    target_path: str,
    state: Path,
    report: Report,
    *,
    accept: bool = False,
    back: bool = False,
    give_up: bool = False,
    alone: bool = False,
    pays: bool = True,
) -> Receipt:
    """Bring a target out of a transaction that broke off; all others of its group go the same way.

    Args:
        target_path: the target.
        state: the state folder.
        report: takes the progress.
        accept: where there is no way back, or it is damaged or gone: take the target as it is, on the user's word.
        give_up: likewise: end the transaction, and note that what the target holds is not known.
        back: go back even if a staged stream is there to go forward with.
        alone: leave the others of its group as they are.
        pays: archives are given what they are owed of what was overwritten.

    Raises:
        VerifyError: there is no way back, or its file is damaged; or somebody else wrote to the target, too.
        ConflictError: somebody wrote to the target after the stream for it was staged; or it may be another device.
    """
    watch = Stopwatch()
    if not Path(target_path).exists():
        return _recover_removed(target_path, state)
    with (
        open_target(target_path) as target,
        open_ledger(state, target.canonical, target.identity, target.size) as ledger,
    ):
        look = seen.look_at_target(target.fd)  # before anything of ours shows
        note = ledger.record.transaction
        written = was_written(target, ledger, look)
        group = note.group if note else None
        if note is None:
            ledger.sweep()
            said = "nothing to recover: no transaction is open"
        elif note.phase == "prepared" and settle(target, ledger, state, report):
            said = "rolled forward: its group is committed, the target is wholly new"
        elif ledger.record.transaction is None:  # prepared, and its group was not committed
            _require_alone(target, note, written)
            said = _BACK
        elif (accept or give_up) and (_is_stuck(target, ledger) or _may_be_another(target, ledger, look)):
            said = _end(ledger, accept=accept)
        elif note.spool and note.phase in ("staged", "applying") and not back:
            _go_forward(target, ledger, look, report)
            said = "rolled forward: the staged stream is applied, the target is wholly new"
        elif _may_be_another(target, ledger, look):
            raise ConflictError(
                f"{target.name} is known by no more than its number or name, and does not hold what was written to it"
                f" in the transaction of {note.began}: it may be another device, so nothing was brought back. Name the"
                f" right one; if it is this one, 'lvmsync recover --accept {target.name}' takes it as it is",
                device=target.name,
            )
        else:
            _roll_back(target, ledger, note, written, report)
            said = f"{_BACK}, and that was no whole copy: repair it, or copy it anew" if ledger.record.dirty else _BACK
        paid = pay(ledger, report) if pays else []
        point, size = ledger.record.point, target.size
    others = _recover_others(group, state, report) if group and not alone else []
    return Receipt(
        job="recover",
        target=target_path,
        size=size,
        seconds=round(watch.seconds, 3),
        durable=True,
        point=point.id if point else None,
        notes=[said, *paid, *others],
    )


def _end(ledger: Ledger, *, accept: bool) -> str:
    """End a transaction that has no way back, and return what the user should know."""
    if accept:
        ledger.write(transaction=None, dirty=False, point=None, seen=None, made=False, traces=(), group=None)
        ledger.sweep()
        return "taken as good, on your word"
    ledger.write(transaction=None, dirty=True, point=None, held=None, seen=None, group=None)
    ledger.sweep()
    return "given up: what the target holds is not known, until it is repaired or copied anew"


def _is_stuck(target: BlockTarget, ledger: Ledger) -> bool:
    """Tell whether the open transaction has changed the target, and its undo is damaged, gone, or was not kept."""
    note = ledger.record.transaction
    if note is None or note.phase not in ("applying", "prepared", "undoing"):
        return False
    if not can_go_back(note):
        return True
    try:
        prove_undo(target, ledger)
    except (DeviceError, VerifyError):
        return True
    return False


def _may_be_another(target: BlockTarget, ledger: Ledger, look: dict[str, str] | None) -> bool:
    """Tell whether a target in the middle of a transaction may be another device than that was begun for.

    What the kernel has counted since is of this one; without that, it should hold what the transaction has written.
    """
    record = ledger.record
    if record.transaction is None or not is_weak(target.identity) or seen.was_written(record.seen, look) != "unknown":
        return False
    return was_written(target, ledger, look) == "yes"


def _require_alone(target: BlockTarget, note: records.Transaction, written: seen.Written) -> None:
    """Raise if somebody else wrote to a target whose transaction was undone."""
    if written == "yes" and not note.created:
        raise VerifyError(
            f"{target.name}: what the transaction of {note.began} had changed is as it was before, but somebody"
            " else wrote to it meanwhile: what it holds elsewhere is not known; bring it up to date with"
            " 'lvmsync repair' or 'compare:'",
            device=target.name,
        )


def _roll_back(
    target: BlockTarget, ledger: Ledger, note: records.Transaction, written: seen.Written, report: Report
) -> None:
    """Write back what was overwritten, and tell whether somebody else wrote to the target, too."""
    if note.resumable and not can_go_back(note):
        raise VerifyError(
            f"{target.name} holds a part of a first copy, which was begun {note.began}: run the same sync again to"
            " go on with it. It is of no use until then"
            f" ('lvmsync recover --accept {target.name}' takes it as it is)",
            device=target.name,
        )
    go_back(target, ledger, report, written)
    _require_alone(target, note, written)


def _recover_others(group: str, state: Path, report: Report) -> list[str]:
    """Recover all other targets that are in the middle of a group's copy; return what became of each."""
    said = []
    for path in list_members(state, group):
        try:
            said += [f"{path}: {note}" for note in recover(path, state, report, alone=True).notes]
        except LvmsyncError as error:
            said.append(f"{path}, of the same group, could not be recovered: {error}")
    return said


def _recover_removed(path: str, state: Path) -> Receipt:
    """Close the transaction of a file that it had made, and that is gone."""
    with open_ledger(state, str(Path(path).resolve()), None, 0) as ledger:
        ledger.sweep()
        note = ledger.record.transaction
        if note is None or not note.created:
            raise DeviceError(f"cannot open {path}: there is no such device or file", device=path)
        ledger.write(transaction=None, dirty=False)
        ledger.sweep()
    return Receipt(job="recover", target=path, durable=True, notes=["rolled back: the file was not made"])


def _is_for_another_state(target: BlockTarget, note: records.Transaction) -> ConflictError:
    return ConflictError(
        f"{target.name} was written to since the stream of {note.began} was staged for it, and does not hold what"
        f" that starts from any more: 'lvmsync recover --back {target.name}' drops it; then bring the target up to"
        " date with 'lvmsync repair' or 'compare:'",
        device=target.name,
    )


def _require_base(target: BlockTarget, ledger: Ledger, note: records.Transaction, header: Header) -> None:
    """Refuse to apply what is staged to a target that does not hold what it starts from, as far as that can be told.

    Raises:
        ConflictError: it does not.
    """
    point = ledger.record.point
    is_at_base = point is not None and note.base is not None and point.id == note.base.id and note.intent != FULL
    known = [*header.samples, *(ledger.record.traces if is_at_base else ())]
    if find_different(target, [one for one in known if one.offset + one.length <= target.size]):
        raise _is_for_another_state(target, note)


def _go_forward(target: BlockTarget, ledger: Ledger, look: dict[str, str] | None, report: Report) -> None:
    """Apply a staged stream whose transaction was cut off: back to the start, so that a new undo is true, then on."""
    note = ledger.record.transaction
    assert note is not None
    if note.phase == "staged" and note.is_proved and seen.was_written(note.seen, look) == "yes":
        raise _is_for_another_state(target, note)
    wanted = note.phase == "staged" or note.undo is not None
    undo = Undo(wanted, Path(note.snapback) if note.snapback else None)
    if note.undo:
        restore(target, ledger, report)
    else:
        forget_unnoted(ledger)
    header = next(open_spool(ledger))
    assert isinstance(header, Header)
    version = 3 if header.size is None else 4
    if note.created and header.size is not None:
        target.resize(header.size)  # which was not made durable
    if wanted:  # what is staged is for the base, which is there now if nobody brought another state back
        _require_base(target, ledger, note, header)
    transaction = Transaction(target, ledger, header, version, undo, is_open=True)
    transaction.start()
    transaction.apply(read_spool(ledger), report)
    transaction.commit()
