"""``BedrockAgentCoreApp``: a ``litestar.Litestar`` that serves an agent."""

import logging
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import litestar
import pytest
from litestar import Litestar, WebSocket, asgi, get, websocket
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException, NotFoundException
from litestar.middleware import ASGIMiddleware, DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.plugins import InitPlugin
from litestar.testing import TestClient
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from litestar_agentcore import (
    AgentCorePlugin,
    BedrockAgentCoreApp,
    BedrockAgentCoreContext,
    PingStatus,
    RequestContext,
    SettingsError,
)
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines, events


def echo(payload: Any) -> Any:
    return payload


def test_the_app_is_a_litestar(app: BedrockAgentCoreApp) -> None:
    assert isinstance(app, litestar.Litestar)


@pytest.mark.parametrize("debug", [False, True])
def test_debug_is_the_debug_mode_of_litestar(debug: bool) -> None:
    assert BedrockAgentCoreApp(debug).debug is debug
    assert BedrockAgentCoreApp(debug=debug).debug is debug


Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def noting(name: str, notes: list[Any]) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: BedrockAgentCoreApp) -> AsyncIterator[None]:
        notes.append((name, "starts", app))
        yield
        notes.append((name, "ends", app))

    return lifespan


def test_a_lifespan_is_an_async_context_manager_of_the_app() -> None:
    notes: list[Any] = []
    app = BedrockAgentCoreApp(lifespan=noting("own", notes))
    app.entrypoint(echo)

    with TestClient(app=app) as client:
        assert notes == [("own", "starts", app)]
        assert client.post("/invocations", json=1).json() == 1
    assert notes == [("own", "starts", app), ("own", "ends", app)]


def test_a_lifespan_may_be_a_sequence() -> None:
    notes: list[Any] = []
    app = BedrockAgentCoreApp(lifespan=[noting("first", notes), noting("second", notes)])

    with TestClient(app=app):
        pass
    assert [(name, when) for name, when, _ in notes] == [
        ("first", "starts"),
        ("second", "starts"),
        ("second", "ends"),
        ("first", "ends"),
    ]


def test_the_arguments_may_be_positional() -> None:
    notes: list[Any] = []
    app = BedrockAgentCoreApp(False, noting("own", notes), [marking])
    app.entrypoint(echo)
    with TestClient(app=app) as client:
        assert client.post("/invocations", json=1).headers["x-mark"] == "function"
    assert len(notes) == 2


def marked(app: Any, mark: str) -> Any:
    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", mark.encode())]
            await send(message)

        await app(scope, receive, send_marked)

    return asgi


def marking(app: ASGIApp) -> ASGIApp:
    wrapped: ASGIApp = marked(app, "function")
    return wrapped


class MarkingClass:
    def __init__(self, app: Any, mark: str = "class") -> None:
        self.app = marked(app, mark)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class MarkingASGI(ASGIMiddleware):
    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        await marked(next_app, "asgi")(scope, receive, send)


