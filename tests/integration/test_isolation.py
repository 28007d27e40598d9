"""Handlers that block hurt nobody else; and where they are trusted not to, they are served just as well."""

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import msgspec
import pytest
from litestar import Response, WebSocket
from litestar.exceptions import HTTPException
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, PingStatus, RequestContext
from starlette.responses import StreamingResponse
from websockets.sync.client import connect

from tests.integration.server import (
    PATIENCE,
    PROMPT,
    REQUEST_ID,
    SESSION_ID,
    Server,
    app_of,
    eventually,
    free_port,
    receive_until,
    run,
    serve,
    uvicorn_command,
)

Body = Callable[[], None]
Handler = Callable[[Any], Any]


def assert_that_ping_answers(server: Server) -> None:
    with server.client(timeout=PROMPT) as client:
        for _ in range(5):
            assert client.get("/ping").status_code == 200


def async_function(body: Body) -> Handler:
    async def handler(payload: Any) -> str:
        await asyncio.sleep(0)
        body()
        return "done"

    return handler


def async_function_without_await(body: Body) -> Handler:
    async def handler(payload: Any) -> str:
        body()
        return "done"

    return handler


def sync_function(body: Body) -> Handler:
    def handler(payload: Any) -> str:
        body()
        return "done"

    return handler


def async_generator(body: Body) -> Handler:
    async def handler(payload: Any) -> AsyncIterator[str]:
        body()
        yield "done"

    return handler


def sync_generator(body: Body) -> Handler:
    def handler(payload: Any) -> Iterator[str]:
        body()
        yield "done"

    return handler


KINDS = [async_function, async_function_without_await, sync_function, async_generator, sync_generator]


def wait(release: threading.Event) -> None:
    release.wait(PATIENCE)


def compute(release: threading.Event) -> None:
    deadline = time.monotonic() + PATIENCE
    while not release.is_set() and time.monotonic() < deadline:
        pass


@pytest.mark.parametrize("block", [wait, compute])
@pytest.mark.parametrize("kind", KINDS)
def test_ping_answers_while_a_handler_blocks(
    kind: Callable[[Body], Handler], block: Callable[[threading.Event], None]
) -> None:
    entered, release = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        block(release)

    with serve(app_of(kind(body))) as server, server.invoke_and_leave_unread({}) as connection:
        assert entered.wait(PATIENCE)
        assert_that_ping_answers(server)
        release.set()
        receive_until(connection, b"done")


@pytest.mark.parametrize("kind", [sync_function, async_function_without_await])
def test_ping_and_async_invocations_are_answered_while_more_handlers_block_than_there_are_threads(
    kind: Callable[[Body], Handler],
) -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def block() -> None:
        entered.release()
        release.wait(2 * PATIENCE)

    app = app_of(kind(block))
    with serve(app) as server, server.client() as client, ExitStack() as stack:
        stack.callback(release.set)
        connections = [stack.enter_context(server.invoke_and_leave_unread({})) for _ in range(200)]
        for _ in range(app.agent.settings.sync_threads):
            assert entered.acquire(timeout=PATIENCE)
        assert_that_ping_answers(server)
        app.entrypoint(async_function(lambda: None))
        assert client.post("/invocations", json={}).json() == "done"
        release.set()
        for connection in connections:
            receive_until(connection, b"done")


def test_sessions_that_block_without_an_await_do_not_wait_for_one_another() -> None:
    with (
        serve(app_of(async_function_without_await(lambda: time.sleep(1)))) as server,
        server.client() as client,
        ThreadPoolExecutor(8) as sessions,
    ):
        began = time.monotonic()
        answers = [sessions.submit(client.post, "/invocations", json={}) for _ in range(8)]
        assert [answer.result(PATIENCE).json() for answer in answers] == ["done"] * 8
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("is_async", [False, True])
def test_ping_answers_while_a_custom_ping_function_blocks(is_async: bool) -> None:
    release = threading.Event()
    app = BedrockAgentCoreApp()

    def blocked() -> PingStatus:
        release.wait(PATIENCE)
        return PingStatus.HEALTHY_BUSY

    async def blocked_async() -> PingStatus:
        return blocked()

    app.ping(blocked_async if is_async else blocked)
    with serve(app) as server, server.client(timeout=PROMPT) as client:
        for _ in range(2):
            assert client.get("/ping").json()["status"] == "Healthy"
        release.set()


