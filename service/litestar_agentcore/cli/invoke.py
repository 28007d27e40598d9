"""``litestar agent invoke``."""

from typing import Literal

import rich_click as click

from litestar_agentcore.cli.ag_ui import run_input
from litestar_agentcore.cli.client import ANSWER_SECONDS, CallError, Connection, connection_options
from litestar_agentcore.cli.invocation import Form, check_session_id, new_session_id, perform, prepare
from litestar_agentcore.cli.payload import read_payload
from litestar_agentcore.cli.terminal import Output, say


@click.command("invoke")
@click.argument("payload", nargs=-1)
@click.option("--session", callback=check_session_id, help="The session's id; a new UUID by default.")
@click.option("--key", default="prompt", show_default=True, help="The field that a payload becomes that is plain text.")
@click.option(
    "--protocol",
    type=click.Choice(["http", "ag-ui"]),
    default="http",
    show_default=True,
    help="What the agent speaks. For ag-ui, PAYLOAD becomes the message of a RunAgentInput, or gives its fields.",
)
@click.option("--path", default="/invocations", show_default=True, help="Where the agent takes calls, below its URL.")
@click.option(
    "--json", "form", flag_value=Form.JSON, type=Form, help="Print JSON alone: one line an event, strings quoted."
)
@click.option("--text", "form", flag_value=Form.TEXT, type=Form, help="Print the text in the answer alone.")
@click.option("--raw", "form", flag_value=Form.RAW, type=Form, help="Print the bytes of the answer as they come.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing of session, trace, status and times.")
@connection_options(ANSWER_SECONDS)
def invoke(
    payload: tuple[str, ...],
    session: str | None,
    key: str,
    protocol: Literal["http", "ag-ui"],
    path: str,
    form: Form | None,
    quiet: bool,
    connection: Connection,
) -> None:
    """Send PAYLOAD to the agent, and print its answer as it comes.

    PAYLOAD is JSON, @FILE, or - for standard input, which is also read where there is no PAYLOAD. Text that is not JSON
    is sent as {"prompt": TEXT}.

    The answer goes to standard output: strings as text, everything else as JSON; of an AG-UI run its text, and what
    tools were called with and gave. Session, trace, status and times go to
    standard error. The exit code is 0 for a complete answer, 2 bad usage, 3 not reachable, 4 an answer 4xx, 5 an
    answer 5xx, 6 an error event at the stream's end, 7 cut off, 8 timed out, 9 no agent.
    """
    given = read_payload(payload, key)
    output = Output()
    invocation = prepare(connection, given.body, session or new_session_id())
    invocation.path, invocation.protocol = path.lstrip("/"), protocol
    if protocol == "ag-ui":
        invocation.body = run_input(given.body, key, invocation.session_id)

    def note(name: str, text: str) -> None:
        if not quiet:
            say(f"{name:<9}{text}", style="dim")

    if given.is_wrapped_text and protocol == "http":
        note("payload", f"not JSON, so it is sent as {given.body.decode()}")
    note("session", invocation.session_id)
    note("trace", invocation.trace_id)
    sent = (invocation.session_id, invocation.trace_id)
    try:
        perform(connection, invocation, output, form or Form.AUTO)
    except KeyboardInterrupt:
        if invocation.status:
            note("status", f"{invocation.status}, interrupted after {invocation.timing()}")
        raise
    except CallError:
        if invocation.status:
            note("status", f"{invocation.status}, {invocation.timing()}")
        raise
    if invocation.session_id != sent[0]:
        note("session", f"{invocation.session_id} is the server's")
    if invocation.trace_id != sent[1]:
        note("trace", f"{invocation.trace_id} is the server's")
    note("status", f"{invocation.status}, {invocation.timing()}")
