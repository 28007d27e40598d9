"""``litestar agent sessions``."""

import rich_click as click

from litestar_agentcore.cli.client import Connection, connection_options
from litestar_agentcore.cli.state import counts_of, print_json, print_table, state_of
from litestar_agentcore.cli.terminal import Output, duration

_SESSIONS = "agentcore_sessions"
_COLUMNS = ("Session", "Age", "Idle", "Calls", "Streams", "WS", "Tasks")


@click.command("sessions")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of sessions, ages in seconds.")
@connection_options(10.0)
def sessions(as_json: bool, connection: Connection) -> None:
    """List the agent's sessions, and what runs for each: invocations, streams, WebSockets and tasks.

    Where the playground is off, they are only counted.
    """
    state = state_of(connection)
    if state is None:
        count = counts_of(connection, "sessions' ids", (_SESSIONS,))[_SESSIONS]
        if as_json:
            print_json({"count": count})
        else:
            Output().line(f"{count} session" + "s" * (count != 1))
    elif as_json:
        print_json(state.sessions)
    elif not state.sessions:
        Output().line("No sessions")
    else:
        rows = [
            (
                session.session_id,
                duration(session.age),
                duration(session.idle),
                str(session.invocations),
                str(session.streams),
                str(session.websockets),
                str(session.tasks),
            )
            for session in sorted(state.sessions, key=lambda session: session.idle)
        ]
        print_table(_COLUMNS, rows)
