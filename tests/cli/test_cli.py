"""The installed command, from outside: words in; status, streams and files out."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lvmsync import __version__
from lvmsync.cli.classic import VERBS, run
from lvmsync.stream.frames import Abort, Data, End, Header
from tests.cow_store import CHUNK, build_store
from tests.strategies import build_changes
from tests.stream.feeding import encode
from tests.test_layers import ROOT

COMMAND = str(Path(sys.executable).parent / "lvmsync")
STORE = "snapshot:./cow,origin=./origin"
SIZE = 64 * CHUNK + 512  # the last chunk is not whole
CHANGED = [(3, 2), (4, 3), (40, 4), (64, 5)]  # exceptions: old and new chunk


class Place:
    """A folder with a store, its origin, and a target that holds what the origin held before."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd
        self.old = bytes(at * 7 // CHUNK % 251 for at in range(SIZE))
        new = bytearray(self.old)
        for chunk, _ in CHANGED:
            part = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, SIZE))
            new[part] = b"\xab" * (part.stop - part.start)
        self.new = bytes(new)
        self.write("cow", build_store(CHANGED))
        self.write("origin", self.new)
        self.write("target", self.old)
        self.write("plain", b"no stream at all, and no store either")

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Return every plain file: its bytes, and when they were written. Of the ledger only what is a record."""
        return {
            str(path.relative_to(self.folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "lock" and os.access(path, os.R_OK)
        }

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LC_ALL") if key in os.environ}
        return {**kept, "LVMSYNC_STATE": str(self.folder / "state"), "TERM": "xterm", **extra}

    def call(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run in this process, for tables of many cases: all of the command line but its last line, `sys.exit`."""
        self._capfd.readouterr()
        status = run(words)
        shown = self._capfd.readouterr()
        return subprocess.CompletedProcess(words, status, shown.out.encode(), shown.err.encode())

    def run(
        self, *words: str, stdin: bytes = b"", before: Sequence[str] = (), **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*before, COMMAND, *words],
            cwd=self.folder,
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def do(self, *words: str, stdin: bytes = b"", **env: str) -> bytes:
        """Run what must succeed, and return its standard output."""
        done = self.run(*words, stdin=stdin, **env)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def run_on_terminal(self, descriptor: int, *words: str, **env: str) -> tuple[int, bytes, bytes]:
        """Run with one descriptor on a terminal; return status, what the terminal showed, and stderr."""
        ours, theirs = pty.openpty()
        try:
            pipes = {0: "stdin", 1: "stdout", 2: "stderr"}
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            with subprocess.Popen(
                [COMMAND, *words],
                cwd=self.folder,
                env=self.environment(env),
                **(streams | {pipes[descriptor]: theirs}),  # type: ignore[call-overload]
            ) as process:
                os.close(theirs)
                try:
                    shown = read_all(ours)
                    _, errors = process.communicate(timeout=60)
                except BaseException:
                    process.kill()
                    raise
        finally:
            os.close(ours)
        return process.returncode, shown, errors


def read_all(terminal: int) -> bytes:
    shown = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:  # EIO: the other end is closed
            return shown
    raise AssertionError(f"it still has its terminal, and showed {shown!r}")