def test_a_ping_function_that_blocks_holds_up_no_invocation() -> None:
    release = threading.Event()
    app = app_of(async_function(lambda: None))

    @app.ping
    async def ping() -> PingStatus:
        release.wait(PATIENCE)
        return PingStatus.HEALTHY

    with serve(app) as server, server.client(timeout=PROMPT) as client:
        client.get("/ping")
        assert client.post("/invocations", json={}).json() == "done"
        release.set()


def test_what_came_with_one_request_is_unknown_to_the_next_on_the_same_connection() -> None:
    def handler(payload: Any) -> Any:
        return [BedrockAgentCoreContext.get_session_id(), BedrockAgentCoreContext.get_request_headers()]

    with serve(app_of(handler)) as server, server.client() as client:
        client.post("/invocations", json={}, headers={SESSION_ID: "session-1", "Authorization": "Bearer one"})
        assert client.post("/invocations", json={}).json() == [None, None]


class Served:
    """An agent that answers in every way, and holds the agent's loop in any of them where it is told to.

    Its entrypoint is a plain function, in a thread of its own; what it returns runs where that belongs.
    """

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.app = BedrockAgentCoreApp()
        self.app.entrypoint(self.answer)
        self.app.websocket(self.converse)

    def block(self) -> None:
        self.entered.set()
        self.release.wait(PATIENCE)

    def answer(self, payload: Any) -> Any:
        match payload:
            case "block" | "block later" | "block in a task" | "async":
                return self.answer_async(payload)
            case "block in a stream":
                return self.events(self.block)
            case "stream":
                return self.events(lambda: None)
            case "plain stream":
                return (number for number in range(3))
        return payload

    async def answer_async(self, payload: Any) -> Any:
        match payload:
            case "block":
                self.block()
            case "block later":
                await asyncio.sleep(0.05)
                self.block()
            case "block in a task":
                await asyncio.create_task(self.answer_async("block later"))
        return payload

    async def events(self, between: Callable[[], None]) -> AsyncIterator[int]:
        between()
        for number in range(3):
            yield number
            await asyncio.sleep(0.01)

    async def converse(self, websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
        await websocket.accept()
        async for text in websocket.iter_data("text"):
            if text == "block":
                self.block()
            await websocket.send_text(text)


@contextmanager
def conversation(server: Server, first: str) -> Iterator[Callable[[str], str]]:
    """A WebSocket on which something has been said."""

    def say(text: str) -> str:
        websocket.send(text)
        return str(websocket.recv(PROMPT))

    with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None, open_timeout=PROMPT, close_timeout=0) as websocket:
        websocket.send(first)
        yield say


def invocation(what: str) -> Callable[[Server], AbstractContextManager[Any]]:
    return lambda server: server.invoke_and_leave_unread(what)


@pytest.mark.parametrize(
    "blocked",
    [
        *map(invocation, ("block", "block later", "block in a stream", "block in a task")),
        lambda server: conversation(server, "block"),
    ],
    ids=["at once", "after an await", "in a stream", "in a task", "in a websocket"],
)
def test_plain_handlers_are_served_while_an_async_one_holds_the_loop_and_async_ones_after_it(
    blocked: Callable[[Server], AbstractContextManager[Any]],
) -> None:
    agent = Served()
    with (
        serve(agent.app) as server,
        server.client(timeout=PROMPT) as client,
        server.client() as patient,
        ThreadPoolExecutor(4) as sessions,
        conversation(server, "hello") as say,
        blocked(server),
    ):
        assert agent.entered.wait(PATIENCE)
        waiting = [sessions.submit(patient.post, "/invocations", json=what) for what in ("async", "stream")]
        for _ in range(3):
            assert client.post("/invocations", json="hello").json() == "hello"
            assert client.post("/invocations", json="plain stream").text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert client.get("/metrics").status_code == client.get("/ready").status_code == 200
        assert_that_ping_answers(server)
        assert not any(session.done() for session in waiting)
        agent.release.set()
        answer, stream = [session.result(PATIENCE) for session in waiting]
        assert answer.json() == "async"
        assert stream.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert [say("and"), say("so on")] == ["hello", "and"]


