"""``litestar agent``: the group of commands, each of which is imported when it is called for.

Litestar imports this module at the start of each of its own commands, so it is kept light.
"""

from importlib import import_module
from typing import Any

import rich_click as click

_COMMANDS: dict[str, str] = {
    "chat": "litestar_agentcore.cli.chat:chat",
    "invoke": "litestar_agentcore.cli.invoke:invoke",
    "ping": "litestar_agentcore.cli.ping:ping",
    "sessions": "litestar_agentcore.cli.sessions:sessions",
    "stop": "litestar_agentcore.cli.stop:stop",
    "tasks": "litestar_agentcore.cli.tasks:tasks",
}
"""Where each command is: ``module:name``."""


class _ImportedLate(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        return getattr(import_module(module), name)


@click.group("agent", cls=_ImportedLate, context_settings={"help_option_names": ["-h", "--help"]})
def agent_group() -> None:
    """Serve agents, and talk to those that are served."""


def main() -> None:
    """Run ``litestar-agent``, which is ``litestar agent`` without Litestar's search for an application."""
    agent_group(prog_name="litestar-agent")
