"""What AG-UI's face promises within one process. Run by ``test_ag_ui.py`` beside the newest and the oldest library."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ag_ui.core import (
    CustomEvent,
    RunAgentInput,
    RunErrorEvent,
    RunFinishedEvent,
    RunStartedEvent,
    TextMessageContentEvent,
)
from litestar import Litestar, get
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.testing import TestClient
from litestar_agentcore import (
    AgentCorePlugin,
    AGUIApp,
    AGUIPlugin,
    BedrockAgentCoreApp,
    BedrockAgentCoreContext,
    build_ag_ui_app,
)
from litestar_agentcore.mounted import wrong_protocol
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"

EXPORTER = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(EXPORTER))  # type: ignore[attr-defined]


def body(text: str = "hello", **members: Any) -> dict[str, Any]:
    message = {"id": "u-1", "role": "user", "content": text}
    needed = {"threadId": "thread-1", "runId": "run-1", "messages": [message]}
    return {**needed, "state": {}, "tools": [], "context": [], "forwardedProps": {}, **members}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which is one line of data."""
    assert text.endswith("\n\n")
    parts = text.split("\n\n")[:-1]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def run(client: TestClient[Any], path: str = "/invocations", **headers: str) -> list[dict[str, Any]]:
    answer = client.post(path, json=body(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    return events_of(answer.text)


def run_over_websocket(client: TestClient[Any], message: str | bytes, path: str = "/ws") -> tuple[list[Any], int, str]:
    """The events, and the code and the reason of the close."""
    with client.websocket_connect(path) as socket:
        socket.send(message if isinstance(message, str) else message.decode("latin-1"), "text")
        texts = []
        while True:
            try:
                texts.append(socket.receive_text(timeout=20))
            except WebSocketDisconnect as closed:
                return [event for text in texts for event in events_of(text)], closed.code, closed.detail


def metric(client: TestClient[Any], series: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


@pytest.fixture(autouse=True)
def spans() -> InMemorySpanExporter:
    EXPORTER.clear()
    return EXPORTER


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    assert left == []


def event(name: str = "seen", value: Any = None) -> CustomEvent:
    return CustomEvent(name=name, value=value)


# Every kind of handler


async def async_generator(run_input: RunAgentInput) -> Any:
    yield event(value=threading.get_ident())
    await asyncio.sleep(0)
    yield event()


def plain_generator(run_input: RunAgentInput) -> Any:
    yield event(value=threading.get_ident())
    yield event()


async def coroutine(run_input: RunAgentInput) -> Any:
    await asyncio.sleep(0)
    return async_generator(run_input)


async def coroutine_with_plain_generator(run_input: RunAgentInput) -> Any:
    await asyncio.sleep(0)
    return plain_generator(run_input)


async def one_step(run_input: RunAgentInput) -> Any:
    return async_generator(run_input)


def plain(run_input: RunAgentInput) -> Any:
    return async_generator(run_input)


def plain_with_coroutine(run_input: RunAgentInput) -> Any:
    return coroutine(run_input)


def plain_with_list(run_input: RunAgentInput) -> Any:
    return [event(value=threading.get_ident()), event()]


class Iterated:
    """An async iterator that is no generator, as frameworks have them."""

    def __init__(self, run_input: RunAgentInput) -> None:
        self.left = [event(), event(value=None)]

    def __aiter__(self) -> "Iterated":
        return self

    async def __anext__(self) -> CustomEvent:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


class Framework:
    """An agent of a framework."""

    name = "librarian"

    async def run(self, run_input: RunAgentInput) -> Any:
        yield event()
        yield event()


KINDS = [
    async_generator,
    plain_generator,
    coroutine,
    coroutine_with_plain_generator,
    one_step,
    plain,
    plain_with_coroutine,
    plain_with_list,
    Iterated,
    Framework(),
]


@pytest.mark.parametrize("isolation", ["isolated", "inline"])
@pytest.mark.parametrize("agent", KINDS, ids=lambda agent: getattr(agent, "__name__", "object"))
def test_each_kind_of_agent_runs_over_both_transports(
    agent: Any, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", isolation)
    with TestClient(build_ag_ui_app(agent)) as client:
        assert [each["type"] for each in run(client)] == ["CUSTOM", "CUSTOM"]
        events, code, _ = run_over_websocket(client, json.dumps(body()))
        assert ([each["type"] for each in events], code) == (["CUSTOM", "CUSTOM"], 1000)


def test_plain_code_has_a_thread_of_its_own_and_async_code_the_agents_loop() -> None:
    for agent in (plain_generator, async_generator, coroutine, plain):
        app = build_ag_ui_app(agent)
        with TestClient(app) as client:
            loop = client.blocking_portal.call(app.agent.run, ident())
            assert (run(client)[0]["value"] == loop) is (agent is not plain_generator)


async def ident() -> int:
    return threading.get_ident()


def test_an_agent_has_its_input_its_context_and_the_ids() -> None:
    app = AGUIApp()

    @app.entrypoint
    async def agent(run_input: RunAgentInput, context: Any) -> Any:
        assert isinstance(run_input, RunAgentInput)
        yield event(
            value=[
                run_input.thread_id,
                run_input.run_id,
                run_input.messages[0].content,
                context.session_id,
                context.request_headers["x-amzn-bedrock-agentcore-runtime-custom-tenant"],
                BedrockAgentCoreContext.get_session_id(),
                BedrockAgentCoreContext.get_request_id(),
                context.request.headers["x-amzn-bedrock-agentcore-runtime-request-id"],
            ]
        )

    with TestClient(app) as client:
        headers = {SESSION_ID: "s-1", REQUEST_ID: "r-1", "x-amzn-bedrock-agentcore-runtime-custom-tenant": "t"}
        answer = client.post("/invocations", json=body(), headers=headers)
        assert events_of(answer.text)[0]["value"] == ["thread-1", "run-1", "hello", "s-1", "t", "s-1", "r-1", "r-1"]
        assert (answer.headers[REQUEST_ID], answer.headers[SESSION_ID]) == ("r-1", "s-1")


def test_an_agent_over_a_websocket_has_its_context_too() -> None:
    app = AGUIApp()

    @app.entrypoint
    def agent(run_input: RunAgentInput, *, context: Any) -> Any:
        yield event(value=[context.session_id, BedrockAgentCoreContext.get_session_id(), context.request.url.path])

    with TestClient(app) as client:
        events, *_ = run_over_websocket(client, json.dumps(body()), f"/ws?{SESSION_ID}=s-1")
        assert events[0]["value"] == ["s-1", "s-1", "/ws"]


def test_the_decorators_give_the_agent_back_and_names_are_those_of_the_official_sdk() -> None:
    app = AGUIApp()
    framework = Framework()
    assert app.entrypoint(framework) is framework
    assert app.entrypoint(plain) is plain
    assert not hasattr(plain, "run")
    assert dict(app.handlers) == {"main": plain}
    with TestClient(build_ag_ui_app(plain, ping_handler=lambda: "HealthyBusy")) as client:
        assert client.get("/ping").json()["status"] == "HealthyBusy"


def test_one_function_is_an_agent_of_several_applications() -> None:
    http = BedrockAgentCoreApp()
    http.entrypoint(plain)  # which gives it a ``run`` that starts a server
    try:
        with TestClient(build_ag_ui_app(plain)) as client:
            assert len(run(client)) == 2
    finally:
        del plain.run  # type: ignore[attr-defined]


def test_ws_is_no_conversation_of_the_authors() -> None:
    async def handler(socket: Any, context: Any) -> None: ...

    with pytest.raises(TypeError, match="/ws is AG-UI's here"):
        AGUIApp().websocket(handler)


# What goes wrong


async def raises_at_once(run_input: RunAgentInput) -> Any:
    if run_input.thread_id:
        raise LookupError("no such thing")
    yield event()


async def raises_later(run_input: RunAgentInput) -> Any:
    yield event()
    raise LookupError("no such thing")


async def raises_before_it_has_a_generator(run_input: RunAgentInput) -> Any:
    await asyncio.sleep(0)
    raise LookupError("no such thing")


def raises_in_a_thread(run_input: RunAgentInput) -> Any:
    raise LookupError("no such thing")


def raises_http(run_input: RunAgentInput) -> Any:
    raise HTTPException("no such thing", status_code=404)


class Unspeakable(Exception):
    def __str__(self) -> str:
        return "no such thing \ud800"


async def raises_what_is_no_text(run_input: RunAgentInput) -> Any:
    yield event()
    raise Unspeakable


FAILING = [
    raises_at_once,
    raises_later,
    raises_before_it_has_a_generator,
    raises_in_a_thread,
    raises_http,
    raises_what_is_no_text,
]


@pytest.mark.parametrize("agent", FAILING, ids=lambda agent: agent.__name__)
def test_what_an_agent_raises_is_a_run_error_and_counted_as_one(
    agent: Callable[..., Any], spans: InMemorySpanExporter
) -> None:
    with TestClient(build_ag_ui_app(agent)) as client:
        *_, last = run(client)
        assert (last["type"], last["code"]) == ("RUN_ERROR", "INTERNAL_ERROR")
        assert "no such thing" in last["message"]
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="server_error"}') == 1
        failed = 'agentcore_protocol_requests_total{call="run",outcome="server_error",protocol="ag-ui"}'
        assert metric(client, failed) == 1
        (span,) = spans.get_finished_spans()
        assert (span.name, span.status.status_code.name) == ("POST /invocations", "ERROR")
        assert [each.name for each in span.events] == ["exception"]
        spans.clear()

        events, code, _ = run_over_websocket(client, json.dumps(body()))
        assert (events[-1], code) == (last, 1000)
        (span,) = spans.get_finished_spans()
        assert (span.name, span.status.status_code.name) == ("GET /ws", "ERROR")


@pytest.mark.parametrize("agent", FAILING, ids=lambda agent: agent.__name__)
def test_a_client_is_told_no_more_than_it_may(agent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_EXPOSE_ERRORS", "false")
    with TestClient(build_ag_ui_app(agent)) as client:
        *_, last = run(client, **{REQUEST_ID: "r-1"})
        assert last["message"] == "Internal error (request r-1)"
        events, *_ = run_over_websocket(client, json.dumps(body()))
        assert events[-1]["message"].startswith("Internal error (request ")


def test_an_event_that_cannot_be_encoded_is_a_run_error_and_the_agent_is_closed() -> None:
    closed = threading.Event()

    async def agent(run_input: RunAgentInput) -> Any:
        try:
            yield event()
            yield {"type": "CUSTOM"}
        finally:
            closed.set()

    with TestClient(build_ag_ui_app(agent)) as client:
        assert [each["type"] for each in run(client)] == ["CUSTOM", "RUN_ERROR"]
        assert closed.wait(20)
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="server_error"}') == 1


@pytest.mark.parametrize("value", [None, 5, "text", {"a": 1}, event()], ids=str)
def test_what_has_no_events_is_a_run_error_that_says_so(value: Any) -> None:
    with TestClient(build_ag_ui_app(lambda run_input: value)) as client:
        (last,) = run(client)
        assert last["message"] == (
            f"An AG-UI agent is, or gives, a generator of events, and this gave {type(value).__name__}"
        )


def test_a_run_error_of_the_agents_own_is_a_failure(spans: InMemorySpanExporter) -> None:
    async def agent(run_input: RunAgentInput) -> Any:
        yield RunStartedEvent(thread_id="t", run_id="r")
        yield RunErrorEvent(message="no more credit", code="CREDIT")

    with TestClient(build_ag_ui_app(agent)) as client:
        assert run(client)[-1] == {"type": "RUN_ERROR", "message": "no more credit", "code": "CREDIT"}
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="server_error"}') == 1
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "litestar_agentcore.ag_ui.RunFailedError"


def test_an_invocation_whose_time_is_over_ends_with_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_INVOCATION_TIMEOUT_SECONDS", "0.3")

    async def agent(run_input: RunAgentInput) -> Any:
        await asyncio.sleep(60)
        return async_generator(run_input)

    with TestClient(build_ag_ui_app(agent)) as client:
        (last,) = run(client)
        assert (last["type"], last["code"]) == ("RUN_ERROR", "INTERNAL_ERROR")
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="timeout"}') == 1


def test_a_stream_whose_time_is_over_ends_with_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_STREAM_IDLE_SECONDS", "0.3")

    async def agent(run_input: RunAgentInput) -> Any:
        yield event()
        await asyncio.sleep(60)

    with TestClient(build_ag_ui_app(agent)) as client:
        assert [each["type"] for each in run(client)] == ["CUSTOM", "RUN_ERROR"]
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="timeout"}') == 1