@pytest.fixture
def place(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LVMSYNC_STATE", str(tmp_path / "state"))
    return Place(tmp_path, capfd)


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line that a failed command must say, besides notes; anything more is wrong."""
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lvmsync: ")
    assert "this is a bug" not in lines[0]
    assert done.stdout == b""
    return lines[0].removeprefix("lvmsync: ")


# ---- help and version


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_told(place: Place, word: str) -> None:
    assert place.do(word) == f"lvmsync {__version__}\n".encode()


def test_the_package_runs_as_a_module_too(place: Place) -> None:
    done = subprocess.run([sys.executable, "-m", "lvmsync", "-V"], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == place.do("-V")


def test_without_words_it_shows_help_on_standard_output(place: Place) -> None:
    shown = place.do().decode()
    assert shown == place.do("--help").decode()
    assert all(re.search(rf"^  {verb} ", shown, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(place: Place, verb: str) -> None:
    done = place.call(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: lvmsync {verb} [OPTIONS]".encode())
    assert done.stderr == b""
    assert b"--reply" not in done.stdout  # between two lvmsyncs, not for people


def test_help_may_come_before_the_verb_and_among_other_words(place: Place) -> None:
    wanted = place.do("send", "-h")
    assert place.do("--help", "send") == wanted
    assert place.do("send", "x", "--json", "--help") == wanted


# ---- words that are wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sned"], "'sned' alone: name a target as well, or a verb before it (send, receive, "),
        (["send"], "Missing argument 'SOURCE'; see 'lvmsync send --help'"),
        (["apply", "f"], "Missing argument 'TARGET'; see 'lvmsync apply --help'"),
        (["send", "a", "b"], "Got unexpected extra argument"),
        (["send", "--sdtout", STORE], "No such option: --sdtout"),
        (["-Q", STORE, "./target"], "No such option: -Q"),
        (["receive", "./target", "--snapback"], "Option '--snapback' requires an argument"),
        (["--apply"], "--apply needs a file"),
        (["--send", "--server", STORE], "'send' and 'receive' are both asked for"),
        (["send", STORE, "-o", "out", "-s"], "-o and --stdout are both given"),
        (["send", STORE, "-o", "out", "--format", "5"], "--format 5: the formats are 3 (the original's) and 4"),
        (["send", STORE, "-o", "out", "--format", "four"], "Invalid value for '--format'"),
        (["send", STORE, "-o", "out", "--compress", "zstd:20"], "--compress zstd:20: write none, zstd, or zstd:LEVEL"),
        (["send", STORE, "-o", "out", "--compress", "none:1"], "--compress none:1"),
        (["send", STORE, "-o", "out", "--format", "3", "--compress", "zstd"], "PROTO[3] has no compression"),
        (["send", STORE, "--json"], "--json prints on standard output, which is the stream here"),
        (["receive", "./target", "-b", "f", "--no-undo"], "--snapback and --no-undo do not go together"),
        (["receive", "host:vg/lv"], "'host:vg/lv' is on another machine: run this there"),
        (["receive", "target"], "'target' is neither VG/LV nor a path: a file needs ./ or / in front"),
        (["changes", STORE, "--width", "7"], "--width 7 is out of range: 8 to 1024"),
        (["send", "host:vg/snap"], "a source on another machine"),
        (["sync", "host:vg/lv", "far:vg/copy"], "both on other machines"),
        (["sync", "host:vg/lv", "./target", "--frozen"], "is pulled"),
        (["sync", "host:vg/lv", "./target", "--extend-cmd", "true"], "run on host, 'lvmsync sync vg/lv "),
        (["sync", "u@[::1]:vg/lv", "./target", "--freeze"], "--freeze acts where the source is, and is not sent"),
        (["sync", "host:vg/lv", "./target", "--extend-at", "50"], "--extend-at acts where the source is"),
        (["sync", "vg/lv", "./target", "--target-extend-cmd", "x '"], "--target-extend-cmd: cannot split"),
        (["sync", "snapshot:./cow,origin=./origin", "./target", "--full"], "whose snapshots lvmsync takes"),
        (["sync", "full:./cow", "./target", "--retries", "2"], "whose snapshots lvmsync takes"),
        (["sync", STORE, "thin:/x"], "'thin:/x' is a source, not a target; a host called 'thin' is written USER@"),
        (["sync", STORE, "host:vg/lv", "--state", "s"], "--state is of this machine"),
        (["./plain", "./target"], "./plain is a plain file; write snapshot:./plain,origin=PATH"),
        (["changes", "snapshot:./cow"], "names no origin: write snapshot:COW,origin=PATH"),
        (["changes", STORE + ",bass=1"], "unknown key 'bass' in a 'snapshot:' source; known are: origin, size"),
        (["changes", STORE + ",size=4Q"], "not a size: '4Q'"),
        (["changes", STORE + ",size=1G"], f"./origin has {SIZE} bytes, less than the {1 << 30}"),
        (
            ["changes", "dattobd:./cow,since=1"],
            "unknown key 'since' in a 'dattobd:' source; known are: size, uuid, seqid",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_line_and_status_2(place: Place, words: list[str], message: str) -> None:
    before = place.files()
    done = place.call(*words)
    assert message in complaint(done)
    assert done.returncode == 2
    assert place.files() == before
    assert not (place.folder / "state").exists()


def test_a_stream_is_not_written_to_a_terminal(place: Place) -> None:
    status, shown, errors = place.run_on_terminal(1, "send", STORE)
    assert (status, shown) == (2, b"")
    assert errors.startswith(b"lvmsync: standard output is a terminal: pipe it to 'lvmsync receive', or write a file")


def test_a_stream_is_not_read_from_a_terminal(place: Place) -> None:
    status, _, errors = place.run_on_terminal(0, "receive", "./target")
    assert status == 2
    assert errors.startswith(b"lvmsync: standard input is a terminal: pipe 'lvmsync send' into it, or name a file")
    assert place.read("target") == place.old


# ---- bad input


STREAM = b"".join(encode([Header(size=SIZE), build_changes(Data, ((CHUNK, CHUNK),), b"\xcd" * CHUNK), End(1, CHUNK)]))


def write_aside(place: Place, name: str, data: bytes) -> str:
    place.write(name, data)
    return f"snapshot:./{name},origin=./origin"


@pytest.mark.parametrize(
    ("store", "status", "message"),
    [
        pytest.param(b"", 4, "0 bytes, not 16: is this a COW store?"),
        pytest.param(b"short", 4, "5 bytes, not 16: is this a COW store?"),
        (bytes(16 * CHUNK), 4, "magic 0x0, not 0x70416e53: this is not a COW store"),
        (build_store(CHANGED, magic=0x70416E54), 4, "magic 0x70416e54, not 0x70416e53"),
        (build_store(CHANGED, valid=0), 5, "marked invalid, so later changes are not in it; compare the whole device"),
        (build_store(CHANGED, version=2), 4, "COW store byte 8: version 2, not 1"),
        (build_store(CHANGED, chunk_sectors=0), 4, "COW store byte 12: a chunk of 0 sectors"),
        (build_store(CHANGED, chunk_sectors=12), 4, "a chunk of 12 sectors; the kernel allows powers of two"),
        (build_store(CHANGED, chunk_sectors=1 << 31), 4, "a chunk of 2147483648 sectors"),
        (build_store(CHANGED, chunk_sectors=1 << 20), 4, "its header and first area alone take 1073741824: cut short?"),
        (build_store(CHANGED)[:CHUNK], 4, "cut short?"),
        (build_store(CHANGED)[: 4 * CHUNK], 4, "chunk 40 kept at chunk 4: no data chunk of the store can be there"),
        (build_store([(65, 2)]), 4, "chunk 65 kept at chunk 2: the origin has only 65 chunks: is this its store?"),
        (build_store([((1 << 64) - 1, 2)]), 4, "the origin has only 65 chunks"),
        (build_store([(1, 1)]), 4, "chunk 1 kept at chunk 1: no data chunk of the store can be there"),
        (build_store([(7, 2), (7, 3)]), 4, "chunk 7 of the origin has two exceptions; the table is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_store_gets_one_line_its_status_and_nothing_is_written(
    place: Place, store: bytes, status: int, message: str
) -> None:
    place.write("cow", store)
    before = place.files()
    done = place.call("send", STORE, "-o", "out")
    line = complaint(done)
    assert message in line
    assert "./cow" in line
    assert done.returncode == status
    assert place.files() == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("snapshot:./nothing,origin=./origin", "cannot open ./nothing: there is no such device or file"),
        ("snapshot:./cow,origin=./nothing", "cannot open ./nothing: there is no such device or file"),
        ("snapshot:.//,origin=./origin", ".// is a directory; a block device or an image file is needed"),
        ("snapshot:./cow,origin=/", "/ is a directory; a block device or an image file is needed"),
        ("snapshot:/dev/null,origin=./origin", "/dev/null is neither a block device nor a plain file"),
        ("snapshot:./fifo,origin=./origin", "./fifo is neither a block device nor a plain file"),
    ],
)
def test_a_source_that_cannot_be_opened_gets_one_line_and_status_3(place: Place, source: str, message: str) -> None:
    os.mkfifo(place.folder / "fifo")
    before = place.files()
    done = place.call("send", source, "-o", "out")
    assert message in complaint(done)
    assert done.returncode == 3
    assert place.files() == before


@pytest.mark.parametrize("name", ["cow", "origin"])
def test_a_source_that_the_user_may_not_read_gets_one_line_and_status_3(place: Place, name: str) -> None:
    (place.folder / name).chmod(0)
    done = place.run("send", STORE, "-o", "out", before=as_anybody())
    assert f"cannot open ./{name}: permission denied; run as root" in complaint(done)
    assert done.returncode == 3
    assert not (place.folder / "out").exists()


def test_a_target_that_may_not_be_written_is_refused(place: Place) -> None:
    assert place.run("send", STORE, "-o", "stream").returncode == 0
    (place.folder / "target").chmod(0o444)
    done = place.run("apply", "./stream", "./target", before=as_anybody())
    assert "cannot open ./target: permission denied" in complaint(done)
    assert done.returncode == 3
    assert place.read("target") == place.old


def as_anybody() -> list[str]:
    """Return words that take root's right to open every file away from a command."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root can open every file, and there is no setpriv to take that away")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["inspect", "plain"], 6, "not an lvmsync stream: it begins with 'no stream at all,'"),
        (["inspect", "empty"], 6, "no stream: nothing came before the end of the input"),
        (["inspect", "missing"], 3, "cannot open missing: No such file"),
        (["inspect", "."], 3, "is a directory"),
        (["apply", "./plain", "./target"], 6, "not an lvmsync stream"),
        (["apply", "./missing", "./target"], 3, "cannot open missing: No such file"),
        (["apply", "./stream", "./missing"], 3, "cannot open ./missing: there is no such device or file"),
        (["apply", "./stream", "/"], 3, "/ is a directory"),
        (["apply", "./stream", "./plain"], 3, "./plain has 37 bytes and the source has"),
        (["apply", "./stream", "./target", "-b", "./plain"], 3, "is there already and is never overwritten"),
        (["apply", "./stream", "./target", "--create"], 3, "./target is there already"),
        (["apply", "./cut", "./target"], 6, "stream is cut"),
        (["apply", "./aborted", "./target"], 6, "the sender gave up: the snapshot overflowed"),
        (["receive", "./target", "-i", "empty"], 6, "no stream: nothing came before the end of the input"),
        (["--server", "./target", "-i", "plain"], 6, "not an lvmsync stream"),
        (["changes", STORE, "--svg", "plain"], 3, "plain is there already and is never overwritten"),
        (["send", STORE, "-o", "plain"], 3, "plain is there already and is never overwritten"),
        (["send", STORE, "-o", "missing/out"], 3, "cannot make missing/out: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_bad_input_gets_one_line_and_its_status_and_files_stay_as_they_are(
    place: Place, words: list[str], status: int, message: str
) -> None:
    place.write("empty", b"")
    place.write("stream", STREAM)
    place.write("cut", STREAM[:-1])
    place.write("aborted", b"".join(encode([Header(size=SIZE), Abort("the snapshot overflowed")])))
    before = place.files()
    done = place.call(*words)
    assert message in complaint(done)
    assert done.returncode == status
    after = {name: file for name, file in place.files().items() if not name.startswith("state/")}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["send", "--bogus"], 2),
        (["inspect", "missing"], 3),
        (["changes", "snapshot:./target,origin=./origin"], 4),
        (["changes", "snapshot:./lost,origin=./origin"], 5),
        (["receive", "./target"], 6),
        (["--apply", "-", "./target"], 6),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_status_of_an_error_is_that_of_the_process(place: Place, words: list[str], status: int) -> None:
    place.write("lost", build_store(CHANGED, valid=0))
    done = place.run(*words)
    assert complaint(done)
    assert done.returncode == status
    assert place.read("target") == place.old


