"""Request bodies as they come over a real connection: large, cut off, too large, odd."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.server import (
    PATIENCE,
    REQUEST_ID,
    SESSION_ID,
    Server,
    app_of,
    receive_until,
    request,
    serve,
)

LIMIT = 100_000
TOO_MUCH = b'"' + b"x" * 8_000_000 + b'"'


def echo(payload: Any) -> Any:
    return payload


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(app_of(echo)) as server:
        yield server


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTCORE_MAX_BODY_BYTES", str(LIMIT))
        app = app_of(echo)
    with serve(app) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def chunks_of(body: bytes) -> Iterator[bytes]:
    yield from (body[start : start + 65_536] for start in range(0, len(body), 65_536))


def answer_of(response: http.client.HTTPResponse) -> tuple[int, Any]:
    return response.status, json.loads(response.read())


def test_a_body_of_20_megabytes_comes_and_goes(client: httpx.Client) -> None:
    payload = {"text": "ü" * 10_000_000}
    assert client.post("/invocations", json=payload).json() == payload


def test_a_chunked_body_comes_and_goes(client: httpx.Client) -> None:
    payload = {"text": "x" * 1_000_000}
    assert client.post("/invocations", content=chunks_of(json.dumps(payload).encode())).json() == payload


def test_a_body_as_large_as_the_limit_is_taken(limited: Server) -> None:
    with limited.client() as client:
        assert client.post("/invocations", content=b'"' + b"x" * (LIMIT - 2) + b'"').status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_more_than_the_limit_reads_413_and_why(limited: Server, chunked: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", limited.port, timeout=PATIENCE)
    connection.request("POST", "/invocations", chunks_of(TOO_MUCH) if chunked else TOO_MUCH, encode_chunked=chunked)
    status, answer = answer_of(connection.getresponse())
    connection.close()
    assert status == 413
    assert answer["error"] == "Payload too large"


def test_a_client_that_sends_one_byte_more_than_the_limit_reads_413(limited: Server) -> None:
    with limited.client() as client:
        assert client.post("/invocations", content=b'"' + b"x" * (LIMIT - 1) + b'"').status_code == 413


def test_a_client_that_asks_before_it_sends_too_much_is_told_413_at_once(limited: Server) -> None:
    with limited.connect() as connection:
        connection.sendall(request(b"", f"Content-Length: {len(TOO_MUCH)}", "Expect: 100-continue"))
        assert receive_until(connection, b"Payload too large").startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(request(b"", "Content-Length: 2", "Expect: 100-continue"))
        assert receive_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert receive_until(connection, b"{}").startswith(b"HTTP/1.1 200 ")


def test_a_body_that_is_nested_too_deep_is_answered_400(client: httpx.Client) -> None:
    response = client.post("/invocations", content=b"[" * 100_000 + b"]" * 100_000)
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid JSON"


def test_an_empty_body_is_answered_400(client: httpx.Client) -> None:
    response = client.post("/invocations")
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid JSON"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_goes_away_in_the_middle_of_its_body_harms_nobody(
    chunked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    invoked: list[Any] = []

    def handler(payload: Any) -> Any:
        invoked.append(payload)
        return payload

    beginning = (
        request(b"2\r\n[1\r\n", "Transfer-Encoding: chunked") if chunked else request(b"[1", "Content-Length: 9")
    )
    with serve(app_of(handler)) as server, server.client() as client:
        for _ in range(20):
            with server.connect() as connection:
                connection.sendall(beginning)
        assert client.post("/invocations", json={}).json() == {}
    assert invoked == [{}]
    assert [record for record in caplog.get_records("call") if record.levelname in {"ERROR", "CRITICAL"}] == []


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"],
)
def test_the_content_type_of_a_body_does_not_matter(client: httpx.Client, content_type: str) -> None:
    response = client.post("/invocations", content=b'{"a":1}', headers={"Content-Type": content_type})
    assert (response.status_code, response.json()) == (200, {"a": 1})


def test_a_body_needs_no_content_type(client: httpx.Client) -> None:
    response = client.post("/invocations", content=b'{"a":1}')
    assert "content-type" not in response.request.headers
    assert (response.status_code, response.json()) == (200, {"a": 1})


@pytest.mark.parametrize("header", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", [b"", b"x" * 257, b"two words", b"a\tb", "ü".encode(), b"\xff"])
def test_a_malformed_id_is_answered_400_and_names_the_id(client: httpx.Client, header: str, value: bytes) -> None:
    response = client.post("/invocations", json={}, headers={header.encode(): value})
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid request context"
    assert ("request_id" if header == REQUEST_ID else "session_id") in response.json()["details"]
    assert response.headers[REQUEST_ID].isascii()


@pytest.mark.parametrize("header", [REQUEST_ID, SESSION_ID])
def test_an_id_of_256_visible_characters_is_carried_back(client: httpx.Client, header: str) -> None:
    value = "!~" * 128
    response = client.post("/invocations", json={}, headers={header: value})
    assert (response.status_code, response.headers[header]) == (200, value)


def test_a_refusal_of_the_session_id_carries_the_request_id_back(client: httpx.Client) -> None:
    response = client.post("/invocations", json={}, headers={REQUEST_ID: "request-1", SESSION_ID: "two words"})
    assert (response.status_code, response.headers[REQUEST_ID]) == (400, "request-1")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/invocations", 405), ("POST", "/ping", 405), ("POST", "/elsewhere", 404)]
)
def test_a_wrong_method_or_path_is_answered_in_the_shape_of_the_contract(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path, headers={REQUEST_ID: "request-1", SESSION_ID: "session-1"})
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert (response.headers[REQUEST_ID], response.headers[SESSION_ID]) == ("request-1", "session-1")
