"""``AgentCorePlugin``: an agent inside an application that exists already."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import litestar
import pytest
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.plugins import InitPlugin
from litestar.testing import TestClient
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar_agentcore import AgentCorePlugin, RequestContext, Settings
from starlette.middleware.base import BaseHTTPMiddleware

from tests.unit.conftest import REQUEST_ID, SESSION_ID, events

Request = litestar.Request[Any, Any, Any]
Connection = ASGIConnection[Any, Any, Any, Any]


def litestar_with(plugin: AgentCorePlugin, **options: Any) -> Litestar:
    """An application with the plugin; Litestar's default would set up the logging of the tests."""
    return Litestar(plugins=[plugin], logging_config=None, **options)


def echo(payload: Any) -> Any:
    return payload


def fails(payload: Any) -> Any:
    raise LookupError("lost")


@litestar.get("/own")
async def own() -> dict[str, str]:
    return {"own": "route"}


def test_the_plugin_adds_the_endpoints_of_the_agent_beside_the_apps_own() -> None:
    plugin = AgentCorePlugin(echo)

    @plugin.websocket
    async def converse(websocket: Any, context: RequestContext) -> None:
        await websocket.accept()
        await websocket.send_text(context.session_id or "")

    with TestClient(app=litestar_with(plugin, route_handlers=[own])) as client:
        assert client.get("/own").json() == {"own": "route"}
        assert client.post("/invocations", json={"a": 1}).json() == {"a": 1}
        assert client.get("/ping").json()["status"] == "Healthy"
        assert client.get("/ready").json() == {"ready": True}
        with client.websocket_connect("/ws", headers={SESSION_ID: "s"}) as websocket:
            assert websocket.receive_text(timeout=60) == "s"


def test_everything_that_the_app_class_offers_an_author_the_plugin_offers_too() -> None:
    plugin = AgentCorePlugin()
    plugin.entrypoint(echo)
    plugin.ping(lambda: "HealthyBusy")

    @plugin.async_task
    async def work() -> None: ...

    with TestClient(app=litestar_with(plugin)) as client:
        assert client.post("/invocations", json=1).json() == 1
        assert client.get("/ping").json()["status"] == "HealthyBusy"
        task_id = plugin.add_async_task("work")
        assert plugin.get_async_task_info()["active_count"] == 1
        assert plugin.complete_async_task(task_id)


def test_an_entrypoint_may_be_registered_after_the_app_was_made() -> None:
    plugin = AgentCorePlugin()
    with TestClient(app=litestar_with(plugin)) as client:
        assert client.post("/invocations", json=1).json() == {"error": "No entrypoint defined"}
        plugin.entrypoint(echo)
        assert client.post("/invocations", json=1).json() == 1


def test_an_entrypoint_that_cannot_take_a_payload_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        AgentCorePlugin(lambda: None)


def test_settings_may_be_given_in_the_place_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "1")
    plugin = AgentCorePlugin(echo, settings=Settings(max_body_bytes=8))
    with TestClient(app=litestar_with(plugin)) as client:
        assert client.post("/invocations", json="123456").status_code == 200
        assert client.post("/invocations", json="1234567").status_code == 413


@pytest.mark.parametrize(
    ("of_app", "of_plugin", "expected"), [(True, None, 400), (False, None, 200), (True, False, 200)]
)
def test_debug_actions_are_those_of_a_debugged_app_unless_the_plugin_says_otherwise(
    of_app: bool, of_plugin: bool | None, expected: int
) -> None:
    app = litestar_with(AgentCorePlugin(echo, debug=of_plugin), debug=of_app)
    with TestClient(app=app) as client:
        assert client.post("/invocations", json={"_agent_core_app_action": "no such"}).status_code == expected


# Middleware


read: list[bytes] = []


class ReadingLitestar(ASGIMiddleware):
    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        request: Request = litestar.Request(scope, receive)
        read.append(await request.body())
        await next_app(scope, receive, send)


