"""Guests of libvirt's own test driver: one that runs, called ``test``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmsync.errors import CommandError, UsageError
from lvmsync.system import virsh

URI = "test:///default"


@pytest.fixture
def domain() -> Iterator[virsh.Domain]:
    with virsh.Domain("test", URI) as found:
        yield found


def test_virsh_is_there() -> None:
    assert shutil.which("virsh"), "scripts/setup installs it"


def test_a_guest_is_stopped_and_started(domain: virsh.Domain) -> None:
    assert domain.state() == "running"
    domain.stop()
    assert domain.state() == "shut off"
    assert domain.is_off()
    domain.stop()
    domain.start()
    assert domain.state() == "running"
    domain.start()


def test_the_disks_of_a_guest_are_listed(domain: virsh.Domain) -> None:
    assert domain.disks() == [virsh.Disk("file", "disk", "vda", "/guest/diskimage1")]


def test_a_guest_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match=r"virsh of test:///default: domstate 'nope': failed to get domain 'nope'"):
        virsh.Domain("nope", URI)


@pytest.mark.parametrize("name", ['te"st', "--help", "te st; start test", "te\\st", "'test'", "$(test)"])
def test_a_hostile_name_is_a_name_and_no_more(name: str) -> None:
    with pytest.raises(CommandError, match="failed to get domain"):
        virsh.Domain(name, URI)


@pytest.mark.parametrize("name", ["", "test\nundefine test", "a\x00b"])
def test_a_name_that_is_more_than_a_line_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a guest"):
        virsh.Domain(name, URI)


def test_a_hypervisor_that_is_not_there_is_an_error_with_virshs_words() -> None:
    with pytest.raises(CommandError, match=r"virsh of bogus:///x ended: failed to connect to the hypervisor; "):
        virsh.Domain("test", "bogus:///x")


def test_a_missing_virsh_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="cannot run 'virsh': No such file or directory; install"):
        virsh.Domain("test", URI)


_STUBBORN = """#!/bin/sh
state=running
while read -r command rest; do
    case $command in
        domstate) echo $state ;;
        shutdown) echo "asked" >>{calls} ;;
        destroy) state="shut off"; echo "destroyed" >>{calls} ;;
        echo) case $rest in --err*) echo "${{rest#--err }}" >&2 ;; *) echo "$rest" ;; esac ;;
    esac
done
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let virsh be one whose guest takes no notice of a wish that it shut down, and that echoes nothing."""
    script = tmp_path / "virsh"
    script.write_text(_STUBBORN.format(calls=tmp_path / "calls"))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "calls"


def test_a_guest_that_does_not_shut_down_is_left_running(calls: Path) -> None:
    with virsh.Domain("stubborn") as domain:
        with pytest.raises(
            CommandError, match=r"did not shut down within 0.2 s, and is 'running'; shut it down by hand"
        ):
            domain.stop(0.2)
        assert domain.state() == "running"
    assert calls.read_text() == "asked\n"


def test_a_guest_that_does_not_shut_down_is_switched_off_where_that_is_wanted(calls: Path) -> None:
    with virsh.Domain("stubborn") as domain:
        domain.stop(0.2, destroy=True)
        assert domain.is_off()
    assert calls.read_text() == "asked\ndestroyed\n"


def test_a_guest_without_a_definition_is_off_when_it_is_gone(domain: virsh.Domain) -> None:
    domain.name = "gone"
    assert domain.is_off()


def test_a_virsh_that_says_nothing_is_not_waited_for_for_ever(
    domain: virsh.Domain, monkeypatch: pytest.MonkeyPatch, calls: Path
) -> None:
    calls.with_name("virsh").write_text("#!/bin/sh\nwhile read -r line; do :; done\n")
    monkeypatch.setattr(virsh, "_ANSWER", 0.2)
    with pytest.raises(CommandError, match=r"'domstate' gave no answer within 0.2 s; does libvirt hang\?"):
        virsh.Domain("test")


def test_a_guest_that_goes_off_by_itself_while_it_is_asked_has_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    went_off = (
        'shutdown) state="shut off"; echo "error: Requested operation is not valid: domain is not running" >&2 ;;'
    )
    stubborn = _STUBBORN.format(calls=tmp_path / "calls")
    (tmp_path / "virsh").write_text(stubborn.replace(f'shutdown) echo "asked" >>{tmp_path / "calls"} ;;', went_off))
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with virsh.Domain("a") as domain:
        assert domain.state() == "running"
        domain.stop(timeout=5)
        assert domain.is_off()
