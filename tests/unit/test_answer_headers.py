"""Headers that an author gives an answer and HTTP cannot carry are left out and named in the log: all else arrives."""

from collections.abc import Callable
from typing import Any

import litestar
import pytest
import starlette.exceptions
import starlette.responses
from litestar.datastructures import Cookie
from litestar.exceptions import HTTPException
from litestar.response import Stream
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.protocol.headers import sendable_headers

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines

UNSENDABLE = {
    "beyond Latin-1": ("X-Reason", "日本"),
    "line break": ("X-Reason", "a\r\nSet-Cookie: b=c"),
    "lone line feed": ("X-Reason", "a\nb"),
    "NUL": ("X-Reason", "a\0b"),
    "control character": ("X-Reason", "a\x1b[31m"),
    "DEL": ("X-Reason", "\x7f"),
    "name beyond Latin-1": ("X-日本", "a"),
    "name with a space": ("X Reason", "a"),
    "name with a colon": ("X-Reason:", "a"),
    "name with a line break": ("X-A: 1\r\nX-B", "a"),
    "empty name": ("", "a"),
}
unsendable = pytest.mark.parametrize("header", UNSENDABLE.values(), ids=list(UNSENDABLE))


class AnyFrameworks(Exception):
    def __init__(self, status_code: int, headers: dict[str, Any]) -> None:
        self.status_code, self.detail, self.headers = status_code, "later", headers


EXCEPTIONS: list[Callable[[dict[str, str]], Exception]] = [
    lambda headers: HTTPException("later", status_code=429, headers=headers),
    lambda headers: starlette.exceptions.HTTPException(429, "later", headers),
    lambda headers: AnyFrameworks(429, headers),
]
exceptions = pytest.mark.parametrize("make", EXCEPTIONS, ids=["litestar", "starlette", "any"])


def warned_of(log: LogLines) -> list[str]:
    lines = [line for line in log.lines if "left out" in line["message"]]
    assert {(line["level"], line["requestId"]) for line in lines} == {("WARNING", "r")}
    return [line["message"] for line in lines]


@unsendable
@exceptions
def test_an_exception_of_the_handler_keeps_its_status_and_its_other_headers(
    make: Callable[[dict[str, str]], Exception],
    header: tuple[str, str],
    app: BedrockAgentCoreApp,
    client: Client,
    log: LogLines,
) -> None:
    @app.entrypoint
    def handler(payload: Any) -> Any:
        raise make(dict([header, ("Retry-After", "60")]))

    response = client.post("/invocations", json={}, headers={REQUEST_ID: "r", SESSION_ID: "s"})

    assert (response.status_code, response.json()) == (429, {"error": "later"})
    assert response.headers["retry-after"] == "60"
    assert set(response.headers) - {"content-type", "content-length"} == {
        "retry-after",
        REQUEST_ID.lower(),
        SESSION_ID.lower(),
    }
    (message,) = warned_of(log)
    assert repr(header[0]) in message
    assert header[1] not in message or header[1] == "a"


@unsendable
@exceptions
def test_an_exception_of_a_route_of_the_authors_does_too(
    make: Callable[[dict[str, str]], Exception], header: tuple[str, str], log: LogLines
) -> None:
    @litestar.get("/route")
    async def route() -> None:
        raise make(dict([header, ("Retry-After", "60")]))

    with TestClient(BedrockAgentCoreApp(route_handlers=[route])) as client:
        response = client.get("/route", headers={REQUEST_ID: "r"})

    assert (response.status_code, response.json()) == (429, {"error": "later"})
    assert response.headers["retry-after"] == "60"
    assert len(warned_of(log)) == 1


RESPONSES: dict[str, Callable[[str, str], Any]] = {
    "litestar": lambda name, value: litestar.Response(
        {"a": 1}, status_code=202, headers={name: value, "X-Good": "1"}, cookies=[Cookie("good", value="1")]
    ),
    "litestar stream": lambda name, value: Stream(
        iter([b'{"a":1}']), status_code=202, headers={name: value, "X-Good": "1"}, cookies={"good": "1"}
    ),
    "starlette": lambda name, value: starlettes({"a": 1}, name, value),
}


def starlettes(content: Any, name: str, value: str) -> starlette.responses.Response:
    response = starlette.responses.JSONResponse(content, 202, {"X-Good": "1"})
    response.raw_headers.append((name.encode(), value.encode() if value.isascii() else b"\0"))
    response.set_cookie("good", "1")
    return response


@unsendable
@pytest.mark.parametrize("make", RESPONSES.values(), ids=list(RESPONSES))
def test_a_response_of_the_handler_keeps_everything_else(
    make: Callable[[str, str], Any], header: tuple[str, str], app: BedrockAgentCoreApp, client: Client, log: LogLines
) -> None:
    @app.entrypoint
    async def handler(payload: Any) -> Any:
        return make(*header)

    for _ in range(2):
        response = client.post("/invocations", json={}, headers={REQUEST_ID: "r"})
        assert (response.status_code, response.json()) == (202, {"a": 1})
        assert (response.headers["x-good"], response.cookies["good"]) == ("1", "1")
        assert "x-reason" not in response.headers
        assert list(response.cookies) == ["good"]
    assert len(warned_of(log)) == 2


BAD_COOKIES = [
    Cookie("bad", value="日本"),
    Cookie("bad", value="a", path="/\r\nX-B: 1"),
    Cookie("bad", value="a", domain="ä\n"),
]


@pytest.mark.parametrize("cookie", BAD_COOKIES, ids=["value", "path", "domain"])
def test_a_cookie_that_cannot_be_sent_is_left_out(
    cookie: Cookie, app: BedrockAgentCoreApp, client: Client, log: LogLines
) -> None:
    app.entrypoint(lambda payload: litestar.Response({"a": 1}, cookies=[cookie, Cookie("good", value="1")]))
    response = client.post("/invocations", json={}, headers={REQUEST_ID: "r"})
    assert (response.status_code, response.json(), dict(response.cookies)) == (200, {"a": 1}, {"good": "1"})
    assert len(warned_of(log)) == 1


@unsendable
def test_the_headers_and_cookies_of_an_application_cost_no_invocation(header: tuple[str, str], log: LogLines) -> None:
    app = BedrockAgentCoreApp(
        response_headers={header[0]: header[1], "X-Good": "1"},
        response_cookies=[Cookie("good", value="1"), *BAD_COOKIES],
    )
    app.entrypoint(lambda payload: {"a": 1})
    with TestClient(app) as client:
        response = client.post("/invocations", json={}, headers={REQUEST_ID: "r"})
    assert (response.status_code, response.json(), dict(response.cookies)) == (200, {"a": 1}, {"good": "1"})
    assert response.headers["x-good"] == "1"
    assert "x-reason" not in response.headers


def test_what_http_can_carry_is_sent_as_it_is() -> None:
    headers = [("X-A", "\t grün \xff~ "), (b"x-b", b"\x80"), ("Retry-After", 60), ("x!#$%&'*+.^_`|~-9", "")]
    assert sendable_headers(headers) == [
        (b"X-A", "grün \xff~".encode("latin-1")),
        (b"x-b", b"\x80"),
        (b"Retry-After", b"60"),
        (b"x!#$%&'*+.^_`|~-9", b""),
    ]
