"""``/runtimes/{arn}/...``: what AWS's own clients ask for, and how they read what is answered."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, Response, asgi, get
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import FromPath
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, RequestContext
from litestar_agentcore.data_plane import MAX_TOKENS, TOKEN_SECONDS, SessionStops
from litestar_agentcore.protocol.aws_errors import STATUS, error_of
from litestar_agentcore.protocol.data_plane import LIMITS, check_runtime, target_of, unsigned_query
from litestar_agentcore.protocol.models import Refusal
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.integration.server import PATIENCE, eventually, serve
from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines, events

ARN = "arn:aws:bedrock-agentcore:eu-central-1:123456789012:runtime/agent-Ab0123456789"
OTHER = "arn:aws:bedrock-agentcore:eu-central-1:123456789012:runtime/other-Ab0123456789"
SESSION = "a-session-of-at-least-thirty-three-characters"
TOKEN = "a-client-token-of-at-least-33-characters"
IDS = {SESSION_ID: SESSION}

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SIGNATURE = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261125/eu-central-1/bedrock-agentcore/aws4_request"
SIGNED = {
    "Authorization": SIGNATURE,
    "X-Amz-Date": "20261125T110000Z",
    "X-Amz-Security-Token": "a-session-token",
    "X-Amz-Content-Sha256": "abc",
    "amz-sdk-invocation-id": "an-id",
    "amz-sdk-request": "attempt=1",
}
PRESIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE&X-Amz-Expires=300&X%2DAmz-Signature=secret"


def path_of(operation: str = "invocations", runtime: str = ARN, query: str = "") -> str:
    return f"/runtimes/{quote(runtime, safe='')}/{operation}" + (f"?{query}" if query else "")


def invoke(client: Client, payload: Any = 1, headers: dict[str, str] | None = None, query: str = "") -> httpx.Response:
    return client.post(path_of(query=query), json=payload, headers=headers or {})


def stop(client: Client, body: Any = None, session: str | None = SESSION, **options: Any) -> httpx.Response:
    headers = {} if session is None else {SESSION_ID: session}
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    return client.post(path_of("stopruntimesession", **options), content=content, headers=headers)


class Fault(msgspec.Struct, frozen=True):
    """An error as a client reads it."""

    status: int
    name: str
    message: str
    reason: str | None = None
    fields: list[str] = []


def fault(answer: httpx.Response) -> Fault:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers[REQUEST_ID] == answer.headers["x-amzn-requestid"]
    body = answer.json()
    fields = [field["name"] for field in body.get("fieldList", [])]
    assert all(field["message"] for field in body.get("fieldList", []))
    return Fault(answer.status_code, answer.headers["x-amzn-errortype"], body["message"], body.get("reason"), fields)


@contextmanager
def agent(handler: Callable[..., Any] | None, **options: Any) -> Iterator[Client]:
    app = BedrockAgentCoreApp(**options)
    if handler is not None:
        app.entrypoint(handler)
    with TestClient(app=app) as client:
        yield client


def echo(payload: Any) -> Any:
    return payload


def tell(payload: Any, context: RequestContext) -> Any:
    """What of its request an agent can see."""
    request = context.request
    return {
        "session": context.session_id,
        "forwarded": context.request_headers,
        "raw": {name.lower(): value for name, value in request.headers.items()},
        "url": str(request.url),
        "query": dict(request.query_params.items()),
    }


# An invocation


@pytest.mark.parametrize(
    "runtime",
    [ARN, f"{ARN}/runtime-endpoint/DEFAULT", "arn:aws-us-gov:bedrock-agentcore:local:000000000000:runtime/local"],
)
def test_a_value_is_answered_as_it_is_on_invocations(runtime: str) -> None:
    with agent(echo) as client:
        plain = client.post("/invocations", json={"a": "ü"}, headers=IDS)
        answer = client.post(path_of(runtime=runtime, query="qualifier=DEFAULT"), json={"a": "ü"}, headers=IDS)

    assert (answer.status_code, answer.content) == (200, plain.content)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers[SESSION_ID] == SESSION
    assert answer.headers["x-amzn-requestid"] == answer.headers[REQUEST_ID]
    assert "x-amzn-errortype" not in answer.headers


def test_a_stream_is_answered_as_it_is_on_invocations() -> None:
    async def stream(payload: Any) -> AsyncIterator[int]:
        for number in range(3):
            yield number

    with agent(stream) as client:
        answer = invoke(client, headers=IDS)

    assert events(answer) == [0, 1, 2]
    assert answer.headers[SESSION_ID] == SESSION


def test_a_request_without_a_session_gets_one_of_its_own() -> None:
    with agent(tell) as client:
        first, second = invoke(client), invoke(client)

    assert first.json()["session"] == first.headers[SESSION_ID] != second.headers[SESSION_ID]
    assert UUID(first.headers[SESSION_ID]).version == 4


def test_a_response_of_the_authors_is_sent_as_it_is_with_a_content_type() -> None:
    async def handler(payload: Any) -> Any:
        return Response(b"x", status_code=201, media_type="image/png", headers={"mcp-session-id": "its-own"})

    async def nothing(payload: Any) -> Any:
        async def respond(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 202, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        class Accepted:
            status_code = 202

            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await respond(scope, receive, send)

        return Accepted()

    with agent(handler) as client:
        answer = invoke(client, headers={"mcp-session-id": "the-clients"})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (201, b"x", "image/png")
    assert answer.headers["mcp-session-id"] == "its-own"

    with agent(nothing) as client:
        answer = invoke(client)
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/octet-stream")


def test_trace_and_mcp_headers_reach_the_agent_and_come_back() -> None:
    carried = {
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=1",
        "baggage": "key=value",
        "x-amzn-trace-id": "Root=1-67891233-abcdef012345678912345678",
        "mcp-session-id": "an-mcp-session",
        "mcp-protocol-version": "2025-06-18",
    }
    inwards = {**carried, "mcp-method": "tools/call", "mcp-name": "add"}
    with agent(tell) as client:
        answer = invoke(client, headers=inwards)

    assert {name: answer.json()["raw"].get(name) for name in inwards} == inwards
    assert {name: answer.headers.get(name) for name in carried} == carried


def test_the_span_of_the_request_is_what_comes_back_where_there_is_one(exported: InMemorySpanExporter) -> None:
    with agent(echo) as client:
        answer = invoke(client, headers={"traceparent": TRACEPARENT})
        alone = invoke(client)

    first, second = (span for span in exported.get_finished_spans())
    assert answer.headers["traceparent"] == traceparent_of(first)
    assert answer.headers["traceparent"].startswith(TRACEPARENT[:35])
    assert alone.headers["traceparent"] == traceparent_of(second)


def traceparent_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_what_signs_a_call_never_reaches_the_agent_a_span_or_the_log(
    exported: InMemorySpanExporter, log: LogLines
) -> None:
    with agent(tell) as client:
        seen = invoke(client, headers=SIGNED, query=f"qualifier=DEFAULT&{PRESIGNED}").json()

    assert seen["query"] == {"qualifier": "DEFAULT"}
    assert seen["url"].endswith("/invocations?qualifier=DEFAULT")
    assert not {name.lower() for name in SIGNED} & {name.lower() for name in [*seen["raw"], *(seen["forwarded"] or {})]}
    kept = json.dumps([json.loads(span.to_json()) for span in exported.get_finished_spans()])
    ours = json.dumps([line for line in log.lines if line["logger"].startswith("litestar_agentcore")])
    for secret in (*SIGNED.values(), "AKIDEXAMPLE", "secret"):
        assert secret not in kept + ours + json.dumps(seen)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_bearer_token_and_the_workload_access_token_reach_the_agent(scheme: str) -> None:
    headers = {"Authorization": f"{scheme} abc", "X-Amz-Bedrock-AgentCore-Identity-WAT": "wat"}
    with agent(tell) as client:
        forwarded = invoke(client, headers=headers).json()["forwarded"]

    assert forwarded["Authorization"] == f"{scheme} abc"
    assert {name.lower() for name in forwarded} == {name.lower() for name in headers}


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (b"", b""),
        (b"qualifier=a", b"qualifier=a"),
        (b"x-amz-date=1&a=b&X-AMZ-Signature=2", b"a=b"),
        (b"X%2Damz%2DSignature=2", b""),
        (b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id=s", b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id=s"),
    ],
)
def test_of_a_query_what_signs_is_left_out(query: bytes, kept: bytes) -> None:
    assert unsigned_query(query) == kept


# Which agent


@pytest.mark.parametrize(
    ("path", "runtime", "operation"),
    [
        (f"/{ARN}/invocations", ARN, "invocations"),
        ("/agent/ws", "agent", "ws"),
        (f"/{ARN}/runtime-endpoint/x/stopruntimesession", f"{ARN}/runtime-endpoint/x", "stopruntimesession"),
        ("/agent", "", "agent"),
    ],
)
def test_the_operation_is_what_follows_the_last_slash(path: str, runtime: str, operation: str) -> None:
    target = target_of(path)
    assert (target.runtime, target.operation) == (runtime, operation)


@pytest.mark.parametrize(
    ("own", "runtime", "query", "status"),
    [
        ("", ARN, b"", 200),
        ("", ARN, b"accountId=123456789012", 200),
        ("", ARN, b"accountId=12345678901", 400),
        ("", ARN, b"accountId=", 400),
        ("", "agent-Ab0123456789", b"accountId=000000000001", 200),
        ("", "agent-Ab0123456789", b"", 200),
        ("", "arn:aws:s3:::bucket/key", b"", 400),
        ("", "arn:aws:bedrock-agentcore:eu-central-1:1:runtime/a", b"", 400),
        ("", f"{ARN}/runtime-endpoint/", b"", 400),
        ("", "", b"", 400),
        (ARN, ARN, b"", 200),
        (ARN, f"{ARN}/runtime-endpoint/DEFAULT", b"", 200),
        (f"{ARN}/runtime-endpoint/DEFAULT", ARN, b"", 200),
        (ARN, OTHER, b"", 404),
        (ARN, "agent-Ab0123456789", b"accountId=123456789012", 200),
        (ARN, "agent-Ab0123456789", b"accountId=000000000000", 404),
        (ARN, "agent-Ab0123456789", b"", 200),
        (ARN, "other", b"", 404),
        (ARN, "other", b"accountId=123456789012", 404),
        (ARN, "not an id", b"accountId=123456789012", 400),
    ],
)
def test_an_arn_or_an_id_and_its_account_decide_whose_it_is(own: str, runtime: str, query: bytes, status: int) -> None:
    with pytest.raises(Refusal) if status != 200 else nullcontext() as refused:
        check_runtime(runtime, query, own)
    assert refused is None or refused.value.status == status


def test_another_agents_arn_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_RUNTIME_ARN", ARN)
    with agent(echo) as client:
        assert invoke(client, 1).json() == 1
        other = fault(client.post(path_of(runtime=OTHER), json=1, headers=IDS))
        stopped = fault(stop(client, runtime=OTHER))

    assert (other.status, other.name) == (stopped.status, stopped.name) == (404, "ResourceNotFoundException")
    assert OTHER in other.message


def test_a_refused_call_begins_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SESSION_IDLE_SECONDS", "900")
    monkeypatch.setenv("AGENTCORE_RUNTIME_ARN", ARN)
    with agent(echo) as client:
        client.post(path_of(runtime=OTHER), json=1, headers=IDS)
        assert SESSION not in client.app.agent.sessions
        invoke(client, 1, headers=IDS)
        assert SESSION in client.app.agent.sessions


@pytest.mark.parametrize("path", [f"/runtimes/{ARN}/invocations", f"/runtimes/{quote(ARN)}/invocations/"])
def test_an_arn_whose_slash_is_not_encoded_will_do(path: str) -> None:
    with agent(echo) as client:
        assert client.post(path, json=1).json() == 1


# Limits


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_of_the_models_headers_hold(name: bytes) -> None:
    member, least, most = LIMITS[name]
    header = name.decode()
    with agent(echo) as client:
        for length in {least, most}:
            assert invoke(client, 1, headers={header: "a" * length}).status_code == 200, length
        for length in {least - 1, most + 1} - {-1}:
            wrong = fault(invoke(client, 1, headers={header: "a" * length}))
            assert (wrong.status, wrong.name) == (400, "ValidationException")
            assert (wrong.reason, wrong.fields) == ("FieldValidationFailed", [member])


def test_short_session_ids_do_for_invocations_as_ever() -> None:
    with agent(echo) as client:
        assert client.post("/invocations", json=1, headers={SESSION_ID: "short"}).status_code == 200


# Errors: each row of the table


class Payload(msgspec.Struct):
    prompt: str


def typed(payload: Payload) -> str:
    return payload.prompt


@pytest.mark.parametrize(
    ("body", "headers", "reason", "field"),
    [
        (b"{", {}, "CannotParse", "payload"),
        (b"", {}, "CannotParse", "payload"),
        (b'{"prompt": 1}', {}, "FieldValidationFailed", "payload"),
        (b'{"prompt": "\xff"}', {}, "CannotParse", "payload"),
        (b"x" * 2000, {}, "FieldValidationFailed", "payload"),
        (b'{"prompt": ""}', {SESSION_ID: "ü" * 40}, "FieldValidationFailed", "runtimeSessionId"),
        (b'{"prompt": ""}', {REQUEST_ID: "a b"}, "FieldValidationFailed", "requestId"),
        (b'{"prompt": ""}', {f"x-{number}": "" for number in range(300)}, "FieldValidationFailed", "headers"),
    ],
)
def test_what_makes_no_sense_is_a_validation_exception(
    monkeypatch: pytest.MonkeyPatch, body: bytes, headers: dict[str, str], reason: str, field: str
) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "1000")
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    with agent(typed) as client:
        wrong = fault(client.post(path_of(), content=body, headers=raw))

    assert (wrong.status, wrong.name) == (400, "ValidationException")
    assert (wrong.reason, wrong.fields) == (reason, [field])


def raises(error: BaseException) -> Callable[[Any], Any]:
    def handler(payload: Any) -> Any:
        raise error

    return handler


def returns(response: Any) -> Callable[[Any], Any]:
    async def handler(payload: Any) -> Any:
        return response

    return handler


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (raises(RuntimeError("boom")), "Received error (500) from runtime: boom"),
        (
            raises(HTTPException(status_code=404, detail="no such order")),
            "Received error (404) from runtime: no such order",
        ),
        (raises(HTTPException(status_code=503, detail="later")), "Received error (503) from runtime: later"),
        (returns(Response("broken", status_code=502)), "Received error (502) from runtime: broken"),
        (returns(Response(b"", status_code=302)), "Received error (302) from runtime"),
        (returns(Response({"detail": 1}, status_code=418)), 'Received error (418) from runtime: {"detail":1}'),
        (returns(Response({"error": "a", "details": "b"}, status_code=400)), "Received error (400) from runtime: a: b"),
    ],
)
def test_whatever_an_agent_answers_beyond_2xx_is_a_runtime_client_error_with_its_text(
    handler: Callable[[Any], Any], message: str
) -> None:
    with agent(handler) as client:
        wrong = fault(invoke(client, headers=IDS))

    assert wrong == Fault(424, "RuntimeClientError", message)


def test_the_text_of_an_agents_error_is_not_endless() -> None:
    with agent(returns(Response(b"x" * 1_000_000, status_code=500))) as client:
        assert len(invoke(client).content) < 20_000


def test_errors_that_are_not_exposed_are_not_exposed_here_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_EXPOSE_ERRORS", "false")
    with agent(raises(RuntimeError("secret"))) as client:
        wrong = fault(invoke(client, headers={REQUEST_ID: "a-request"}))

    assert wrong.message == "Received error (500) from runtime: Internal error (request a-request)"


def test_an_exception_handler_of_the_authors_decides_what_the_agent_answers() -> None:
    def handle(request: Request[Any, Any, Any], error: ValueError) -> Response[Any]:
        return Response({"kind": str(error)}, status_code=int(str(error)))

    for key in (ValueError, 500):
        for status, expected in ((200, 200), (422, 424)):
            with agent(raises(ValueError(status)), exception_handlers={key: handle}) as client:
                assert invoke(client).status_code == expected


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("ci:right\n")
    monkeypatch.setenv("AGENTCORE_API_KEYS_FILE", str(file))


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "wrong"}, SIGNED, {"Authorization": "Bearer wrong"}])
def test_who_is_not_let_in_is_denied_access(keys: None, headers: dict[str, str]) -> None:
    with agent(tell) as client:
        invoked = fault(invoke(client, headers=headers))
        stopped = fault(client.post(path_of("stopruntimesession"), content=b"", headers={**IDS, **headers}))
        right = invoke(client, headers={"X-Api-Key": "right", **SIGNED})

    assert (invoked.status, invoked.name) == (403, "AccessDeniedException")
    assert (stopped.status, stopped.name) == (401, "UnauthorizedException")
    assert right.status_code == 200
    assert "x-api-key" not in right.json()["raw"]


@pytest.mark.parametrize("operation", ["commands", "shells", "invocations/.well-known/agent-card.json", "Invocations"])
def test_operations_that_are_not_served_are_not_found(operation: str) -> None:
    with agent(echo) as client:
        for method in ("GET", "POST"):
            wrong = fault(client.request(method, path_of(operation)))
            assert (wrong.status, wrong.name) == (404, "ResourceNotFoundException")


@pytest.mark.parametrize("operation", ["invocations", "stopruntimesession"])
def test_other_methods_are_not_allowed(operation: str) -> None:
    with agent(echo) as client:
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            answer = client.request(method, path_of(operation))
            assert (fault(answer).status, answer.headers["allow"]) == (405, "POST")
        allowed = client.options(path_of(operation))
    assert (allowed.status_code, allowed.headers["allow"]) == (204, "OPTIONS, POST")


def test_for_want_of_a_place_a_call_is_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_CONCURRENT_INVOCATIONS", "1")
    monkeypatch.setenv("AGENTCORE_QUEUE_SIZE", "0")
    with agent(wait) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(invoke, client, headers=IDS)
        eventually(lambda: SESSION in client.app.agent.sessions)
        second = invoke(client)
        stop(client)
        assert first.result(PATIENCE).status_code == 409

    assert fault(second) == Fault(429, "ThrottlingException", "Too many invocations")
    assert second.headers["retry-after"] == "1"


async def wait(payload: Any) -> Any:
    await asyncio.Event().wait()


def test_at_a_shutdown_a_call_is_throttled_so_that_it_is_sent_again(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(echo)
    app.agent.refuses_work = True

    wrong = fault(invoke(client, 1))

    assert (wrong.status, wrong.name) == (429, "ThrottlingException")


def test_an_agent_that_takes_too_long_is_a_runtime_client_error_which_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AGENTCORE_INVOCATION_TIMEOUT_SECONDS", "0.05")
    with agent(wait) as client:
        wrong = fault(invoke(client))

    assert (wrong.status, wrong.name) == (424, "RuntimeClientError")


def test_without_an_entrypoint_it_is_an_internal_server_exception() -> None:
    with agent(None) as client:
        assert fault(invoke(client)) == Fault(500, "InternalServerException", "No entrypoint defined")


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "ValidationException"),
        (401, "AccessDeniedException"),
        (403, "AccessDeniedException"),
        (404, "ResourceNotFoundException"),
        (405, "MethodNotAllowedException"),
        (408, "ValidationException"),
        (409, "ConflictException"),
        (413, "ValidationException"),
        (429, "ThrottlingException"),
        (431, "ValidationException"),
        (500, "InternalServerException"),
        (502, "InternalServerException"),
        (503, "ThrottlingException"),
        (504, "RuntimeClientError"),
    ],
)
def test_each_refusal_has_a_name(status: int, name: str) -> None:
    error = error_of(Refusal(status, "What", "how"))

    assert (error.name, error.status) == (name, STATUS[error.name])
    body = msgspec.json.decode(error.body)
    assert body["message"] == "What: how"
    assert body.keys() == ({"message", "reason", "fieldList"} if name == "ValidationException" else {"message"})


def test_what_stands_around_the_routes_answers_in_the_same_form() -> None:
    def refuse(_: ASGIConnection[Any, Any, Any, Any], __: BaseRouteHandler) -> None:
        raise NotAuthorizedException("not you")

    def fail(_: ASGIConnection[Any, Any, Any, Any], __: BaseRouteHandler) -> None:
        raise RuntimeError("broken guard")

    with agent(echo, guards=[refuse]) as client:
        assert fault(invoke(client, 1)) == Fault(403, "AccessDeniedException", "not you")
        assert fault(stop(client)) == Fault(401, "UnauthorizedException", "not you")
    with agent(echo, guards=[fail]) as client:
        assert fault(invoke(client, 1)) == Fault(500, "InternalServerException", "broken guard")


# Sessions


def test_a_stopped_session_ends_what_runs_and_says_what_that_was(log: LogLines) -> None:
    app = BedrockAgentCoreApp()
    ended: list[str] = []

    @app.async_task
    async def research() -> None:
        await run("task")

    async def run(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def stream() -> AsyncIterator[int]:
        yield 1
        await run("stream")

    @app.entrypoint
    async def handler(payload: str) -> Any:
        if payload == "stream":
            return stream()
        app.background = asyncio.create_task(research())  # type: ignore[attr-defined]
        return await run("invocation")

    log.setLevel(logging.INFO)
    with serve(app) as server, ThreadPoolExecutor() as pool, server.client() as client:

        def call(payload: str) -> httpx.Response:
            return client.post(path_of(), json=payload, headers=IDS)

        unary, streamed = pool.submit(call, "unary"), pool.submit(call, "stream")
        eventually(lambda: counts(app) == (1, 1, 1))
        first = client.post(path_of("stopruntimesession"), json={"clientToken": TOKEN}, headers=IDS)
        again = client.post(path_of("stopruntimesession"), json={"clientToken": TOKEN}, headers=IDS)
        other = client.post(path_of("stopruntimesession"), json={"clientToken": f"{TOKEN}2"}, headers=IDS)

        assert (first.status_code, first.content, first.headers[SESSION_ID]) == (200, b"{}", SESSION)
        assert again.status_code == 200
        assert fault(other).name == "ResourceNotFoundException"
        assert fault(unary.result(PATIENCE)) == Fault(409, "ConflictException", "The session was stopped")
        assert events(streamed.result(PATIENCE))[1]["error_type"] == "SessionStopped"
    assert sorted(ended) == ["invocation", "stream", "task"]
    said = [line for line in log.lines if "as its client asks" in line["message"]]
    assert [line["sessionId"] for line in said] == [SESSION]
    assert said[0]["message"].endswith("1 invocation, 1 stream, 0 WebSockets, 1 task")


def counts(app: BedrockAgentCoreApp) -> tuple[int, int, int] | None:
    session = app.agent.sessions.get(SESSION)
    return None if session is None else (session.invocations, session.streams, session.tasks)


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        (b"{", "CannotParse", "body"),
        (b"\xff", "CannotParse", "body"),
        (b"[]", "FieldValidationFailed", "clientToken"),
        ({"clientToken": 1}, "FieldValidationFailed", "clientToken"),
        ({"clientToken": "a" * 32}, "FieldValidationFailed", "clientToken"),
        ({"clientToken": "a" * 257}, "FieldValidationFailed", "clientToken"),
        ({"clientToken": "-" * 40}, "FieldValidationFailed", "clientToken"),
        ({"clientToken": "a" * 5000}, "FieldValidationFailed", "payload"),
    ],
)
def test_a_body_that_makes_no_sense_stops_nothing(body: Any, reason: str, field: str) -> None:
    with agent(echo) as client:
        wrong = fault(stop(client, body))

    assert (wrong.status, wrong.name) == (400, "ValidationException")
    assert (wrong.reason, wrong.fields) == (reason, [field])


@pytest.mark.parametrize("session", [None, "", "a" * 32, "a" * 257])
def test_a_stop_needs_the_id_of_a_session(session: str | None) -> None:
    with agent(echo) as client:
        wrong = fault(stop(client, session=session))

    assert (wrong.reason, wrong.fields) == ("FieldValidationFailed", ["runtimeSessionId"])


@pytest.mark.parametrize(
    "body", [b"", b"{}", {"clientToken": None}, {"clientToken": "a" * 33}, {"clientToken": "a" * 256}]
)
def test_a_session_that_is_not_here_is_not_found(body: Any) -> None:
    with agent(echo) as client:
        assert fault(stop(client, body)) == Fault(404, "ResourceNotFoundException", f"No session {SESSION} is here")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeSessions:
    """Sessions of which each is there once."""

    def __init__(self, app: BedrockAgentCoreApp) -> None:
        self.stopped: list[str] = []
        self._app = app

    def get(self, session_id: str) -> Any:
        sessions = self._app.agent.sessions
        return None if session_id in self.stopped else sessions._describe(session_id, [])

    async def stop(self, session_id: str) -> bool:
        self.stopped.append(session_id)
        return True


def test_tokens_are_remembered_for_ten_minutes_and_ten_thousand_at_most(app: BedrockAgentCoreApp) -> None:
    clock, sessions = Clock(), FakeSessions(app)
    stops = SessionStops(sessions, clock)  # type: ignore[arg-type]

    async def use() -> None:
        await stops.stop("one", "first")
        clock.now = TOKEN_SECONDS - 1
        await stops.stop("one", "first")
        with pytest.raises(Refusal) as mismatch:
            await stops.stop("two", "first")
        assert getattr(mismatch.value, "problem", None) == "IdempotentParameterMismatchException"
        clock.now = TOKEN_SECONDS + 1
        with pytest.raises(Refusal) as forgotten:
            await stops.stop("one", "first")
        assert forgotten.value.status == 404
        assert len(stops) == 0

        for number in range(MAX_TOKENS + 100):
            await stops.stop(f"session {number}", f"token {number}")
        assert len(stops) == MAX_TOKENS
        await stops.stop(f"session {MAX_TOKENS}", f"token {MAX_TOKENS}")
        assert len(sessions.stopped) == MAX_TOKENS + 101

    asyncio.run(use())


# Spans and metrics


def test_the_span_keeps_its_name_with_the_template_as_its_route(exported: InMemorySpanExporter) -> None:
    with agent(raises(RuntimeError("boom"))) as client:
        invoke(client, headers=IDS)
        client.post("/invocations", json=1)
        metrics = client.get("/metrics").text

    failed, plain = exported.get_finished_spans()
    attributes = dict(failed.attributes or {})
    assert (failed.name, attributes["http.route"]) == ("POST /invocations", "/runtimes/{arn}/invocations")
    assert attributes["url.path"] == f"/runtimes/{ARN}/invocations"
    assert attributes["http.response.status_code"] == 424
    assert attributes["session.id"] == SESSION
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes["error.type"] == "RuntimeError"
    assert dict(plain.attributes or {})["http.response.status_code"] == 500
    assert 'agentcore_invocations_total{mode="unary",outcome="server_error"} 2.0' in metrics


def test_a_refusal_is_counted_as_it_is_on_invocations() -> None:
    with agent(echo) as client:
        client.post(path_of(), content=b"{")
        client.post(path_of("invocations", "not an arn"), json=1)
        assert 'agentcore_invocations_total{mode="unary",outcome="client_error"} 2.0' in client.get("/metrics").text


# WebSockets


async def converse(websocket: Any, context: RequestContext) -> None:
    await websocket.accept()
    seen = {"session": context.session_id, "forwarded": context.request_headers, "url": str(websocket.url)}
    await websocket.send_json(seen | {"raw": sorted(name.lower() for name in websocket.headers)})
    await websocket.close()


def test_a_websocket_is_the_agents_with_what_came_as_query_parameters(exported: InMemorySpanExporter) -> None:
    app = BedrockAgentCoreApp()
    app.websocket(converse)
    custom = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Tenant"
    query = f"qualifier=DEFAULT&{SESSION_ID}={SESSION}&{custom}=acme&{PRESIGNED}"
    with (
        TestClient(app=app) as client,
        client.websocket_connect(path_of("ws", query=query), headers=SIGNED) as websocket,
    ):
        seen = websocket.receive_json(timeout=60)

    assert (seen["session"], seen["forwarded"]) == (SESSION, {custom: "acme"})
    assert "X-Amz-" not in seen["url"]
    assert not {name.lower() for name in SIGNED} & set(seen["raw"])
    span = exported.get_finished_spans()[-1]
    attributes = dict(span.attributes or {})
    assert (span.name, attributes["http.route"]) == ("GET /ws", "/runtimes/{arn}/ws")
    assert "secret" not in span.to_json()


async def handshake(app: Any, path: str, query: bytes = b"", headers: Any = ()) -> list[Any]:
    """What a server that can answer a handshake with HTTP is given to send."""
    sent: list[Any] = []
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "query_string": query,
        "headers": [(b"host", b"agent"), *headers],
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 2),
    }

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("path", "headers", "status", "name"),
    [
        (f"/runtimes/{OTHER}/ws", [], 404, "ResourceNotFoundException"),
        (f"/runtimes/{ARN}/shells", [], 404, "ResourceNotFoundException"),
        ("/runtimes/not an arn/ws", [], 400, "ValidationException"),
        (f"/runtimes/{ARN}/ws", [(SESSION_ID.lower().encode(), b"short")], 400, "ValidationException"),
    ],
)
def test_a_websocket_that_is_refused_is_refused_in_the_same_form(
    monkeypatch: pytest.MonkeyPatch, path: str, headers: Any, status: int, name: str
) -> None:
    monkeypatch.setenv("AGENTCORE_RUNTIME_ARN", ARN)
    app = BedrockAgentCoreApp()
    app.websocket(converse)

    start, body = asyncio.run(handshake(app, path, headers=headers))

    assert start["status"] == status
    assert dict(start["headers"])[b"x-amzn-errortype"] == name.encode()
    assert json.loads(body["body"])["message"]


def test_a_websocket_of_who_is_not_let_in_is_denied(keys: None) -> None:
    app = BedrockAgentCoreApp()
    app.websocket(converse)

    start, _ = asyncio.run(handshake(app, f"/runtimes/{ARN}/ws"))

    assert (start["status"], dict(start["headers"])[b"x-amzn-errortype"]) == (403, b"AccessDeniedException")


# In applications


def test_in_an_application_that_is_mounted_it_works_below_the_mount() -> None:
    inner = BedrockAgentCoreApp()
    inner.entrypoint(echo)

    @asgi("/agents/one", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "app": inner}, receive, send)

    with TestClient(app=Litestar([mounted], openapi_config=None)) as client:
        answer = client.post(f"/agents/one{path_of()}", json=1)

    assert (answer.status_code, answer.json()) == (200, 1)


def test_below_a_root_path_and_without_a_raw_path_it_works() -> None:
    app = BedrockAgentCoreApp()
    app.entrypoint(echo)

    async def invoke_all() -> None:
        ways: list[tuple[str, dict[str, Any]]] = [("/prefix", {}), ("", {"raw_path": None}), ("", {})]
        for prefix, raw in ways:
            transport = httpx.ASGITransport(app=stripped(app, prefix, raw))
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                answer = await client.post(f"{prefix}{path_of()}", json=1)
                assert (answer.status_code, answer.text) == (200, "1"), prefix

    asyncio.run(invoke_all())


def stripped(app: Any, root_path: str, raw: dict[str, Any]) -> Any:
    async def serve_stripped(scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "root_path": root_path}
        scope.pop("raw_path")
        await app(scope | raw, receive, send)

    return serve_stripped


def test_a_plugin_moves_it_or_leaves_it_out(exported: InMemorySpanExporter) -> None:
    @get("/runtimes/{number:int}")
    async def own(number: FromPath[int]) -> int:
        return number

    with TestClient(app=Litestar([own], plugins=[AgentCorePlugin(echo, runtimes_path="/aws/runtimes")])) as client:
        assert client.post(f"/aws{path_of()}", json=1).json() == 1
        assert client.get("/runtimes/7").json() == 7
        assert "/aws/runtimes/{arn}/invocations" in client.get("/schema/openapi.json").json()["paths"]
    span = exported.get_finished_spans()[-1]
    assert dict(span.attributes or {})["http.route"] == "/aws/runtimes/{arn}/invocations"

    with TestClient(app=Litestar(plugins=[AgentCorePlugin(echo, runtimes_path=None)])) as client:
        assert client.post(path_of(), json=1).status_code == 404


def test_what_a_host_application_puts_around_routes_is_around_these_too() -> None:
    def hook(request: Request[Any, Any, Any]) -> None:
        request.scope["state"]["hooked"] = True

    options: dict[str, Any] = {
        "before_request": hook,
        "response_headers": {"x-host": "yes"},
        "cors_config": CORSConfig(allow_origins=["https://page.example"]),
        "compression_config": CompressionConfig(backend="gzip", minimum_size=1),
    }
    with TestClient(app=Litestar(plugins=[AgentCorePlugin(echo)], **options)) as client:
        answer = client.post(path_of(), json="x" * 1000, headers={"Origin": "https://page.example"})
        wrong = client.post(path_of(), content=b"{", headers={"Origin": "https://page.example"})
        asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        preflight = client.options(path_of(), headers=asked)

    assert answer.json() == "x" * 1000
    assert answer.headers["x-host"] == "yes"
    assert {each.headers["access-control-allow-origin"] for each in (answer, wrong, preflight)} == {
        "https://page.example"
    }
    assert fault(wrong).name == "ValidationException"


def test_the_schema_says_what_is_served() -> None:
    with agent(typed) as client:
        page = client.get("/schema/openapi.json").json()
    operation = page["paths"]["/runtimes/{arn}/invocations"]["post"]

    assert operation["requestBody"] == page["paths"]["/invocations"]["post"]["requestBody"]
    assert operation["responses"].keys() == {"200", "400", "403", "404", "409", "424", "429", "500"}
    stopping = page["paths"]["/runtimes/{arn}/stopruntimesession"]["post"]
    assert stopping["responses"].keys() == {"200", "400", "401", "403", "404", "500"}
    assert [path for path in page["paths"] if path.startswith("/runtimes")] == [
        "/runtimes/{arn}/invocations",
        "/runtimes/{arn}/stopruntimesession",
    ]