@pytest.mark.parametrize("kind", ["stream", "coroutine", "websocket"])
def test_a_run_whose_session_is_stopped_ends_with_a_run_error(kind: str) -> None:
    begun = threading.Event()

    async def endless(run_input: RunAgentInput) -> Any:
        yield event()
        begun.set()
        await asyncio.sleep(60)

    async def never_begins(run_input: RunAgentInput) -> Any:
        begun.set()
        await asyncio.sleep(60)
        return endless(run_input)

    app = build_ag_ui_app(never_begins if kind == "coroutine" else endless)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        if kind == "websocket":
            told = pool.submit(run_over_websocket, client, json.dumps(body()), f"/ws?{SESSION_ID}=s-1")
        else:
            told = pool.submit(lambda: (run(client, **{SESSION_ID: "s-1"}), 1001, ""))
        assert begun.wait(20)
        assert asyncio.run(app.agent.sessions.stop("s-1"))
        events, code, _ = told.result(20)
    assert events[-1] == {"type": "RUN_ERROR", "message": "The session was stopped", "code": "INTERNAL_ERROR"}
    assert code == 1001


# What is no run

BAD = [
    (b"", "Invalid JSON"),
    (b"{", "Invalid JSON"),
    (b'{"threadId": "t"} x', "Invalid JSON"),
    (b"[" * 2000, "Invalid JSON"),
    (b'{"threadId": "\xff"}', "Invalid encoding"),
    (b"{}", "Invalid RunAgentInput"),
    (b"[]", "Invalid RunAgentInput"),
    (b"null", "Invalid RunAgentInput"),
    (b'"text"', "Invalid RunAgentInput"),
    (b'{"prompt": "hi"}', "Invalid RunAgentInput"),
    (json.dumps(body(threadId=5)).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(threadId=None)).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(messages="hi")).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(messages=[{"role": "nobody", "id": "1", "content": "x"}])).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(messages=[{"role": "user", "content": 5}])).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(tools=[{}])).encode(), "Invalid RunAgentInput"),
    (json.dumps(body(context=[{"value": 1}])).encode(), "Invalid RunAgentInput"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "message/send"}', "Wrong protocol"),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}', "Wrong protocol"),
]


