"""Who is measured."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tests.benchmarks import environments
from tests.benchmarks.environments import HERE, ROOT

AGENT = HERE / "agents" / "agent.py"
A2A_AGENT = HERE / "agents" / "a2a_agent.py"
MCP_AGENT = HERE / "agents" / "mcp_agent.py"
OURS_IMPORT = "from litestar_agentcore import BedrockAgentCoreApp"
SDK_IMPORT = "from bedrock_agentcore.runtime import BedrockAgentCoreApp"

INVOCATIONS = (
    "unary-async",
    "unary-one-step",
    "unary-sync",
    "stream-async",
    "stream-sync",
    "sleepers",
    "open-streams",
    "cold-start",
)
"""Loads of plain HTTP."""

AG_UI, A2A, MCP = "stream-ag-ui", "unary-a2a", "unary-mcp"
LOADS = (*INVOCATIONS, AG_UI, A2A, MCP)
AG_UI_LOADS = frozenset({AG_UI})

Write = Callable[[Path], Sequence[str]]


class Candidate(msgspec.Struct, frozen=True):
    """A runtime, and how it is set up."""

    name: str
    title: str
    loads: frozenset[str]
    """What it is driven with."""
    prepare: Write
    """Writes the agent into a directory and returns the command that serves it, without port and handler."""
    traced: bool = False
    environment: dict[str, str] = {}


def ours(root: Path = ROOT, suffix: str = "") -> list[Candidate]:
    """This runtime, from a checkout."""

    def prepare(directory: Path) -> Sequence[str]:
        shutil.copy(AGENT, directory)
        return [str(environments.ours()), str(directory / AGENT.name)]

    checkout = {"PYTHONPATH": os.pathsep.join(str(root / directory) for directory in ("service", "telemetry"))}
    silent = {**checkout, "OTEL_SDK_DISABLED": "true"}
    inline = {"AGENTCORE_HANDLER_ISOLATION": "inline"}
    every = frozenset(INVOCATIONS)
    quick = every - {"unary-one-step", "unary-sync", "stream-sync", "open-streams"}
    title = f"this runtime{suffix}"
    return [
        Candidate(f"isolated-traced{suffix}", f"{title}, telemetry on", every, prepare, True, checkout),
        Candidate(f"isolated{suffix}", f"{title}, telemetry off", every, prepare, False, silent),
        Candidate(f"inline-traced{suffix}", f"{title} inline, telemetry on", quick, prepare, True, checkout | inline),
        Candidate(f"inline{suffix}", f"{title} inline, telemetry off", quick, prepare, False, silent | inline),
        Candidate(
            f"ag-ui-traced{suffix}", f"{title}, telemetry on", AG_UI_LOADS, _ag_ui("ag_ui_agent"), True, checkout
        ),
        Candidate(f"ag-ui{suffix}", f"{title}, telemetry off", AG_UI_LOADS, _ag_ui("ag_ui_agent"), False, silent),
        # Without the library's own spans, which are many and not ours.
        _a2a(f"a2a-traced{suffix}", f"{title}, telemetry on", "ours", True, checkout | LIBRARY_UNTRACED),
        _a2a(f"a2a{suffix}", f"{title}, telemetry off", "ours", False, silent),
        _mcp(f"mcp-traced{suffix}", f"{title}, telemetry on", "ours", True, checkout),
        _mcp(f"mcp{suffix}", f"{title}, telemetry off", "ours", False, silent),
    ]


LIBRARY_UNTRACED = {"OTEL_INSTRUMENTATION_A2A_SDK_ENABLED": "false"}


def _a2a(name: str, title: str, runtime: str, traced: bool, environment: dict[str, str]) -> Candidate:
    def prepare(directory: Path) -> Sequence[str]:
        agent = shutil.copy(A2A_AGENT, directory)
        return [str(environments.a2a()), str(agent), runtime]

    return Candidate(name, title, frozenset({A2A}), prepare, traced, environment)


def _mcp(name: str, title: str, runtime: str, traced: bool, environment: dict[str, str]) -> Candidate:
    def prepare(directory: Path) -> Sequence[str]:
        agent = shutil.copy(MCP_AGENT, directory)
        return [str(environments.mcp()), str(agent), runtime]

    return Candidate(name, title, frozenset({MCP}), prepare, traced, environment)


def peers() -> list[Candidate]:
    """The official runtimes, and the limit."""
    return [
        Candidate("python-traced", "Python SDK, traced", frozenset(INVOCATIONS), _sdk_traced, True),
        Candidate("python", "Python SDK", frozenset(INVOCATIONS), _sdk),
        Candidate("typescript", "TypeScript SDK", frozenset(INVOCATIONS) - {"stream-sync"}, _typescript),
        Candidate(
            "limit", "bare ASGI", frozenset({"unary-async", "unary-one-step", "stream-async", "cold-start"}), _limit
        ),
        Candidate("ag-ui-python", "Python SDK for AG-UI", AG_UI_LOADS, _ag_ui("ag_ui_agent", is_ours=False)),
        Candidate("ag-ui-limit", "AG-UI's library on uvicorn", AG_UI_LOADS, _ag_ui("ag_ui_limit")),
        _a2a("a2a-python", "Python SDK", "sdk", False, {}),
        _a2a("a2a-bare", "a2a-sdk alone", "bare", False, {}),
        _mcp("mcp-bare", "mcp alone", "bare", False, {}),
    ]


def _ag_ui(name: str, *, is_ours: bool = True) -> Write:
    """An agent of AG-UI's, which needs its library."""

    def prepare(directory: Path) -> Sequence[str]:
        source = (HERE / "agents" / f"{name}.py").read_text()
        file = directory / f"{name}.py"
        file.write_text(
            source if is_ours else source.replace("from litestar_agentcore", "from bedrock_agentcore.runtime")
        )
        return [str(environments.ag_ui()), str(file)]

    return prepare


def _sdk(directory: Path) -> Sequence[str]:
    python = environments.python_peer()
    return [str(python), str(_sdk_agent(directory))]


def _sdk_traced(directory: Path) -> Sequence[str]:
    python = environments.traced_python_peer()
    return [str(python.parent / "opentelemetry-instrument"), str(python), str(_sdk_agent(directory))]


def _sdk_agent(directory: Path) -> Path:
    """The same agent, moved to the SDK by one import line."""
    source = AGENT.read_text()
    assert source.count(OURS_IMPORT) == 1, "the agent imports its runtime in one line"
    file = directory / AGENT.name
    file.write_text(source.replace(OURS_IMPORT, SDK_IMPORT))
    return file


def _typescript(directory: Path) -> Sequence[str]:
    # Node looks for packages beside the file, not beside the working directory.
    agent = shutil.copy(HERE / "agents" / "agent.mjs", environments.npm_peer())
    return [environments.node(), str(agent)]


def _limit(directory: Path) -> Sequence[str]:
    return [str(environments.ours()), str(shutil.copy(HERE / "agents" / "limit.py", directory))]
