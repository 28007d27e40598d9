"""``litestar agent run`` and ``litestar-agent run``: processes that serve an agent's file, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.server import ServerProcess, free_port, request, run

COMMANDS = Path(sys.executable).parent
LITESTAR = [str(COMMANDS / "litestar"), "agent", "run"]
LITESTAR_AGENT = [str(COMMANDS / "litestar-agent"), "run"]
LONG = 120.0
"""Seconds for what takes several processes to start on a busy machine."""

AGENT = """
import os, sys, time
from bedrock_agentcore.runtime import BedrockAgentCoreApp
from bedrock_agentcore.runtime.context import BedrockAgentCoreContext

app = BedrockAgentCoreApp()


@app.entrypoint
def answer(payload):
    while "until" in payload and not os.path.exists(payload["until"]):
        time.sleep(0.01)
    if payload.get("spawn"):
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(where).result()
    return {"pid": os.getpid(), "parent": os.getppid(), "module": __name__, "version": 1}


def where():
    return [BedrockAgentCoreApp.__module__, __name__]


if __name__ == "__main__":
    raise SystemExit("run as the main script")
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an agent, and with an ``app.py`` that nothing can import."""
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "app.py").write_text("import nothing_of_that_name")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@contextmanager
def served(directory: Path, *arguments: str, command: list[str] = LITESTAR_AGENT) -> Iterator[ServerProcess]:
    port = free_port()
    with run([*command, *arguments, "--port", str(port), "--host", "127.0.0.1"], port, directory, LONG) as server:
        yield server


def ask(server: ServerProcess, **payload: object) -> object:
    with server.client(LONG) as client:
        response = client.post("/invocations", json=payload)
    assert response.status_code == 200, response.text
    return response.json()


def ended(process: "subprocess.Popen[bytes]") -> int:
    return process.wait(LONG)


@pytest.mark.parametrize("command", [LITESTAR, LITESTAR_AGENT], ids=["litestar", "litestar-agent"])
def test_one_process_serves_and_a_termination_waits_for_what_runs(command: list[str], directory: Path) -> None:
    with served(directory, "agent.py", command=command) as server:
        answer = ask(server)
        assert answer == {"pid": server.process.pid, "parent": os.getpid(), "module": "agent", "version": 1}
        body = json.dumps({"until": str(directory / "done")}).encode()
        with server.connect() as client, server.client(LONG) as other:
            client.settimeout(LONG)
            client.sendall(request(body))
            wait_for(lambda: "agentcore_invocations_in_progress 1.0" in other.get("/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: any("SIGTERM" in line or "Shutting down" in line for line in server.stderr()))
            (directory / "done").touch()
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert ended(server.process) == -signal.SIGTERM
        assert "Application shutdown complete." in " ".join(server.stderr())


def test_processes_that_the_agent_spawns_import_the_same_and_an_interrupt_ends_it_quietly(directory: Path) -> None:
    with served(directory, "agent.py:app") as server:
        assert ask(server, spawn=True) == ["litestar_agentcore.app", "agent"]
        server.process.send_signal(signal.SIGINT)
        assert ended(server.process) == 0
        assert not [line for line in server.stderr() if "Traceback" in line or "Aborted" in line]


def test_a_call_of_run_that_is_not_guarded_serves(directory: Path) -> None:
    (directory / "unguarded.py").write_text(f"{AGENT.partition('if __name__')[0]}\napp.run(port=1)\nprint(2)")
    with served(directory, "unguarded.py") as server:
        assert ask(server) == {"pid": server.process.pid, "parent": os.getpid(), "module": "unguarded", "version": 1}
        server.process.terminate()
        assert ended(server.process) == -signal.SIGTERM


def test_several_workers_serve_and_end_together(directory: Path) -> None:
    with served(directory, "agent.py", "--workers", "2") as server:
        pids: set[int] = set()
        deadline = time.monotonic() + LONG
        while len(pids) < 2 and time.monotonic() < deadline:
            answer = ask(server)
            assert isinstance(answer, dict)
            assert (answer["module"], answer["parent"]) == ("agent", server.process.pid)
            pids.add(answer["pid"])
        assert len(pids) == 2
        server.process.terminate()
        assert ended(server.process) == 0
        for pid in pids:
            assert not Path(f"/proc/{pid}/cmdline").exists() or sys.platform != "linux"


def test_reloading_follows_the_file_and_outlives_one_that_is_broken(directory: Path) -> None:
    file = directory / "agent.py"
    with served(directory, "agent.py", "--reload") as server:
        change(server, file, "1 / 0\n")
        wait_for(lambda: any("ZeroDivisionError" in line for line in server.stderr()))
        assert any("agent.py cannot be imported" in line for line in server.stderr())
        change(server, file, AGENT.replace('"version": 1', '"version": 2'))
        wait_for(lambda: version(server) == 2)
        server.process.terminate()
        assert ended(server.process) == 0


def change(server: ServerProcess, file: Path, source: str) -> None:
    """Change a file, with a later time of modification again and again until the reloader has seen it.

    A reloader sees no change before it has seen the file once, and it begins anew with each process that it starts.
    """

    def reloads() -> int:
        return len([line for line in server.stderr() if "Reloading" in line])

    file.write_text(source)
    before, later = reloads(), file.stat().st_mtime

    def seen() -> bool:
        nonlocal later
        later += 10
        os.utime(file, (later, later))
        time.sleep(1)
        return reloads() > before

    wait_for(seen)


def version(server: ServerProcess) -> object:
    try:
        with server.client(1) as client:
            return client.post("/invocations", json={}).json()["version"]
    except httpx.TransportError:
        return None


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one", "workers"])
def test_a_file_that_cannot_be_imported_ends_with_1_and_listens_on_nothing(
    arguments: tuple[str, ...], directory: Path
) -> None:
    done = subprocess.run(
        [*LITESTAR_AGENT, "app.py", *arguments, "--port", str(free_port())],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if line.startswith("  File ")] == [
        f'  File "{directory / "app.py"}", line 1, in <module>'
    ]
    assert "Uvicorn running" not in done.stderr


def test_a_port_that_is_taken_is_told(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [*LITESTAR_AGENT, "agent.py", "--port", str(port), "--host", "127.0.0.1"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 3, "uvicorn's code for a start that failed"
    assert "address already in use" in done.stderr