def test_debug_shows_where_it_failed(place: Place) -> None:
    done = place.run("changes", "snapshot:./nothing,origin=./origin", "-d")
    assert done.returncode != 0
    assert b"Traceback" in done.stderr


# ---- send


@pytest.mark.parametrize("version", [3, 4])
def test_a_stream_is_written_to_standard_output_or_a_new_file(place: Place, version: int) -> None:
    sent = place.run("send", STORE, "--format", str(version))
    assert sent.returncode == 0
    assert b"written, not confirmed by a receiver" in sent.stderr
    assert sent.stdout.startswith(f"lvmsync PROTO[{version}]\n".encode())
    receipt = json.loads(place.do("send", STORE, "--format", str(version), "-o", "out", "--json"))
    assert receipt["job"] == "send"
    assert (receipt["bytes"], receipt["size"]) == (3 * CHUNK + 512, SIZE)
    assert receipt["wire_bytes"] == len(place.read("out"))
    assert (place.folder / "out").stat().st_mode & 0o777 == 0o600
    if version == 3:
        chunk = [(at * CHUNK, place.new[at * CHUNK :][: 2 * CHUNK if at == 3 else CHUNK]) for at in (3, 40, 64)]
        records = b"".join(struct.pack(">QI", offset, len(data)) + data for offset, data in chunk)
        assert sent.stdout == place.read("out") == b"lvmsync PROTO[3]\n" + records


