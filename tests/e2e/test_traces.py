"""What people see in a real tracing backend, Phoenix, of an agent that is served. Others: tests/backends."""

from collections.abc import Iterator

import pytest

from tests.e2e.phoenix import Phoenix, phoenix
from tests.e2e.served import served
from tests.e2e.trace_promises import TracePromises, invoke, spans_of
from tests.integration.server import ServerProcess


@pytest.fixture(scope="module")
def backend() -> Iterator[Phoenix]:
    with phoenix() as running:
        yield running


@pytest.fixture(scope="module")
def agent(backend: Phoenix) -> Iterator[ServerProcess]:
    with served("tests.e2e.tracing_agent:app", **sending_to(backend)) as server:
        yield server


@pytest.fixture(scope="module")
def sync_agent(backend: Phoenix) -> Iterator[ServerProcess]:
    with served("tests.e2e.tracing_agent:sync_app", **sending_to(backend)) as server:
        yield server


def sending_to(backend: Phoenix) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


class TestPhoenix(TracePromises):
    def test_traces_go_over_grpc_as_well(self, backend: Phoenix, session: str) -> None:
        over_grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.grpc_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        with served("tests.e2e.tracing_agent:app", **over_grpc, OTEL_BSP_SCHEDULE_DELAY="100") as agent:
            request_id = invoke(agent, session, prompt="hello")
            (span,) = spans_of(backend, session, 1).values()
        assert span.attributes["request.id"] == request_id
