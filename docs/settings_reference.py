"""Writes ``docs/settings.md``, the reference of the settings, from the struct that holds them: ``make reference``."""

import ast
import inspect
import textwrap
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from litestar_agentcore.protocol.settings import PREFIX, Settings, variable_of

PAGE = Path(__file__).with_name("settings.md")

_INTRODUCTION = f"""\
# Settings

<!-- `make reference` writes this page from the docstrings of `Settings`. -->

Environment variables that begin with `{PREFIX}`, and `AGENT_NAME`. They are read once, when the app is made; a change
needs a restart. Words count in any case, and an empty variable as unset. A value that makes no sense stops the start,
and the error names the variable and what is accepted. Lists are separated by commas or spaces.

Traces are configured by the standard `OTEL_*` variables: see [Seeing what an agent does](observability.md).
`WEB_CONCURRENCY` asks for several [worker processes](workers.md). In the [chart](../helm/agentcore/README.md) most
settings are values, under `agent.settings` and `auth`.

In Python, `AgentCorePlugin(settings=Settings(...))` takes the same settings by the names of the fields, which are
those of the variables in lower case and without the prefix. It then reads no variable.

| variable | default | what it is, and which values it takes |
| --- | --- | --- |
"""


def page() -> str:
    """Make the text of the page.

    Returns:
        Markdown, with one row of its table for each setting, in the order of the struct.
    """
    docstrings = _docstrings(Settings)
    rows = (_row(field, docstrings[field.name]) for field in msgspec.structs.fields(Settings))
    return _INTRODUCTION + "".join(rows)


def _row(field: Any, docstring: str) -> str:
    return (
        f"| `{variable_of(field.name)}` | {_default(field.default)} | {docstring} *Values:* {_accepted(field.type)} |\n"
    )


def _docstrings(struct: type) -> dict[str, str]:
    """The string that stands below each field, in one line of Markdown."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - for the type checker  # nosec B101
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split()).replace("``", "`").replace("|", r"\|")
    return found


def _default(value: object) -> str:
    match value:
        case None | "" | ():
            return "unset"
        case bool():
            return f"`{str(value).lower()}`"
        case int() if value >= 1024 and value % 1024 == 0:
            unit, size = ("MiB", value >> 20) if value % (1 << 20) == 0 else ("KiB", value >> 10)
            return f"`{value}` ({size} {unit})"
        case float():
            return f"`{value:g}`"
    return f"`{value}`"


def _accepted(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
        if kind in (int, float):
            number = "an integer" if kind is int else "a number"
            return f"{number} above {limits.gt}" if limits.gt is not None else f"{number} from {limits.ge}"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if NoneType in get_args(kind):
        return _accepted(next(member for member in get_args(kind) if member is not NoneType))
    if get_origin(kind) is tuple:
        return "a list"
    return {bool: "`true`, `false`", str: "text"}[kind]


if __name__ == "__main__":
    PAGE.write_text(page())
