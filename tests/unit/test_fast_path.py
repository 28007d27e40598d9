"""The fast path of ``POST /invocations`` answers as Litestar's routing does, and what an author adds is never lost."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from litestar import Litestar, MediaType, Request, Response, get
from litestar.config.allowed_hosts import AllowedHostsConfig
from litestar.config.app import AppConfig
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.config.csrf import CSRFConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.exceptions import HTTPException, NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import ASGIMiddleware, DefineMiddleware
from litestar.middleware.logging import LoggingMiddlewareConfig
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.plugins import InitPlugin
from litestar.testing import TestClient
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, RequestContext
from litestar_agentcore.controllers.invocations import FastPath

from tests.unit.conftest import REQUEST_ID, SESSION_ID

PATIENCE = 10.0
HOST = (b"host", b"agent.example")
IDS = [(REQUEST_ID.lower().encode(), b"a-request"), (SESSION_ID.lower().encode(), b"a-session")]

AnyRequest = Request[Any, Any, Any]
Connection = ASGIConnection[Any, Any, Any, Any]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that took the fast path."""
    paths: list[str] = []
    serve = FastPath.serve

    def counting(self: FastPath, scope: Any, receive: Receive, send: Send) -> Any:
        paths.append(scope["path"])
        return serve(self, scope, receive, send)

    monkeypatch.setattr(FastPath, "serve", counting)
    return paths


def harmless(app: ASGIApp) -> ASGIApp:
    """A middleware that does nothing, but that there is one."""

    async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return pass_on


def http_scope(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/invocations",
        "raw_path": b"/invocations",
        "query_string": b"",
        "root_path": "",
        "headers": [HOST, *IDS],
        "client": ("192.0.2.1", 4711),
        "server": ("192.0.2.2", 8080),
        **changes,
    }


def answers(app: Any, *requests: tuple[dict[str, Any], bytes]) -> list[Answer]:
    """What an app answers to requests as a server hands them over, one after the other."""

    async def ask(scope: dict[str, Any], body: bytes) -> Answer:
        messages: list[Message] = []
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if incoming:
                return incoming.pop()
            return await asyncio.Event().wait()

        async def send(message: Message) -> None:
            messages.append(message)

        await asyncio.wait_for(app(scope, receive, send), PATIENCE)
        start, *rest = messages
        assert start["type"] == "http.response.start"
        # Litestar keeps the methods of a route in a set, whose order is each time another.
        headers = [
            (name, b", ".join(sorted(value.split(b", "))) if name == b"allow" else value)
            for name, value in start["headers"]
        ]
        return start["status"], headers, b"".join(part.get("body", b"") for part in rest)  # type: ignore[misc]

    async def serve() -> list[Answer]:
        async with app.lifespan():
            return [await ask(dict(scope), body) for scope, body in requests]

    return asyncio.run(serve())


def app_of(handler: Callable[..., Any], **options: Any) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp(**options)
    app.entrypoint(handler)
    return app


def litestar_of(handler: Callable[..., Any], **options: Any) -> Litestar:
    """The agent as a plugin of an application that exists already."""
    return Litestar(plugins=[AgentCorePlugin(handler), *options.pop("plugins", ())], logging_config=None, **options)


def echo(payload: Any) -> Any:
    return payload


def plain(**changes: Any) -> dict[str, Any]:
    return http_scope(**changes)


