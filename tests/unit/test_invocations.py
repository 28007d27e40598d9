"""``POST /invocations``: what a request comes to, and what a handler's outcome comes to."""

import asyncio
import dataclasses
import gc
import json
import math
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Annotated, Any, TypedDict

import attrs
import httpx
import litestar
import msgspec
import pydantic
import pytest
import starlette.exceptions
import starlette.responses
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import Cookie
from litestar.response import Redirect, ServerSentEvent, Stream
from litestar.testing import TestClient
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, RequestContext

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines, events

Handler = Callable[..., Any]


# What the handler does, and the answer


@pytest.mark.parametrize("value", ["text", 7, 1.5, True, None, [], {}, [1, "two", None], {"nested": {"list": [1]}}])
def test_a_value_is_answered_200_as_json(app: BedrockAgentCoreApp, client: Client, value: Any) -> None:
    app.entrypoint(lambda payload: value)

    response = client.post("/invocations", json={})

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == value
    assert int(response.headers["content-length"]) == len(response.content)


def test_non_ascii_characters_are_answered_as_themselves(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: {"größe": payload})
    assert client.post("/invocations", json="世界 🌍").content == '{"größe":"世界 🌍"}'.encode()


class Odd:
    def __str__(self) -> str:
        return "odd"


class Point(msgspec.Struct):
    x: float


def test_values_and_events_are_encoded_alike(app: BedrockAgentCoreApp, client: Client) -> None:
    value = {1: [Odd(), Point(float("nan"))], "day": uuid.UUID(int=0), "set": {1}}
    encoded = '{"1":["odd",{"x":null}],"day":"00000000-0000-0000-0000-000000000000","set":[1]}'

    app.entrypoint(lambda payload: value)
    assert client.post("/invocations", json={}).text == encoded
    app.entrypoint(lambda payload: iter_of(value))
    assert client.post("/invocations", json={}).text == f"data: {encoded}\n\n"


def iter_of(*values: Any) -> Iterator[Any]:
    yield from values


@dataclasses.dataclass
class Result:
    """What an agent framework returns: a text, beside traces that have no JSON form."""

    message: str
    traces: list[Any]

    def __str__(self) -> str:
        return self.message


def test_a_result_with_a_text_is_answered_with_it(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: Result("sunny", [Odd()]))
    assert client.post("/invocations", json={}).json() == "sunny"
    app.entrypoint(lambda payload: iter_of({"result": Result("sunny", [Odd()])}, Result("sunny", [])))
    assert events(client.post("/invocations", json={})) == [{"result": "sunny"}, {"message": "sunny", "traces": []}]


class Raising:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        return "raising"


class CallableRaising(Raising):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it is no response")


@pytest.mark.parametrize("kind", [Raising, CallableRaising])
def test_an_object_whose_attributes_raise_is_a_value_like_any(
    app: BedrockAgentCoreApp, client: Client, kind: type
) -> None:
    app.entrypoint(lambda payload: [kind()] if payload else kind())
    assert client.post("/invocations", json=False).json() == "raising"
    assert client.post("/invocations", json=True).json() == ["raising"]


async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("it has no status code")


CLASS_MAKERS: dict[str, Callable[[], Any]] = {
    "dataclass": lambda: dataclasses.make_dataclass("Made", ["x"])(1),
    "struct": lambda: msgspec.defstruct("Made", ["x"])(1),
    "pydantic": lambda: pydantic.create_model("Made", x=(int, 1))(),
    "response": lambda: type("Made", (starlette.responses.PlainTextResponse,), {})("own"),
    "ASGI application": lambda: type("Made", (Odd,), {"__call__": call})(),
}


@pytest.mark.parametrize("make", CLASS_MAKERS.values(), ids=CLASS_MAKERS)
def test_a_class_that_was_made_for_a_request_is_freed_after_it(
    app: BedrockAgentCoreApp, client: Client, make: Callable[[], Any]
) -> None:
    made: list[weakref.ref[type]] = []

    @app.entrypoint
    def handler(payload: Any) -> Any:
        value = make()
        made.append(weakref.ref(type(value)))
        return value

    for _ in range(20):
        assert client.post("/invocations", json={}).status_code == 200
    app.entrypoint(lambda payload: payload)
    client.post("/invocations", json={})  # a thread may hold on to what it ran last
    gc.collect()
    assert sum(found() is not None for found in made) <= 1


def test_what_cannot_be_encoded_is_answered_with_its_type(app: BedrockAgentCoreApp, client: Client) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    failed = {"error": "Serialization failed", "original_type": "list"}

    app.entrypoint(lambda payload: cycle)
    assert client.post("/invocations", json={}).json() == failed
    app.entrypoint(lambda payload: iter_of(1, cycle, 2))
    assert events(client.post("/invocations", json={})) == [1, failed, 2]


PLAIN_TEXT = "text/plain; charset=utf-8"

