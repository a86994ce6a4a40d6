"""Programs that are not there: scripts in a PATH of their own that print what the real ones printed."""

from __future__ import annotations

import shlex
from pathlib import Path


class FakeProgram:
    """A program whose answers are files; the arguments choose one, and every call is noted.

    ``answer("text", "table")`` is printed for ``NAME table ...`` unless a longer match was given, as in
    ``answer("text", "status", "-j", "7", "-m", "3")``. Without a match it fails, as it does after ``fail``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / f"{name}.answers"
        self.folder.mkdir(parents=True)
        here = shlex.quote(str(self.folder))
        script = folder / name
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >>{here}/calls\n'
            "for kind in fail say; do\n"
            '    key=$kind.$(echo "$*" | tr " /" "__")\n'
            f"    while [ ! -e {here}/$key ]; do\n"
            "        shorter=${key%_*}; [ $shorter = $key ] && continue 2; key=$shorter\n"
            "    done\n"
            f"    if [ $kind = say ]; then cat {here}/$key; exit 0; fi\n"
            f"    cat {here}/$key >&2; exit 5\n"
            "done\n"
            'echo "no answer for: $*" >&2\nexit 1\n'
        )
        script.chmod(0o755)

    def answer(self, text: str, *arguments: str) -> None:
        self._path("say", arguments).write_text(text)

    def fail(self, text: str, *arguments: str) -> None:
        self._path("fail", arguments).write_text(text)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def _path(self, prefix: str, arguments: tuple[str, ...]) -> Path:
        return self.folder / f"{prefix}.{'_'.join(arguments).replace(' ', '_').replace('/', '_')}"
