"""Libraries' applications on the agent's loop: one lifespan, the ids, one record, the drain."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litestar_agentcore.plugin as plugin_module
import pytest
from agentcore_telemetry.instruments import PROTOCOL_DURATION, PROTOCOL_REQUESTS
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, BedrockAgentCoreContext, Settings, SettingsError
from litestar_agentcore.mounted import Call, MountedApplication, MountedExchange, add_session
from litestar_agentcore.protocol.recognition import recognize
from litestar_agentcore.protocols import ProtocolApp, ProtocolPlugin, exchange_route
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PATIENCE = 10.0
REQUEST_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


class Library:
    """An ASGI application with a lifespan that notes what happens to it."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes = notes
        self.alive = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.notes.append(("startup", threading.get_ident()))
            scope["state"]["made"] = "at startup"
            self.alive = True
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.notes.append(("shutdown", threading.get_ident()))
            self.alive = False
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert self.alive
        message = await receive()
        body = message["body"]
        if body == b"raise":
            raise LookupError("no such thing")
        if body == b"stream":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            for part in (b": ping\n\n", b"data: 1\n\n", b"data: 2\n\n"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        answer = {
            "thread": threading.get_ident(),
            "path": scope["path"],
            "method": scope["method"],
            "body": body.decode(),
            "made": scope["state"]["made"],
            "request": BedrockAgentCoreContext.get_request_id(),
            "session": BedrockAgentCoreContext.get_session_id(),
            "host": sorted(key for key in scope if key in ("app", "litestar_app", "route_handler")),
        }
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode(), "more_body": False})


class LibraryPlugin(ProtocolPlugin):
    protocol = "mcp"

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
        application = MountedApplication("the library", self.make)
        service.mounted.append(application)
        exchange = MountedExchange(
            service.agent,
            service.authentication,
            application,
            protocol="mcp",
            route="/mcp",
            path="/inside",
            describe=lambda scope, body: Call("tools/call", {"mcp.method.name": "tools/call"}),
        )
        app_config.route_handlers.append(exchange_route("/mcp", ["GET", "POST"], exchange, "mcp"))
        self.serve_data_plane(service, exchange)

    def serve_data_plane(self, service: AgentCorePlugin, exchange: MountedExchange) -> None:
        pass


class DataPlanePlugin(LibraryPlugin):
    def serve_data_plane(self, service: AgentCorePlugin, exchange: MountedExchange) -> None:
        service.data_plane.serve(exchange)


def error_at_start(app: Litestar) -> BaseException:
    """What the start of an application raises, out of the groups that Litestar makes of it."""

    async def begin() -> None:
        async with app.lifespan():
            pass

    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(begin())
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


@pytest.fixture
def notes() -> list[Any]:
    return []


@pytest.fixture
def app(notes: list[Any]) -> ProtocolApp:
    return ProtocolApp(plugins=[LibraryPlugin(lambda: Library(notes))])


def test_it_runs_on_the_agents_loop_with_the_ids_of_its_request(app: ProtocolApp) -> None:
    async def thread() -> int:
        return threading.get_ident()

    with TestClient(app) as client:
        answer = client.post("/mcp", content="{}", headers={REQUEST_ID: "r-1", SESSION_ID: "s-1"})
        assert answer.status_code == 200
        got = answer.json()
        assert answer.headers[REQUEST_ID] == "r-1"
        assert answer.headers[SESSION_ID] == "s-1"
        here = client.blocking_portal.call(app.agent.run, thread())
    assert got == {
        "thread": here,
        "path": "/inside",
        "method": "POST",
        "body": "{}",
        "made": "at startup",
        "request": "r-1",
        "session": "s-1",
        "host": [],
    }


def test_its_lifespan_is_the_services_and_it_is_made_anew_for_each(app: ProtocolApp, notes: list[Any]) -> None:
    for _ in range(2):
        with TestClient(app) as client:
            assert [note[0] for note in notes[-1:]] == ["startup"]
            assert client.post("/mcp", content="{}").status_code == 200
    assert [note[0] for note in notes] == ["startup", "shutdown"] * 2
    assert len({note[1] for note in notes}) == 1


