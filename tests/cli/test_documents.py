"""Every command line in README and docs is one that lvmsync understands; README's examples are run elsewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from lvmsync.cli.app import assemble
from lvmsync.cli.classic import translate

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.compile(r"^```sh\n(.*?)^```$|((?:^    .*\n)+)", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\s*(?:ssh \S+ )?(lvmsync [^#|A-Z][^#|]*?)(?:\s+#.*|\s*\|.*)?$", re.MULTILINE)


def find_commands() -> list[str]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for example in EXAMPLES.finditer(path.read_text()):
            found += [f"{path.name}: {line.partition(' >')[0]}" for line in COMMAND.findall(example[0])]
    return found


def test_the_documents_have_command_lines() -> None:
    assert len(find_commands()) > 40


@pytest.mark.parametrize("command", find_commands())
def test_a_documented_command_line_is_understood(command: str) -> None:
    words = translate(shlex.split(command.partition("lvmsync ")[2]))
    group = typer.main.get_command(assemble())
    assert isinstance(group, TyperGroup)
    context = group.make_context("lvmsync", words)
    while isinstance(group, TyperGroup):
        name, found, words = group.resolve_command(context, [*context._protected_args, *context.args])
        assert name, command
        assert found
        context = found.make_context(name, words, parent=context)
        group = found