AUTHORS_RESPONSES: dict[str, tuple[Callable[[], Any], int, dict[str, str], str]] = {
    "litestar Response": (
        lambda: litestar.Response({"own": "ä"}, status_code=201, headers={"X-Own": "1"}),
        201,
        {"content-type": "application/json", "x-own": "1"},
        '{"own":"ä"}',
    ),
    "litestar text": (
        lambda: litestar.Response("own", status_code=404, media_type="text/plain"),
        404,
        {"content-type": PLAIN_TEXT},
        "own",
    ),
    "litestar cookie": (
        lambda: litestar.Response("own", cookies=[Cookie(key="own", value="1")], media_type="text/plain"),
        200,
        {"content-type": PLAIN_TEXT, "set-cookie": "own=1; Path=/; SameSite=lax"},
        "own",
    ),
    "litestar no content": (lambda: litestar.Response(None, status_code=204), 204, {}, ""),
    "litestar Redirect": (lambda: Redirect("/other", status_code=303), 303, {"location": "/other"}, ""),
    "litestar Stream": (
        lambda: Stream(iter(["o", "wn"]), status_code=202, media_type="text/plain"),
        202,
        {"content-type": PLAIN_TEXT},
        "own",
    ),
    "litestar ServerSentEvent": (lambda: ServerSentEvent(iter(["own"])), 200, {}, "data: own\r\n\r\n"),
    "starlette JSONResponse": (
        lambda: starlette.responses.JSONResponse({"own": "ä"}, 201, {"X-Own": "1"}),
        201,
        {"content-type": "application/json", "x-own": "1"},
        '{"own":"ä"}',
    ),
    "starlette PlainTextResponse": (
        lambda: starlette.responses.PlainTextResponse("own", 404),
        404,
        {"content-type": PLAIN_TEXT},
        "own",
    ),
    "starlette StreamingResponse": (
        lambda: starlette.responses.StreamingResponse(iter(["o", "wn"]), 202, media_type="text/plain"),
        202,
        {"content-type": PLAIN_TEXT},
        "own",
    ),
    "starlette RedirectResponse": (
        lambda: starlette.responses.RedirectResponse("/other"),
        307,
        {"location": "/other"},
        "",
    ),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("name", AUTHORS_RESPONSES)
def test_a_response_of_the_authors_is_sent_untouched(
    app: BedrockAgentCoreApp, client: Client, name: str, asynchronous: bool
) -> None:
    answer, status, headers, text = AUTHORS_RESPONSES[name]

    async def coroutine(payload: Any) -> Any:
        return answer()

    app.entrypoint(coroutine if asynchronous else lambda payload: answer())
    response = client.post("/invocations", json={}, follow_redirects=False)

    assert (response.status_code, response.text) == (status, text)
    assert headers.items() <= dict(response.headers).items()


def test_the_background_task_of_a_response_runs(app: BedrockAgentCoreApp, client: Client) -> None:
    ran = threading.Event()

    async def note() -> None:
        ran.set()

    app.entrypoint(lambda payload: litestar.Response("own", background=BackgroundTask(note)))

    assert client.post("/invocations", json={}).text == "own"
    assert ran.wait(60)


def test_an_object_that_only_looks_like_a_response_is_encoded(app: BedrockAgentCoreApp, client: Client) -> None:
    @dataclasses.dataclass
    class Report:
        status_code: int

    app.entrypoint(lambda payload: Report(404))

    response = client.post("/invocations", json={})
    assert (response.status_code, response.json()) == (200, {"status_code": 404})


def generator(payload: Any) -> Iterator[Any]:
    yield {"token": "grüß"}
    yield "two\nlines"
    yield None


async def async_generator(payload: Any) -> AsyncIterator[Any]:
    for value in generator(payload):
        yield value


@pytest.mark.parametrize(
    "handler",
    [generator, async_generator, lambda payload: generator(payload), lambda payload: async_generator(payload)],
)
def test_a_generator_is_streamed_as_server_sent_events(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)

    response = client.post("/invocations", json={})

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.content == 'data: {"token":"grüß"}\n\ndata: "two\\nlines"\n\ndata: null\n\n'.encode()


def test_a_generator_that_yields_nothing_is_an_empty_stream(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: iter_of())
    assert events(client.post("/invocations", json={})) == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_an_event_is_sent_as_soon_as_it_is_yielded(asynchronous: bool) -> None:
    arrived = threading.Event()

    async def note(message: Message, scope: Scope) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            arrived.set()

    app = BedrockAgentCoreApp(before_send=[note])

    def plain(payload: Any) -> Iterator[Any]:
        yield "first"
        yield arrived.wait(60)

    async def async_(payload: Any) -> AsyncIterator[Any]:
        yield "first"
        yield await asyncio.to_thread(arrived.wait, 60)

    app.entrypoint(async_ if asynchronous else plain)
    with TestClient(app=app) as client:
        assert events(client.post("/invocations", json={})) == ["first", True]


def failing_generator(payload: Any) -> Iterator[Any]:
    yield from payload
    raise KeyError("gone")


async def failing_async_generator(payload: Any) -> AsyncIterator[Any]:
    for value in payload:
        yield value
    raise KeyError("gone")


@pytest.mark.parametrize("values", [["first"], []], ids=["after an event", "at once"])
@pytest.mark.parametrize(
    "handler",
    [
        failing_generator,
        failing_async_generator,
        lambda payload: failing_generator(payload),
        lambda payload: failing_async_generator(payload),
    ],
)
def test_a_generator_that_raises_ends_its_stream_with_an_error_event(
    app: BedrockAgentCoreApp, client: Client, log: LogLines, handler: Handler, values: list[str]
) -> None:
    app.entrypoint(handler)

    response = client.post("/invocations", json=values, headers={REQUEST_ID: "r"})

    assert response.status_code == 200
    error = {"error": "'gone'", "error_type": "KeyError", "message": "An error occurred during streaming"}
    assert events(response) == [*values, error]
    assert [(line["level"], line["errorType"]) for line in log.of_request("r")] == [("ERROR", "KeyError")]


class Teapot(Exception):
    status_code = 418
    detail = "I'm a teapot"


class StructuredDetail(Exception):
    status_code = 422
    detail = [{"loc": ["prompt"]}]  # noqa: RUF012


HTTP_EXCEPTIONS: list[tuple[Exception, int, Any]] = [
    (litestar.exceptions.HTTPException("no more", status_code=409), 409, "no more"),
    (litestar.exceptions.NotFoundException("no such thing"), 404, "no such thing"),
    (litestar.exceptions.NotAuthorizedException(), 401, "Unauthorized"),
    (litestar.exceptions.ServiceUnavailableException("later"), 503, "later"),
    (starlette.exceptions.HTTPException(403, "not you"), 403, "not you"),
    (starlette.exceptions.HTTPException(404), 404, "Not Found"),
    (Teapot(), 418, "I'm a teapot"),
    (StructuredDetail(), 422, [{"loc": ["prompt"]}]),
]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(("error", "status", "detail"), HTTP_EXCEPTIONS)
def test_an_http_exception_of_any_framework_is_answered_with_its_status_and_detail(
    app: BedrockAgentCoreApp, client: Client, error: Exception, status: int, detail: Any, asynchronous: bool
) -> None:
    def plain(payload: Any) -> Any:
        raise error

    async def coroutine(payload: Any) -> Any:
        raise error

    app.entrypoint(coroutine if asynchronous else plain)
    response = client.post("/invocations", json={})

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"error": detail}