def stalls(client: httpx.Client) -> float:
    (value,) = re.findall(r"^agentcore_handler_stalls_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(value)


def test_a_handler_that_holds_the_loop_is_counted_and_named_once_with_its_session_and_stack() -> None:
    port = free_port()
    with run(uvicorn_command("tests.integration.agents.blocking", port), port) as server, server.client() as client:
        client.post("/invocations", json={"seconds": 0.01})
        assert stalls(client) == 0
        ids = {REQUEST_ID: "request-1", SESSION_ID: "session-1"}
        assert client.post("/invocations", json={"seconds": 0.6}, headers=ids).json() == "done"
        assert stalls(client) == 1
        eventually(lambda: any("turns again" in line for line in server.stderr()))
        server.terminate()
        lines = [json.loads(line) for line in server.stderr() if "litestar_agentcore.runtime.watchdog" in line]
    warning, recovery = lines
    assert warning["level"] == "WARNING"
    assert (warning["requestId"], warning["sessionId"]) == ("request-1", "session-1")
    first, *stack = warning["message"].splitlines()
    assert first.startswith("The handler ask_the_model (session session-1) has held the agent's event loop for 0.1")
    calls = [line.rpartition(", in ")[2] for line in stack if line.startswith("  File ")]
    assert calls == ["ask_the_model", "call_without_await"]
    assert recovery["level"] == "INFO"
    assert recovery["message"].startswith("The agent's event loop turns again, after 0.")


def test_a_payload_type_whose_validation_blocks_holds_up_nobody_else() -> None:
    entered, release = threading.Event(), threading.Event()

    class Ask(msgspec.Struct):
        prompt: str

        def __post_init__(self) -> None:
            if self.prompt == "block":
                entered.set()
                release.wait(PATIENCE)

    async def handler(payload: Ask) -> str:
        return payload.prompt

    handler.__annotations__["payload"] = Ask
    with serve(app_of(handler)) as server, server.invoke_and_leave_unread({"prompt": "block"}) as connection:
        assert entered.wait(PATIENCE)
        try:
            assert_that_ping_answers(server)
        finally:
            release.set()
        receive_until(connection, b"block")


@pytest.fixture(params=["isolated", "inline"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    mode: str = request.param
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", mode)
    return mode


async def where(payload: Any) -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


async def where_without_await(payload: Any) -> str:
    return threading.current_thread().name


async def where_events(payload: Any) -> AsyncIterator[str]:
    yield threading.current_thread().name


def where_plain(payload: Any) -> str:
    return threading.current_thread().name


def where_plain_events(payload: Any) -> Iterator[str]:
    yield threading.current_thread().name


@pytest.mark.parametrize(
    ("handler", "isolated"),
    [
        (where, "agentcore-loop"),
        (where_without_await, "agentcore-sync"),
        (where_events, "agentcore-loop"),
        (where_plain, "agentcore-sync"),
        (where_plain_events, "agentcore-sync"),
    ],
)
def test_inline_means_on_the_loop_that_accepts_requests_for_async_handlers_alone(
    isolation: str, handler: Handler, isolated: str
) -> None:
    with serve(app_of(handler)) as server, server.client() as client:
        thread = client.post("/invocations", json={}).text.strip().removeprefix("data: ").strip('"')
        if isolation == "isolated" or "plain" in handler.__name__:
            assert thread.startswith(isolated)
        else:
            assert not thread.startswith("agentcore-")


async def async_value(payload: Any) -> Any:
    await asyncio.sleep(0)
    return {"you said": payload, "ünï": None}


def plain_value(payload: Any) -> Any:
    return {"you said": payload, "ünï": None}


def plain_function_around_an_async_one(payload: Any) -> Any:
    return async_value(payload)


async def async_events(payload: Any) -> AsyncIterator[Any]:
    yield payload
    await asyncio.sleep(0.01)
    yield [None]


def plain_events(payload: Any) -> Iterator[Any]:
    yield payload
    time.sleep(0.01)
    yield [None]


async def async_function_that_returns_async_events(payload: Any) -> Any:
    return async_events(payload)


async def async_function_that_returns_plain_events(payload: Any) -> Any:
    return plain_events(payload)


def plain_function_that_returns_async_events(payload: Any) -> Any:
    return async_events(payload)


async def litestar_response(payload: Any) -> Any:
    return Response({"made": payload}, status_code=202, headers={"x-made": "by hand"})


async def starlette_response(payload: Any) -> Any:
    async def chunks() -> AsyncIterator[str]:
        yield str(payload)
        await asyncio.sleep(0.01)
        yield " at last"

    return StreamingResponse(chunks(), 203, media_type="text/plain")


async def error(payload: Any) -> Any:
    await asyncio.sleep(0)
    raise ValueError(payload)


async def http_error(payload: Any) -> Any:
    raise HTTPException(detail=payload, status_code=418)


async def exit_of_the_process(payload: Any) -> Any:
    raise SystemExit(payload)


async def cancellation_of_its_own(payload: Any) -> Any:
    raise asyncio.CancelledError(payload)


async def timeout_of_its_own(payload: Any) -> Any:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(PATIENCE)


async def events_that_fail(payload: Any) -> AsyncIterator[Any]:
    yield payload
    raise ValueError(payload)


VALUE = (200, "application/json", '{"you said":"hi","ünï":null}')
EVENTS = (200, "text/event-stream", 'data: "hi"\n\ndata: [null]\n\n')
LAST_EVENT = '{"error":"hi","error_type":"ValueError","message":"An error occurred during streaming"}'


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (async_value, VALUE),
        (plain_value, VALUE),
        (plain_function_around_an_async_one, VALUE),
        (async_events, EVENTS),
        (plain_events, EVENTS),
        (async_function_that_returns_async_events, EVENTS),
        (async_function_that_returns_plain_events, EVENTS),
        (plain_function_that_returns_async_events, EVENTS),
        (litestar_response, (202, "application/json", '{"made":"hi"}')),
        (starlette_response, (203, "text/plain", "hi at last")),
        (error, (500, "application/json", '{"error":"hi"}')),
        (http_error, (418, "application/json", '{"error":"hi"}')),
        (exit_of_the_process, (500, "application/json", '{"error":"hi"}')),
        (cancellation_of_its_own, (500, "application/json", '{"error":"hi"}')),
        (timeout_of_its_own, (500, "application/json", '{"error":""}')),
        (events_that_fail, (200, "text/event-stream", f'data: "hi"\n\ndata: {LAST_EVENT}\n\n')),
    ],
)
def test_the_answers_are_the_same_isolated_and_inline(
    isolation: str, handler: Handler, answer: tuple[int, str, str]
) -> None:
    with serve(app_of(handler)) as server, server.client() as client:
        for _ in range(2):
            response = client.post("/invocations", json="hi", headers={SESSION_ID: "session-1"})
            content_type = response.headers["content-type"].partition(";")[0]
            assert (response.status_code, content_type, response.text) == answer
            assert response.headers[SESSION_ID] == "session-1"
        assert client.get("/ping").json()["status"] == "Healthy"


visits: ContextVar[int] = ContextVar("visits", default=0)


def test_each_request_has_its_own_context_isolated_and_inline(isolation: str) -> None:
    def seen() -> list[Any]:
        return [BedrockAgentCoreContext.get_session_id(), visits.get()]

    async def seen_later() -> list[Any]:
        await asyncio.sleep(0.01)
        return seen()

    async def stream() -> AsyncIterator[Any]:
        for _ in range(3):
            visits.set(visits.get() + 1)
            yield seen()
            await asyncio.sleep(0.01)

    async def handler(payload: Any) -> Any:
        visits.set(visits.get() + 1)
        if payload == "stream":
            return stream()
        task = asyncio.create_task(seen_later())
        return [seen(), await task, await asyncio.to_thread(seen), seen()]

    with serve(app_of(handler)) as server, server.client() as client:
        for number in range(3):
            session = f"session-{number}"
            headers = {SESSION_ID: session}
            assert client.post("/invocations", json={}, headers=headers).json() == [[session, 1]] * 4
            events = client.post("/invocations", json="stream", headers=headers).text.split("\n\n")[:-1]
            assert [json.loads(event[6:]) for event in events] == [[session, 2], [session, 3], [session, 4]]


def test_websockets_are_served_isolated_and_inline(isolation: str) -> None:
    with serve(Served().app) as server, conversation(server, "one") as say, conversation(server, "eins") as sag:
        assert [say("two"), sag("zwei"), say("three"), sag("drei")] == ["one", "eins", "two", "zwei"]


def test_tasks_go_on_after_their_handler_isolated_and_inline(isolation: str) -> None:
    go_on = threading.Event()
    app = BedrockAgentCoreApp()

    @app.async_task
    async def research() -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    @app.entrypoint
    async def handler(payload: Any) -> str:
        asyncio.create_task(research())  # noqa: RUF006 - the service keeps it
        return "begun"

    with serve(app) as server, server.client() as client:
        assert client.post("/invocations", json={}).json() == "begun"
        eventually(lambda: client.get("/ping").json()["status"] == "HealthyBusy")
        go_on.set()
        eventually(lambda: client.get("/ping").json()["status"] == "Healthy")


@pytest.mark.parametrize("leaves", ["while it waits for the handler", "in the stream"])
def test_no_generator_is_left_open_when_its_client_leaves_isolated_and_inline(isolation: str, leaves: str) -> None:
    called, left, returned = threading.Event(), threading.Event(), threading.Event()
    still_open: list[str] = []

    async def endless() -> AsyncIterator[int]:
        still_open.append("generator")
        try:
            for number in itertools.count():
                yield number
                await asyncio.sleep(0.001)
        finally:
            still_open.remove("generator")

    async def handler(payload: Any) -> Any:
        called.set()
        while leaves == "while it waits for the handler" and not left.is_set():
            await asyncio.sleep(0.01)
        returned.set()
        return endless()

    with serve(app_of(handler)) as server, server.client() as client:
        with server.invoke_and_leave_unread({}) as connection:
            assert called.wait(PATIENCE)
            if leaves == "in the stream":
                receive_until(connection, b"data: 1\n")
        time.sleep(1.5)  # a client is watched for leaving once it has waited for a second
        left.set()
        assert returned.wait(PATIENCE)
        time.sleep(0.1)
        eventually(lambda: not still_open)
        counted = r'^agentcore_invocations_total\{mode="\w+",outcome="disconnected"\} 1.0$'
        eventually(lambda: re.findall(counted, client.get("/metrics").text, re.MULTILINE))


def test_an_async_handler_goes_on_unheard_when_its_client_leaves_isolated_and_inline(isolation: str) -> None:
    called, left, done = threading.Event(), threading.Event(), threading.Event()

    async def handler(payload: Any) -> str:
        called.set()
        while not left.is_set():
            await asyncio.sleep(0.01)
        done.set()
        return "to nobody"

    with serve(app_of(handler)) as server:
        with server.invoke_and_leave_unread({}):
            assert called.wait(PATIENCE)
        time.sleep(1.5)
        left.set()
        assert done.wait(PATIENCE)
        assert_that_ping_answers(server)
