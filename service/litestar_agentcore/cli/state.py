"""What a running agent tells of itself: ``GET /playground/state``, and where that is not served, ``GET /metrics``."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from rich.text import Text

from litestar_agentcore.cli.client import CallError, Connection, ExitCode, refused
from litestar_agentcore.cli.terminal import PlainConsole, printable, say
from litestar_agentcore.protocol.models import SessionState, TaskInfo

_NOT_SERVED = (404, 405)
_WIDE = 250
"""The width of a table that no terminal limits."""


class State(msgspec.Struct):
    """What the commands need of ``GET /playground/state``."""

    tasks: TaskInfo
    sessions: list[SessionState]


def state_of(connection: Connection) -> State | None:
    """Ask for the agent's state.

    Args:
        connection: Where the agent is.

    Returns:
        The state, or ``None`` where it is not served.

    Raises:
        CallError: There was no answer, or it was something else.
    """
    response = connection.get("playground/state")
    if response.status_code in _NOT_SERVED:
        return None
    if not response.is_success:
        raise refused(connection, response)
    try:
        return msgspec.json.decode(response.content, type=State)
    except msgspec.MsgspecError as error:
        raise CallError(
            f"{connection.shown_url}/playground/state answered something else than an agent's state: {error}.",
            ExitCode.NO_AGENT,
        ) from None


def counts_of(connection: Connection, what: str, names: tuple[str, ...]) -> dict[str, int]:
    """Ask the metrics for counts, and say that there is no more.

    Args:
        connection: Where the agent is.
        what: What is counted, for people.
        names: The gauges.

    Returns:
        The counts by the gauges' names.

    Raises:
        CallError: There are no such metrics either.
    """
    how = "AGENTCORE_PLAYGROUND=true has it, and so has an app made with debug=True"
    response = connection.get("metrics")
    if response.status_code in _NOT_SERVED:
        raise CallError(
            f"{connection.shown_url} serves neither /playground/state ({how}) nor /metrics.", ExitCode.CLIENT_ERROR
        )
    if not response.is_success:
        raise refused(connection, response)
    try:
        samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
        counts = {sample.name: int(sample.value) for sample in samples if sample.name in names}
    except (ValueError, KeyError, IndexError):
        counts = {}
    if len(counts) < len(names):
        raise CallError(f"{connection.shown_url}/metrics has no agent's metrics.", ExitCode.NO_AGENT)
    say(f"Counts alone: {connection.shown_url} does not serve /playground/state, with the {what} ({how}).", style="dim")
    return counts


def print_json(value: Any) -> None:
    """Print what a program reads: one line of JSON.

    Args:
        value: Anything that msgspec encodes.
    """
    print(json.dumps(msgspec.to_builtins(value)))  # noqa: T201 - this is what standard output is for


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows whose first column is a name, and whose others are numbers.

    Args:
        columns: The headings.
        rows: As many texts each.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    first, *others = columns
    table.add_column(first, overflow="fold", min_width=len(first))
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = PlainConsole()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table)