class OnlyAStatus(Exception):
    status_code = 404


class NoStatus(Exception):
    status_code = "404"
    detail = "not a number"


def not_json() -> Any:
    return json.loads("{")


def not_msgspec_json() -> Any:
    return msgspec.json.decode("{")


def not_valid() -> Any:
    return msgspec.convert(1, str)


def not_utf8() -> Any:
    return b"\xff".decode()


def raising(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising(RuntimeError("broken: ä")), "broken: ä"),
        (raising(ValueError()), ""),
        (raising(OnlyAStatus("only a status")), "only a status"),
        (raising(NoStatus("no status")), "no status"),
        (raising(BaseException("base")), "base"),
        (raising(asyncio.CancelledError("cancelled")), "cancelled"),
        (not_json, "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (not_msgspec_json, "Input data was truncated"),
        (not_valid, "Expected `str`, got `int`"),
        (not_utf8, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_anything_else_that_a_handler_raises_is_answered_500_with_its_text(
    app: BedrockAgentCoreApp,
    client: Client,
    log: LogLines,
    function: Callable[[], Any],
    message: str,
    asynchronous: bool,
) -> None:
    async def coroutine(payload: Any) -> Any:
        return function()

    app.entrypoint(coroutine if asynchronous else lambda payload: function())
    response = client.post("/invocations", json={}, headers={REQUEST_ID: "r"})

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"error": message}
    assert [line["level"] for line in log.of_request("r") if "stackTrace" in line] == ["ERROR"]


# The exception handlers of the author's


def test_the_apps_exception_handlers_apply_to_what_the_handler_raises() -> None:
    def handle(request: litestar.Request[Any, Any, Any], error: LookupError) -> litestar.Response[Any]:
        return litestar.Response({"lost": str(error), "path": request.url.path}, status_code=410)

    app = BedrockAgentCoreApp(exception_handlers={LookupError: handle})

    @app.entrypoint
    def handler(payload: Any) -> Any:
        raise KeyError("key")

    with TestClient(app=app) as client:
        response = client.post("/invocations", json={}, headers={REQUEST_ID: "r", SESSION_ID: "s"})

    assert (response.status_code, response.json()) == (410, {"lost": "'key'", "path": "/invocations"})
    assert (response.headers[REQUEST_ID], response.headers[SESSION_ID]) == ("r", "s")


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (500, RuntimeError()),
        (Exception, RuntimeError()),
        (404, litestar.exceptions.NotFoundException()),
        (litestar.exceptions.HTTPException, litestar.exceptions.NotFoundException()),
        (starlette.exceptions.HTTPException, starlette.exceptions.HTTPException(404)),
        (Teapot, Teapot()),
    ],
)
def test_an_exception_handler_may_be_registered_for_a_status_or_a_class(key: Any, error: Exception) -> None:
    app = BedrockAgentCoreApp(
        exception_handlers={key: lambda request, error: litestar.Response("own", status_code=299)}
    )

    @app.entrypoint
    def handler(payload: Any) -> Any:
        raise error

    with TestClient(app=app) as client:
        assert client.post("/invocations", json={}).status_code == 299


