"""The rules about imports, enforced: they point down only, P is pure, and only the command line talks to people."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lvmsync").rglob("*.py"))
}

LAYERS = {
    "cli": 6,
    "__main__": 6,
    "jobs": 5,
    "stores": 4,
    "sources": 3,
    "targets": 3,
    "transport": 3,
    "system": 2,
    "errors": 1,
    "interfaces": 1,
    "names": 1,
    "places": 1,
    "images": 1,
    "extents": 1,
    "history": 1,
    "units": 1,
    "fields": 1,
    "chain": 1,
    "formats": 1,
    "nbd": 1,
    "stream": 1,
    "": 0,  # lvmsync itself: only the version
}
"""Every part of the package. 1 is P; parts of 3 never import each other."""

PURE = {
    "__future__", "abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime", "enum",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "string", "struct", "typing",
    "zlib", "crc32c", "numpy", "xxhash", "zstandard",
    "cryptography",  # its primitives: bytes in, bytes out; what is random is handed in
}  # fmt: skip
"""All that P may import besides P: no file, clock, process, thread, log."""

CLOCKS = {"now", "utcnow", "today"}  # of datetime
IMPURE_CALLS = {"open", "print", "input", "exit", "quit", "breakpoint", "exec", "eval", "__import__"}
NUMPY_FILES = {"fromfile", "tofile", "memmap", "load", "save", "savez", "loadtxt", "savetxt", "genfromtxt"}

Import = tuple[int, str]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(name: str, tree: ast.Module, *, is_package: bool) -> Iterator[Import]:
    """Yield the line and the full name of every module that is imported, wherever and however."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parent = name.split(".") if is_package else name.split(".")[:-1]
            base = ".".join([*parent[: len(parent) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def top_of(tree: ast.Module) -> ast.Module:
    """Return only what is imported as soon as the module is."""
    return ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])


def part_of(module: str) -> str:
    """Return the part of the package that one of its modules belongs to."""
    return ".".join(module.split(".")[1:2])


def imports_of(name: str) -> list[Import]:
    path = MODULES[name]
    return list(imports(name, parse(path), is_package=path.name == "__init__.py"))


def broken_rules(name: str, found: list[Import]) -> list[str]:
    """Return what is wrong with the imports of a module, a line each."""
    wrong = []
    part = part_of(name)
    for line, other in found:
        top = other.split(".")[0]
        here = f"{name}:{line} imports {other}"
        if top == "lvmsync":
            below = part_of(other)
            if LAYERS[below] > LAYERS[part]:
                wrong.append(f"{here}, which is above it")
            elif LAYERS[below] == LAYERS[part] == 3 and below != part:
                wrong.append(f"{here}, which is beside it")
        elif LAYERS[part] == 1 and top not in PURE:
            wrong.append(f"{here}, and P is pure")
        elif top in ("typer", "click", "rich") and part != "cli":
            wrong.append(f"{here}, and only cli talks to people")
        elif top == "asyncssh" and not name.startswith("lvmsync.transport.asyncssh"):
            wrong.append(f"{here}, and only transport/asyncssh*.py speak ssh")
    return wrong


def broken_calls(name: str, tree: ast.Module) -> list[str]:
    """Return the calls and raises that a module must not have, a line each."""
    wrong = []
    part = part_of(name)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called)) if LAYERS[part] <= 1 and called in IMPURE_CALLS:
                wrong.append(f"{name}:{node.lineno} calls {called}(), and P is pure")
            case ast.Attribute(value=ast.Name(id="datetime" | "date"), attr=called) if (
                LAYERS[part] <= 1 and called in CLOCKS
            ):
                wrong.append(f"{name}:{node.lineno} asks {called}(), and P has no clock")
            case ast.Attribute(attr=called) if LAYERS[part] <= 1 and called in NUMPY_FILES and is_numpy(node):
                wrong.append(f"{name}:{node.lineno} uses {called}, and P is pure")
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" | "input" as called)) if LAYERS[part] < 6:
                wrong.append(f"{name}:{node.lineno} calls {called}(), and only cli prints and exits")
            case ast.Name(id="SystemExit") if LAYERS[part] < 6:
                wrong.append(f"{name}:{node.lineno} names SystemExit, and only cli exits")
            case ast.Attribute(
                value=ast.Name(id="sys"), attr="exit" | "stdout" | "stderr" | "stdin" | "argv" as used
            ) if LAYERS[part] < 6:
                wrong.append(f"{name}:{node.lineno} uses sys.{used}, and only cli prints and exits")
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit" | "abort" as used) if LAYERS[part] < 6:
                wrong.append(f"{name}:{node.lineno} uses os.{used}, and only cli exits")
    return wrong