def test_without_a_lifespan_it_begins_with_the_first_request(app: ProtocolApp, notes: list[Any]) -> None:
    client = TestClient(app)
    assert client.post("/mcp", content="{}").status_code == 200
    assert client.post("/mcp", content="{}").status_code == 200
    assert [note[0] for note in notes] == ["startup"]


def test_an_application_without_a_lifespan_is_served_too() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with TestClient(ProtocolApp(plugins=[LibraryPlugin(lambda: bare)])) as client:
        assert client.post("/mcp", content="{}").status_code == 202
        assert client.post("/mcp", content="{}").status_code == 202


def test_one_that_does_not_start_ends_the_start() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    error = error_at_start(ProtocolApp(plugins=[LibraryPlugin(lambda: broken)]))
    assert str(error) == "the library failed to start: no database"


@pytest.mark.parametrize("blocks", [True, False])
def test_one_that_does_not_end_is_not_waited_for(
    blocks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin_module, "MOUNTED_SECONDS", 0.1)
    released = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if blocks:
            released.wait(PATIENCE)  # as a handler does that holds the agent's loop
        else:
            await asyncio.Event().wait()

    async def live() -> None:
        async with ProtocolApp(plugins=[LibraryPlugin(lambda: endless)]).lifespan():
            pass

    releasing = threading.Timer(1, released.set)
    releasing.start()
    try:
        asyncio.run(asyncio.wait_for(live(), PATIENCE))
    finally:
        releasing.join()
    assert "the library does not end, and is not waited for" in caplog.text


def test_a_stream_is_counted_by_its_events(app: ProtocolApp) -> None:
    with TestClient(app) as client:
        answer = client.post("/mcp", content="stream")
        assert answer.text == ": ping\n\ndata: 1\n\ndata: 2\n\n"
        metrics = client.get("/metrics").text
    assert 'agentcore_invocations_total{mode="stream",outcome="ok"} 1.0' in metrics
    assert "agentcore_stream_chunks_total 2.0" in metrics
    assert 'agentcore_protocol_requests_total{call="tools/call",outcome="ok",protocol="mcp"} 1.0' in metrics
    assert 'agentcore_protocol_request_duration_seconds_count{protocol="mcp"} 1.0' in metrics


def test_the_documentation_tells_of_the_protocols_series() -> None:
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    for metric in (PROTOCOL_REQUESTS, PROTOCOL_DURATION):
        suffix = "_total" if metric.kind == "counter" else ""
        assert f"`{metric.name}{suffix}{{{','.join(metric.labels)}}}`" in text


def test_plain_http_alone_has_no_series_of_protocols() -> None:
    with TestClient(BedrockAgentCoreApp()) as client:
        assert "agentcore_protocol" not in client.get("/metrics").text


def test_what_it_raises_is_a_500_and_counted(app: ProtocolApp) -> None:
    with TestClient(app) as client:
        answer = client.post("/mcp", content="raise")
        assert (answer.status_code, answer.json()) == (500, {"error": "no such thing"})
        metrics = client.get("/metrics").text
    assert 'agentcore_invocations_total{mode="unary",outcome="server_error"} 1.0' in metrics


def test_a_get_is_no_invocation(app: ProtocolApp) -> None:
    with TestClient(app) as client:
        assert client.get("/mcp").status_code == 200
        metrics = client.get("/metrics").text
    assert 'agentcore_invocations_total{mode="unary",outcome="ok"} 0.0' in metrics
    assert 'agentcore_protocol_requests_total{call="tools/call",outcome="ok",protocol="mcp"} 1.0' in metrics


def test_its_span_is_named_by_method_and_path(app: ProtocolApp, exported: InMemorySpanExporter) -> None:
    with TestClient(app) as client:
        client.post("/mcp", content="{}", headers={SESSION_ID: "s-1"})
    (span,) = exported.get_finished_spans()
    assert span.name == "POST /mcp"
    assert span.attributes is not None
    assert span.attributes["http.route"] == "/mcp"
    assert span.attributes["mcp.method.name"] == "tools/call"
    assert span.attributes["session.id"] == "s-1"


