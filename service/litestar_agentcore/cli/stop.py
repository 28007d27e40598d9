"""``litestar agent stop``."""

import uuid
from typing import Any
from urllib.parse import quote

import rich_click as click

from litestar_agentcore.cli.client import CallError, Connection, ExitCode, connection_options, refused
from litestar_agentcore.cli.events import value_of
from litestar_agentcore.cli.invocation import SESSION_ID_FORM
from litestar_agentcore.cli.terminal import Output
from litestar_agentcore.protocol.aws_errors import ERROR_TYPE
from litestar_agentcore.protocol.data_plane import LOCAL_ARN, MAX_SESSION_ID, MIN_SESSION_ID
from litestar_agentcore.protocol.headers import SESSION_ID, is_identifier


@click.command("stop")
@click.argument("session")
@click.option(
    "--arn",
    default=LOCAL_ARN,
    envvar="AGENTCORE_RUNTIME_ARN",
    show_envvar=True,
    help="The agent's ARN, where it has one.",
)
@connection_options(10.0)
def stop(session: str, arn: str, connection: Connection) -> None:
    """Stop SESSION: cancel its invocations, streams, WebSockets and tasks, by AWS's StopRuntimeSession."""
    if not is_identifier(session):
        raise click.UsageError(f"A session id is {SESSION_ID_FORM}.")
    if len(session) < MIN_SESSION_ID:
        raise click.UsageError(
            f"The session id has {len(session)} characters. StopRuntimeSession takes {MIN_SESSION_ID} to "
            f"{MAX_SESSION_ID}: AWS's rule, kept on AWS's paths. A session with a shorter id ends when its work does, "
            "or when it has been idle for long enough (AGENTCORE_SESSION_IDLE_SECONDS)."
        )
    path = f"runtimes/{quote(arn, safe='')}/stopruntimesession"
    with connection.errors_explained(), connection.client() as client:
        response = client.post(path, headers={SESSION_ID: session}, json={"clientToken": str(uuid.uuid4())})
    if response.is_success:
        Output().line(f"Stopped {response.headers.get(SESSION_ID, session)}")
        return
    if response.status_code == 404:
        raise _not_found(
            connection, session, arn, response.headers.get(ERROR_TYPE.decode()), value_of(response.content)
        )
    raise refused(connection, response)


def _not_found(connection: Connection, session: str, arn: str, error_type: str | None, body: Any) -> CallError:
    if error_type is None:
        return CallError(
            f"{connection.shown_url} does not serve StopRuntimeSession: it is not a version of this service that does.",
            ExitCode.CLIENT_ERROR,
        )
    message = body.get("message") if isinstance(body, dict) else None
    return CallError(
        f"Session {session} is not at {connection.shown_url}: it has ended, or is at another replica, "
        f"or the agent's ARN is not {arn} (--arn).",
        ExitCode.CLIENT_ERROR,
        f"{error_type}: {message}" if message else error_type,
    )
