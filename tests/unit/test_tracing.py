"""Spans: which there are, what each says, and whose provider records them."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from litestar import WebSocket
from litestar.exceptions import NotFoundException, WebSocketDisconnect
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from tests.integration.server import PATIENCE, app_of, eventually, receive_until, serve
from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines, events

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
EXPERIMENT = "aws.agentcore.gateway.routing_experiment_arn"
VARIANT = "aws.agentcore.gateway.routing_experiment_variant_name"
IDS = {"session.id": "a-session", "gen_ai.conversation.id": "a-session", "request.id": "a-request"}
ID_HEADERS = {SESSION_ID: "a-session", REQUEST_ID: "a-request"}

Socket = WebSocket[Any, Any, Any]


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def one(self, name: str) -> ReadableSpan:
        """The only span of that name, once it has ended."""
        eventually(lambda: name in self.names)
        (span,) = [span for span in self.all if span.name == name]
        return span

    @property
    def invocation(self) -> ReadableSpan:
        return self.one("POST /invocations")

    @property
    def websocket(self) -> ReadableSpan:
        return self.one("GET /ws")


@pytest.fixture
def provider(no_provider: None) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def spans(provider: TracerProvider) -> Spans:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(exporter)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def span_id(span: ReadableSpan) -> str:
    return trace.format_span_id(context_of(span).span_id)


def trace_id(span: ReadableSpan) -> str:
    return trace.format_trace_id(context_of(span).trace_id)


def parent_id(span: ReadableSpan) -> str | None:
    return trace.format_span_id(span.parent.span_id) if span.parent else None


def record(name: str) -> None:
    """What an agent's library does."""
    with trace.get_tracer("a library").start_as_current_span(name):
        pass


def answer(payload: Any) -> Any:
    return payload


def fail(payload: Any) -> Any:
    raise LookupError("no such tool")


def not_found(payload: Any) -> Any:
    raise NotFoundException("no such thing")


async def count(payload: Any) -> AsyncIterator[int]:
    for number in range(3):
        yield number


async def break_off(payload: Any) -> AsyncIterator[int]:
    yield 1
    raise LookupError("no such tool")


def invoke(client: Client, **headers: str) -> Any:
    return client.post("/invocations", json={}, headers={**ID_HEADERS, **headers})


