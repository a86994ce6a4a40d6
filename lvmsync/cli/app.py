"""One verb, one command. Only the module of the verb that runs is imported: typer's and numpy's hundreds are slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module

import typer

from lvmsync.cli.classic import HIDDEN, VERBS
from lvmsync.cli.verbs import flat
from lvmsync.errors import LvmsyncError, UsageError

_HOMES = {
    **dict.fromkeys(("send", "receive", "apply", "changes", "inspect", "recover"), "streams"),
    "repair": "verify",
    "agent": "serve",
}
"""The modules of the verbs that have none of their own name."""

_GROUPS = ("era", "blksnap", "dattobd", "archive")
"""Verbs with verbs of their own."""


def assemble(verbs: Iterable[str] = (*VERBS, *HIDDEN)) -> typer.Typer:
    """Return what parses these verbs, and all that `--help` tells of them."""
    app = typer.Typer(
        name="lvmsync",
        help="Move only the changed blocks of Linux block devices, undo it, and prove that the copy is right.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)  # a verb is named even where there is only one
    for verb in verbs:
        module = import_module(f"lvmsync.cli.{_HOMES.get(verb, verb)}")
        if verb in _GROUPS:
            app.add_typer(module.app)
        else:
            app.command(verb, hidden=verb in HIDDEN)(flat(getattr(module, verb)))
    return app


def run_verb(words: Sequence[str]) -> int:
    """Run a command line that begins with a verb, and return the exit status.

    Raises:
        UsageError: typer does not accept the words.
        LvmsyncError: whatever the job raises.
    """
    try:
        app = assemble([words[0]]) if words[0] in (*VERBS, *HIDDEN) else assemble()
        result = app(list(words), standalone_mode=False, prog_name="lvmsync")
    except LvmsyncError:
        raise
    except SystemExit as error:  # how typer ends when the reader of our output is gone
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    except Exception as error:
        # Usage errors of typer; the name of their class has moved between its releases.
        say = getattr(error, "format_message", None)
        if say is None:
            raise
        raise UsageError(f"{say().rstrip('.')}; see 'lvmsync {words[0]} --help'") from error
    return result if isinstance(result, int) else 0