class MarkingHTTP(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        response = await call_next(request)
        response.headers["x-mark"] = "http"
        return response


MIDDLEWARE: list[tuple[Any, str]] = [
    (marking, "function"),
    (MarkingASGI(), "asgi"),
    (DefineMiddleware(MarkingClass, mark="defined"), "defined"),
    (Middleware(MarkingClass), "class"),
    (Middleware(MarkingClass, "positional"), "positional"),
    (Middleware(MarkingClass, mark="keyword"), "keyword"),
    (Middleware(MarkingHTTP), "http"),
]


@pytest.mark.parametrize(("middleware", "mark"), MIDDLEWARE)
def test_middleware_is_litestars_or_starlettes(middleware: Any, mark: str) -> None:
    app = BedrockAgentCoreApp(middleware=[middleware])

    @app.entrypoint
    def handler(payload: list[Any]) -> Iterator[Any]:
        yield from payload

    with TestClient(app=app) as client:
        streamed = client.post("/invocations", json=[1, 2])
        assert events(streamed) == [1, 2]
        assert [response.headers["x-mark"] for response in (streamed, client.get("/ping"))] == [mark, mark]


def test_a_middleware_of_starlettes_own_works() -> None:
    cors = Middleware(CORSMiddleware, allow_origins=["https://example.com"], allow_methods=["POST"])
    app = BedrockAgentCoreApp(middleware=[cors])
    app.entrypoint(echo)
    with TestClient(app=app) as client:
        response = client.post("/invocations", json=1, headers={"Origin": "https://example.com"})
    assert response.headers["access-control-allow-origin"] == "https://example.com"


def test_the_first_middleware_is_the_outermost() -> None:
    app = BedrockAgentCoreApp(middleware=[Middleware(MarkingClass, mark="outer"), marking])
    app.entrypoint(echo)
    with TestClient(app=app) as client:
        assert client.post("/invocations", json=1).headers.get_list("x-mark") == ["function", "outer"]


@litestar.get("/own")
async def own() -> dict[str, str]:
    return {"own": BedrockAgentCoreContext.get_request_id() or "none"}


class AddingRoute(InitPlugin):
    def on_app_init(self, app_config: Any) -> Any:
        app_config.route_handlers.append(own)
        return app_config


@pytest.mark.parametrize("options", [{"route_handlers": [own]}, {"plugins": [AddingRoute()]}])
def test_routes_of_the_authors_are_served_beside_the_agent(options: dict[str, Any]) -> None:
    app = BedrockAgentCoreApp(**options)
    app.entrypoint(echo)
    with TestClient(app=app) as client:
        assert client.get("/own").json() == {"own": "none"}
        assert client.post("/invocations", json=1).json() == 1
        assert client.get("/ping").status_code == 200


def test_a_route_may_be_registered_later(app: BedrockAgentCoreApp) -> None:
    app.register(own)
    with TestClient(app=app) as client:
        assert client.get("/own").json() == {"own": "none"}


def test_the_options_of_litestar_are_passed_on() -> None:
    started: list[str] = []
    app = BedrockAgentCoreApp(
        openapi_config=OpenAPIConfig(title="Oracle", version="7"),
        cors_config=CORSConfig(allow_origins=["https://example.com"]),
        on_startup=[lambda: started.append("started")],
        state=litestar.datastructures.State({"model": "small"}),
    )
    app.entrypoint(lambda payload, context: context.request.app.state.model)

    with TestClient(app=app) as client:
        response = client.post("/invocations", json=1, headers={"Origin": "https://example.com"})
        assert response.json() == "small"
        assert response.headers["access-control-allow-origin"] == "https://example.com"
        assert client.get("/schema/openapi.json").json()["info"]["title"] == "Oracle"
    assert started == ["started"]


def test_an_option_that_litestar_does_not_know_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        BedrockAgentCoreApp(no_such_option=True)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (NotFoundException("no such order"), 404, "no such order"),
        (HTTPException("no more", status_code=409), 409, "no more"),
        (RuntimeError("broken"), 500, "broken"),
    ],
)
def test_what_a_route_of_the_authors_raises_is_answered_in_the_shape_of_the_contract(
    error: Exception, status: int, message: str
) -> None:
    @litestar.get("/own")
    async def failing() -> None:
        raise error

    with TestClient(app=BedrockAgentCoreApp(route_handlers=[failing])) as client:
        response = client.get("/own", headers={REQUEST_ID: "r"})

    assert (response.status_code, response.json()) == (status, {"error": message})
    assert response.headers[REQUEST_ID] == "r"


@pytest.mark.parametrize("key", [404, NotFoundException, HTTPException, Exception])
def test_an_exception_handler_of_the_authors_wins_over_the_shape_of_the_contract(key: Any) -> None:
    def handle(request: Any, error: Exception) -> litestar.Response[str]:
        return litestar.Response("own", status_code=404)

    with TestClient(app=BedrockAgentCoreApp(exception_handlers={key: handle})) as client:
        assert client.get("/nowhere").text == "own"


