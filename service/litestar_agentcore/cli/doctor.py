"""``litestar agent doctor``: look at an agent, and at where it is to run."""

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import msgspec
import rich_click as click
from rich.console import Console

from litestar_agentcore.app import default_host
from litestar_agentcore.cli.agent_check import AgentCheck
from litestar_agentcore.cli.agent_file import LIKELY_FILES, AgentFile, default_port, plugin_of
from litestar_agentcore.cli.findings import Finding, Report
from litestar_agentcore.cli.port_check import check_port
from litestar_agentcore.cli.run import DEFAULT_PORT
from litestar_agentcore.cli.sdk_imports import DISTRIBUTION
from litestar_agentcore.cli.settings_check import check_settings, check_telemetry_variables, settings_in_force
from litestar_agentcore.cli.trace_check import check_traces
from litestar_agentcore.version import __version__


@click.command("doctor")
@click.argument("target", metavar="[FILE[:NAME]]", required=False)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The port to try.  [default: the protocol's, 8080 for HTTP]"
)
@click.option("--host", help="The address to try.  [default: 0.0.0.0 inside a container, and 127.0.0.1 elsewhere]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="How many seconds the tracing backend may take to answer.",
)
@click.option("--all", "with_defaults", is_flag=True, help="Show the settings that have their default too.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def doctor(
    ctx: click.Context,
    target: str | None,
    port: int | None,
    host: str | None,
    timeout: float,
    with_defaults: bool,
    as_json: bool,
) -> None:
    """Look at an agent's file, and at where it is to run.

    The file is imported and its application looked at; settings are checked; a span is sent to the tracing backend; the
    port is tried. FILE is agent.py, app.py or main.py by default. The exit code is 1 if something cannot work. Values
    that may be secret are not shown.
    """
    if target is None:
        target = next((name for name in LIKELY_FILES if Path(name).is_file()), None)
    agent = None if target is None else AgentFile.parse(target)
    report = Report.of(_check(agent, host or default_host(), port, timeout), settings_in_force(os.environ))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        report.write(Console(), with_defaults)
    ctx.exit(0 if report.ok else 1)


def _check(agent: AgentFile | None, host: str, port: int | None, timeout: float) -> Iterator[Finding]:
    versions = f"litestar-agentcore {__version__}, Litestar {version('litestar')}, Python {python_version()}"
    yield Finding("ok", "service", versions)
    try:
        yield Finding("ok", "official SDK", f"{DISTRIBUTION} {version(DISTRIBUTION)}, for its clients")
    except PackageNotFoundError:
        yield Finding("ok", "official SDK", "not installed; only its clients (identity, memory, tools) would need it")
    settings = list(check_settings(os.environ))
    yield from settings
    yield from check_telemetry_variables(os.environ)
    name = "agent"
    if agent is None:
        text = f"no file is named, and there is no {', '.join(LIKELY_FILES)} here"
        yield Finding("warning", "agent", text, "Name it to have it looked at: litestar-agent doctor FILE")
    elif any(finding.level == "failure" for finding in settings):
        yield Finding("warning", "agent", f"{agent} is not imported: it would read the settings")
    else:
        check = AgentCheck(agent)
        yield from check.load()
        yield from check.check_handlers()
        yield from filter(None, (check.check_authentication(host), check.check_logging()))
        if check.app is not None:
            name = plugin_of(check.app).agent.telemetry.agent_name
            port = default_port(check.app) if port is None else port
    yield from check_traces(name, timeout)
    yield check_port(host, DEFAULT_PORT if port is None else port)
