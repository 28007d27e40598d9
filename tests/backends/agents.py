"""Agents in an environment of what people install: the package with ``grpc``, and what speaks X-Ray's formats."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.e2e.environments import environment
from tests.e2e.runtimes import ROOT
from tests.e2e.served import served
from tests.integration.server import ServerProcess

HTTP, GRPC = "http/protobuf", "grpc"
"""The protocols, as ``OTEL_EXPORTER_OTLP_PROTOCOL`` names them."""

TRACING_AGENT = "tests.e2e.tracing_agent:app"

SOURCES = os.pathsep.join(str(ROOT / name) for name in ("", "service", "telemetry"))
"""``PYTHONPATH`` of an environment that has what the package needs, and not the package."""


@contextmanager
def agent(
    app: str = TRACING_AGENT, stdout: int | IO[str] = subprocess.DEVNULL, /, **variables: str
) -> Iterator[ServerProcess]:
    """Serve an agent until the test is through."""
    python = environment("backends") / "python"
    soon = {"OTEL_BSP_SCHEDULE_DELAY": "100", "PYTHONPATH": SOURCES}
    with served(app, (str(python), "-m"), stdout, **soon | variables) as server:
        yield server


def messages(server: ServerProcess) -> list[str]:
    """What its log says of spans or their exporter."""
    lines = [json.loads(line) for line in server.stderr() if line.startswith("{")]
    return [line["message"] for line in lines if line["logger"].startswith(("agentcore_telemetry", "opentelemetry"))]


def dropped(server: ServerProcess) -> float:
    """How many spans never reached the backend, as its metrics say."""
    with server.client() as client:
        exposed = client.get("/metrics").text
    (value,) = re.findall(r"^agentcore_spans_dropped_total (\S+)$", exposed, re.MULTILINE)
    return float(value)


def bearer(token: str) -> dict[str, str]:
    """The variable for a backend that demands a token."""
    return {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}"}


def trusting(authority: Path) -> dict[str, str]:
    """The variable for a backend whose certificate a private authority has signed."""
    return {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority)}


def with_client_certificate(certificate: Path, key: Path) -> dict[str, str]:
    """The variables for a backend that demands a certificate."""
    return {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate), "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key)}