def test_an_exception_handler_leaves_other_exceptions_to_the_service() -> None:
    app = BedrockAgentCoreApp(exception_handlers={KeyError: lambda request, error: litestar.Response("own")})

    @app.entrypoint
    def handler(payload: Any) -> Any:
        raise IndexError("other")

    with TestClient(app=app) as client:
        response = client.post("/invocations", json={})

    assert (response.status_code, response.json()) == (500, {"error": "other"})


# The request, and the answer


@pytest.fixture
def called(app: BedrockAgentCoreApp) -> list[Any]:
    """The payloads that reached the handler."""
    payloads: list[Any] = []

    @app.entrypoint
    def handler(payload: Any) -> Any:
        payloads.append(payload)
        return payload

    return payloads


@pytest.mark.parametrize("payload", [{"prompt": "grüß"}, [1], "text", 7, 1.5, True, None])
def test_any_json_reaches_the_handler(client: Client, called: list[Any], payload: Any) -> None:
    assert client.post("/invocations", content=json.dumps(payload)).json() == payload
    assert called == [payload]


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "grüß"}'.encode("utf-16"), {"a": "grüß"}),
        (b'{"a": 1e400}', {"a": float("inf")}),
        (b'"\\ud83e"', "\ud83e"),
        (b'"\xed\xa0\x80"', "\ud800"),
    ],
    ids=["byte order mark", "UTF-16", "infinity", "surrogate", "surrogate in the bytes"],
)
def test_json_as_other_runtimes_take_it_reaches_the_handler(
    client: Client, called: list[Any], body: bytes, payload: Any
) -> None:
    assert client.post("/invocations", content=body).status_code == 200
    assert called == [payload]


def test_a_number_that_is_none_reaches_the_handler_and_is_answered_null(client: Client, called: list[Any]) -> None:
    assert client.post("/invocations", content=b"[NaN]").json() == [None]
    assert math.isnan(called[0][0])


NOT_JSON = [b"", b" ", b"{", b"hello", b"{'a': 1}", b'{"a": 1} x', b'"\t"', b"\xff\xfe", b"1" * 5000, b"[" * 100_000]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_body_that_is_not_json_is_answered_400_invalid_json(client: Client, called: list[Any], body: bytes) -> None:
    response = client.post("/invocations", content=body)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer.pop("details")
    assert answer == {"error": "Invalid JSON"}
    assert called == []


@pytest.mark.parametrize("body", [b"\xff", b'"\xff"', b'{"a": "\xc3"}', '"grüß"'.encode("latin-1")])
def test_a_body_that_cannot_be_decoded_is_answered_400_invalid_encoding(
    client: Client, called: list[Any], body: bytes
) -> None:
    response = client.post("/invocations", content=body)

    assert response.status_code == 400
    answer = response.json()
    assert "utf-8" in answer.pop("details")
    assert answer == {"error": "Invalid encoding"}
    assert called == []


def test_without_an_entrypoint_the_answer_is_500(client: Client) -> None:
    response = client.post("/invocations", json={})
    assert (response.status_code, response.json()) == (500, {"error": "No entrypoint defined"})


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"]
)
def test_the_content_type_of_the_request_does_not_matter(
    client: Client, called: list[Any], content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert client.post("/invocations", content=b'{"a": 1}', headers=headers).json() == {"a": 1}


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_beyond_the_limit_is_answered_413(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "8")
    app = BedrockAgentCoreApp()
    app.entrypoint(lambda payload: payload)

    def content(body: bytes) -> Any:
        return iter([body]) if chunked else body

    with TestClient(app=app) as client:
        assert client.post("/invocations", content=content(b'"123456"')).json() == "123456"
        response = client.post("/invocations", content=content(b'"1234567"'), headers={REQUEST_ID: "r"})

    assert response.status_code == 413
    assert isinstance(response.json()["error"], str)
    assert response.headers[REQUEST_ID] == "r"


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_complete_body_beyond_the_limit_is_answered_without_waiting_for_more_of_it(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    def watch(app: ASGIApp) -> ASGIApp:
        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            complete = False

            async def receive_body() -> ReceiveMessage:
                nonlocal complete
                assert not complete, "there is nothing more to wait for"
                message = await receive()
                complete = message["type"] == "http.request" and not message["more_body"]
                return message

            await app(scope, receive_body, send)

        return watched

    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "8")
    app = BedrockAgentCoreApp(middleware=[watch])
    app.entrypoint(lambda payload: payload)
    body = b'"1234567"'
    with TestClient(app=app) as client:
        assert client.post("/invocations", content=iter([body]) if chunked else body).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/invocation", 404),
        ("POST", "/invocations/more", 404),
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("PATCH", "/invocations", 405),
        ("DELETE", "/invocations", 405),
        ("POST", "/ping", 405),
        ("POST", "/ready", 405),
    ],
)
def test_a_wrong_path_or_method_is_answered_and_logged_with_the_ids_of_the_request(
    client: Client, log: LogLines, method: str, path: str, status: int
) -> None:
    response = client.request(method, path, headers={REQUEST_ID: "r", SESSION_ID: "s"})

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"error": "Not Found" if status == 404 else "Method Not Allowed"}
    assert (response.headers[REQUEST_ID], response.headers[SESSION_ID]) == ("r", "s")
    (line,) = log.of_request("r")
    assert line["sessionId"] == "s"
    assert str(status) in line["message"]