@pytest.fixture(scope="module")
def untouched() -> Iterator[TestClient[Any]]:
    """An agent that nothing that is no run may reach."""

    async def agent(run_input: RunAgentInput) -> Any:
        called.append(run_input)
        yield event()

    called: list[RunAgentInput] = []
    with TestClient(build_ag_ui_app(agent)) as client:
        yield client
    assert called == []


@pytest.mark.parametrize(("content", "error"), BAD)
def test_what_is_no_run_is_refused_over_http(content: bytes, error: str, untouched: TestClient[Any]) -> None:
    answer = untouched.post("/invocations", content=content)
    assert (answer.status_code, answer.json()["error"]) == (400, error)
    assert answer.json()["details"]
    if error == "Wrong protocol":
        found = "mcp" if b"tools" in content else "a2a"
        assert answer.json()["details"] == wrong_protocol(found, "ag-ui")


@pytest.mark.parametrize(("content", "error"), [(c, e) for c, e in BAD if c.isascii()])
def test_what_is_no_run_closes_a_websocket(content: bytes, error: str, untouched: TestClient[Any]) -> None:
    events, code, reason = run_over_websocket(untouched, content)
    assert (events, code) == ([], 1003)
    assert reason.startswith(f"{error}: ")
    assert len(reason.encode()) <= 123


