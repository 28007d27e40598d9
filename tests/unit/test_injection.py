"""What comes from outside writes no headers of an answer, and reaches no files, as seen on the wire."""

import json
import re
from collections.abc import Callable
from typing import Any

import litestar
import pytest
import starlette.exceptions
import starlette.responses
from litestar.exceptions import HTTPException

from tests.unit.test_gathered_writes import app_of, echo, exchange, request

both = pytest.mark.parametrize("http", ["httptools", "h11"])


def lines_of(answer: bytes) -> list[bytes]:
    """The lines of an answer's head, as a lenient client would split them."""
    return re.split(rb"\r\n|\r|\n", answer.partition(b"\r\n\r\n")[0])


INJECTED = [
    "a\r\nSet-Cookie: b=c",
    "a\nSet-Cookie: b=c",
    "a\rSet-Cookie: b=c",
    "a\r\n\r\n<script>",
    "a\r\n Set-Cookie: b",
]


def raising(make: Callable[[str], Exception]) -> Callable[[Any], Any]:
    def handler(payload: str) -> Any:
        raise make(payload)

    return handler


def raw_starlettes(text: str) -> starlette.responses.Response:
    response = starlette.responses.Response(b"{}")
    response.raw_headers.append((b"x-reason", text.encode()))
    return response


HANDLERS: dict[str, Callable[[Any], Any]] = {
    "Litestar's exception": raising(lambda text: HTTPException(text, status_code=429, headers={"X-Reason": text})),
    "Starlette's exception": raising(lambda text: starlette.exceptions.HTTPException(429, text, {"X-Reason": text})),
    "Litestar's response": lambda text: litestar.Response({}, headers={"X-Reason": text}),
    "Litestar's redirect": lambda text: litestar.response.Redirect(text),
    "Litestar's media type": lambda text: litestar.Response(b"{}", media_type=text),
    "Starlette's response": raw_starlettes,
    "Starlette's redirect": lambda text: starlette.responses.RedirectResponse(text),
}


@both
@pytest.mark.parametrize("text", INJECTED, ids=ascii)
@pytest.mark.parametrize("handler", HANDLERS.values(), ids=list(HANDLERS))
def test_a_line_break_in_what_a_handler_makes_a_header_of_begins_no_line(
    handler: Callable[[Any], Any], text: str, http: str
) -> None:
    answer = b"".join(exchange(app_of(handler), http, request(json.dumps(text).encode())).writes)
    lines = lines_of(answer)
    assert lines[0].startswith(b"HTTP/1.1 ")
    assert [line for line in lines if line.strip().lower().startswith((b"set-cookie", b"<script>"))] == []
    assert all(b": " in line for line in lines[1:]), lines
    assert answer.count(b"\r\n\r\n") == 1


PATHS = [
    b"/schema/../../etc/passwd",
    b"/schema/%2e%2e/%2e%2e/etc/passwd",
    b"/schema/%252e%252e/%252e%252e/etc/passwd",
    b"/schema/..%2f..%2fetc%2fpasswd",
    b"/schema/..%5c..%5cetc%5cpasswd",
    b"/schema/....//....//etc/passwd",
    b"/schema/%c0%ae%c0%ae/etc/passwd",
    b"/schema/openapi.json/../../../etc/passwd",
    b"/schema/openapi.json%00.html",
    b"/schema//etc/passwd",
    b"/schema/file:///etc/passwd",
    b"http://elsewhere/schema/../etc/passwd",
    b"//etc/passwd",
    b"/schema/%00",
    b"/schema/%0d%0aSet-Cookie:%20a=b",
    b"/schema/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
    b"/schema/../invocations",
    b"/schema/../metrics",
]


@both
@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_no_path_below_the_schema_leads_out_of_it_or_comes_back_in_the_answer(path: bytes, http: str) -> None:
    [head, body] = (
        b"".join(exchange(app_of(echo), http, b"GET %b HTTP/1.1\r\nHost: agent\r\n\r\n" % path).writes)
    ).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"set-cookie" not in head.lower()
    for foreign in (b"root:", b"passwd", b"alert(1)", b"agentcore_invocations"):
        assert foreign not in body