def test_a_file_that_cannot_be_finished_is_taken_away_again(place: Place) -> None:
    limited = ("bash", "-c", 'ulimit -f 8; exec "$@"', "limited")  # 8 KiB: less than the stream
    done = place.run("send", STORE, "-o", "out", before=limited)
    assert "cannot write out: File too large" in complaint(done)
    assert done.returncode == 3
    assert not (place.folder / "out").exists()


def test_a_reader_that_is_gone_is_a_failed_line(place: Place) -> None:
    done = place.run(before=("bash", "-c", '"$1" send "$2" | true; exit ${PIPESTATUS[0]}', "-", COMMAND, STORE))
    assert "the reader of the stream is gone" in complaint(done)
    assert done.returncode == 7


def test_quiet_says_nothing_where_nothing_is_wrong(place: Place) -> None:
    done = place.run("-q", "send", STORE)
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if not line.startswith("note: ")] == []


# ---- changes


def test_changes_draws_the_device(place: Place) -> None:
    *rows, legend, summary = place.do("changes", STORE, "--width", "16").decode().splitlines()
    cells = "".join(row.split(" ")[-1] for row in rows)
    assert len(rows) == 5
    assert len(cells) == 80
    assert {cell for cell in cells if cell != "·"} <= set("░▒▓█")
    assert all(cells[int((chunk * CHUNK + 256) * 80 / SIZE)] != "·" for chunk, _ in CHANGED)
    assert cells.count("·") >= 80 - 2 * len(CHANGED)
    assert "unchanged" in legend
    assert summary == f"{STORE}: 12.5 KiB of 256.5 KiB changed (4.87 %), 3 extents, chunks of 4.0 KiB"