def test_plain_http_and_a_protocol_are_one_service(notes: list[Any]) -> None:
    app = BedrockAgentCoreApp(plugins=[LibraryPlugin(lambda: Library(notes))])

    @app.entrypoint
    async def agent(payload: Any) -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    with TestClient(app) as client:
        assert client.post("/invocations", json={}).json() == client.post("/mcp", content="{}").json()["thread"]


def test_a_protocol_alone_serves_no_plain_http(app: ProtocolApp) -> None:
    with TestClient(app) as client:
        assert client.post("/invocations", json={}).status_code == 404
        assert client.get("/ping").json()["status"] == "Healthy"


def test_a_plugin_stands_in_any_application(notes: list[Any]) -> None:
    with TestClient(Litestar(plugins=[LibraryPlugin(lambda: Library(notes))])) as client:
        assert client.post("/mcp", content="{}").status_code == 200
        assert client.get("/ping").status_code == 200
    assert [note[0] for note in notes] == ["startup", "shutdown"]


@pytest.mark.parametrize(("protocol", "http", "mcp"), [("", 200, 200), ("http", 200, 404), ("mcp", 404, 200)])
def test_the_setting_chooses_among_what_an_application_has(
    protocol: str, http: int, mcp: int, notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCORE_PROTOCOL", protocol)
    app = BedrockAgentCoreApp(plugins=[LibraryPlugin(lambda: Library(notes))])
    app.entrypoint(lambda payload: payload)
    with TestClient(app) as client:
        assert client.post("/invocations", json={}).status_code == http
        assert client.post("/mcp", content="{}").status_code == mcp


def test_a_protocol_that_an_application_does_not_have_ends_its_start() -> None:
    plugin = AgentCorePlugin(lambda payload: payload, settings=Settings(protocol="a2a"))
    error = error_at_start(Litestar(plugins=[plugin]))
    assert isinstance(error, SettingsError)
    assert str(error) == "AGENTCORE_PROTOCOL='a2a' makes no sense here: the application has http"


def headers_with(own: str | None, platforms: str | None) -> list[bytes]:
    scope: Any = {"headers": []}
    if own is not None:
        scope["headers"].append((b"Mcp-Session-Id", own.encode("latin-1")))
    if platforms is not None:
        scope["headers"].append((SESSION_ID.encode(), platforms.encode()))
    add_session(scope, b"mcp-session-id")
    return [value for name, value in scope["headers"] if name.lower() == SESSION_ID.lower().encode()]


@pytest.mark.parametrize(
    ("own", "platforms", "session"),
    [
        ("own", None, [b"own"]),
        ("own", "platform", [b"platform"]),
        (None, "platform", [b"platform"]),
        (None, None, []),
        ("", None, []),
        ("two words", None, []),
        ("x" * 257, None, []),
        ("\xe4", None, []),
    ],
)
def test_a_protocols_own_session_counts_where_there_is_no_other(
    own: str | None, platforms: str | None, session: list[bytes]
) -> None:
    assert headers_with(own, platforms) == session


def test_awss_clients_reach_the_protocol_that_is_served(notes: list[Any]) -> None:
    class Plugin(LibraryPlugin):
        def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
            super().mount(app_config, service)
            exchange = MountedExchange(
                service.agent,
                service.authentication,
                service.mounted[0],
                protocol="mcp",
                route="/mcp",
                describe=lambda scope, body: Call("tools/call"),
                path="/inside",
                session_header=b"mcp-session-id",
            )
            service.data_plane.serve(exchange)

    session = "s" * 33
    headers = {SESSION_ID: session, "Mcp-Session-Id": "another", "Content-Type": "application/json"}
    with TestClient(ProtocolApp(plugins=[Plugin(lambda: Library(notes))])) as client:
        answer = client.post("/runtimes/local/invocations?accountId=123456789012", content="{}", headers=headers)
        assert (answer.status_code, answer.json()["session"], answer.json()["path"]) == (200, session, "/inside")


def test_a_request_of_another_protocol_is_told_so_by_name(app: ProtocolApp) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {}}
    with TestClient(app) as client:
        answer = client.post("/mcp", json=body)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Wrong protocol",
        "details": "This looks like an A2A request; the agent serves MCP here",
    }