def is_numpy(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy")


def test_every_module_belongs_to_a_part_that_has_a_layer() -> None:
    assert len(MODULES) > 20
    assert {part_of(name) for name in MODULES} - set(LAYERS) == set()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_only_and_stay_where_they_belong(name: str) -> None:
    assert broken_rules(name, imports_of(name)) == []


@pytest.mark.parametrize("name", MODULES)
def test_only_the_command_line_prints_and_exits_and_pure_modules_call_nothing_that_is_not(name: str) -> None:
    assert broken_calls(name, parse(MODULES[name])) == []


def test_no_two_modules_need_each_other() -> None:
    """Imports at the top of modules make no circle; `cli` may look below as late as it likes."""
    needs = {
        name: {
            other
            for _, other in imports(name, top_of(parse(path)), is_package=path.name == "__init__.py")
            if other in MODULES and other != name
        }
        for name, path in MODULES.items()
    }
    done: set[str] = set()
    while True:
        ready = {name for name, below in needs.items() if name not in done and below <= done}
        if not ready:
            break
        done |= ready
    assert set(MODULES) - done == set()


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("lvmsync.stream.x", "import os", "P is pure"),
        ("lvmsync.formats.x", "def f():\n    from pathlib import Path", "P is pure"),
        ("lvmsync.extents", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import logging", "P is pure"),
        ("lvmsync.history", "import os.path as p", "P is pure"),
        ("lvmsync.names", "from lvmsync.system import device", "above it"),
        ("lvmsync.names", "from lvmsync import system", "above it"),
        ("lvmsync.names", "from . import system", "above it"),
        ("lvmsync.stream.x", "from ..system.device import Device", "above it"),
        ("lvmsync.system.x", "from lvmsync.sources import snapshot", "above it"),
        ("lvmsync.system.x", "import lvmsync.jobs.send", "above it"),
        ("lvmsync.jobs.x", "from lvmsync.cli import render", "above it"),
        ("lvmsync.sources.x", "from lvmsync.targets.block import open_target", "beside it"),
        ("lvmsync.targets.x", "from lvmsync.transport import Ssh", "beside it"),
        ("lvmsync.transport.x", "from lvmsync.sources import open_source", "beside it"),
        ("lvmsync.jobs.x", "import typer", "talks to people"),
        ("lvmsync.system.x", "from rich.console import Console", "talks to people"),
        ("lvmsync.transport.pipe", "import asyncssh", "speak ssh"),
        ("lvmsync.cli.x", "from asyncssh import connect", "speak ssh"),
        ("lvmsync.stream.x", "open('x')", "calls open()"),
        ("lvmsync.stream.x", "print('x')", "calls print()"),
        ("lvmsync.stream.x", "np.fromfile('x')", "uses fromfile"),
        ("lvmsync.jobs.x", "print('x')", "calls print()"),
        ("lvmsync.jobs.x", "raise SystemExit(1)", "SystemExit"),
        ("lvmsync.system.x", "sys.exit(1)", "sys.exit"),
        ("lvmsync.jobs.x", "write = sys.stderr.write", "sys.stderr"),
        ("lvmsync.transport.x", "os._exit(1)", "os._exit"),
    ],
)
def test_each_rule_catches_who_breaks_it(name: str, source: str, words: str) -> None:
    tree = ast.parse(source)
    wrong = broken_rules(name, list(imports(name, tree, is_package=False))) + broken_calls(name, tree)
    assert len(wrong) >= 1
    assert words in wrong[0]