def test_the_place_of_a_mistake_is_told(untouched: TestClient[Any]) -> None:
    answer = untouched.post("/invocations", json=body(threadId=5))
    assert answer.json()["details"] == "Input should be a valid string - at `$.threadId`"


def test_without_an_entrypoint_there_is_no_run() -> None:
    with TestClient(AGUIApp()) as client:
        answer = client.post("/invocations", json=body())
        assert (answer.status_code, answer.json()) == (500, {"error": "No entrypoint defined"})
        with client.websocket_connect("/ws") as socket, pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text(timeout=20)
        assert (closed.value.code, closed.value.detail) == (1011, "No entrypoint defined")


# Telemetry


def test_a_run_is_one_span_and_counted(spans: InMemorySpanExporter) -> None:
    async def agent(run_input: RunAgentInput) -> Any:
        with trace.get_tracer("framework").start_as_current_span("the framework's"):
            yield TextMessageContentEvent(message_id="m", delta="hi")
        yield RunFinishedEvent(thread_id=run_input.thread_id, run_id=run_input.run_id)

    with TestClient(build_ag_ui_app(agent)) as client:
        run(client)
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="ok"}') == 1
        assert metric(client, 'agentcore_protocol_requests_total{call="run",outcome="ok",protocol="ag-ui"}') == 1
        assert metric(client, "agentcore_stream_chunks_total") == 2
    inner, outer = spans.get_finished_spans()
    assert outer.name == "POST /invocations"
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id
    assert outer.attributes is not None
    assert inner.attributes is not None
    assert outer.attributes["ag_ui.thread_id"] == "thread-1"
    assert outer.attributes["ag_ui.run_id"] == "run-1"
    assert outer.attributes["gen_ai.agent.name"] == "agent"
    assert outer.attributes["gen_ai.conversation.id"] == inner.attributes["gen_ai.conversation.id"] == "thread-1"
    assert "session.id" not in outer.attributes


