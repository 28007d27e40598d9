"""``litestar agent tasks``."""

import msgspec
import rich_click as click

from litestar_agentcore.cli.client import CallError, Connection, ExitCode, connection_options, refused
from litestar_agentcore.cli.state import counts_of, print_json, print_table, state_of
from litestar_agentcore.cli.terminal import Output, duration
from litestar_agentcore.protocol.models import TaskInfo

_ACTIVE = "agentcore_active_tasks"
_DEBUG_ACTION = {"_agent_core_app_action": "job_status"}


@click.command("tasks")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as get_async_task_info() has it.")
@click.option(
    "--debug-action",
    is_flag=True,
    help="Ask by the debug action job_status. An app made without debug=True hands it to its handler, as any payload.",
)
@connection_options(10.0)
def tasks(as_json: bool, debug_action: bool, connection: Connection) -> None:
    """List the agent's active background tasks.

    Where the playground is off, they are only counted.
    """
    if debug_action:
        found: TaskInfo | None = _by_debug_action(connection)
    else:
        state = state_of(connection)
        found = None if state is None else state.tasks
    if found is None:
        count = counts_of(connection, "names of the tasks", (_ACTIVE,))[_ACTIVE]
        if as_json:
            print_json({"active_count": count})
        else:
            Output().line(f"{count} active task" + "s" * (count != 1))
    elif as_json:
        print_json(found)
    elif not found.running_jobs:
        Output().line("No active tasks")
    else:
        jobs = sorted(found.running_jobs, key=lambda job: -job.duration)
        print_table(("Task", "Running for"), [(job.name, duration(job.duration)) for job in jobs])


def _by_debug_action(connection: Connection) -> TaskInfo:
    with connection.errors_explained(), connection.client() as client:
        response = client.post("invocations", json=_DEBUG_ACTION)
    if not response.is_success:
        raise refused(connection, response)
    try:
        return msgspec.json.decode(response.content, type=TaskInfo)
    except msgspec.MsgspecError:
        raise CallError(
            f"{connection.shown_url} takes no debug actions, its handler answered: is the app made with debug=True?",
            ExitCode.NO_AGENT,
        ) from None