@pytest.mark.parametrize(("path", "allowed"), [("/invocations", "POST"), ("/ping", "GET"), ("/ready", "GET")])
def test_405_names_the_allowed_methods(client: Client, path: str, allowed: str) -> None:
    methods = client.delete(path).headers["allow"].split(", ")
    assert allowed in methods
    assert "DELETE" not in methods


# The ids


def fails(payload: Any) -> Any:
    raise RuntimeError("broken")


def refuses(payload: Any) -> Any:
    raise Teapot


def typed(payload: Point) -> Any:
    return payload


ANSWERS: dict[str, tuple[int, Handler | None, bytes]] = {
    "value": (200, lambda payload: payload, b"{}"),
    "stream": (200, generator, b"{}"),
    "stream that fails": (200, failing_generator, b"[]"),
    "litestar response": (201, lambda payload: litestar.Response("own", status_code=201), b"{}"),
    "starlette response": (404, lambda payload: starlette.responses.PlainTextResponse("own", 404), b"{}"),
    "starlette stream": (200, lambda payload: starlette.responses.StreamingResponse(iter(["own"])), b"{}"),
    "http exception": (418, refuses, b"{}"),
    "exception": (500, fails, b"{}"),
    "no entrypoint": (500, None, b"{}"),
    "invalid JSON": (400, lambda payload: payload, b"{"),
    "invalid encoding": (400, lambda payload: payload, b"\xff"),
    "invalid payload": (400, typed, b"[]"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_carries_the_ids_of_its_request(app: BedrockAgentCoreApp, client: Client, name: str) -> None:
    status, handler, body = ANSWERS[name]
    if handler is not None:
        app.entrypoint(handler)

    response = client.post("/invocations", content=body, headers={REQUEST_ID: "r-1", SESSION_ID: "s-1"})

    assert response.status_code == status
    assert response.headers.get_list(REQUEST_ID) == ["r-1"]
    assert response.headers.get_list(SESSION_ID) == ["s-1"]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_to_a_request_without_ids_carries_a_fresh_request_id_alone(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    status, handler, body = ANSWERS[name]
    if handler is not None:
        app.entrypoint(handler)

    first, second = (client.post("/invocations", content=body) for _ in range(2))

    assert first.status_code == second.status_code == status
    assert uuid.UUID(first.headers[REQUEST_ID]).version == 4
    assert first.headers[REQUEST_ID] != second.headers[REQUEST_ID]
    assert SESSION_ID not in first.headers


def test_the_fresh_request_id_is_the_one_that_the_handler_sees(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload, context: [context.request_id, BedrockAgentCoreContext.get_request_id()])
    response = client.post("/invocations", json={})
    assert response.json() == [response.headers[REQUEST_ID]] * 2


@pytest.mark.parametrize("header", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", ["x", "!~", "x" * 256])
def test_an_id_is_1_to_256_visible_ascii_characters(client: Client, called: list[Any], header: str, value: str) -> None:
    response = client.post("/invocations", json={}, headers={header: value})
    assert response.status_code == 200
    assert response.headers[header] == value


@pytest.mark.parametrize("header", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", [b"", b"x" * 257, b"a b", b"a\tb", b"a\x7f", "ä".encode()])
def test_any_other_id_is_answered_400_before_the_handler_runs(
    client: Client, called: list[Any], header: str, value: bytes
) -> None:
    response = client.post("/invocations", json={}, headers={header.encode(): value})

    assert response.status_code == 400
    answer = response.json()
    assert answer.pop("details")
    assert answer == {"error": "Invalid request context"}
    assert uuid.UUID(response.headers[REQUEST_ID]).version == 4
    assert called == []


@pytest.mark.parametrize(("bad", "good"), [(REQUEST_ID, SESSION_ID), (SESSION_ID, REQUEST_ID)])
def test_the_answer_to_one_bad_id_carries_the_good_one(
    client: Client, log: LogLines, called: list[Any], bad: str, good: str
) -> None:
    response = client.post("/invocations", json={}, headers={bad: "a b", good: "good"})

    assert response.status_code == 400
    assert response.headers[good] == "good"
    assert response.headers.get(bad) != "a b"


# The headers, as the handler sees them


@pytest.mark.parametrize("change", [str.upper, str.lower, str])
def test_request_headers_are_matched_without_regard_to_case(
    app: BedrockAgentCoreApp, client: Client, change: Callable[[str], str]
) -> None:
    @app.entrypoint
    def handler(payload: Any, context: RequestContext) -> Any:
        return [
            context.request_id,
            context.session_id,
            BedrockAgentCoreContext.get_workload_access_token(),
            BedrockAgentCoreContext.get_oauth2_callback_url(),
            (context.request_headers or {}).get("Authorization"),
        ]

    headers = {
        REQUEST_ID: "r",
        SESSION_ID: "s",
        "WorkloadAccessToken": "w",
        "OAuth2CallbackUrl": "o",
        "Authorization": "a",
    }
    response = client.post("/invocations", json={}, headers={change(name): value for name, value in headers.items()})
    assert response.json() == ["r", "s", "w", "o", "a"]


def test_the_identity_token_wins_over_the_workload_access_token(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: BedrockAgentCoreContext.get_workload_access_token())
    headers = {"WorkloadAccessToken": "older", "X-Amz-Bedrock-AgentCore-Identity-WAT": "newer"}
    assert client.post("/invocations", json={}, headers=headers).json() == "newer"


@pytest.mark.parametrize(
    ("name", "forwarded_as"),
    [
        ("authorization", "Authorization"),
        ("x-amzn-bedrock-agentcore-runtime-custom-user", "x-amzn-bedrock-agentcore-runtime-custom-user"),
        ("x-amz-bedrock-agentcore-identity-wat", "x-amz-bedrock-agentcore-identity-wat"),
        ("x-topic", "x-topic"),
        ("traceparent", "traceparent"),
    ],
)
def test_a_forwardable_header_is_in_request_headers(
    app: BedrockAgentCoreApp, client: Client, name: str, forwarded_as: str
) -> None:
    app.entrypoint(lambda payload, context: [context.request_headers, BedrockAgentCoreContext.get_request_headers()])
    assert client.post("/invocations", json={}, headers={name: "value"}).json() == [{forwarded_as: "value"}] * 2


@pytest.mark.parametrize(
    "name",
    [
        "connection",
        "content-type",
        "cache-control",
        "cookie",
        "access-control-request-method",
        "dpr",
        "x-forwarded-for",
        "proxy-authorization",
        "sec-fetch-mode",
        "x-amz-date",
        "x-amzn-trace-id",
        REQUEST_ID,
        SESSION_ID,
    ],
)
def test_without_a_forwardable_header_request_headers_is_none(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    app.entrypoint(lambda payload, context: [context.request_headers, BedrockAgentCoreContext.get_request_headers()])
    assert client.post("/invocations", content=b"{}", headers={name: "value"}).json() == [None, None]


def test_the_context_is_a_struct_and_has_the_litestar_request(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    async def handler(payload: Any, context: RequestContext) -> Any:
        assert isinstance(context, msgspec.Struct)
        assert isinstance(context.request, litestar.Request)
        return [context.request.url.path, context.request.query_params["q"], await context.request.json()]

    assert client.post("/invocations?q=1", json={"a": 1}).json() == ["/invocations", "1", {"a": 1}]


# Typed payloads


class Ask(msgspec.Struct):
    prompt: str
    limit: Annotated[int, msgspec.Meta(ge=1)] = 1


@dataclasses.dataclass
class AskDataclass:
    prompt: str
    limit: int = 1


class AskTypedDict(TypedDict):
    prompt: str


@attrs.define
class AskAttrs:
    prompt: str
    limit: int = 1


class AskPydantic(pydantic.BaseModel):
    prompt: str
    limit: int = pydantic.Field(1, ge=1)


TYPES = [Ask, AskDataclass, AskAttrs, AskPydantic]


@pytest.mark.parametrize("payload_type", TYPES)
def test_a_typed_payload_is_decoded_into_its_type(
    app: BedrockAgentCoreApp, client: Client, payload_type: type[Any]
) -> None:
    def handler(payload: Any) -> Any:
        assert type(payload) is payload_type
        return [payload.prompt, payload.limit]

    handler.__annotations__["payload"] = payload_type
    app.entrypoint(handler)
    assert client.post("/invocations", json={"prompt": "grüß"}).json() == ["grüß", 1]


def test_a_typed_dict_is_decoded_into_a_dict(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: AskTypedDict) -> Any:
        return payload

    assert client.post("/invocations", json={"prompt": "hi"}).json() == {"prompt": "hi"}


@pytest.mark.parametrize("payload_type", [*TYPES, AskTypedDict])
@pytest.mark.parametrize("body", [{"prompt": 7}, {}, [], None, "text"])
def test_a_body_that_does_not_fit_is_answered_400_invalid_payload(
    app: BedrockAgentCoreApp, client: Client, payload_type: type[Any], body: Any
) -> None:
    def handler(payload: Any) -> Any:
        raise AssertionError("the handler ran")

    handler.__annotations__["payload"] = payload_type
    app.entrypoint(handler)
    response = client.post("/invocations", content=json.dumps(body))

    assert response.status_code == 400
    answer = response.json()
    assert answer["error"] == "Invalid payload"
    assert "prompt" in answer["details"] or not isinstance(body, dict)


@pytest.mark.parametrize("payload_type", [Ask, AskDataclass, AskAttrs, AskTypedDict])
def test_the_details_say_what_was_expected_and_where(
    app: BedrockAgentCoreApp, client: Client, payload_type: type[Any]
) -> None:
    def handler(payload: Any) -> Any:
        return payload

    handler.__annotations__["payload"] = payload_type
    app.entrypoint(handler)
    answer = client.post("/invocations", json={"prompt": 7}).json()
    assert answer == {"error": "Invalid payload", "details": "Expected `str`, got `int` - at `$.prompt`"}


def test_the_details_of_a_pydantic_model_say_where(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: AskPydantic) -> Any:
        return payload

    assert client.post("/invocations", json={"prompt": 7}).json()["details"].endswith(" - at `$.prompt`")
    assert "`$.limit`" in client.post("/invocations", json={"prompt": "hi", "limit": 0}).json()["details"]


def test_the_constraints_of_a_payload_are_validated(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: Ask) -> Any:
        return payload.limit

    assert client.post("/invocations", json={"prompt": "hi", "limit": 2}).json() == 2
    assert client.post("/invocations", json={"prompt": "hi", "limit": 0}).status_code == 400


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_typed_handler_has_invalid_json_told_from_an_invalid_payload(
    app: BedrockAgentCoreApp, client: Client, body: bytes
) -> None:
    app.entrypoint(typed)
    response = client.post("/invocations", content=body)
    assert (response.status_code, response.json()["error"]) == (400, "Invalid JSON")


def test_a_typed_handler_has_invalid_encoding_told_from_an_invalid_payload(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(typed)
    response = client.post("/invocations", content=b'{"x": 1, "unknown": "\xff"}')
    assert (response.status_code, response.json()["error"]) == (400, "Invalid encoding")


class Listed(msgspec.Struct, tag="list"):
    items: list[Ask]


class Named(msgspec.Struct, tag="name"):
    name: str


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        (Listed | Named, {"type": "name", "name": "n"}, {"type": "other"}),
        (list[Ask], [{"prompt": "hi"}], {"prompt": "hi"}),
        (list[AskPydantic], [{"prompt": "hi"}], [{"prompt": 7}]),
        (Ask | None, None, 7),
        (str, "hi", 7),
        (int, 7, "hi"),
        (dict[str, int], {"a": 1}, {"a": "b"}),
        (Annotated[str, msgspec.Meta(max_length=2)], "hi", "hello"),
    ],
)
def test_any_type_that_can_be_decoded_is_validated(
    app: BedrockAgentCoreApp, client: Client, annotation: Any, fits: Any, does_not: Any
) -> None:
    def handler(payload: Any) -> Any:
        return "fits"

    handler.__annotations__["payload"] = annotation
    app.entrypoint(handler)
    assert client.post("/invocations", content=json.dumps(fits)).json() == "fits"
    assert client.post("/invocations", json=does_not).json()["error"] == "Invalid payload"


class Asked:
    def method(self, payload: Ask, context: RequestContext) -> Any:
        return payload.prompt

    def __call__(self, payload: "Ask") -> Any:
        return payload.prompt


async def asked(payload: Ask) -> AsyncIterator[Any]:
    yield payload.prompt


@pytest.mark.parametrize("handler", [Asked(), Asked().method, asked], ids=["object", "bound method", "generator"])
def test_the_payload_of_any_kind_of_handler_may_be_typed(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)
    assert '"hi"' in client.post("/invocations", json={"prompt": "hi"}).text
    assert client.post("/invocations", json={}).json()["error"] == "Invalid payload"


def unannotated(payload):  # type: ignore[no-untyped-def]
    return payload


def annotated_any(payload: Any) -> Any:
    return payload


def annotated_dict(payload: dict) -> Any:  # type: ignore[type-arg]
    return payload


def annotated_dict_of_any(payload: dict[str, Any]) -> Any:
    return payload


def annotated_mapping(payload: Mapping[str, Any]) -> Any:
    return payload


@pytest.mark.parametrize(
    "handler", [unannotated, annotated_any, annotated_dict, annotated_dict_of_any, annotated_mapping]
)
@pytest.mark.parametrize("payload", [{"a": 1}, [1, 2], "text", None])
def test_an_untyped_payload_is_the_decoded_json_as_it_is(
    app: BedrockAgentCoreApp, client: Client, handler: Handler, payload: Any
) -> None:
    app.entrypoint(handler)
    response = client.post("/invocations", content=json.dumps(payload))
    assert (response.status_code, response.json()) == (200, payload)


def test_an_annotation_that_nothing_can_decode_leaves_the_json_as_it_is(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    @app.entrypoint
    def handler(payload: Odd) -> Any:
        return payload

    assert client.post("/invocations", json={"a": 1}).json() == {"a": 1}


# Debug actions


def action(client: TestClient[BedrockAgentCoreApp], name: Any) -> httpx.Response:
    return client.post("/invocations", json={"_agent_core_app_action": name})


@pytest.fixture
def debugged() -> Iterator[Client]:
    app = BedrockAgentCoreApp(debug=True)
    app.entrypoint(lambda payload: ["the handler got", payload])
    with TestClient(app=app) as client:
        yield client


def test_debug_ping_status_answers_what_ping_would(debugged: Client) -> None:
    assert action(debugged, "ping_status").json() == debugged.get("/ping").json()
    debugged.app.add_async_task("work")
    assert action(debugged, "ping_status").json() == debugged.get("/ping").json()
    assert action(debugged, "ping_status").json()["status"] == "HealthyBusy"


def test_debug_job_status_answers_the_task_info(debugged: Client) -> None:
    assert action(debugged, "job_status").json() == {"active_count": 0, "running_jobs": []}
    debugged.app.add_async_task("work")
    answer = action(debugged, "job_status").json()
    assert answer["active_count"] == 1
    assert [job["name"] for job in answer["running_jobs"]] == ["work"]
    assert (
        0 <= answer["running_jobs"][0]["duration"] <= debugged.app.get_async_task_info()["running_jobs"][0]["duration"]
    )


def test_debug_actions_force_and_clear_the_status(debugged: Client) -> None:
    assert action(debugged, "force_busy").json() == {"forced_status": "HealthyBusy"}
    assert debugged.get("/ping").json()["status"] == "HealthyBusy"
    debugged.app.add_async_task("work")
    assert action(debugged, "force_healthy").json() == {"forced_status": "Healthy"}
    assert debugged.get("/ping").json()["status"] == "Healthy"
    assert action(debugged, "clear_forced_status").json() == {"forced_status": "Cleared"}
    assert debugged.get("/ping").json()["status"] == "HealthyBusy"


@pytest.mark.parametrize("name", ["reboot", "", 7, None])
def test_an_unknown_debug_action_is_answered_400(debugged: Client, name: Any) -> None:
    response = action(debugged, name)
    assert (response.status_code, response.json()) == (400, {"error": f"Unknown action: {name}"})


@pytest.mark.parametrize("payload", [{"prompt": "hi"}, ["_agent_core_app_action"], "_agent_core_app_action"])
def test_with_debug_any_other_payload_is_handed_to_the_handler(debugged: Client, payload: Any) -> None:
    assert debugged.post("/invocations", json=payload).json() == ["the handler got", payload]


@pytest.mark.parametrize("name", ["ping_status", "job_status", "force_busy", "reboot"])
def test_without_debug_an_action_is_a_payload_like_any_other(client: Client, called: list[Any], name: str) -> None:
    assert action(client, name).json() == {"_agent_core_app_action": name}
    assert client.get("/ping").json()["status"] == "Healthy"


def test_a_debug_action_needs_to_fit_no_payload_type(debugged: Client) -> None:
    debugged.app.entrypoint(typed)
    assert action(debugged, "job_status").status_code == 200


def test_a_debug_action_carries_the_ids_like_any_answer(debugged: Client) -> None:
    for name in ("job_status", "reboot"):
        payload = {"_agent_core_app_action": name}
        response = debugged.post("/invocations", json=payload, headers={REQUEST_ID: "r", SESSION_ID: "s"})
        assert (response.headers[REQUEST_ID], response.headers[SESSION_ID]) == ("r", "s")


def test_with_debug_a_body_that_is_not_json_is_still_answered_400(debugged: Client) -> None:
    response = debugged.post("/invocations", content=b"{")
    assert (response.status_code, response.json()["error"]) == (400, "Invalid JSON")


class _Unhashable(type):
    __hash__ = None  # type: ignore[assignment]


class OfAnUnhashableClass(metaclass=_Unhashable):
    def __str__(self) -> str:
        return "odd"


class WithoutAClass:
    def __str__(self) -> str:
        return "odd"

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise LookupError("no class")


@pytest.mark.parametrize("kind", [OfAnUnhashableClass, WithoutAClass])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_object_that_cannot_be_asked_what_it_is_is_answered_as_text(
    kind: Any, is_async: bool, app: BedrockAgentCoreApp, client: Client
) -> None:
    async def later(payload: Any) -> Any:
        await asyncio.sleep(0)
        return kind()

    app.entrypoint(later if is_async else lambda payload: kind())
    response = client.post("/invocations", json={})
    assert (response.status_code, response.json()) == (200, "odd")