def test_a_session_is_the_conversation_where_there_is_one(spans: InMemorySpanExporter) -> None:
    with TestClient(build_ag_ui_app(Framework())) as client:
        run(client, **{SESSION_ID: "s-1"})
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["gen_ai.conversation.id"] == span.attributes["session.id"] == "s-1"
    assert span.attributes["gen_ai.agent.name"] == "librarian"


def test_ids_of_any_length_leave_short_attributes(spans: InMemorySpanExporter) -> None:
    with TestClient(build_ag_ui_app(async_generator)) as client:
        assert client.post("/invocations", json=body(threadId="t" * 5000, runId="r" * 5000)).status_code == 200
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert {span.attributes["ag_ui.thread_id"], span.attributes["gen_ai.conversation.id"]} == {"t" * 256}
    assert span.attributes["ag_ui.run_id"] == "r" * 256


# Beside others


def test_plain_http_and_ag_ui_are_one_service_on_paths_of_their_own() -> None:
    app = BedrockAgentCoreApp(plugins=[AGUIPlugin(async_generator, path="/ag-ui", websocket_path="/ag-ui/ws")])

    @app.entrypoint
    async def agent(payload: Any) -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    with TestClient(app) as client:
        here = client.post("/invocations", json={}).json()
        assert run(client, "/ag-ui")[0]["value"] == here
        assert run_over_websocket(client, json.dumps(body()), "/ag-ui/ws")[0][0]["value"] == here
        assert metric(client, 'agentcore_invocations_total{mode="unary",outcome="ok"}') == 1
        assert metric(client, 'agentcore_invocations_total{mode="stream",outcome="ok"}') == 1


