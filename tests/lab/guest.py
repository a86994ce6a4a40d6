"""A guest with a real kernel: User-Mode Linux on the host's own files, as an ordinary process.

The guest's root is the host's, read-only; /etc, /tmp, /root and /var are overlays that vanish with it.
Its programs are the host's: the same lvm, sshd, python and lvmsync, under the same paths.

A script (bash, ``-euo pipefail``, working folder: the repository) finds:
    /dev/ubda, /dev/ubdb...   the disks, in the order given
    $SHARE                    the share: a folder that both sides see
    $LAB                      this folder: ``. "$LAB/sites.sh"`` gives make_vg and two_sites

What a cut loses. The driver (arch/um/drivers/ubd_kern.c, Linux v6.1) hands each write to the host's page
cache with pwrite and reports it done then; FLUSH is an fsync of the disk's file. ``cut`` kills the guest, not
the host, so everything that its kernel had submitted stays, and only what was in the guest's own page cache
is gone. A request that is being written may be torn at 4 KiB. To lose writes that were submitted but not
flushed as well, put dm-log-writes or dm-flakey under the volume. The files of the share are written when
they are closed (fs/hostfs), so a closed file survives a cut.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

LAB = Path(__file__).resolve().parent
ROOT = LAB.parent.parent
UML_MODULES = Path("/usr/lib/uml/modules")
XSAVE = ROOT / ".venv/lib/lab-xsave.so"  # xsave.c, as scripts/setup compiles it
BASE_MODULES = ("overlay", "loop", "dm-mod", "dm-snapshot", "dm-thin-pool", "dm-era", "veth")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_DISKS = 16  # MAX_DEV in ubd_kern.c

# The guest's process group holds a watch on our end of a pipe: whatever becomes of us, the guest goes too.
_LAUNCH = 'ulimit -c 0; exec 3<&0; ( (read -r _ <&3; kill -KILL 0) & ) ; exec "$@" 3<&- </dev/null'


@dataclass(frozen=True)
class Result:
    """What came back from a guest."""

    status: int | None  # None: no status came back; the guest died, was cut, or took too long
    console: str
    share: Path

    def check(self) -> Self:
        """Return itself, or fail with the console when the script did."""
        if self.status != 0:
            raise AssertionError(f"status {self.status} from the guest; its console:\n{self.console}")
        return self


class Guest:
    """A running guest; leaving the ``with`` block kills what is left of it."""

    def __init__(
        self,
        script: str | Path,
        *,
        disks: Sequence[Path] = (),
        share: Path,
        memory: str = "1024M",
        env: Mapping[str, str] = {},
        modules: Sequence[str] = (),
    ) -> None:
        if len(disks) > MAX_DISKS:
            raise ValueError(f"{len(disks)} disks; a guest takes {MAX_DISKS}")
        insmods = module_paths((*BASE_MODULES, *modules))
        _compile_bytecode()
        self.share = share.resolve()
        self.share.mkdir(parents=True, exist_ok=True)
        # A folder of our own under a plain name: the kernel's command line takes no blanks, commas or colons.
        self._control = Path(tempfile.mkdtemp(prefix="lvmsync-guest-"))
        self._seen = 0
        self._lost: str | None = None  # the console, once the folder is gone
        self._status: int | None = None
        try:
            self._fill_control(script, disks, insmods, env)
            self._process = self._launch(len(disks), memory)
        except BaseException:
            shutil.rmtree(self._control, ignore_errors=True)
            raise

    @classmethod
    def start(
        cls,
        script: str | Path,
        *,
        disks: Sequence[Path] = (),
        share: Path,
        memory: str = "1024M",
        env: Mapping[str, str] = {},
        modules: Sequence[str] = (),
    ) -> Self:
        """Boot a guest and return at once; use it in a ``with`` block."""
        return cls(script, disks=disks, share=share, memory=memory, env=env, modules=modules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def wait(self, timeout: float = 300, on_output: Callable[[str], None] | None = None) -> bool:
        """Wait until the guest has switched itself off; False when ``timeout`` seconds were not enough."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
            else:
                self._report(on_output)
                self.cut()
                return True
            self._report(on_output)
            if time.monotonic() >= deadline:
                return False

    def wait_for(self, name: str, timeout: float = 60) -> None:
        """Wait until the script has made the file ``name`` in the share."""
        deadline = time.monotonic() + timeout
        while not (self.share / name).exists():
            if self._process.poll() is not None or time.monotonic() >= deadline:
                raise AssertionError(f"{name} did not appear in the share; the guest's console:\n{self.console}")
            time.sleep(0.02)

    def cut(self) -> None:
        """Cut the power: every process of the guest is killed at once; harmless when it is off already."""
        if self._lost is not None:
            return
        group = self._process.pid
        # Safe, also after the guest's end: its watch is in the group until now, so the number is still its own.
        os.killpg(group, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        deadline = time.monotonic() + 30
        while _is_alive(group):  # the disks' files are still being written and locked until then
            if time.monotonic() >= deadline:
                raise RuntimeError(f"process group {group} of the guest does not die")
            time.sleep(0.01)
        status = self._control / "status"
        self._status = int(status.read_text()) if status.exists() else None
        self._lost = self._read_console()
        shutil.rmtree(self._control, ignore_errors=True)

    @property
    def console(self) -> str:
        """All that the guest has printed so far."""
        return self._lost if self._lost is not None else self._read_console()

    def result(self) -> Result:
        """Return what came back; the guest must be off (``wait`` was true, or ``cut``)."""
        if self._lost is None:
            raise RuntimeError("the guest is still running")
        return Result(self._status, self._lost, self.share)

    def _fill_control(
        self, script: str | Path, disks: Sequence[Path], insmods: Sequence[Path], env: Mapping[str, str]
    ) -> None:
        control = self._control
        (control / "stage1.sh").symlink_to(LAB / "stage1.sh")
        (control / "share").symlink_to(self.share)
        (control / "xsave.so").symlink_to(XSAVE)
        text = script if isinstance(script, str) else script.read_text()
        (control / "script").write_text(text)
        (control / "modules").write_text("".join(f"{path}\n" for path in insmods))
        for number, disk in enumerate(disks):
            (control / f"disk{number}").symlink_to(disk.resolve(strict=True))
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DM_DISABLE_UDEV": "1",  # without it a bare `dmsetup create` waits for udev and makes no node
            "LAB": str(LAB),
            "LAB_ROOT": str(ROOT),
            "SHARE": "/run/share",
            "SITE": "sitea",
            **env,
        }
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
        (control / "env").write_text("".join(lines))
        (control / "ssh").mkdir()
        for name in ("host_key", "id_ed25519"):  # here, since making keys in the guest is slow
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(control / "ssh" / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _launch(self, disk_count: int, memory: str) -> subprocess.Popen[bytes]:
        control = self._control
        command = ["taskset", "--cpu-list", str(_processor())]
        command += ["env", f"LD_PRELOAD={control}/xsave.so"]
        command += ["linux.uml", f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "loglevel=3"]
        command += [f"init={control}/stage1.sh", "con=null", "con0=null,fd:1", f"uml_dir={control}/uml/"]
        command += [f"LAB_CONTROL={control}"]
        command += [f"ubd{number}d={control}/disk{number}" for number in range(disk_count)]  # d: never a COW file
        with open(control / "console", "wb") as console:
            return subprocess.Popen(
                ["sh", "-c", _LAUNCH, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                start_new_session=True,
                cwd=control,
                env={"PATH": SYSTEM_PATH, "HOME": str(control), "TMPDIR": _memory_folder(memory, control)},
            )

    def _read_console(self) -> str:
        data = (self._control / "console").read_bytes()
        return re.sub(r"\r+\n", "\n", data.decode(errors="replace"))

    def _report(self, on_output: Callable[[str], None] | None) -> None:
        if on_output is None:
            return
        text = self.console
        end = len(text) if self._process.poll() is not None else text.rfind("\n") + 1  # whole lines while it runs
        if end > self._seen:
            on_output(text[self._seen : end])
            self._seen = end


def run(
    script: str | Path,
    *,
    disks: Sequence[Path] = (),
    share: Path,
    memory: str = "1024M",
    timeout: float = 300,
    env: Mapping[str, str] = {},
    modules: Sequence[str] = (),
    on_output: Callable[[str], None] | None = None,
) -> Result:
    """Boot a guest, run ``script`` in it, and return when it is off; after ``timeout`` seconds it is cut."""
    with Guest.start(script, disks=disks, share=share, memory=memory, env=env, modules=modules) as guest:
        in_time = guest.wait(timeout, on_output)
        guest.cut()
        result = guest.result()
    if in_time:
        return result
    return Result(None, f"{result.console}\n[guest cut after {timeout:g} s]\n", result.share)


def make_disk(path: Path, size: int) -> Path:
    """Make a sparse file of ``size`` bytes for a disk."""
    with open(path, "xb") as file:
        file.truncate(size)
    return path


def missing() -> str | None:
    """Say what this machine lacks for a guest, or None."""
    programs = (
        "linux.uml",
        "taskset",
        "busybox",
        "lvm",
        "dmsetup",
        "thin_delta",
        "era_invalidate",
        "ip",
        "sshd",
        "ssh",
        "ssh-keygen",
        "nsenter",
    )
    lacking = [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]
    if lacking:
        return f"programs are missing: {' '.join(lacking)}; scripts/setup installs them"
    if not XSAVE.exists():
        return f"there is no {XSAVE}; scripts/setup compiles it"
    if not (UML_MODULES / _release()).is_dir():
        return f"no modules of the guest's kernel in {UML_MODULES / _release()}"
    return None


@functools.cache
def _release() -> str:
    command = ["linux.uml", "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@functools.cache
def _dependencies() -> dict[str, list[str]]:
    """Read modules.dep: name of a module -> its path, then those it needs, last first."""
    table = {}
    for line in (UML_MODULES / _release() / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        table[Path(path).stem.replace("_", "-")] = [path, *needs.split()]
    return table


def module_paths(names: Sequence[str]) -> list[Path]:
    """List the files to load for the modules ``names``, in order, with all that they need."""
    ordered: dict[str, None] = {}
    for name in names:
        try:
            paths = _dependencies()[name.replace("_", "-")]
        except KeyError:
            raise ValueError(f"the guest's kernel has no module {name}") from None
        ordered |= dict.fromkeys(reversed(paths))
    return [UML_MODULES / _release() / path for path in ordered]


def _processor() -> int:
    """Choose the one processor that a guest runs on.

    Its kernel and its programs take turns, thousands of times a second, and to hand over to another processor takes
    twice as long. Each worker of pytest has one; guests of another program take turns.
    """
    allowed = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return allowed[(int(worker) if worker else next(_guests)) % len(allowed)]


_guests = itertools.count(os.getpid())


@functools.cache
def _compile_bytecode() -> None:
    """Compile lvmsync here, so that python starts quicker in the guest (which cannot write the result)."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "lvmsync")], check=False, capture_output=True)


def _memory_folder(memory: str, fallback: Path) -> str:
    """Choose where the guest's memory lives: /dev/shm, unless it is small (as in containers)."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    need = int(memory[:-1]) * units[memory[-1].upper()]
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free >= need else str(fallback)


def _is_alive(group: int) -> bool:
    """Tell whether a process of ``group`` lives; a zombie that nobody has collected does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it ended while we looked
            continue
        if int(pgrp) == group and state not in "ZX":
            return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command or script in a guest (scripts/lab)."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        description="Run a command, or a bash script, in a guest with a real kernel; print its console.",
        epilog="Without a command the script is read from standard input. The share is $SHARE in the guest.",
    )
    parser.add_argument("-n", "--disks", type=int, default=1, metavar="N", help="empty disks: /dev/ubda... (1)")
    parser.add_argument("-z", "--size", type=int, default=256, metavar="MIB", help="size of each disk in MiB (256)")
    parser.add_argument("-m", "--module", action="append", default=[], help="load this kernel module as well")
    parser.add_argument("-s", "--share", type=Path, help="folder of this machine to share (a temporary one)")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="for the script")
    parser.add_argument("--memory", default="1024M", help="memory of the guest (1024M)")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds until it is cut (600)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="words of a command, or one script or file")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that folders are cleaned up

    lacking = missing()
    if lacking:
        print(f"scripts/lab: {lacking}", file=sys.stderr)
        return 3
    words: list[str] = options.command
    script: str | Path
    if not words:
        script = sys.stdin.read()
    elif len(words) == 1:
        script = Path(words[0]) if Path(words[0]).is_file() else words[0]
    else:
        script = shlex.join(words)
    with tempfile.TemporaryDirectory(prefix="lvmsync-lab-") as folder:
        disks = [make_disk(Path(folder) / f"{number}.img", options.size << 20) for number in range(options.disks)]
        result = run(
            script,
            disks=disks,
            share=options.share or Path(folder) / "share",
            memory=options.memory,
            timeout=options.timeout,
            env=dict(item.split("=", 1) for item in options.env),
            modules=options.module,
            on_output=lambda text: print(text, end="", flush=True),
        )
    if result.status is None:
        print("scripts/lab: no status came back from the guest", file=sys.stderr)
        return 125
    return result.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
