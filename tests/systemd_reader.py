"""What systemd makes of unit files: its own ``systemd-analyze verify`` says what it has read."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]+)', re.DOTALL)


class Units:
    """Unit files that systemd has read without a complaint."""

    def __init__(self, files: Sequence[Path]) -> None:
        env = {**os.environ, "SYSTEMD_LOG_LEVEL": "err"}
        quiet = subprocess.run(["systemd-analyze", "verify", *files], env=env, capture_output=True, check=False)
        self.complaints = quiet.stderr.decode(errors="replace")
        self.status = quiet.returncode
        env["SYSTEMD_LOG_LEVEL"] = "debug"
        told = subprocess.run(["systemd-analyze", "verify", *files], env=env, capture_output=True, check=False)
        self._text = (told.stdout + told.stderr).decode(errors="surrogateescape")

    def commands(self) -> list[list[str]]:
        """Return the words of each command, as the program gets them; of the first no ``$`` is a variable."""
        lines = re.findall(r"^\s*Command Line: (.*)$", self._text, re.MULTILINE)
        found = map(_split, dict.fromkeys(lines))
        return [[words[0], *map(_expand, words[1:])] for words in found]

    def values(self, key: str) -> list[str]:
        """Return what is said behind a key, each once."""
        return list(dict.fromkeys(re.findall(rf"^\s*(?:-> )?{key}: (.*)$", self._text, re.MULTILINE)))


def _split(line: str) -> list[str]:
    """Take words apart that systemd has put into quotes: octal numbers are bytes."""
    words = []
    for quoted, bare in _WORD.findall(line):
        data = re.sub(
            rb"\\([0-7]{3}|.)",
            lambda match: bytes([int(match[1], 8)]) if len(match[1]) == 3 else match[1],
            os.fsencode(quoted),
        )
        words.append(os.fsdecode(data) if quoted or not bare else bare)
    return words


def _expand(word: str) -> str:
    """Do what systemd does when it starts a command; none of our words is to have a variable."""
    return re.sub(r"\$(\$?)", lambda match: "$" if match[1] else "(a variable)", word)