class ReadingStarlette(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        read.append(await request.body())
        return await call_next(request)


@pytest.mark.parametrize("middleware", [ReadingLitestar(), ReadingStarlette])
def test_a_middleware_may_read_the_body_too(middleware: Any) -> None:
    read.clear()

    def handler(payload: Any) -> Iterator[Any]:
        yield payload

    app = litestar_with(AgentCorePlugin(handler), middleware=[middleware])
    with TestClient(app=app) as client:
        assert events(client.post("/invocations", content=b'{"a": 1}')) == [{"a": 1}]
        assert read == [b'{"a": 1}']


def test_the_limit_holds_for_a_body_that_a_middleware_has_read() -> None:
    plugin = AgentCorePlugin(echo, settings=Settings(max_body_bytes=8))
    with TestClient(app=litestar_with(plugin, middleware=[ReadingLitestar()])) as client:
        assert client.post("/invocations", json="1234567").status_code == 413


class Answering(ASGIMiddleware):
    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        request: Request = litestar.Request(scope, receive)
        response = litestar.Response("from the middleware", media_type="text/plain")
        await response.to_asgi_response(None, request)(scope, receive, send)


def test_a_middleware_may_answer_in_the_place_of_the_agent() -> None:
    with TestClient(app=litestar_with(AgentCorePlugin(fails), middleware=[Answering()])) as client:
        assert client.post("/invocations", json=1).text == "from the middleware"


# Guards, plugins, lifespan, hooks


def guard(connection: Connection, handler: BaseRouteHandler) -> None:
    if connection.headers.get("Authorization") != "secret":
        raise NotAuthorizedException("not you")


def test_the_guards_of_the_app_hold_for_the_agent() -> None:
    with TestClient(app=litestar_with(AgentCorePlugin(echo), guards=[guard])) as client:
        refused = client.post("/invocations", json=1)
        assert (refused.status_code, refused.json()["detail"]) == (401, "not you")
        assert client.post("/invocations", json=1, headers={"Authorization": "secret"}).json() == 1


class AddingRoute(InitPlugin):
    def on_app_init(self, app_config: Any) -> Any:
        app_config.route_handlers.append(own)
        return app_config


@pytest.mark.parametrize("first", [True, False])
def test_the_plugin_goes_with_other_plugins(first: bool) -> None:
    plugins: list[Any] = [AgentCorePlugin(echo), AddingRoute()]
    with TestClient(app=Litestar(plugins=plugins if first else plugins[::-1], logging_config=None)) as client:
        assert client.get("/own").json() == {"own": "route"}
        assert client.post("/invocations", json=1).json() == 1


def test_the_lifespan_of_the_app_is_kept() -> None:
    notes: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        notes.append("starts")
        yield
        notes.append("ends")

    app = litestar_with(
        AgentCorePlugin(echo),
        lifespan=[lifespan],
        on_startup=[lambda: notes.append("startup")],
        on_shutdown=[lambda: notes.append("shutdown")],
    )
    with TestClient(app=app) as client:
        assert client.post("/invocations", json=1).json() == 1
    assert sorted(notes) == ["ends", "shutdown", "starts", "startup"]


def test_the_before_request_hook_of_the_app_is_called() -> None:
    seen: list[str] = []

    async def before(request: Request) -> Any:
        seen.append(request.url.path)
        return litestar.Response("from the hook", status_code=203) if request.headers.get("x-skip") else None

    with TestClient(app=litestar_with(AgentCorePlugin(echo), before_request=before)) as client:
        assert client.post("/invocations", json=1).json() == 1
        skipped = client.post("/invocations", json=1, headers={"x-skip": "1"})
        assert (skipped.status_code, skipped.text) == (203, "from the hook")
    assert seen == ["/invocations", "/invocations"]


def streams(payload: Any) -> Iterator[Any]:
    yield payload


def responds(payload: Any) -> Any:
    return litestar.Response(payload, status_code=202)


@pytest.mark.parametrize("handler", [echo, streams, responds, fails])
def test_the_after_request_hook_of_the_app_may_add_a_header_to_every_answer(handler: Callable[[Any], Any]) -> None:
    async def after(response: Any) -> Any:
        response.headers["x-after"] = "1"
        return response

    plugin = AgentCorePlugin(handler)
    with TestClient(app=litestar_with(plugin)) as client:
        without = client.post("/invocations", json=1)
    with TestClient(app=litestar_with(plugin, after_request=after)) as client:
        response = client.post("/invocations", json=1)

    assert (response.status_code, response.content) == (without.status_code, without.content)
    assert response.headers["x-after"] == "1"


def test_the_other_hooks_of_the_app_are_called() -> None:
    seen: list[str] = []

    async def after_response(request: Request) -> None:
        seen.append("after response")

    async def after_exception(error: Exception, scope: Scope) -> None:
        seen.append(f"after {type(error).__name__}")

    async def before_send(message: Any, scope: Scope) -> None:
        seen.append(message["type"])

    app = litestar_with(
        AgentCorePlugin(fails),
        after_response=after_response,
        after_exception=[after_exception],
        before_send=[before_send],
    )
    with TestClient(app=app) as client:
        client.post("/invocations", json=1)
    assert seen == ["after LookupError", "http.response.start", "http.response.body", "after response"]


def test_the_cors_configuration_of_the_app_holds_for_the_agent() -> None:
    origin = {"Origin": "https://example.com"}
    app = litestar_with(AgentCorePlugin(echo), cors_config=CORSConfig(["https://example.com"], ["POST"]))
    with TestClient(app=app) as client:
        preflight = client.options("/invocations", headers=origin | {"Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://example.com"
        response = client.post("/invocations", json=1, headers=origin)
        assert response.json() == 1
        assert response.headers["access-control-allow-origin"] == "https://example.com"


# Exceptions


def test_the_exception_handlers_of_the_app_apply_to_what_the_handler_raises() -> None:
    def handle(request: Request, error: LookupError) -> litestar.Response[Any]:
        return litestar.Response({"lost": request.url.path}, status_code=410)

    app = litestar_with(AgentCorePlugin(fails), exception_handlers={LookupError: handle})
    with TestClient(app=app) as client:
        response = client.post("/invocations", json=1, headers={REQUEST_ID: "r"})
    assert (response.status_code, response.json()) == (410, {"lost": "/invocations"})
    assert response.headers[REQUEST_ID] == "r"


def test_a_handler_for_status_500_applies_to_what_the_handler_raises() -> None:
    app = litestar_with(
        AgentCorePlugin(fails),
        exception_handlers={500: lambda request, error: litestar.Response("own", status_code=500)},
    )
    with TestClient(app=app) as client:
        assert client.post("/invocations", json=1).text == "own"


def test_without_exception_handlers_the_invocation_is_answered_in_the_shape_of_the_contract() -> None:
    with TestClient(app=litestar_with(AgentCorePlugin(fails))) as client:
        response = client.post("/invocations", json=1, headers={REQUEST_ID: "r", SESSION_ID: "s"})
        assert (response.status_code, response.json()) == (500, {"error": "lost"})
        assert (response.headers[REQUEST_ID], response.headers[SESSION_ID]) == ("r", "s")
        assert client.post("/invocations", content=b"{").json()["error"] == "Invalid JSON"


@pytest.mark.parametrize("handlers", [{}, {404: lambda request, error: litestar.Response("own", status_code=404)}])
def test_the_app_keeps_its_own_answer_to_an_unknown_path(handlers: Any) -> None:
    with TestClient(app=Litestar([own], exception_handlers=handlers, logging_config=None)) as client:
        before = client.get("/nowhere")
    with TestClient(
        app=litestar_with(AgentCorePlugin(echo), route_handlers=[own], exception_handlers=handlers)
    ) as client:
        after = client.get("/nowhere")
    assert (after.status_code, after.content, after.headers) == (before.status_code, before.content, before.headers)


# Logging


def test_the_apps_logging_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    names = ["uvicorn", "uvicorn.error", "uvicorn.access", "litestar", "litestar_agentcore"]
    handler = logging.NullHandler()
    monkeypatch.setattr(root, "handlers", [])
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler])
    levels = [logging.getLogger(name).level for name in (None, *names)]

    with TestClient(app=litestar_with(AgentCorePlugin(echo))) as client:
        assert client.post("/invocations", json=1).json() == 1

    assert root.handlers == []
    assert [logging.getLogger(name).handlers for name in names] == [[handler]] * len(names)
    assert [logging.getLogger(name).level for name in (None, *names)] == levels


@pytest.mark.parametrize("path", ["/ping", "/ready", "/metrics"])
@pytest.mark.parametrize("moved", ["/agent", None])
def test_an_endpoint_moves_or_goes_where_the_application_has_one_of_its_own(path: str, moved: str | None) -> None:
    @litestar.get(path)
    async def own() -> str:
        return "the application's"

    options: dict[str, Any] = {f"{path.removeprefix('/')}_path": None if moved is None else moved + path}
    plugin = AgentCorePlugin(echo, **options)
    with TestClient(app=litestar_with(plugin, route_handlers=[own])) as client:
        assert client.get(path).text == "the application's"
        assert client.get("/agent" + path).status_code == (404 if moved is None else 200)
        assert client.post("/invocations", json={}).status_code == 200


@pytest.mark.parametrize("served", [True, False])
def test_the_collector_passes_over_what_a_server_has_started_with_and_over_nothing_else(served: bool) -> None:
    app = litestar_with(AgentCorePlugin(echo))

    async def main() -> int:
        async with app.lifespan():
            return gc.get_freeze_count()

    before = signal.signal(signal.SIGTERM, (lambda number, frame: None) if served else signal.SIG_DFL)
    try:
        frozen = asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (frozen > 0) is served
    assert gc.get_freeze_count() == 0