# run()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What uvicorn was asked to serve, outside of any container."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: calls.append((app, options)))
    monkeypatch.setattr("pathlib.Path.exists", lambda path, **_: False)
    monkeypatch.delenv("DOCKER_CONTAINER", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return calls


Served = list[tuple[Any, dict[str, Any]]]


def test_run_serves_the_app_on_port_8080_of_this_machine_alone(app: BedrockAgentCoreApp, served: Served) -> None:
    app.run()
    ((what, options),) = served
    assert what is app
    assert (options["host"], options["port"]) == ("127.0.0.1", 8080)


def test_run_with_workers_serves_what_each_of_them_can_import(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "of_this_module", BedrockAgentCoreApp(), raising=False)
    of_this_module.run(workers=2)  # type: ignore[name-defined]  # noqa: F821
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    of_this_module.run()  # type: ignore[name-defined]  # noqa: F821
    assert [(what, options.get("workers")) for what, options in served] == [
        (f"{__name__}:of_this_module", 2),
        (f"{__name__}:of_this_module", None),
    ]


def test_run_with_workers_says_why_an_app_that_no_module_has_cannot_be_served(served: Served) -> None:
    with pytest.raises(ValueError, match=r"workers=2.*must be a variable of a module"):
        BedrockAgentCoreApp().run(workers=2)
    assert served == []


def test_a_platforms_wish_for_workers_that_cannot_be_met_is_a_warning(
    served: Served, monkeypatch: pytest.MonkeyPatch, log: LogLines
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    app = BedrockAgentCoreApp()
    app.run()
    assert [(what, options["workers"]) for what, options in served] == [(app, 1)]
    assert "WEB_CONCURRENCY=4 is not heeded" in log.lines[-1]["message"]


def test_a_worker_that_runs_an_unguarded_script_says_what_is_missing(
    app: BedrockAgentCoreApp, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match='if __name__ == "__main__":'):
        app.run(workers=2)
    app.run()
    assert len(served) == 1


@pytest.mark.parametrize("variable", ["DOCKER_CONTAINER", "KUBERNETES_SERVICE_HOST"])
def test_run_serves_on_every_address_where_a_variable_tells_of_a_container(
    app: BedrockAgentCoreApp, served: Served, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    app.run()
    assert served[0][1]["host"] == "0.0.0.0"


def test_run_serves_on_every_address_where_dockerenv_exists(
    app: BedrockAgentCoreApp, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlib.Path.exists", lambda path, **_: str(path) == "/.dockerenv")
    app.run()
    assert served[0][1]["host"] == "0.0.0.0"


def test_the_host_and_port_that_run_is_given_win(
    app: BedrockAgentCoreApp, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONTAINER", "1")
    app.run(9000, "127.0.0.2")
    app.run(port=9001, host="127.0.0.3")
    assert [(options["host"], options["port"]) for _, options in served] == [("127.0.0.2", 9000), ("127.0.0.3", 9001)]


def test_the_options_that_run_is_given_go_to_uvicorn_and_win_over_the_defaults(
    app: BedrockAgentCoreApp, served: Served
) -> None:
    app.run()
    defaults = served[0][1]
    assert {"access_log", "log_level", "http", "ws"} <= defaults.keys()

    given: dict[str, Any] = {
        "access_log": "own",
        "log_level": "own",
        "log_config": "own",
        "timeout_keep_alive": 7,
        "http": "own:H",
    }
    app.run(**given)

    assert served[1][1] == defaults | given


# Where it runs


@pytest.fixture
def starlette_client() -> Callable[[Any], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of Starlette would rather use another HTTP client
        from starlette.testclient import TestClient
    return TestClient


def test_the_app_serves_under_the_test_client_of_starlette_without_a_lifespan(
    app: BedrockAgentCoreApp, starlette_client: Callable[[Any], Any]
) -> None:
    app.entrypoint(echo)
    client = starlette_client(app)
    try:
        assert client.post("/invocations", json=1).json() == 1
        assert client.get("/ping").json()["status"] == "Healthy"
        assert client.get("/ready").status_code == 200
    finally:
        app.agent.stop()


def test_the_app_serves_under_the_test_client_of_starlette_with_a_lifespan(
    app: BedrockAgentCoreApp, starlette_client: Callable[[Any], Any]
) -> None:
    app.entrypoint(streams)
    with starlette_client(app) as client:
        assert client.post("/invocations", json=1).text == "data: 1\n\n"


def test_two_apps_in_one_process_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    first = BedrockAgentCoreApp()
    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "8")
    second = BedrockAgentCoreApp(debug=True)
    first.entrypoint(lambda payload: "first")
    second.entrypoint(lambda payload: "second")
    first.add_async_task("work")
    second.ping(lambda: PingStatus.HEALTHY)

    with TestClient(app=first) as one, TestClient(app=second) as two:
        assert [client.post("/invocations", json=1).json() for client in (one, two)] == ["first", "second"]
        assert [client.get("/ping").json()["status"] for client in (one, two)] == ["HealthyBusy", "Healthy"]
        assert [client.post("/invocations", json="123456789").status_code for client in (one, two)] == [200, 413]


def test_an_app_may_invoke_another_from_within_its_handler() -> None:
    inner, outer = BedrockAgentCoreApp(), BedrockAgentCoreApp()
    inner.entrypoint(lambda payload, context: context.session_id)

    with TestClient(app=inner) as inner_client, TestClient(app=outer) as client:

        @outer.entrypoint
        def handler(payload: Any, context: RequestContext) -> Any:
            answer = inner_client.post("/invocations", json=payload, headers={SESSION_ID: "inner"}).json()
            return [answer, context.session_id, BedrockAgentCoreContext.get_session_id()]

        response = client.post("/invocations", json=1, headers={SESSION_ID: "outer"})
        assert response.json() == ["inner", "outer", "outer"]


async def answers(payload: Any) -> Any:
    return payload


async def streams(payload: Any) -> AsyncIterator[Any]:
    yield payload


@pytest.mark.parametrize("handler", [echo, answers, streams])
def test_an_app_may_be_started_and_stopped_several_times(app: BedrockAgentCoreApp, handler: Any) -> None:
    app.entrypoint(handler)
    for _ in range(3):
        with TestClient(app=app) as client:
            assert "1" in client.post("/invocations", json=1).text
            assert client.get("/ready").status_code == 200
        assert client.get("/ready").status_code == 503


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AGENTCORE_MAX_BODY_BYTES", "many"),
        ("AGENTCORE_SYNC_THREADS", "0"),
        ("AGENTCORE_PING_TIMEOUT_SECONDS", "-1"),
        ("AGENTCORE_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_variable_that_makes_no_sense_is_an_error_at_construction_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        BedrockAgentCoreApp()


def test_a_line_that_a_handler_logs_carries_the_ids_of_its_request(
    app: BedrockAgentCoreApp, client: Client, log: LogLines
) -> None:
    @app.entrypoint
    async def handler(payload: Any) -> Any:
        app.logger.warning("from the app's logger")
        logging.getLogger("own").warning("from a logger of its own")

    client.post("/invocations", json=1, headers={REQUEST_ID: "r", SESSION_ID: "s"})

    assert [(line["message"], line["sessionId"]) for line in log.of_request("r")] == [
        ("from the app's logger", "s"),
        ("from a logger of its own", "s"),
    ]


def test_making_an_app_changes_no_logging_of_the_host_program(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level

    BedrockAgentCoreApp()

    assert (root.handlers, root.level) == ([], level)
    assert logging.getLogger("litestar").handlers == []


def test_an_app_with_a_path_of_its_own_serves_there_and_answers_404_elsewhere() -> None:
    app = BedrockAgentCoreApp(path="/v1")
    app.entrypoint(lambda payload: payload)
    with TestClient(app=app) as client:
        assert client.post("/v1/invocations", json={"a": 1}).json() == {"a": 1}
        elsewhere = client.post("/invocations", json={"a": 1})
        assert (elsewhere.status_code, list(elsewhere.json())) == (404, ["error"])


@pytest.mark.parametrize("make", [BedrockAgentCoreApp, AgentCorePlugin])
def test_the_entrypoint_is_in_the_mapping_of_handlers(make: Any) -> None:
    authoring = make()
    assert dict(authoring.handlers) == {}

    assert authoring.entrypoint(echo) is echo
    assert authoring.handlers == {"main": echo}
    assert authoring.handlers["main"]({"a": 1}) == {"a": 1}
    second = Agent().answer
    authoring.entrypoint(second)
    assert authoring.handlers == {"main": second}
    with pytest.raises(TypeError):
        authoring.handlers["main"] = echo


class Agent:
    def answer(self, payload: Any) -> Any:
        return payload


STARLETTES = [name for name in dir(Starlette()) if not name.startswith("_") and not hasattr(Litestar, name)]
OF_OTHER_RELEASES = ["add_event_handler", "exception_handler", "on_event", "route", "websocket_route"]
FASTAPIS = ["add_api_route", "add_api_websocket_route", "api_route", "include_router"]


@pytest.mark.parametrize("name", [*STARLETTES, *OF_OTHER_RELEASES, *FASTAPIS])
def test_a_method_of_starlettes_application_says_what_to_use_instead(app: BedrockAgentCoreApp, name: str) -> None:
    assert not hasattr(app, name)
    with pytest.raises(AttributeError, match=r"Litestar application\. Use .+") as raised:
        getattr(app, name)
    assert (raised.value.name, raised.value.obj) == (name, app)


def test_any_other_attribute_is_missing_as_on_any_object(app: BedrockAgentCoreApp) -> None:
    with pytest.raises(AttributeError, match=r"^'BedrockAgentCoreApp' object has no attribute 'nothing'$"):
        app.nothing  # type: ignore[attr-defined]


def test_what_is_to_be_used_in_the_place_of_mount_and_add_route_works(app: BedrockAgentCoreApp) -> None:
    async def hello(request: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.path_params['name']}")

    @websocket("/talk")
    async def talk(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await socket.send_text("hi")

    @get("/own")
    async def own() -> str:
        return "own"

    mounted: Any = Starlette(routes=[Route("/hello/{name}", hello, methods=["GET", "POST"])])
    app.register(asgi("/starlette", is_static=True, copy_scope=True)(mounted))
    app.register(talk)
    app.register(own)
    with TestClient(app) as client:
        assert client.get("/starlette/hello/you").text == client.post("/starlette/hello/you").text == "hello you"
        assert client.get("/own").text == "own"
        with client.websocket_connect("/talk") as conversation:
            assert conversation.receive_text(timeout=60) == "hi"


IMPORT = """
import gc
{before}
import litestar_agentcore
print(gc.get_count()[1] == 0, gc.isenabled(), gc.get_freeze_count() > 0)
"""


class TestImporting:
    """Garbage is not collected while the package is imported, nor as soon as that is done; else all is as it was."""

    @pytest.mark.parametrize(
        ("before", "printed"),
        [
            ("gc.collect(0)", "True True False"),
            ("gc.disable()", "True False False"),
            ("gc.freeze()", "False True True"),
        ],
        ids=["as usual", "disabled by the host", "frozen by the host"],
    )
    def test_the_garbage_collector_is_left_as_it_was(self, before: str, printed: str) -> None:
        program = IMPORT.format(before=before)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == printed, done.stderr