def test_an_invocation_is_one_server_span(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(answer)
    invoke(client)

    assert spans.names == ["POST /invocations"]
    assert spans.invocation.kind is SpanKind.SERVER
    assert spans.invocation.parent is None
    assert spans.invocation.status.status_code is StatusCode.UNSET


def test_an_invocations_span_carries_the_attributes_of_the_conventions(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client, **{"User-Agent": "a-client/1", "Host": "agent.example:8443"})

    assert attributes(spans.invocation) == {
        **IDS,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "answer",
        "http.request.method": "POST",
        "http.route": "/invocations",
        "url.path": "/invocations",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "server.address": "agent.example",
        "server.port": 8443,
        "client.address": "testclient",
        "user_agent.original": "a-client/1",
    }


def test_the_server_is_the_socket_where_the_host_header_names_no_port(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client, Host="agent.example")

    assert attributes(spans.invocation)["server.address"] == "agent.example"
    assert attributes(spans.invocation)["server.port"] == 80


def test_an_ipv6_host_is_told_apart_from_its_port(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(answer)
    invoke(client, Host="[::1]:8080")

    assert attributes(spans.invocation)["server.address"] in {"::1", "[::1]"}
    assert attributes(spans.invocation)["server.port"] == 8080


def test_an_ipv6_host_without_a_port_is_an_address(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(answer)
    invoke(client, Host="[2001:db8::8]")

    assert attributes(spans.invocation)["server.address"] in {"2001:db8::8", "[2001:db8::8]"}


def test_the_agents_name_can_be_set(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_NAME", "helper")
    app = app_of(answer)
    with TestClient(app=app) as client:
        invoke(client)

    assert attributes(spans.invocation)["gen_ai.agent.name"] == "helper"


def test_without_a_session_the_span_names_the_request_alone(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    request_id = client.post("/invocations", json={}).headers[REQUEST_ID]

    assert attributes(spans.invocation)["request.id"] == request_id
    assert not {"session.id", "gen_ai.conversation.id"} & attributes(spans.invocation).keys()


def test_a_failures_span_is_an_error_with_its_exception(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(fail)
    assert invoke(client).status_code == 500

    span = spans.invocation
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "LookupError"
    assert attributes(span)["http.response.status_code"] == 500
    (event,) = span.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.type"] == "LookupError"
    assert (event.attributes or {})["exception.message"] == "no such tool"
    assert "in fail" in str((event.attributes or {})["exception.stacktrace"])


@pytest.mark.parametrize(("handler", "body", "status"), [(not_found, b"1", 404), (answer, b"{", 400)])
def test_a_clients_mistake_is_no_error_of_the_server(
    spans: Spans, app: BedrockAgentCoreApp, client: Client, handler: Callable[[Any], Any], body: bytes, status: int
) -> None:
    app.entrypoint(handler)
    assert client.post("/invocations", content=body).status_code == status

    assert attributes(spans.invocation)["http.response.status_code"] == status
    assert spans.invocation.status.status_code is StatusCode.UNSET


def test_without_an_entrypoint_the_span_is_an_error(spans: Spans, client: Client) -> None:
    assert invoke(client).status_code == 500

    assert spans.invocation.status.status_code is StatusCode.ERROR
    assert attributes(spans.invocation)["error.type"] == "500"


@pytest.mark.parametrize("path", ["/ping", "/ready", "/metrics", "/schema/openapi.json"])
def test_health_metrics_and_schema_are_not_traced(spans: Spans, client: Client, path: str) -> None:
    assert client.get(path, headers={"traceparent": TRACEPARENT}).status_code == 200

    assert spans.all == ()


def test_a_streams_span_tells_its_chunks_and_its_outcome(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(count)
    assert events(invoke(client)) == [0, 1, 2]

    assert attributes(spans.invocation)["agentcore.stream.chunks"] == 3
    assert attributes(spans.invocation)["agentcore.stream.outcome"] == "completed"
    assert attributes(spans.invocation)["http.response.status_code"] == 200
    assert spans.invocation.status.status_code is StatusCode.UNSET


def test_a_stream_that_fails_is_an_error_with_its_exception(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(break_off)
    assert len(events(invoke(client))) == 2

    span = spans.invocation
    assert attributes(span)["agentcore.stream.chunks"] == 2
    assert attributes(span)["agentcore.stream.outcome"] == "error"
    assert attributes(span)["error.type"] == "LookupError"
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_an_answer_that_is_no_stream_tells_nothing_of_chunks(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client)

    assert not [name for name in attributes(spans.invocation) if name.startswith("agentcore.stream")]


def test_a_streams_span_ends_with_the_stream(spans: Spans) -> None:
    more = threading.Event()

    def wait(payload: Any) -> Iterator[str]:
        yield "first"
        more.wait(PATIENCE)
        yield "last"

    with serve(app_of(wait)) as server, server.invoke_and_leave_unread(None) as connection:
        receive_until(connection, b"first")
        assert spans.all == ()
        more.set()
        receive_until(connection, b"last")

        assert attributes(spans.invocation)["agentcore.stream.chunks"] == 2


def test_a_stream_whose_client_leaves_ends_its_span_as_disconnected(spans: Spans) -> None:
    async def wait(payload: Any) -> AsyncIterator[str]:
        yield "first"
        await asyncio.Event().wait()

    with serve(app_of(wait)) as server:
        with server.invoke_and_leave_unread(None) as connection:
            receive_until(connection, b"first")
        span = spans.invocation

    assert attributes(span)["agentcore.stream.chunks"] == 1
    assert attributes(span)["agentcore.stream.outcome"] == "disconnected"
    assert span.status.status_code is StatusCode.UNSET


def test_a_websocket_is_one_server_span(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(answer)

    @app.websocket
    async def echo(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    with client.websocket_connect("/ws", headers={**ID_HEADERS, "traceparent": TRACEPARENT}) as websocket:
        websocket.send_text("hello")
        websocket.receive_text()

    span = spans.websocket
    assert span.kind is SpanKind.SERVER
    assert (trace_id(span), parent_id(span)) == (TRACE_ID, PARENT_ID)
    told = attributes(span)
    assert told.items() >= IDS.items()
    assert told["gen_ai.operation.name"] == "invoke_agent"
    assert told["gen_ai.agent.name"] == "answer"
    assert told["http.request.method"] == "GET"
    assert told["http.route"] == told["url.path"] == "/ws"
    assert told["http.response.status_code"] == 101


def test_a_websocket_whose_handler_raises_is_an_error(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def broken(websocket: Socket, context: RequestContext) -> None:
        await websocket.accept()
        record("step")
        raise LookupError("no such tool")

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=ID_HEADERS) as websocket:
        websocket.receive(timeout=PATIENCE)

    assert spans.websocket.status.status_code is StatusCode.ERROR
    assert attributes(spans.websocket)["error.type"] == "LookupError"
    assert [event.name for event in spans.websocket.events] == ["exception"]
    assert parent_id(spans.one("step")) == span_id(spans.websocket)
    assert attributes(spans.one("step")) == IDS


def test_a_request_without_trace_context_begins_a_trace_of_its_own(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client)
    invoke(client)

    first, second = spans.all
    assert trace_id(first) != trace_id(second)


def test_a_client_that_sends_traceparent_gets_its_own_trace_id(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client, traceparent=TRACEPARENT, tracestate="vendor=1")

    assert (trace_id(spans.invocation), parent_id(spans.invocation)) == (TRACE_ID, PARENT_ID)
    assert context_of(spans.invocation).trace_state.to_header() == "vendor=1"


def test_a_client_that_does_not_sample_is_not_traced(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(answer)
    assert invoke(client, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-00").status_code == 200

    assert spans.all == ()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID.replace('a', 'x')}-{PARENT_ID}-01",
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(
    spans: Spans, app: BedrockAgentCoreApp, client: Client, traceparent: str
) -> None:
    app.entrypoint(answer)
    assert invoke(client, traceparent=traceparent).status_code == 200

    assert spans.invocation.parent is None
    assert trace_id(spans.invocation) != TRACE_ID


def sync_handler(payload: Any) -> None:
    record("step")


async def async_handler(payload: Any) -> None:
    record("step")


def generator(payload: Any) -> Iterator[int]:
    yield 1
    record("step")
    yield 2


async def async_generator(payload: Any) -> AsyncIterator[int]:
    yield 1
    record("step")
    yield 2


async def in_a_task(payload: Any) -> None:
    async def step() -> None:
        record("step")

    await asyncio.create_task(step())


async def in_a_thread(payload: Any) -> None:
    await asyncio.to_thread(record, "step")


@pytest.mark.parametrize("handler", [sync_handler, async_handler, generator, async_generator, in_a_task, in_a_thread])
def test_what_libraries_record_in_a_handler_is_a_child_of_the_requests_span_and_carries_its_ids(
    spans: Spans, app: BedrockAgentCoreApp, client: Client, handler: Callable[[Any], Any]
) -> None:
    app.entrypoint(handler)
    invoke(client, traceparent=TRACEPARENT)

    step = spans.one("step")
    assert parent_id(step) == span_id(spans.invocation)
    assert trace_id(step) == TRACE_ID
    assert attributes(step) == IDS


def test_a_span_that_is_open_over_yields_stays_the_parent_of_what_the_generator_records(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.entrypoint
    def answer(payload: Any) -> Iterator[int]:
        with trace.get_tracer("a library").start_as_current_span("agent"):
            yield 1
            record("step")
            yield 2

    assert events(invoke(client)) == [1, 2]

    assert parent_id(spans.one("step")) == span_id(spans.one("agent"))
    assert parent_id(spans.one("agent")) == span_id(spans.invocation)


def test_what_is_recorded_outside_a_request_carries_no_ids(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(answer)
    invoke(client)

    record("later")

    assert attributes(spans.one("later")) == {}


def test_concurrent_requests_never_mix(spans: Spans) -> None:
    barrier = threading.Barrier(8)

    def meet(payload: Any) -> None:
        with trace.get_tracer("a library").start_as_current_span("outer"):
            barrier.wait(PATIENCE)
            record("inner")

    with TestClient(app=app_of(meet)) as client, ThreadPoolExecutor(8) as clients:
        ids = [str(uuid.uuid4()) for _ in range(8)]
        calls = [clients.submit(client.post, "/invocations", json={}, headers={SESSION_ID: each}) for each in ids]
        assert {call.result().status_code for call in calls} == {200}

    sessions: dict[str, set[Any]] = {}
    for span in spans.all:
        sessions.setdefault(trace_id(span), set()).add(attributes(span)["session.id"])
    assert len(spans.all) == 24
    assert sorted(sessions.values(), key=str) == sorted(({each} for each in ids), key=str)


def test_baggage_reaches_the_handler(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    async def told(payload: Any) -> Any:
        return dict(baggage.get_all())

    assert invoke(client, baggage="tenant=one,tier=gold%20plus").json() == {"tenant": "one", "tier": "gold plus"}


def test_the_routing_experiment_is_on_every_span_of_the_request(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(sync_handler)
    arn = "arn:aws:bedrock-agentcore:us-east-1:123456789012:experiment/e"
    members = f"{EXPERIMENT}={arn.replace(':', '%3A').replace('/', '%2F')},{VARIANT}=treatment%20b,tenant=one"
    invoke(client, baggage=members)

    experiment = {EXPERIMENT: arn, VARIANT: "treatment b"}
    assert attributes(spans.one("step")) == IDS | experiment
    assert attributes(spans.invocation).items() >= experiment.items()
    assert "tenant" not in attributes(spans.invocation)


def test_an_async_task_is_a_child_of_the_span_that_started_it(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.async_task
    async def research() -> None:
        record("step")

    @app.entrypoint
    async def answer(payload: Any) -> None:
        with trace.get_tracer("a library").start_as_current_span("plan"):
            await research()

    invoke(client)

    task = spans.one("async_task research")
    assert task.kind is SpanKind.INTERNAL
    assert parent_id(task) == span_id(spans.one("plan"))
    assert parent_id(spans.one("step")) == span_id(task)
    assert attributes(task) == attributes(spans.one("step")) == IDS
    assert task.status.status_code is StatusCode.UNSET


def test_an_async_tasks_span_may_outlive_its_request(spans: Spans, app: BedrockAgentCoreApp, client: Client) -> None:
    go_on = threading.Event()

    @app.async_task
    async def research() -> None:
        await asyncio.to_thread(go_on.wait, PATIENCE)
        record("step")

    @app.entrypoint
    async def answer(payload: Any) -> None:
        asyncio.create_task(research())  # noqa: RUF006 - the service keeps it

    invoke(client)
    request = spans.invocation
    assert "async_task research" not in spans.names
    go_on.set()

    task = spans.one("async_task research")
    assert parent_id(task) == span_id(request)
    assert trace_id(task) == trace_id(request)
    assert parent_id(spans.one("step")) == span_id(task)
    assert attributes(spans.one("step")) == attributes(task) == IDS
    assert (task.end_time or 0) > (request.end_time or 0)


def test_an_async_task_that_fails_is_an_error_with_its_exception(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.async_task
    async def research() -> None:
        raise LookupError("no such tool")

    @app.entrypoint
    async def answer(payload: Any) -> None:
        await asyncio.gather(research(), return_exceptions=True)

    invoke(client)

    task = spans.one("async_task research")
    assert task.status.status_code is StatusCode.ERROR
    assert attributes(task)["error.type"] == "LookupError"
    assert [event.name for event in task.events] == ["exception"]
    assert spans.invocation.status.status_code is StatusCode.UNSET


def test_a_task_that_is_completed_by_hand_from_another_thread_is_a_span(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.entrypoint
    def answer(payload: Any) -> int:
        return app.add_async_task("research")

    task_id = invoke(client).json()
    request = spans.invocation
    assert "async_task research" not in spans.names
    finisher = threading.Thread(target=app.complete_async_task, args=(task_id,))
    finisher.start()
    finisher.join(PATIENCE)

    task = spans.one("async_task research")
    assert parent_id(task) == span_id(request)
    assert attributes(task) == IDS
    assert task.status.status_code is StatusCode.UNSET


def test_a_task_by_hand_does_not_become_the_parent_of_what_follows(
    spans: Spans, app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.entrypoint
    def answer(payload: Any) -> None:
        task_id = app.add_async_task("research")
        record("step")
        app.complete_async_task(task_id)

    invoke(client)

    assert parent_id(spans.one("step")) == span_id(spans.invocation)


def test_a_task_that_the_shutdown_cuts_off_is_an_error(spans: Spans) -> None:
    app = BedrockAgentCoreApp()
    with TestClient(app=app):
        app.add_async_task("research")

    assert spans.one("async_task research").status.status_code is StatusCode.ERROR


def test_log_lines_name_the_span(spans: Spans, app: BedrockAgentCoreApp, client: Client, log: LogLines) -> None:
    @app.entrypoint
    async def answer(payload: Any) -> None:
        app.logger.info("on it")

    invoke(client)

    (line,) = [line for line in log.of_request("a-request") if line["message"] == "on it"]
    assert line["trace_id"] == trace_id(spans.invocation)
    assert line["span_id"] == span_id(spans.invocation)


def test_a_provider_of_the_host_program_is_used_and_never_replaced(
    spans: Spans, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with TestClient(app=app_of(answer)) as client:
        invoke(client)

        assert trace.get_tracer_provider() is provider
    assert spans.names == ["POST /invocations"]


def test_a_provider_that_the_host_program_installs_late_is_used(no_provider: None) -> None:
    exporter = InMemorySpanExporter()
    with TestClient(app=app_of(answer)) as client:
        invoke(client)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        invoke(client)

    assert attributes(Spans(exporter).invocation).items() >= IDS.items()


def test_a_provider_of_the_host_program_outlives_the_app(spans: Spans) -> None:
    with TestClient(app=app_of(answer)) as client:
        invoke(client)

    record("after the app")

    assert "after the app" in spans.names


def test_two_apps_in_one_process_record_to_the_same_provider(spans: Spans) -> None:
    with TestClient(app=app_of(answer)) as first, TestClient(app=app_of(sync_handler)) as second:
        invoke(first)
        invoke(second)

    assert spans.names == ["POST /invocations", "step", "POST /invocations"]
    assert all(attributes(span).items() >= IDS.items() for span in spans.all)


def test_what_the_hosts_sampler_leaves_out_is_not_recorded(no_provider: None) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with TestClient(app=app_of(sync_handler)) as client:
        assert invoke(client).status_code == 200

    assert exporter.get_finished_spans() == ()


def is_recording(payload: Any) -> bool:
    return trace.get_current_span().is_recording()


def test_without_endpoint_and_provider_nothing_is_recorded_and_no_provider_installed(no_provider: None) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    with TestClient(app=app_of(is_recording)) as client:
        assert invoke(client).json() is False

        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        assert not [t.name for t in threading.enumerate() if "export" in t.name and t.name not in threads]


def test_without_endpoint_the_trace_context_still_reaches_what_the_handler_calls(no_provider: None) -> None:
    def called(payload: Any) -> str:
        return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)

    with TestClient(app=app_of(called)) as client:
        assert invoke(client, traceparent=TRACEPARENT).json() == TRACE_ID


def test_a_disabled_sdk_records_nothing_whatever_the_endpoint(
    no_provider: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with TestClient(app=app_of(is_recording)) as client:
        assert invoke(client).json() is False


def test_with_an_endpoint_the_spans_are_sent_at_the_shutdown_at_the_latest(exported: InMemorySpanExporter) -> None:
    with TestClient(app=app_of(sync_handler)) as client:
        invoke(client)

    assert [span.name for span in exported.get_finished_spans()] == ["step", "POST /invocations"]


def test_with_an_endpoint_the_librarys_spans_carry_the_ids_too(exported: InMemorySpanExporter) -> None:
    with TestClient(app=app_of(sync_handler)) as client:
        invoke(client)

    assert attributes(Spans(exported).one("step")) == IDS


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "answer"),
        ({"AGENT_NAME": "helper"}, "helper"),
        ({"AGENT_NAME": "helper", "OTEL_SERVICE_NAME": "desk"}, "desk"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=desk"}, "desk"),
    ],
)
def test_the_service_is_called_what_the_environment_says_else_like_the_agent(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with TestClient(app=app_of(answer)) as client:
        invoke(client)

    assert Spans(exported).invocation.resource.attributes["service.name"] == name


def test_the_resource_carries_the_attributes_of_the_environment(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=agents,stage=a%20b")
    with TestClient(app=app_of(answer)) as client:
        invoke(client)

    resource = Spans(exported).invocation.resource.attributes
    assert (resource["team"], resource["stage"]) == ("agents", "a b")


def test_the_sampler_of_the_environment_decides(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with TestClient(app=app_of(sync_handler)) as client:
        invoke(client)

    assert exported.get_finished_spans() == ()


def test_an_app_that_is_served_again_sends_its_spans_again(exported: InMemorySpanExporter) -> None:
    app = app_of(answer)
    for _ in range(2):
        with TestClient(app=app) as client:
            invoke(client)

    assert len(exported.get_finished_spans()) == 2
