"""AWS X-Ray's ids: they come in its header, are made as it wants them, and reach a Collector; so with AWS's distro."""

import time
from collections.abc import Iterator

import pytest

from tests.backends.agents import HTTP, SOURCES, TRACING_AGENT, agent
from tests.backends.collector import Collector, collector
from tests.e2e.environments import environment
from tests.e2e.served import served
from tests.e2e.trace_promises import PARENT_ID, TRACE_ID, invoke, new_session, spans_of
from tests.integration.server import ServerProcess

HEADER = "X-Amzn-Trace-Id"
ROOT, PARENT = "5759e988bd862e3fe1be46a994272793", "53995c3f42cd8ad8"
SAMPLED = f"Root=1-{ROOT[:8]}-{ROOT[8:]};Parent={PARENT};Sampled=1"

PROPAGATORS = {"OTEL_PROPAGATORS": "tracecontext,baggage,xray"}
IDS = {"OTEL_PYTHON_ID_GENERATOR": "xray"}
DISTRO = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
    "OTEL_AWS_APPLICATION_SIGNALS_ENABLED": "false",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_PYTHON_CONFIGURATOR": "aws_configurator",
    "OTEL_PYTHON_DISTRO": "aws_distro",
    "OTEL_TRACES_SAMPLER": "parentbased_always_on",
}
"""AWS's distro for an agent beside its collector: X-Ray's ids and propagator are the distro's defaults."""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    with collector(tmp_path_factory.mktemp("collector")) as running:
        yield running


@pytest.fixture(scope="module")
def own_agent(backend: Collector) -> Iterator[ServerProcess]:
    with agent(**backend.endpoint(HTTP), **PROPAGATORS, **IDS) as server:
        yield server


@pytest.fixture(scope="module")
def distros_agent(backend: Collector) -> Iterator[ServerProcess]:
    commands = environment("adot")
    runner = (str(commands / "opentelemetry-instrument"), str(commands / "python"), "-m")
    soon = {"OTEL_BSP_SCHEDULE_DELAY": "100", "PYTHONPATH": SOURCES}
    with served(TRACING_AGENT, runner, **backend.endpoint(HTTP), **soon, **DISTRO) as server:
        yield server


@pytest.fixture(params=["own_agent", "distros_agent"])
def xray_agent(request: pytest.FixtureRequest) -> ServerProcess:
    server: ServerProcess = request.getfixturevalue(request.param)
    return server


def test_a_caller_that_sends_xrays_header_gets_its_own_trace_id(backend: Collector, xray_agent: ServerProcess) -> None:
    session = new_session()
    invoke(xray_agent, session, headers={HEADER: SAMPLED}, do="async function")

    spans = spans_of(backend, session, 2)
    request, step = spans["POST /invocations"], spans["step"]
    assert (request.trace_id, request.parent_id) == (ROOT, PARENT)
    assert (step.trace_id, step.parent_id) == (ROOT, request.span_id)


def test_a_caller_that_has_not_sampled_gets_no_trace(backend: Collector, xray_agent: ServerProcess) -> None:
    silent, heard = new_session(), new_session()
    invoke(xray_agent, silent, headers={HEADER: SAMPLED.replace("Sampled=1", "Sampled=0")}, do="async function")
    invoke(xray_agent, heard, do="async function")

    spans_of(backend, heard, 2)
    assert silent not in {span.attributes.get("session.id") for span in backend.spans()}


def test_a_trace_that_begins_here_has_an_id_that_begins_with_the_time(
    backend: Collector, xray_agent: ServerProcess
) -> None:
    session = new_session()
    before = int(time.time())
    invoke(xray_agent, session, do="async function")
    after = int(time.time())

    (trace_id,) = {span.trace_id for span in spans_of(backend, session, 2).values()}
    assert before <= int(trace_id[:8], 16) <= after


def test_trace_context_is_understood_besides(backend: Collector, xray_agent: ServerProcess) -> None:
    session = new_session()
    invoke(xray_agent, session, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})

    (span,) = spans_of(backend, session, 1).values()
    assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)


def test_the_headers_id_is_taken_without_xrays_generator_too(backend: Collector) -> None:
    session = new_session()
    with agent(**backend.endpoint(HTTP), **PROPAGATORS) as server:
        invoke(server, session, headers={HEADER: SAMPLED})
        (span,) = spans_of(backend, session, 1).values()
    assert (span.trace_id, span.parent_id) == (ROOT, PARENT)
