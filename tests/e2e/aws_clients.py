"""An agent on three ports, and what AWS's clients are told of it by their variables."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runtimes import HERE, ROOT, free_ports, listens
from tests.integration.server import eventually

CLIENTS = HERE / "clients"
ARN = "arn:aws:bedrock-agentcore:eu-central-1:123456789012:runtime/agent-Ab0123456789"

START_SECONDS = 60.0
CLIENT_SECONDS = 120.0

_FOREIGN = ("AGENTCORE_", "AWS_", "OTEL_", "NODE_", "PYTEST_", "PYTHON")


def environment_without_ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}


@contextmanager
def agents(directory: Path) -> Iterator[dict[str, str]]:
    """Serve the agent: as it is, for callers with a key alone, and without an entrypoint.

    Args:
        directory: Where logs and keys may be.

    Yields:
        The variables for the clients, of which none has to do with these agents but ``ARN`` and the three addresses.
    """
    keys = directory / "keys"
    keys.write_text("key\n")
    limits = {
        "AGENTCORE_RUNTIME_ARN": ARN,
        "AGENTCORE_MAX_CONCURRENT_INVOCATIONS": "1",
        "AGENTCORE_QUEUE_SIZE": "0",
    }
    started: list[subprocess.Popen[bytes]] = []
    ports = free_ports(3)
    roles = [("app", limits), ("app", {"AGENTCORE_API_KEYS_FILE": str(keys)}), ("empty", {})]
    try:
        for port, (name, variables) in zip(ports, roles, strict=True):
            with (directory / f"{port}.log").open("wb") as log:
                command = [sys.executable, "-m", "uvicorn", f"tests.e2e.clients.agent:{name}", "--port", str(port)]
                environment = {**environment_without_ours(), **variables}
                started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
        eventually(lambda: all(listens(port) for port in ports), START_SECONDS)
        addresses = [f"http://127.0.0.1:{port}" for port in ports]
        yield {
            **dict(zip(("ENDPOINT", "GUARDED", "EMPTY"), addresses, strict=True)),
            "ARN": ARN,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_SESSION_TOKEN": "not-a-session",
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_RETRY_MODE": "standard",
        }
    finally:
        for process in started:
            process.kill()
            process.wait()


def seen_by(command: list[str | Path], variables: dict[str, str], cwd: Path = CLIENTS) -> Any:
    """Run a client, and decode the JSON that it prints."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**environment_without_ours(), **variables},
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}", pytrace=False)
    return json.loads(done.stdout)
