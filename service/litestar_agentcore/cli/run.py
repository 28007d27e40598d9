"""``litestar agent run``: serve an agent's file as it is."""

import os
import sys
from pathlib import Path
from typing import Any

import rich_click as click
import uvicorn
from agentcore_telemetry.log_handlers import LogSetup
from litestar import Litestar

from litestar_agentcore.app import BedrockAgentCoreApp, default_host
from litestar_agentcore.cli.agent_file import CALL_RUN_GUARDED, AgentFile, ImportFailed, default_port, load, plugin_of
from litestar_agentcore.protocol.settings import Settings, SettingsError
from litestar_agentcore.server import run_options

DEFAULT_PORT = 8080

_TARGET_VARIABLE = "LITESTAR_AGENT_TARGET"
"""Tells a process that uvicorn spawns which file to serve: it is given no more than the name of a function."""

_APPLICATION = f"{__name__}:application"


@click.command("run")
@click.argument("target", metavar="FILE[:NAME]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The port to listen on.  [default: the protocol's, 8080 for HTTP]"
)
@click.option(
    "--host", help="The address to listen on.  [default: 0.0.0.0 inside a container, and 127.0.0.1 elsewhere]"
)
@click.option(
    "--workers", type=click.IntRange(min=1), envvar="WEB_CONCURRENCY", help="How many processes serve.  [default: 1]"
)
@click.option("--reload", is_flag=True, help="Start anew whenever a Python file in the file's directory changes.")
@click.pass_context
def run(ctx: click.Context, target: str, port: int | None, host: str | None, workers: int | None, reload: bool) -> None:
    """Serve an agent's file as it is, also one written for the official SDK.

    FILE is agent.py, or package.module; NAME its application, or a function that returns it, where it has several.
    Imports of bedrock_agentcore.runtime give this service's names. What stands under `if __name__ == "__main__":` does
    not run.
    """
    agent = AgentFile.parse(target)
    if reload and (workers or 1) > 1:
        raise click.UsageError("--reload serves with one process: leave --workers out, or WEB_CONCURRENCY")
    if ctx.parent is not ctx.find_root():
        _execute_anew(target, port, host, workers, reload)
    os.environ[_TARGET_VARIABLE] = agent.absolute
    if reload:
        _serve_reloading(agent, port, host)
    else:
        _serve(agent, port, host, workers or 1)


def application() -> Litestar:
    """Import the application, in a process that uvicorn has spawned.

    Raises:
        SystemExit: It cannot be imported, which standard error tells.
    """
    try:
        app = load(AgentFile.parse(os.environ[_TARGET_VARIABLE]))
    except click.ClickException as error:
        if isinstance(error, ImportFailed):
            error.write_traceback()
        error.show()
        sys.exit(error.exit_code)
    plugin_of(app).log_setup.configure_server()
    return app


def _serve(agent: AgentFile, asked_port: int | None, asked_host: str | None, workers: int) -> None:
    original, served = BedrockAgentCoreApp.run, False

    def run_there(app: BedrockAgentCoreApp, port: int = DEFAULT_PORT, host: str | None = None, **options: Any) -> None:
        nonlocal served
        if workers > 1:
            raise click.ClickException(f"With --workers each process imports the file: {CALL_RUN_GUARDED}")
        served = True
        port = port if asked_port is None else asked_port
        original(app, port, asked_host or host, **{"workers": 1, **options})

    try:
        app = load(agent, run_there)
    except ImportFailed as error:
        error.write_traceback()
        raise
    except click.ClickException:
        if not served:
            raise
    if served:
        return
    plugin = plugin_of(app)
    address = {"host": asked_host or default_host(), "port": default_port(app) if asked_port is None else asked_port}
    options = run_options(plugin.agent.settings, plugin.log_setup, app.debug, address)
    if workers > 1:
        uvicorn.run(_APPLICATION, factory=True, workers=workers, **options)
    else:
        uvicorn.run(app, workers=1, **options)


def _serve_reloading(agent: AgentFile, port: int | None, host: str | None) -> None:
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    address = {"host": host or default_host(), "port": DEFAULT_PORT if port is None else port}
    options = run_options(settings, LogSetup(_no_ids, settings.log_level, settings.log_format), False, address)
    uvicorn.run(_APPLICATION, factory=True, reload=True, reload_dirs=[str(agent.directory)], workers=1, **options)


def _no_ids() -> tuple[None, None]:
    return None, None


def _execute_anew(target: str, port: int | None, host: str | None, workers: int | None, reload: bool) -> None:
    """Have this process go on as ``litestar-agent run``: Litestar has imported an application in it."""
    # Without -P the current directory would come before the modules that are imported until the agent's file is.
    command = [sys.executable, "-P", "-m", "litestar_agentcore.cli.console", "run", target]
    for option, value in (("--port", port), ("--host", host), ("--workers", workers)):
        if value is not None:
            command += [option, str(value)]
    if reload:
        command.append("--reload")
    instrumentation = sys.modules.get("opentelemetry.instrumentation.auto_instrumentation")
    if instrumentation is not None and instrumentation.__file__ is not None:
        # There is the ``sitecustomize`` of ``opentelemetry-instrument``, which older releases hide from children.
        directory = str(Path(instrumentation.__file__).parent)
        others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != directory]
        os.environ["PYTHONPATH"] = os.pathsep.join([directory, *others])
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)  # noqa: S606 - our own command, without a shell  # nosec B606