def with_headers(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return http_scope(headers=[*headers, *IDS])


REQUESTS: dict[str, tuple[dict[str, Any], bytes, bool]] = {
    "a payload": (plain(), b'{"a": "\xc3\xa9"}', True),
    "a query": (plain(query_string=b"a=1&b=2"), b"1", True),
    "no JSON": (plain(), b"{", True),
    "an empty body": (plain(), b"", True),
    "no UTF-8": (plain(), b'"\xff"', True),
    "a bad id": (plain(headers=[HOST, IDS[0], (IDS[1][0], b"a b")]), b"1", True),
    "another media type": (with_headers(HOST, (b"content-type", b"text/plain")), b"1", True),
    "a length that is no number": (with_headers(HOST, (b"content-length", b"one")), b"1", True),
    "a host with a port": (with_headers((b"host", b"[::1]:8080")), b"1", True),
    "the longest plain host": (with_headers((b"host", b"h" * 255)), b"1", True),
    "no host": (with_headers(), b"1", True),
    "a huge host": (with_headers((b"host", b"h" * 60_000)), b"1", False),
    "an empty host": (with_headers((b"host", b"")), b"1", False),
    "an odd host that is one": (with_headers((b"host", b"user:word!$&'()*+,;=@agent~_%20")), b"1", False),
    "a host with a path": (with_headers((b"host", b"agent/../etc")), b"1", False),
    "a host with a space": (with_headers((b"host", b"agent example")), b"1", False),
    "a host with a line feed": (with_headers((b"host", b"agent\n")), b"1", False),
    "a host that is no ASCII": (with_headers((b"host", b"\xe4gent")), b"1", False),
    "two hosts, the second invalid": (with_headers(HOST, (b"host", b"a/b")), b"1", True),
    "two hosts, the first invalid": (with_headers((b"host", b"a/b"), HOST), b"1", False),
    "a slash at the end": (plain(path="/invocations/"), b"1", False),
    "two slashes": (plain(path="//invocations"), b"1", False),
    "a root path": (plain(root_path="/api", path="/api/invocations"), b"1", False),
    "a root path that the path is without": (plain(root_path="/api"), b"1", False),
    "a wrong root path": (plain(root_path="/other", path="/api/invocations"), b"1", False),
    **{f"method {method}": (plain(method=method), b"", False) for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH")},
    "method DELETE": (plain(method="DELETE"), b"1", False),
    "a method that nobody knows": (plain(method="BREW"), b"1", False),
    "a lower-case method": (plain(method="post"), b"1", False),
    "another path": (plain(path="/nowhere"), b"1", False),
    "a path below": (plain(path="/invocations/1"), b"1", False),
    "an upper-case path": (plain(path="/Invocations"), b"1", False),
}


@pytest.mark.parametrize(("scope", "body", "direct"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_is_answered_the_same_on_either_path(
    scope: dict[str, Any], body: bytes, direct: bool, taken: list[str]
) -> None:
    through_litestar = answers(app_of(echo, middleware=[harmless]), *[(scope, body)] * 3)
    assert taken == []

    on_the_fast_path = answers(app_of(echo), *[(scope, body)] * 3)

    assert on_the_fast_path == through_litestar
    assert taken == ["/invocations"] * (3 if direct else 0)


@pytest.mark.parametrize("name", [name for name, (_, _, direct) in REQUESTS.items() if direct])
def test_a_plugin_of_an_application_answers_the_same(name: str) -> None:
    scope, body, _ = REQUESTS[name]

    assert answers(litestar_of(echo), (scope, body)) == answers(app_of(echo), (scope, body))


def test_more_hosts_than_are_remembered_are_served_too(taken: list[str]) -> None:
    requests = [(with_headers((b"host", b"agent-%d.example" % number)), b"1") for number in range(150)]

    first, *rest = answers(app_of(echo), *requests, *requests, (plain(), b"1"))

    assert first[0] == 200
    assert rest == [first] * 300
    assert len(taken) == 301


class Point(msgspec.Struct):
    x: int


def typed(payload: Point) -> Any:
    return payload.x


def raises(payload: Any) -> Any:
    raise LookupError("lost")


def teapot(payload: Any) -> Any:
    raise HTTPException(status_code=418, detail="short and stout", headers={"x-pot": "tea"})


def own_response(payload: Any) -> Any:
    return Response("own", media_type=MediaType.TEXT, status_code=201, headers={"x-own": "1"})


async def stream(payload: Any) -> AsyncIterator[int]:
    yield 1
    yield 2


async def broken_stream(payload: Any) -> AsyncIterator[int]:
    yield 1
    raise LookupError("lost")


@pytest.mark.parametrize("body", [b'{"x": 1}', b'{"x": "one"}', b"{"])
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("handler", [typed, raises, teapot, own_response, stream, broken_stream])
def test_a_handler_is_answered_for_the_same_on_either_path(
    handler: Callable[..., Any], debug: bool, body: bytes, taken: list[str]
) -> None:
    requests = [(plain(), body)] * 2
    through_litestar = answers(app_of(handler, debug=debug, middleware=[harmless]), *requests)
    assert taken == []

    assert answers(app_of(handler, debug=debug), *requests) == through_litestar
    assert taken == ["/invocations"] * 2


def test_without_an_entrypoint_the_answer_is_the_same_on_either_path(taken: list[str]) -> None:
    requests = [(plain(), b"1")] * 2

    assert answers(BedrockAgentCoreApp(), *requests) == answers(BedrockAgentCoreApp(middleware=[harmless]), *requests)
    assert taken == ["/invocations"] * 2


def lost(_: AnyRequest, error: Exception) -> Response[Any]:
    return Response({"lost": str(error)}, status_code=410)


@pytest.mark.parametrize("key", [LookupError, Exception, 500])
def test_an_exception_handler_of_the_authors_answers_on_either_path(key: Any, taken: list[str]) -> None:
    requests = [(plain(), b"1")] * 2
    through_litestar = answers(app_of(raises, exception_handlers={key: lost}, middleware=[harmless]), *requests)

    on_the_fast_path = answers(app_of(raises, exception_handlers={key: lost}), *requests)

    assert on_the_fast_path == through_litestar
    assert on_the_fast_path[1][0] == 410
    assert taken == ["/invocations"] * 2


# What the handler finds in its request


@get("/things/first", name="thing")
async def thing() -> int:
    return 1


async def look_around(payload: Any, context: RequestContext) -> Any:
    request: AnyRequest = context.request
    return {
        "app": type(request.app).__name__,
        "route handler": str(request.route_handler),
        "name": request.route_handler.name,
        "url": str(request.url),
        "base_url": str(request.base_url),
        "url_for": request.url_for("thing"),
        "route_reverse": request.app.route_reverse("agentcore-invocations"),
        "state": request.state.dict(),
        "app state": request.app.state.dict(),
        "json": await request.json(),
        "body": (await request.body()).decode(),
        "method": str(request.method),
        "query": dict(request.query_params),
        "path_params": request.path_params,
        "cookies": request.cookies,
        "headers": dict(request.headers),
        "accept": request.accept.best_match(["application/json", "text/html"]),
        "client": str(request.client),
        "content type": request.content_type[0],
        "logger": hasattr(request, "logger"),
        "scope": sorted(key for key in request.scope if not key.startswith("_")),
        "of the scope": [request.scope["path"], request.scope["path_template"], request.scope["root_path"]],
        "session": context.session_id,
    }


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": "a pool"}


@pytest.mark.parametrize("of_the_server", [{}, {"state": {}}, {"state": {"server": "a server"}}], ids=str)
@pytest.mark.parametrize("with_lifespan", [False, True])
def test_a_handler_finds_the_same_in_its_request_on_either_path(
    of_the_server: dict[str, Any], with_lifespan: bool, taken: list[str]
) -> None:
    scope = http_scope(
        query_string=b"a=1",
        headers=[HOST, *IDS, (b"cookie", b"c=2"), (b"accept", b"text/html"), (b"content-type", b"application/json")],
        **of_the_server,
    )
    options: dict[str, Any] = {"route_handlers": [thing], "lifespan": lifespan if with_lifespan else None}

    def look(**more: Any) -> tuple[Answer, Any]:
        requests = [({**scope, **({"state": dict(scope["state"])} if "state" in scope else {})}, b"[1]")] * 2
        _, answer = answers(app_of(look_around, **options, **more), *requests)
        return answer, json.loads(answer[2])

    through_litestar, told = look(middleware=[harmless])
    assert taken == []
    on_the_fast_path, told_on_the_fast_path = look()

    assert told_on_the_fast_path == told
    assert on_the_fast_path == through_litestar
    assert told["state"].get("pool") == ("a pool" if with_lifespan else None)
    assert told["url_for"].endswith("/things/first")
    assert told["json"] == [1]
    assert taken == ["/invocations"] * 2


def test_what_a_handler_puts_into_the_state_is_there_for_the_rest_of_its_request_alone(taken: list[str]) -> None:
    seen: list[Any] = []

    def keep(payload: Any, context: RequestContext) -> None:
        seen.append(context.request.scope["state"].get("mark"))
        context.request.scope["state"]["mark"] = payload

    statuses = [status for status, _, _ in answers(app_of(keep), *[(plain(), b"%d" % number) for number in range(3)])]

    assert statuses == [200, 200, 200]
    assert seen == [None, None, None]
    assert len(taken) == 3


# What an author puts around


class Called(list[str]):
    """What was called, in order."""


@pytest.fixture
def called() -> Called:
    return Called()


KINDS = pytest.mark.parametrize("make", [app_of, litestar_of], ids=["the app", "the plugin"])
Make = Callable[..., Any]


@pytest.fixture
def no_fast_path(taken: list[str]) -> Iterator[None]:
    """For a test in which no request may take the fast path."""
    yield
    assert taken == []


def statuses_of(app: Any, count: int = 3, body: bytes = b"1") -> list[int]:
    return [status for status, _, _ in answers(app, *[(plain(), body)] * count)]


def header(answer: Answer, name: bytes) -> list[bytes]:
    return [value for key, value in answer[1] if key.lower() == name]


class PlainMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"].state.called.append("middleware")
        await self.app(scope, receive, send)


class NewMiddleware(ASGIMiddleware):
    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        scope["app"].state.called.append("middleware")
        await next_app(scope, receive, send)


def function_middleware(app: ASGIApp) -> ASGIApp:
    async def mark(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"].state.called.append("middleware")
        await app(scope, receive, send)

    return mark


class AddsMiddleware(InitPlugin):
    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.middleware.append(function_middleware)
        return app_config


@KINDS
@pytest.mark.parametrize(
    "options",
    [
        {"middleware": [DefineMiddleware(PlainMiddleware)]},
        {"middleware": [NewMiddleware()]},
        {"middleware": [function_middleware]},
        {"plugins": [AddsMiddleware()]},
    ],
    ids=["a class", "an instance", "a function", "of a plugin"],
)
@pytest.mark.usefixtures("no_fast_path")
def test_a_middleware_sees_each_invocation(make: Make, options: dict[str, Any], called: Called) -> None:
    app = make(echo, **options)
    app.state.called = called

    assert statuses_of(app) == [200, 200, 200]
    assert called == ["middleware"] * 3


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_a_guard_is_asked_for_each_invocation(make: Make) -> None:
    def guard(connection: Connection, _: BaseRouteHandler) -> None:
        if connection.headers.get("x-key") != "right":
            raise NotAuthorizedException("no")

    allowed = with_headers(HOST, (b"x-key", b"right"))
    told = answers(make(echo, guards=[guard]), (plain(), b"1"), (allowed, b"1"), (plain(), b"1"))

    assert [status for status, _, _ in told] == [401, 200, 401]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_the_hooks_of_requests_are_called_for_each_invocation(make: Make, called: Called) -> None:
    async def before_request(_: AnyRequest) -> None:
        called.append("before_request")

    async def after_request(response: Response[Any]) -> Response[Any]:
        called.append("after_request")
        response.set_header("x-after", "1")
        return response

    async def after_response(_: AnyRequest) -> None:
        called.append("after_response")

    app = make(echo, before_request=before_request, after_request=after_request, after_response=after_response)
    told = answers(app, *[(plain(), b"1")] * 2)

    assert [(status, header((status, headers, body), b"x-after")) for status, headers, body in told] == [
        (200, [b"1"])
    ] * 2
    assert called == ["before_request", "after_request", "after_response"] * 2


@KINDS
@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("hook", ["before_request", "after_request", "after_response"])
def test_one_hook_alone_is_called_too(make: Make, hook: str, called: Called) -> None:
    async def note(argument: Any) -> Any:
        called.append(hook)
        return argument if hook == "after_request" else None

    assert statuses_of(make(echo, **{hook: note})) == [200, 200, 200]
    assert called == [hook] * 3


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_a_hook_may_answer_in_the_place_of_the_agent(make: Make) -> None:
    def refuse(_: AnyRequest) -> Response[Any]:
        return Response({"closed": True}, status_code=403)

    assert statuses_of(make(raises, before_request=refuse)) == [403, 403, 403]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_before_send_sees_each_message(make: Make, called: Called) -> None:
    async def note(message: Message, _: Scope) -> None:
        called.append(message["type"])

    assert statuses_of(make(echo, before_send=[note]), 2) == [200, 200]
    assert called == ["http.response.start", "http.response.body"] * 2


@KINDS
def test_before_send_may_be_added_to_an_app_that_serves(make: Make, called: Called) -> None:
    async def note(message: Message, _: Scope) -> None:
        called.append(message["type"])

    app = make(echo)
    assert statuses_of(app) == [200, 200, 200]
    app.before_send.append(note)

    assert statuses_of(app, 1) == [200]
    assert called == ["http.response.start", "http.response.body"]


@KINDS
@pytest.mark.parametrize("late", [False, True], ids=["from the start", "added later"])
def test_after_exception_is_told_of_each_failure(make: Make, late: bool, called: Called) -> None:
    async def note(error: Exception, _: Scope) -> None:
        called.append(str(error))

    app = make(raises, **({} if late else {"after_exception": [note]}))
    if late:
        assert statuses_of(app) == [500, 500, 500]
        app.after_exception.append(note)

    assert statuses_of(app) == [500, 500, 500]
    assert called == ["lost"] * 3


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_cors_is_applied(make: Make) -> None:
    app = make(echo, cors_config=CORSConfig(allow_origins=["https://ui.example"]))
    origin = (b"origin", b"https://ui.example")
    preflight = http_scope(method="OPTIONS", headers=[HOST, origin, (b"access-control-request-method", b"POST")])

    told = answers(app, *[(with_headers(HOST, origin), b"1")] * 2, (preflight, b""))

    assert [header(answer, b"access-control-allow-origin") for answer in told] == [[b"https://ui.example"]] * 3


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_csrf_is_applied(make: Make) -> None:
    assert statuses_of(make(echo, csrf_config=CSRFConfig(secret="secret"))) == [403, 403, 403]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_compression_is_applied(make: Make) -> None:
    app = make(echo, compression_config=CompressionConfig(backend="gzip", minimum_size=1))
    scope = with_headers(HOST, (b"accept-encoding", b"gzip"))

    told = answers(app, *[(scope, json.dumps("a" * 2000).encode())] * 2)

    assert [header(answer, b"content-encoding") for answer in told] == [[b"gzip"], [b"gzip"]]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("allowed", [["other.example"], AllowedHostsConfig(["other.example"])], ids=["list", "config"])
def test_allowed_hosts_are_applied(make: Make, allowed: Any) -> None:
    assert statuses_of(make(echo, allowed_hosts=allowed)) == [400, 400, 400]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_response_headers_and_cookies_are_set(make: Make) -> None:
    app = make(echo, response_headers={"x-by": "agent"}, response_cookies=[Cookie(key="seen", value="1")])

    for answer in answers(app, *[(plain(), b"1")] * 2):
        assert answer[0] == 200
        assert header(answer, b"x-by") == [b"agent"]
        assert [cookie.partition(b";")[0] for cookie in header(answer, b"set-cookie")] == [b"seen=1"]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize(
    "option", [{"response_headers": {"x-by": "agent"}}, {"response_cookies": {"seen": "1"}}], ids=str
)
def test_response_headers_or_cookies_alone_are_set_too(make: Make, option: dict[str, Any]) -> None:
    expected = b"x-by" if "response_headers" in option else b"set-cookie"

    assert all(header(answer, expected) for answer in answers(make(echo, **option), *[(plain(), b"1")] * 3))


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_requests_are_logged_where_that_is_asked_for(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = make(echo, middleware=[LoggingMiddlewareConfig(request_log_fields=["path"]).middleware])
    app.get_logger = lambda *_: logging.getLogger("of the app")

    assert statuses_of(app, 2) == [200, 200]
    lines = [line.getMessage() for line in caplog.records if line.name == "of the app"]
    assert len([line for line in lines if "/invocations" in line]) == 2


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_a_rate_limit_is_kept(make: Make) -> None:
    app = make(echo, middleware=[RateLimitConfig(rate_limit=("minute", 2)).middleware])

    assert statuses_of(app, 4) == [200, 200, 429, 429]


@KINDS
@pytest.mark.usefixtures("no_fast_path")
def test_a_session_is_there_for_the_handler(make: Make) -> None:
    def visits(payload: Any, context: RequestContext) -> int:
        context.request.session["visits"] = count = context.request.session.get("visits", 0) + 1
        return int(count)

    with TestClient(app=make(visits, middleware=[ServerSideSessionConfig().middleware])) as client:
        assert [client.post("/invocations", json=1).json() for _ in range(3)] == [1, 2, 3]


def marking(app: ASGIApp, called: Called) -> ASGIApp:
    async def mark(scope: Scope, receive: Receive, send: Send) -> None:
        called.append("wrapper")
        await app(scope, receive, send)

    return mark


@KINDS
@pytest.mark.parametrize("after", [0, 1, 3], ids=lambda after: f"after {after} requests")
def test_a_wrapper_that_is_put_around_the_app_later_sees_each_invocation(
    make: Make, after: int, called: Called
) -> None:
    app = make(echo)
    assert statuses_of(app, after) == [200] * after
    inner = app.asgi_handler
    app.asgi_handler = marking(inner, called)

    assert statuses_of(app) == [200, 200, 200]
    assert called == ["wrapper"] * 3

    app.asgi_handler = inner
    assert statuses_of(app) == [200, 200, 200]
    assert called == ["wrapper"] * 3


@KINDS
def test_a_route_that_is_added_to_an_app_that_serves_is_found(make: Make) -> None:
    app = make(echo)
    assert statuses_of(app) == [200, 200, 200]
    app.register(thing)

    told = answers(app, (plain(method="GET", path="/things/first"), b""), (plain(), b"1"))

    assert [status for status, _, _ in told] == [200, 200]


@KINDS
def test_an_entrypoint_that_is_registered_later_is_served(make: Make) -> None:
    app = make(echo)
    before = answers(app, *[(plain(), b"1")] * 2)
    plugin = app.plugins.get(AgentCorePlugin)
    plugin.entrypoint(raises)

    assert [status for status, _, _ in before] == [200, 200]
    assert statuses_of(app, 2) == [500, 500]


# The schema


def schema(app: Any) -> Any:
    with TestClient(app=app) as client:
        before = client.get("/schema/openapi.json").json()
        for _ in range(3):
            client.post("/invocations", json={"x": 1})
        assert client.get("/schema/openapi.json").json() == before
        return before


@pytest.mark.parametrize("handler", [echo, typed, stream])
def test_the_schema_is_the_same_on_either_path(handler: Callable[..., Any], taken: list[str]) -> None:
    direct = schema(app_of(handler))
    assert taken == ["/invocations"] * 3

    assert direct == schema(app_of(handler, middleware=[harmless]))
    assert {path for path in direct["paths"] if not path.startswith("/runtimes/")} == {
        "/invocations",
        "/ping",
        "/ready",
    }
    assert direct["paths"]["/invocations"].keys() == {"post"}
    assert direct["paths"]["/invocations"] == schema(litestar_of(handler))["paths"]["/invocations"]