@pytest.mark.parametrize(
    ("body", "protocol"),
    [
        ({"jsonrpc": "2.0", "method": "message/stream"}, "a2a"),
        ({"jsonrpc": "2.0", "method": "SendMessage"}, "a2a"),
        ({"jsonrpc": "2.0", "method": "initialize"}, "mcp"),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, "mcp"),
        ({"jsonrpc": "2.0", "method": "tasks/get"}, None),
        ({"jsonrpc": "2.0", "method": 5}, None),
        ({"jsonrpc": "2.0", "result": {}}, None),
        ({"threadId": "t", "runId": "r", "messages": []}, "ag-ui"),
        ({"threadId": "t", "prompt": "hi"}, None),
        ([{"jsonrpc": "2.0", "method": "initialize"}], None),
        ("text", None),
    ],
)
def test_bodies_are_recognized_where_they_can_be(body: Any, protocol: str | None) -> None:
    assert recognize(json.dumps(body).encode()) == protocol


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_no_protocols(body: bytes) -> None:
    assert recognize(body) is None


ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/agent-abc"


def invoke(client: Any, content: str, **headers: str) -> Any:
    return client.post(f"/runtimes/{ARN}/invocations", content=content, headers=headers)


def test_awss_clients_reach_the_protocol(exported: InMemorySpanExporter, notes: list[Any]) -> None:
    with TestClient(ProtocolApp(plugins=[DataPlanePlugin(lambda: Library(notes))])) as client:
        answer = invoke(client, "{}", **{SESSION_ID: "s" * 33})
        assert (answer.status_code, answer.json()["session"], answer.json()["path"]) == (200, "s" * 33, "/inside")
        assert answer.headers["x-amzn-requestid"] == answer.json()["request"]
        assert invoke(client, "stream").text == ": ping\n\ndata: 1\n\ndata: 2\n\n"
        assert len(invoke(client, "{}").json()["session"]) == 36
        metrics = client.get("/metrics").text
    assert 'agentcore_protocol_requests_total{call="tools/call",outcome="ok",protocol="mcp"} 3.0' in metrics
    span = exported.get_finished_spans()[0]
    assert span.attributes is not None
    assert (span.name, span.attributes["http.route"]) == ("POST /mcp", "/runtimes/{arn}/invocations")
    assert span.attributes["mcp.method.name"] == "tools/call"


def test_awss_clients_have_the_protocols_errors_in_awss_form(notes: list[Any]) -> None:
    with TestClient(ProtocolApp(plugins=[DataPlanePlugin(lambda: Library(notes))])) as client:
        answer = invoke(client, "raise")
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (424, "RuntimeClientError")
        assert answer.json() == {"message": "Received error (500) from runtime: no such thing"}
        wrong = invoke(client, json.dumps({"jsonrpc": "2.0", "method": "message/send"}))
        assert (wrong.status_code, wrong.headers["x-amzn-errortype"]) == (400, "ValidationException")


def test_awss_clients_reach_plain_http_where_that_is_served_too(notes: list[Any]) -> None:
    app = BedrockAgentCoreApp(plugins=[DataPlanePlugin(lambda: Library(notes))])
    app.entrypoint(lambda payload: "plain")
    with TestClient(app) as client:
        assert invoke(client, "{}").json() == "plain"


def test_awss_clients_find_nothing_where_no_protocol_is_for_them(app: ProtocolApp) -> None:
    with TestClient(app) as client:
        answer = invoke(client, "{}")
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (404, "ResourceNotFoundException")
