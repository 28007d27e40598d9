"""On what, and with what, a report was made."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.benchmarks import environments
from tests.benchmarks.candidates import Candidate
from tests.benchmarks.environments import ROOT, base_environment
from tests.benchmarks.invocation import BODY
from tests.benchmarks.runner import WARM_UP_SECONDS, Plan
from tests.benchmarks.servers import SPAN_DELAY_MILLISECONDS, Cores

OURS = ["litestar", "uvicorn", "uvloop", "httptools", "msgspec", "opentelemetry-sdk", "prometheus_client"]
PYTHON_SDK = ["bedrock-agentcore", "starlette", "uvicorn", "uvloop", "httptools"]
TRACED = ["opentelemetry-distro", "opentelemetry-instrumentation-starlette", "opentelemetry-sdk"]
AG_UI = ["ag-ui-protocol", "pydantic", "uvicorn", "bedrock-agentcore"]
MCP = ["mcp", "starlette", "sse-starlette", "uvicorn"]
A2A = ["a2a-sdk", "bedrock-agentcore", "starlette", "sse-starlette", "uvicorn"]
TYPESCRIPT_SDK = ["bedrock-agentcore", "fastify", "@fastify/sse"]

_ASK = (
    "import json,platform,sys;from importlib.metadata import version as v;"
    "print(json.dumps([platform.python_version(),{n:v(n) for n in sys.argv[1:]}]))"
)


def versions(candidates: Sequence[Candidate]) -> dict[str, str]:
    """What each candidate is made of, as one line each."""
    names = {each.name for each in candidates}
    found = {"this runtime": f"{_revision()} on {_python(environments.ours(), OURS)}"}
    if "python" in names:
        found["Python SDK"] = _python(environments.python_peer(), PYTHON_SDK)
    if "python-traced" in names:
        found["Python SDK, traced"] = _python(environments.traced_python_peer(), PYTHON_SDK + TRACED)
    if "mcp-bare" in names:
        found["MCP, both"] = _python(environments.mcp(), MCP)
    if "a2a-bare" in names:
        found["A2A, all three"] = _python(environments.a2a(), A2A)
    if "typescript" in names:
        found["TypeScript SDK"] = _node()
    if "ag-ui" in names:
        found["AG-UI"] = _python(environments.ag_ui(), AG_UI)
    found["load"] = f"{_first_line([environments.wrk(), '-v'])}; streams: an asyncio client on uvloop"
    return found


def how_it_was_made(plan: Plan, cores: Cores, versions: dict[str, str]) -> str:
    """The section on the machine, the versions and the settings."""
    parts = "\n".join(f"- {name}: {version}." for name, version in versions.items())
    kernel = platform.release().partition("-")[0]
    machine = f"{os.cpu_count()} cores of {_processor()}, {_memory()} of memory, Linux {kernel}"
    return f"""## How it was made

On {datetime.now(UTC):%d %B %Y}, by `make bench`: {plan.rounds} rounds of {plan.seconds:g} s per candidate, load and
concurrency, each candidate in turn, after {WARM_UP_SECONDS:g} s of warm-up. The figures are medians of the rounds, the
ratios those of medians; the spread is the largest round less the smallest, as a share of the median.

- Machine: {machine}. {_pinning(cores)}
{parts}
- All Python servers: uvicorn with uvloop and httptools, one process, no access log. Fastify's request lines, its access
  log, are off too. Else each runtime logs as it does by default, into a file; the Python SDK writes one line per
  invocation.
- Telemetry on: every invocation is traced, and the spans are exported by OTLP over HTTP to a small server that answers
  200, with `OTEL_BSP_SCHEDULE_DELAY={SPAN_DELAY_MILLISECONDS}`. No metrics or logs are exported: our metrics are
  scraped, and updated with telemetry off too. The traced Python SDK runs under `opentelemetry-instrument` with the
  instrumentation of Starlette alone, as the one that has a part in serving.
- Telemetry off: `OTEL_SDK_DISABLED=true`. Inline: `AGENTCORE_HANDLER_ISOLATION=inline`.
- Bare ASGI is a function on uvicorn that decodes and encodes with msgspec and knows nothing else. It sends each event
  of a stream by itself; a runtime that passes on together what is ready can be faster there.
- An invocation has a body of {len(BODY)} bytes and a session header; connections are kept, and each sends its next one
  once it has the last one's answer. Rates of streams count the events that arrived within the round, also those of
  streams that did not end in it; latencies are of streams that did.
- The thousand sleeping invocations are sent at once, on connections that are open already. Of the thousand open
  streams, each event says when it was due; memory is what a fresh process has grown by, divided by a thousand.
- Each candidate's answer was checked beforehand. Failures are answers that were not 2xx, short or cut off, and
  connections that broke, in all rounds together. Spans per invocation is what reached the tracing backend. Load CPU is
  how busy the load generator was; near 100 % it is the limit of what is measured."""


def _pinning(cores: Cores) -> str:
    if not cores.server:
        return "One core for everything: nothing is pinned."
    apart = "on one of its own" if cores.sink != cores.load else "on the latter"
    return f"The server is pinned to one core, the load generator to another, and the tracing backend runs {apart}."


def _python(python: Path, packages: list[str]) -> str:
    output = subprocess.run(
        [python, "-c", _ASK, *packages], env=base_environment(), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    version, found = json.loads(output)
    return f"Python {version}, " + ", ".join(f"{name} {number}" for name, number in found.items())


def _node() -> str:
    modules = environments.npm_peer() / "node_modules"
    found = {name: json.loads((modules / name / "package.json").read_text())["version"] for name in TYPESCRIPT_SDK}
    version = _first_line([environments.node(), "--version"])
    return f"Node.js {version.removeprefix('v')}, " + ", ".join(f"{name} {number}" for name, number in found.items())


def _revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return f"{metadata.version('litestar-agentcore')} ({done.stdout.strip() or 'no git'})"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).splitlines()[0].partition(" Copyright")[0].strip()


def _processor() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1024**3:.0f} GiB"
