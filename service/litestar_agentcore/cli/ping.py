"""``litestar agent ping``."""

import time
from datetime import datetime

import msgspec
import rich_click as click

from litestar_agentcore.cli.client import CallError, Connection, ExitCode, connection_options, refused
from litestar_agentcore.cli.terminal import Output, duration


class _Health(msgspec.Struct):
    status: str
    time_of_last_update: float | None = None


@click.command("ping")
@click.option("--watch", is_flag=True, help="Print a line at each change, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look with --watch.",
)
@connection_options(5.0)
def ping(watch: bool, interval: float, connection: Connection) -> None:
    """Ask the agent whether it is free or busy with background tasks, and since when.

    The exit code is 0 for Healthy and HealthyBusy, 3 not reachable, 4 an answer 4xx, 5 an answer 5xx, 8 timed out,
    9 no agent.
    """
    output = Output()
    if not watch:
        health = _ask(connection)
        output.line(_sentence(health))
        return
    previous = ""
    while True:
        try:
            health = _ask(connection)
            state, line = f"{health.status} {health.time_of_last_update}", _sentence(health)
        except CallError as error:
            state = line = error.message
        if state != previous:
            output.line(f"{datetime.now().astimezone():%H:%M:%S}  {line}")
            previous = state
        time.sleep(interval)


def _ask(connection: Connection) -> _Health:
    response = connection.get("ping")
    if not response.is_success:
        raise refused(connection, response)
    try:
        health = msgspec.json.decode(response.content, type=_Health)
    except msgspec.MsgspecError:
        raise CallError(
            f"{connection.shown_url}/ping answered something else than an agent's status.",
            ExitCode.NO_AGENT,
            response.text[:500],
        ) from None
    if health.status not in ("Healthy", "HealthyBusy"):
        raise CallError(f"{connection.shown_url}/ping answered the status {health.status!r}.", ExitCode.NO_AGENT)
    return health


def _sentence(health: _Health) -> str:
    if health.time_of_last_update is None:
        return health.status
    try:
        since = datetime.fromtimestamp(health.time_of_last_update).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{health.status} since {health.time_of_last_update:g} s after the epoch"
    ago = duration(round(time.time() - health.time_of_last_update))
    return f"{health.status:<11} since {since:%Y-%m-%d %H:%M:%S %z}, for {ago}"
