"""Agents behind a real server on a real socket: in this process, or in one of their own."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import httpx
import uvicorn
from litestar import Litestar
from litestar_agentcore import BedrockAgentCoreApp

from tests.ports import free_port as free_port

ROOT = Path(__file__).parents[2]

PATIENCE = 10.0
"""Seconds after which what should have happened long ago counts as not happening."""

PROMPT = 1.0
"""Seconds after which a kubelet gives a probe up."""

SMALL_BUFFER = 64 * 1024
"""Bytes of the kernel's socket buffers, where back-pressure is to be felt soon."""

REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


@dataclass(frozen=True)
class Server:
    """A server that listens on a port of the loopback interface."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout: float = PATIENCE) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def async_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, limits=limits, trust_env=False)

    def connect(self) -> socket.socket:
        """A connection that takes little in before it is read from."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def invoke_and_leave_unread(self, payload: object) -> socket.socket:
        """Send an invocation, and read nothing of its answer."""
        connection = self.connect()
        connection.sendall(request(json.dumps(payload).encode()))
        return connection


@dataclass(frozen=True)
class ServerProcess(Server):
    """A server in a process of its own."""

    process: "subprocess.Popen[bytes]"
    _stderr: TextIO

    def stderr(self) -> list[str]:
        """The lines that it has written so far."""
        file = self._stderr.fileno()  # whose position is the process's own too, so that it must not be moved
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace").splitlines()

    def terminate(self) -> int:
        """Send SIGTERM and wait for the process to end."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


def app_of(handler: Callable[..., Any]) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp()
    app.entrypoint(handler)
    return app


def request(body: bytes, *headers: str) -> bytes:
    """The bytes of an invocation; the body may be shorter than a ``Content-Length`` header says."""
    lines = ["POST /invocations HTTP/1.1", "Host: agent", *headers]
    if not headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def receive_until(connection: socket.socket, mark: bytes) -> bytes:
    """What a connection brings, up to a mark and perhaps beyond."""
    received = bytearray()
    while mark not in received:
        chunk = connection.recv(SMALL_BUFFER)
        assert chunk, f"the server closed the connection before {mark!r}: {bytes(received)!r}"
        received += chunk
    return bytes(received)


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@contextmanager
def serve(app: Litestar) -> Iterator[Server]:
    """Serve an application from a thread of this process, so that a test sees what its handlers do."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    config = uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=int(PATIENCE))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield Server(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "the server did not end"


def litestar_run(module: str, port: int) -> list[str]:
    return [sys.executable, "-m", "litestar", "--app", f"{module}:app", "run", "--port", str(port)]


def uvicorn_command(module: str, port: int) -> list[str]:
    return [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)]


def app_run(module: str, port: int) -> list[str]:
    return [sys.executable, "-m", module, str(port)]


@contextmanager
def run(
    command: Sequence[str],
    port: int,
    cwd: Path = ROOT,
    start_seconds: float = 2 * PATIENCE,
    stdout: int | IO[str] = subprocess.DEVNULL,
) -> Iterator[ServerProcess]:
    """Run a command that serves an agent, from the root of the repository, until the test is through with it."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(command, cwd=cwd, stdout=stdout, stderr=stderr)
        server = ServerProcess(port, process, stderr)
        try:
            _wait_for_ping(server, start_seconds)
            yield server
        finally:
            process.kill()
            process.wait(PATIENCE)


def run_to_the_end(command: Sequence[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that is expected to fail."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def _wait_for_ping(server: ServerProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with server.client() as client:
        while True:
            try:
                client.get("/ping")
            except httpx.TransportError:
                assert server.process.poll() is None, server.stderr()
                assert time.monotonic() < deadline, server.stderr()
                time.sleep(0.05)
            else:
                return
