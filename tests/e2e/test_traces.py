"""What people see in a real tracing backend, Phoenix, of an agent that is served."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.phoenix import Phoenix, Span, phoenix
from tests.e2e.served import served
from tests.integration.server import REQUEST_ID, SESSION_ID, ServerProcess

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


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


@pytest.fixture
def session() -> str:
    return f"session-{uuid.uuid4()}"


def sending_to(backend: Phoenix) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def invoke(agent: ServerProcess, session: str, *, headers: dict[str, str] | None = None, **payload: object) -> str:
    """Invoke the agent, take its whole answer, and give the request's id."""
    with agent.client() as client:
        response = client.post("/invocations", json=payload, headers={SESSION_ID: session, **(headers or {})})
    return response.headers[REQUEST_ID]


def spans_of(backend: Phoenix, session: str, number: int) -> dict[str, Span]:
    """The spans of a session that holds exactly these, by name."""
    spans = backend.spans(number, attribute=f"session.id:{session}")
    assert len({span.name for span in spans}) == len(spans) == number
    return {span.name: span for span in spans}


def test_an_invocation_is_one_trace_with_the_ids_as_attributes(
    backend: Phoenix, agent: ServerProcess, session: str
) -> None:
    request_id = invoke(agent, session, prompt="hello")

    (span,) = spans_of(backend, session, 1).values()
    assert span.name == "POST /invocations"
    assert span.parent_id is None
    assert span.status_code in {"OK", "UNSET"}
    assert span.attributes["session.id"] == span.attributes["gen_ai.conversation.id"] == session
    assert span.attributes["request.id"] == request_id
    assert span.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert span.attributes["gen_ai.agent.name"] == "helper"
    assert span.attributes["http.route"] == "/invocations"
    assert span.attributes["http.response.status_code"] == 200


def test_each_invocation_of_a_session_is_a_trace_of_its_own(
    backend: Phoenix, agent: ServerProcess, session: str
) -> None:
    requests = {invoke(agent, session, prompt=prompt) for prompt in ("one", "two", "three")}

    spans = backend.spans(3, attribute=f"session.id:{session}")
    assert {span.attributes["request.id"] for span in spans} == requests
    assert len({span.context.trace_id for span in spans}) == 3


def test_a_streams_span_lasts_as_long_as_the_stream(backend: Phoenix, agent: ServerProcess, session: str) -> None:
    began = time.monotonic()
    invoke(agent, session, do="stream", count=5, seconds=0.2)
    lasted = time.monotonic() - began

    (span,) = spans_of(backend, session, 1).values()
    assert 1.0 <= span.seconds <= lasted
    assert span.attributes["agentcore.stream.chunks"] == 5
    assert span.attributes["agentcore.stream.outcome"] == "completed"


def test_the_exception_of_a_failure_is_there(backend: Phoenix, agent: ServerProcess, session: str) -> None:
    invoke(agent, session, do="fail")

    (span,) = spans_of(backend, session, 1).values()
    assert span.status_code == "ERROR"
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "LookupError"
    assert event.attributes["exception.message"] == "no such tool"
    assert "tracing_agent.py" in event.attributes["exception.stacktrace"]


def test_a_client_that_sends_traceparent_gets_its_own_trace_id(
    backend: Phoenix, agent: ServerProcess, session: str
) -> None:
    invoke(agent, session, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})

    (span,) = backend.spans(1, trace_id=TRACE_ID)
    assert span.parent_id == PARENT_ID
    assert span.attributes["session.id"] == session


@pytest.mark.parametrize("place", ["async function", "task", "thread", "async generator", "generator"])
def test_a_span_made_in_the_handler_is_a_child_of_the_requests_span(
    backend: Phoenix, agent: ServerProcess, session: str, place: str
) -> None:
    assert_step_is_a_child(backend, session, invoke(agent, session, do=place))


def test_a_span_made_in_a_sync_handler_is_a_child_of_the_requests_span(
    backend: Phoenix, sync_agent: ServerProcess, session: str
) -> None:
    assert_step_is_a_child(backend, session, invoke(sync_agent, session))


def assert_step_is_a_child(backend: Phoenix, session: str, request_id: str) -> None:
    spans = spans_of(backend, session, 2)
    request, step = spans["POST /invocations"], spans["step"]
    assert step.parent_id == request.context.span_id
    assert step.context.trace_id == request.context.trace_id
    assert step.attributes["request.id"] == request_id


def test_a_task_that_outlives_its_request_is_a_child_of_it(
    backend: Phoenix, agent: ServerProcess, session: str
) -> None:
    invoke(agent, session, do="research", seconds=0.5)

    spans = spans_of(backend, session, 3)
    request, task, finding = spans["POST /invocations"], spans["async_task research"], spans["finding"]
    assert task.parent_id == request.context.span_id
    assert finding.parent_id == task.context.span_id
    assert task.end_time > request.end_time


def test_concurrent_sessions_never_mix_and_are_grouped_by_session(backend: Phoenix, agent: ServerProcess) -> None:
    mark = uuid.uuid4()
    sessions = [f"{mark}-{number}" for number in range(50)]
    places = ["async function", "task", "thread", "async generator", "generator"]
    with ThreadPoolExecutor(50) as clients:
        calls = {
            session: clients.submit(invoke, agent, session, do=places[number % 5])
            for number, session in enumerate(sessions)
        }
        requests = {session: call.result() for session, call in calls.items()}

    traces: dict[str, str] = {}
    for session in sessions:
        assert_step_is_a_child(backend, session, requests[session])
        traces[session] = spans_of(backend, session, 2)["step"].context.trace_id
    assert len(set(traces.values())) == 50
    grouped = backend.sessions(50)
    assert {session: grouped[session] for session in sessions} == {session: {traces[session]} for session in sessions}


def test_traces_go_over_grpc_as_well(backend: Phoenix, session: str) -> None:
    over_grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.grpc_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with served("tests.e2e.tracing_agent:app", **over_grpc, OTEL_BSP_SCHEDULE_DELAY="100") as agent:
        request_id = invoke(agent, session, prompt="hello")
        (span,) = spans_of(backend, session, 1).values()
    assert span.attributes["request.id"] == request_id
