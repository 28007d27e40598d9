"""What people see in Jaeger and Tempo, and what a Collector hands on, of an agent that is served, by each protocol."""

import itertools
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.backends.agents import GRPC, HTTP, bearer, trusting, with_client_certificate
from tests.backends.agents import agent as serving
from tests.backends.collector import Collector, collector
from tests.backends.details import ATTRIBUTES, LINKED, MESSAGE, TRACE_STATE
from tests.backends.jaeger import Jaeger, jaeger
from tests.backends.tempo import Tempo, tempo
from tests.certificates import Certificates
from tests.e2e.runtimes import free_ports
from tests.e2e.trace_promises import PARENT_ID, TracePromises, invoke, new_session
from tests.integration.server import ServerProcess

TOKEN = "dG9rZW4+b2YvdGhl+dGVzdHM=="


Backend = Collector | Jaeger | Tempo


class Destination(msgspec.Struct, frozen=True):
    """Where an agent's spans go, and who is asked for them."""

    backend: Backend
    variables: dict[str, str]


@contextmanager
def to_jaeger(directory: Path, certs: Certificates, protocol: str) -> Iterator[Destination]:
    with jaeger(directory) as backend:
        yield Destination(backend, backend.endpoint(protocol))


@contextmanager
def to_tempo(directory: Path, certs: Certificates, protocol: str) -> Iterator[Destination]:
    with tempo(directory) as backend:
        yield Destination(backend, backend.endpoint(protocol))


@contextmanager
def to_collector(directory: Path, certs: Certificates, protocol: str) -> Iterator[Destination]:
    with collector(directory) as backend:
        yield Destination(backend, backend.endpoint(protocol))


@contextmanager
def to_secured_collector(directory: Path, certs: Certificates, protocol: str) -> Iterator[Destination]:
    """By TLS with certificates on both sides, with a token, and compressed."""
    with collector(directory, certs, TOKEN) as backend:
        secured = bearer(TOKEN) | trusting(certs.authority) | with_client_certificate(certs.client, certs.client_key)
        compressed = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
        yield Destination(backend, backend.endpoint(protocol) | secured | compressed)


@contextmanager
def to_jaeger_through_collector(directory: Path, certs: Certificates, protocol: str) -> Iterator[Destination]:
    (port,) = free_ports(1)
    with jaeger(directory, port) as backend, collector(directory, forward_to=port) as between:
        yield Destination(backend, between.endpoint(protocol))


WAYS = [
    *itertools.product([to_jaeger, to_tempo, to_collector, to_secured_collector], [HTTP, GRPC]),
    (to_jaeger_through_collector, HTTP),
]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0].__name__}, {way[1]}")
def destination(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certs: Certificates
) -> Iterator[Destination]:
    way, protocol = request.param
    with way(tmp_path_factory.mktemp("backend"), certs, protocol) as there:
        yield there


@pytest.fixture(scope="module")
def backend(destination: Destination) -> Backend:
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


def test_all_that_a_span_may_have_is_there(destination: Destination, backend: Backend) -> None:
    trace_id = uuid.uuid4().hex
    caller = {"traceparent": f"00-{trace_id}-{PARENT_ID}-01", "tracestate": TRACE_STATE}
    variables = destination.variables | {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests"}
    with serving("tests.backends.detailed_agent:app", **variables) as server:
        invoke(server, new_session(), headers=caller)
        # Not by its session: Tempo does not look into traces that are as long as this one.
        spans = {span.name: span for span in backend.spans_of_trace(trace_id, 2)}
    request, details = spans["POST /invocations"], spans["details"]

    assert (request.kind, details.kind) == ("SERVER", "CLIENT")
    assert (request.scope, details.scope) == ("litestar_agentcore", "a library")
    assert request.trace_state == details.trace_state == TRACE_STATE
    assert (details.status_code, details.status_message) == ("ERROR", MESSAGE)
    (event,) = details.events
    assert (event.name, event.attributes) == ("half way", {"percent": 50})
    (link,) = details.links
    assert (link.trace_id, link.span_id) == tuple(f"{number:0{width}x}" for number, width in zip(LINKED, (32, 16)))
    assert isinstance(backend, Jaeger) or link.attributes == {"why": "retry"}
    for span in (request, details):
        expected = {
            "service.name": "detailed",
            "deployment.environment.name": "tests",
            "telemetry.sdk.language": "python",
        }
        assert {name: span.resource.get(name) for name in expected} == expected
    kept = {name: _as_kept(backend, value) for name, value in ATTRIBUTES.items()}
    assert {name: details.attributes.get(name) for name in ATTRIBUTES} == kept


def _as_kept(backend: Backend, value: object) -> object:
    """Jaeger has no lists: it keeps them as the text of their JSON."""
    return (
        json.dumps(value, separators=(",", ":")) if isinstance(backend, Jaeger) and isinstance(value, list) else value
    )
