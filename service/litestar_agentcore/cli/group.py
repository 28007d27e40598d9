"""``litestar agent``: the group of commands, each of which is imported when it is called for.

Litestar imports this module at the start of each of its own commands, so it is kept light.
"""

import os
import sys
from importlib import import_module
from typing import Any

import rich_click as click

_COMMANDS: dict[str, str] = {
    "chat": "litestar_agentcore.cli.chat:chat",
    "doctor": "litestar_agentcore.cli.doctor:doctor",
    "invoke": "litestar_agentcore.cli.invoke:invoke",
    "ping": "litestar_agentcore.cli.ping:ping",
    "run": "litestar_agentcore.cli.run:run",
    "sessions": "litestar_agentcore.cli.sessions:sessions",
    "stop": "litestar_agentcore.cli.stop:stop",
    "tasks": "litestar_agentcore.cli.tasks:tasks",
}
"""Where each command is: ``module:name``."""

_NO_APPLICATION = "litestar_agentcore.cli.no_application:app"


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
    for name, value in _litestars_variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def main() -> None:
    """Run ``litestar-agent``, which is ``litestar agent`` without Litestar's search for an application."""
    agent_group(prog_name="litestar-agent")


def _is_called_by_litestar(arguments: list[str]) -> bool:
    """Whether Litestar's command line is about to be asked for this group, with no application named in it."""
    return "litestar.cli.main" in sys.modules and arguments[:1] == ["agent"]


_litestars_variables: dict[str, str | None] = {}
"""Variables of Litestar's that are changed until a command runs, and what they were."""

if _is_called_by_litestar(sys.argv[1:]):
    # Litestar imports an application before each command, and where that raises, ends: a broken app.py, or one that
    # needs the SDK. No command here wants one. This is Litestar's own way to say which to import.
    for _name, _value in (("LITESTAR_APP", _NO_APPLICATION), ("LITESTAR_QUIET_CONSOLE", "1")):
        _litestars_variables[_name] = os.environ.get(_name)
        os.environ[_name] = _value
