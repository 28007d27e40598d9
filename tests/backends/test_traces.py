"""What people see in Jaeger, and what a Collector hands on, of an agent that is served: each way to send it there."""

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from tests.backends.agents import agent as serving
from tests.backends.agents import bearer, trusting, with_client_certificate
from tests.backends.certificates import Certificates
from tests.backends.collector import Collector, collector
from tests.backends.jaeger import Jaeger, jaeger
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import TracePromises
from tests.integration.server import ServerProcess

TOKEN = "dG9rZW4+b2YvdGhl+dGVzdHM=="


class Way(msgspec.Struct, frozen=True):
    """A way to send spans to a backend."""

    name: str
    protocol: str
    through_collector: bool = False
    to_jaeger: bool = False
    secured: bool = False
    """By TLS with certificates on both sides, and a token; and compressed."""


HTTP, GRPC = "http/protobuf", "grpc"
WAYS = [
    Way("Jaeger, HTTP", HTTP, to_jaeger=True),
    Way("Jaeger, gRPC", GRPC, to_jaeger=True),
    Way("Collector, HTTP", HTTP, through_collector=True),
    Way("Collector, gRPC", GRPC, through_collector=True),
    Way("Collector, HTTP, TLS", HTTP, through_collector=True, secured=True),
    Way("Collector, gRPC, TLS", GRPC, through_collector=True, secured=True),
    Way("Jaeger through a Collector, HTTP", HTTP, through_collector=True, to_jaeger=True),
]


class Destination(msgspec.Struct, frozen=True):
    """Where an agent's spans go, and who is asked for them."""

    backend: Collector | Jaeger
    variables: dict[str, str]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.name)
def destination(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certs: Certificates
) -> Iterator[Destination]:
    way: Way = request.param
    directory = tmp_path_factory.mktemp("backend")
    with ExitStack() as stack:
        jaegers: list[Jaeger] = []
        (grpc_port,) = free_ports(1)
        if way.to_jaeger:
            jaegers.append(stack.enter_context(jaeger(directory, grpc_port)))
        if not way.through_collector:
            yield Destination(jaegers[0], jaegers[0].endpoint(way.protocol))
            return
        between = stack.enter_context(
            collector(
                directory,
                certs=certs if way.secured else None,
                token=TOKEN if way.secured else None,
                forward_to=grpc_port if way.to_jaeger else None,
            )
        )
        variables = between.endpoint(way.protocol)
        if way.secured:
            variables |= bearer(TOKEN) | trusting(certs.authority)
            variables |= with_client_certificate(certs.client, certs.client_key)
            variables["OTEL_EXPORTER_OTLP_COMPRESSION"] = "gzip"
        yield Destination(jaegers[0] if jaegers else between, variables)


@pytest.fixture(scope="module")
def backend(destination: Destination) -> Collector | Jaeger:
    return destination.backend


@pytest.fixture(scope="module")
def agent(destination: Destination) -> Iterator[ServerProcess]:
    with serving(**destination.variables) as server:
        yield server


@pytest.fixture(scope="module")
def sync_agent(destination: Destination) -> Iterator[ServerProcess]:
    with serving("tests.e2e.tracing_agent:sync_app", **destination.variables) as server:
        yield server


class TestTraces(TracePromises):
    pass
