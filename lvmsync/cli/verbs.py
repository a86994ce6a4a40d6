"""How a function becomes a verb: values that belong together are one parameter of it, and options of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lvmsync.errors import UsageError


def flat(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with all its options side by side, as typer wants them.

    Of a parameter that is a dataclass, those fields are options that are annotated as such; the others keep their
    defaults.
    """
    kinds = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        kind = kinds[parameter.name]
        if is_dataclass(kind):
            options = _options_of(kind)
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))

    @wraps(command)
    def run(**given: Any) -> Any:
        for name, (kind, names) in groups.items():
            given[name] = kind(**{one: given.pop(one) for one in names})
        return command(**given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def words_of(group: Any) -> list[str]:
    """Return the words by which a command line says a dataclass of options, as another process in another folder needs.

    What has its default is left away. Names of files are made whole.

    Raises:
        UsageError: a name of a device or file that is meant from this folder.
    """
    words = []
    for option in _options_of(type(group)):
        value = getattr(group, option.name)
        if value == option.default:
            continue
        told = get_args(option.annotation)[1]
        # typer keeps the first of its names as if it were a default.
        name = next(one for one in (told.default, *(told.param_decls or ())) if one.startswith("--"))
        if value is True:
            words.append(name)
            continue
        if told.metavar in ("FILE", "DIR"):
            value = Path(value).absolute()
        elif told.metavar == "PATH" and str(value).startswith(("./", "../")):
            raise UsageError(f"{name} {value}: that is meant from this folder; write the whole path, from / on")
        words.append(f"{name}={value}")
    return words


def _options_of(kind: Any) -> list[Parameter]:
    kinds = get_type_hints(kind, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name])
        for field in fields(kind)
        if get_origin(kinds[field.name]) is Annotated
    ]
