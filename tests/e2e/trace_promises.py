"""What people see in a tracing backend of an agent that is served, whichever backend it is."""

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Protocol

import msgspec
import pytest

from tests.integration.server import REQUEST_ID, SESSION_ID, ServerProcess

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class SpanEvent(msgspec.Struct):
    name: str
    attributes: dict[str, Any]


class SpanLink(msgspec.Struct):
    trace_id: str
    span_id: str
    attributes: dict[str, Any]


class Span(msgspec.Struct):
    """A span as a backend has kept it; what stands last not every backend tells."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_time: datetime
    end_time: datetime
    status_code: str
    """``UNSET``, ``OK`` or ``ERROR``."""
    attributes: dict[str, Any]
    events: list[SpanEvent]
    status_message: str = ""
    links: list[SpanLink] = []
    kind: str = ""
    trace_state: str = ""
    scope: str = ""
    resource: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        return (self.end_time - self.start_time).total_seconds()


class TracingBackend(Protocol):
    """A running backend, which can be asked for what it has been sent."""

    def spans_of_session(self, session: str, number: int) -> Sequence[Span]:
        """The spans of a session, in the order of their beginning, once there are so many."""

    def spans_of_trace(self, trace_id: str, number: int) -> Sequence[Span]:
        """The spans of a trace, in the order of their beginning, once there are so many."""

    def traces_by_session(self, number: int) -> dict[str, set[str]]:
        """The sessions, each with the ids of its traces, once there are so many sessions."""


def invoke(agent: ServerProcess, session: str, *, headers: dict[str, str] | None = None, **payload: object) -> str:
    """Invoke the agent, take its whole answer, and give the request's id."""
    with agent.client() as client:
        response = client.post("/invocations", json=payload, headers={SESSION_ID: session, **(headers or {})})
    return response.headers[REQUEST_ID]


def new_session() -> str:
    return f"session-{uuid.uuid4()}"


def spans_of(backend: TracingBackend, session: str, number: int) -> dict[str, Span]:
    """The spans of a session that holds exactly these, by name."""
    spans = backend.spans_of_session(session, number)
    assert len({span.name for span in spans}) == len(spans) == number
    return {span.name: span for span in spans}


def assert_step_is_a_child(backend: TracingBackend, session: str, request_id: str) -> None:
    spans = spans_of(backend, session, 2)
    request, step = spans["POST /invocations"], spans["step"]
    assert step.parent_id == request.span_id
    assert step.trace_id == request.trace_id
    assert step.attributes["request.id"] == request_id


class TracePromises:
    """The tests of each backend. Their module has the fixtures ``backend``, ``agent`` and ``sync_agent``."""

    @pytest.fixture
    def session(self) -> str:
        return new_session()

    def test_an_invocation_is_one_trace_with_the_ids_as_attributes(
        self, backend: TracingBackend, agent: ServerProcess, session: str
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
        self, backend: TracingBackend, agent: ServerProcess, session: str
    ) -> None:
        requests = {invoke(agent, session, prompt=prompt) for prompt in ("one", "two", "three")}

        spans = backend.spans_of_session(session, 3)
        assert {span.attributes["request.id"] for span in spans} == requests
        assert len({span.trace_id for span in spans}) == 3

    def test_a_streams_span_lasts_as_long_as_the_stream(
        self, backend: TracingBackend, agent: ServerProcess, session: str
    ) -> None:
        began = time.monotonic()
        invoke(agent, session, do="stream", count=5, seconds=0.2)
        lasted = time.monotonic() - began

        (span,) = spans_of(backend, session, 1).values()
        assert 1.0 <= span.seconds <= lasted
        assert span.attributes["agentcore.stream.chunks"] == 5
        assert span.attributes["agentcore.stream.outcome"] == "completed"

    def test_the_exception_of_a_failure_is_there(
        self, backend: TracingBackend, agent: ServerProcess, session: str
    ) -> None:
        invoke(agent, session, do="fail")

        (span,) = spans_of(backend, session, 1).values()
        assert span.status_code == "ERROR"
        (event,) = span.events
        assert event.name == "exception"
        assert event.attributes["exception.type"] == "LookupError"
        assert event.attributes["exception.message"] == "no such tool"
        assert "tracing_agent.py" in event.attributes["exception.stacktrace"]

    def test_a_client_that_sends_traceparent_gets_its_own_trace_id(
        self, backend: TracingBackend, agent: ServerProcess, session: str
    ) -> None:
        invoke(agent, session, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})

        (span,) = backend.spans_of_trace(TRACE_ID, 1)
        assert span.parent_id == PARENT_ID
        assert span.attributes["session.id"] == session

    @pytest.mark.parametrize("place", ["async function", "task", "thread", "async generator", "generator"])
    def test_a_span_made_in_the_handler_is_a_child_of_the_requests_span(
        self, backend: TracingBackend, agent: ServerProcess, session: str, place: str
    ) -> None:
        assert_step_is_a_child(backend, session, invoke(agent, session, do=place))

    def test_a_span_made_in_a_sync_handler_is_a_child_of_the_requests_span(
        self, backend: TracingBackend, sync_agent: ServerProcess, session: str
    ) -> None:
        assert_step_is_a_child(backend, session, invoke(sync_agent, session))

    def test_a_task_that_outlives_its_request_is_a_child_of_it(
        self, backend: TracingBackend, agent: ServerProcess, session: str
    ) -> None:
        invoke(agent, session, do="research", seconds=0.5)

        spans = spans_of(backend, session, 3)
        request, task, finding = spans["POST /invocations"], spans["async_task research"], spans["finding"]
        assert task.parent_id == request.span_id
        assert finding.parent_id == task.span_id
        assert task.end_time > request.end_time

    def test_concurrent_sessions_never_mix_and_are_grouped_by_session(
        self, backend: TracingBackend, agent: ServerProcess
    ) -> None:
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
            traces[session] = spans_of(backend, session, 2)["step"].trace_id
        assert len(set(traces.values())) == 50
        grouped = backend.traces_by_session(50)
        assert {session: grouped[session] for session in sessions} == {
            session: {traces[session]} for session in sessions
        }