@pytest.mark.parametrize("plugin", [{}, {"path": "/ag-ui"}, {"websocket_path": "/ag-ui/ws"}])
def test_two_at_one_path_are_an_error_that_names_the_way_out(plugin: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"AGUIPlugin\((websocket_)?path=\.\.\.\).*AGENTCORE_PROTOCOL"):
        BedrockAgentCoreApp(plugins=[AGUIPlugin(async_generator, **plugin)])


@pytest.mark.parametrize(("protocol", "first"), [("http", '"plain"'), ("ag-ui", 'data: {"type":"CUSTOM"')])
def test_the_setting_chooses_which_of_two_is_at_a_path(
    protocol: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_PROTOCOL", protocol)
    app = BedrockAgentCoreApp(plugins=[AGUIPlugin(async_generator)])
    app.entrypoint(lambda payload: "plain")
    with TestClient(app) as client:
        assert client.post("/invocations", json=body()).text.startswith(first)


@pytest.mark.parametrize("order", [1, -1])
def test_a_plugin_stands_in_any_application(order: int, spans: InMemorySpanExporter) -> None:
    @get("/own")
    async def own() -> str:
        return "own"

    plugins = [AGUIPlugin(async_generator, path="/ag-ui"), AgentCorePlugin(http=False)][::order]
    with TestClient(Litestar([own], plugins=plugins)) as client:
        assert client.get("/own").text == "own"
        assert len(run(client, "/ag-ui")) == 2
    assert [span.name for span in spans.get_finished_spans()] == ["POST /ag-ui"]


def test_a_websocket_can_be_left_out() -> None:
    with TestClient(Litestar(plugins=[AGUIPlugin(async_generator, websocket_path=None)])) as client:
        assert len(run(client)) == 2
        assert not any(route.path == "/ws" for route in client.app.routes)


# Clients that leave


def test_a_websocket_client_that_leaves_closes_the_agent() -> None:
    closed = threading.Event()

    async def agent(run_input: RunAgentInput) -> Any:
        try:
            while True:
                yield event()
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    with TestClient(build_ag_ui_app(agent)) as client:
        with client.websocket_connect("/ws") as socket:
            socket.send_text(json.dumps(body()))
            assert events_of(socket.receive_text(timeout=20))[0]["type"] == "CUSTOM"
        assert closed.wait(20)


def test_a_plain_generator_is_closed_in_its_thread() -> None:
    closed: list[int] = []

    def agent(run_input: RunAgentInput) -> Any:
        here = threading.get_ident()
        try:
            while True:
                yield event()
                time.sleep(0.01)
        finally:
            closed.append(threading.get_ident() - here)

    with TestClient(build_ag_ui_app(agent)) as client:
        with client.websocket_connect("/ws") as socket:
            socket.send_text(json.dumps(body()))
            socket.receive_text(timeout=20)
        deadline = time.monotonic() + 20
        while not closed and time.monotonic() < deadline:
            time.sleep(0.01)
    assert closed == [0]


def test_an_event_is_there_as_soon_as_it_is_given() -> None:
    goes_on = threading.Event()

    def agent(run_input: RunAgentInput) -> Any:
        yield event("first")
        assert goes_on.wait(20)
        yield event("second")

    with TestClient(build_ag_ui_app(agent)) as client, client.websocket_connect("/ws") as socket:
        socket.send_text(json.dumps(body()))
        assert "first" in socket.receive_text(timeout=20)
        goes_on.set()
        assert "second" in socket.receive_text(timeout=20)
