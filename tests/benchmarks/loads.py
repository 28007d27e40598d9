"""How servers are driven."""

import json
import resource
import signal
import subprocess
import sys
import time

import msgspec

from tests.benchmarks import environments
from tests.benchmarks.environments import HERE, ROOT, base_environment
from tests.benchmarks.invocation import (
    bytes_of_answer,
    check_a2a,
    check_mcp,
    check_run,
    check_stream,
    check_unary,
    headers,
    target,
)
from tests.benchmarks.results import Round
from tests.benchmarks.servers import Cores, Server, pinned

DRIVEN_SECONDS = 90.0
"""After which a load generator counts as stuck."""


def check(load: str, port: int) -> None:
    """Raise unless the candidate answers as it has to."""
    if load == "stream-ag-ui":
        check_run(port)
    elif load.startswith("stream"):
        check_stream(port)
    elif load == "unary-a2a":
        check_a2a(port)
    elif load == "unary-mcp":
        check_mcp(port)
    elif load != "open-streams":
        check_unary(port)


def drive(load: str, server: Server, connections: int, seconds: float, cores: Cores) -> Round:
    """One round of a load."""
    with pinned(cores.load):
        if load.startswith("unary"):
            return _wrk(load, server, connections, seconds)
        kind = {"stream-ag-ui": "runs"}.get(load, "streams") if load.startswith("stream") else load
        return _client(kind, server, connections, seconds)


def _wrk(load: str, server: Server, connections: int, seconds: float) -> Round:
    # wrk knows whole seconds only, so it is interrupted, which it answers by saying what it has counted.
    command = [environments.wrk(), "-t1", f"-c{connections}", "-d60s", "--timeout", "30s", "-s", str(HERE / "load.lua")]
    for name, value in headers().items():
        command += ["-H", f"{name}: {value}"]
    path, body = target(load)
    command += [f"http://127.0.0.1:{server.port}{path}", "--", body]
    expected = bytes_of_answer(server.port, load)
    cpu = _cpu_seconds_of_ended_children()
    output = _output_after(command, seconds)
    cpu = _cpu_seconds_of_ended_children() - cpu
    counted = json.loads(output.splitlines()[-1])
    elapsed = counted["microseconds"] / 1e6
    # wrk counts every answer that was complete, whatever it says. A wrong one with status 200 is seen by its length.
    bad = max(counted["bad_status"], counted["answers"] - round(counted["bytes"] / expected))
    answers = counted["answers"] - bad
    figures = {"rate": answers / elapsed, "load_cpu": cpu / elapsed}
    if answers:
        figures |= {"p50": counted["p50"] / 1e6, "p99": counted["p99"] / 1e6}
    return Round(figures, answers, bad + counted["broken"])


def _output_after(command: list[str], seconds: float) -> str:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=DRIVEN_SECONDS)
        finally:
            process.kill()
    return output


def _client(kind: str, server: Server, connections: int, seconds: float) -> Round:
    arguments = [kind, server.port, connections, seconds, server.process.pid]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.client", *map(str, arguments)],
        cwd=ROOT,
        env=base_environment(),
        stdout=subprocess.PIPE,
        timeout=DRIVEN_SECONDS,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Round)


def _cpu_seconds_of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