def test_changes_as_json_has_exactly_these_keys(place: Place) -> None:
    (line,) = place.do("changes", STORE, "--json").splitlines()
    assert json.loads(line) == {
        "source": STORE,
        "size": SIZE,
        "granularity": CHUNK,
        "changed_bytes": 3 * CHUNK + 512,
        "extents": [[3 * CHUNK, 2 * CHUNK], [40 * CHUNK, CHUNK], [64 * CHUNK, 512]],
        "holes": [],
    }


def test_changes_of_nothing_is_nothing(place: Place) -> None:
    source = write_aside(place, "none", build_store([]))
    assert json.loads(place.do("changes", source, "--json"))["extents"] == []
    assert f"{source}: 0 B of 256.5 KiB changed (0.00 %), 0 extents" in place.do("changes", source).decode()


def test_changes_as_a_picture_is_well_formed_whatever_the_name_is(place: Place) -> None:
    source = write_aside(place, "a<&>\"'ö", build_store(CHANGED))
    assert place.do("changes", source, "--svg", "map.svg") == b""
    picture = ET.parse(place.folder / "map.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert picture.tag == f"{svg}svg"
    title, caption = (text.text or "" for text in picture.findall(f"{svg}text"))
    assert title.startswith(f"{source} on ")
    assert caption == "12.5 KiB of 256.5 KiB changed (4.87 %), 3 extents"
    assert len(picture.findall(f"{svg}rect/{svg}title")) >= len(CHANGED)


def test_json_and_a_picture_can_be_had_together(place: Place) -> None:
    assert json.loads(place.do("changes", STORE, "--json", "--svg", "map.svg"))["size"] == SIZE
    ET.parse(place.folder / "map.svg")


COLOUR = re.compile(rb"\x1b\[(3|4|9)\d")


def test_a_terminal_gets_colours_unless_no_color_is_set(place: Place) -> None:
    status, shown, _ = place.run_on_terminal(1, "changes", STORE)
    assert status == 0
    assert COLOUR.search(shown)
    status, shown, _ = place.run_on_terminal(1, "changes", STORE, NO_COLOR="1")
    assert status == 0
    assert not COLOUR.search(shown)
    assert b"\x1b" not in place.do("changes", STORE)


# ---- inspect


def test_inspect_explains_a_stream(place: Place) -> None:
    place.do("send", STORE, "-o", "out")
    told = json.loads(place.do("inspect", "out", "--json"))
    assert (told["format"], told["complete"], told["aborted"]) == (4, True, None)
    assert (told["changed_bytes"], told["last_end"]) == (3 * CHUNK + 512, SIZE)
    assert told["header"]["size"] == SIZE
    lines = dict(line.strip().split("  ", 1) for line in place.do("inspect", "out").decode().splitlines())
    assert lines["changed bytes"] == str(told["changed_bytes"])
    assert lines["digest"] == told["digest"]


def test_inspect_cannot_say_that_an_old_stream_is_whole(place: Place) -> None:
    place.do("send", STORE, "--format", "3", "-o", "out")
    told = json.loads(place.do("inspect", "out", "--json"))
    assert (told["format"], told["complete"], told["header"], told["digest"]) == (3, None, {}, None)
    assert "whether it is whole cannot be known" in told["note"]


def test_inspect_tells_of_a_stream_that_was_aborted(place: Place) -> None:
    place.write("aborted", b"".join(encode([Header(size=SIZE), Abort("the snapshot overflowed")])))
    told = json.loads(place.do("inspect", "aborted", "--json"))
    assert (told["complete"], told["aborted"]) == (False, "the snapshot overflowed")


# ---- the classic forms, end to end


@pytest.mark.parametrize(
    ("send", "receive"),
    [
        (["--stdout", STORE], ["--apply", "-", "./target", "--snapback", "back"]),
        ([STORE, "-s"], ["--apply=-", "--snapback=back", "./target"]),
        (["--send", STORE], ["--server", "-bback", "./target"]),
        (["send", "--", STORE], ["--receive", "./target", "-b", "back"]),
        (["-v", "send", STORE, "--format", "3"], ["-b", "back", "-a", "-", "--", "./target"]),
        (["send", STORE, "--compress", "zstd"], ["-v", "-b", "back", "receive", "./target"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_sender_and_a_receiver_work_however_they_are_started(
    place: Place, send: list[str], receive: list[str]
) -> None:
    assert place.do(*receive, stdin=place.do(*send)) == b""
    assert place.read("target") == place.new
    assert place.call("--apply", "back", "./target").returncode == 0
    assert place.read("target") == place.old


def test_two_names_are_a_sync_that_is_confirmed(place: Place) -> None:
    done = place.run(STORE, "./target", "--snapback=back")
    assert done.returncode == 0, done.stderr
    assert b"confirmed and durable there; snapback back" in done.stderr
    assert place.read("target") == place.new
    receipt = json.loads(place.do("apply", "./back", "./target", "--json"))
    assert (receipt["job"], receipt["durable"]) == ("receive", True)
    assert place.read("target") == place.old


def test_a_file_that_is_called_like_a_verb_is_written_as_a_path(place: Place) -> None:
    place.write("sync", place.read("cow"))
    place.write("send", place.old)
    place.do("snapshot:./sync,origin=./origin", "./send")
    assert place.read("send") == place.new


def test_behind_two_dashes_nothing_is_an_option(place: Place) -> None:
    done = place.run("inspect", "--", "--json")
    assert "cannot open --json" in complaint(done)
    assert done.returncode == 3


def test_a_far_side_that_fails_passes_its_status_on(place: Place) -> None:
    done = place.run("sync", STORE, "./plain")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(b"lvmsync: ./plain has 37 bytes")
    assert place.read("plain").startswith(b"no stream")


# ---- dry runs


@pytest.mark.parametrize(
    "words",
    [
        ["send", STORE, "--dry-run"],
        ["send", STORE, "-o", "out", "--dry-run"],
        ["apply", "./stream", "./target", "--dry-run"],
        ["apply", "./stream", "./target", "-b", "back", "--atomic", "--dry-run"],
        ["apply", "./stream", "./made", "--create", "--dry-run"],
        ["receive", "./target", "-i", "stream", "--no-undo", "--dry-run"],
        ["sync", STORE, "./target", "--snapback", "back", "--dry-run"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_dry_run_says_what_would_be_and_changes_nothing(place: Place, words: list[str]) -> None:
    place.write("stream", STREAM)
    before = place.files()
    done = place.call(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert b"dry run: nothing was written; it would be " in done.stderr
    assert place.files() == before


def test_a_dry_run_still_refuses_what_the_run_would_refuse(place: Place) -> None:
    place.write("stream", STREAM)
    done = place.call("apply", "./stream", "./plain", "--dry-run")
    assert "too small (or the wrong one)" in complaint(done)
    assert done.returncode == 3


# ---- what a user would expect, and does not get yet


def test_debug_keeps_the_status(place: Place) -> None:
    assert place.run("changes", "snapshot:./nothing,origin=./origin", "-d").returncode == 3


def test_debug_keeps_the_status_of_a_far_side(place: Place) -> None:
    assert place.run("sync", STORE, "./plain", "-d").returncode == 3


@pytest.mark.parametrize("sink", [">/dev/full", ">&-"])
def test_an_output_that_cannot_be_written_is_one_line_and_status_3(place: Place, sink: str) -> None:
    done = place.run(before=("bash", "-c", f'"$1" changes "$2" {sink}', "-", COMMAND, STORE))
    assert "stdout" in complaint(done)
    assert done.returncode == 3


def test_a_reader_of_a_map_that_is_gone_is_told_of(place: Place) -> None:
    done = place.run(before=("bash", "-c", '"$1" changes "$2" | true; exit ${PIPESTATUS[0]}', "-", COMMAND, STORE))
    assert "the reader of the output is gone" in complaint(done)
    assert done.returncode == 7


@pytest.mark.parametrize("words", [["-q", "--version"], ["-v", "-V"]])
def test_the_version_may_come_behind_other_options(place: Place, words: list[str]) -> None:
    assert place.call(*words).stdout == f"lvmsync {__version__}\n".encode()


@pytest.mark.parametrize("words", [["--send", "--help"], ["vg/snap", "--help"], ["--server", "-h"]])
def test_help_may_come_behind_classic_words(place: Place, words: list[str]) -> None:
    done = place.call(*words)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: lvmsync")


def test_a_style_of_progress_that_is_not_known_is_refused(place: Place) -> None:
    done = place.call("send", STORE, "-o", "out", "--progress", "bogus")
    assert "--progress bogus" in complaint(done)
    assert done.returncode == 2


def test_a_dry_run_refuses_an_output_that_is_there(place: Place) -> None:
    done = place.call("send", STORE, "-o", "plain", "--dry-run")
    assert "plain is there already" in complaint(done)
    assert done.returncode == 3


@pytest.mark.parametrize("name", [b"a\x01b", b"a\xffb"])
def test_a_picture_is_well_formed_even_if_a_name_is_not_text(place: Place, name: bytes) -> None:
    word = os.fsdecode(name)
    place.write(word, build_store(CHANGED))
    assert place.call("changes", f"snapshot:./{word},origin=./origin", "--svg", "map.svg").returncode == 0
    ET.parse(place.folder / "map.svg")


def test_two_dashes_behind_all_words_change_nothing(place: Place) -> None:
    place.write("stream", STREAM)
    assert place.call("--apply", "./stream", "./target", "--").returncode == 0
    assert place.read("target") != place.old
