"""All async handler code of an app sees one event loop, whoever serves it; a handler without an await belongs to it."""

import asyncio
import contextvars
import functools
import json
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from litestar import Response
from litestar.exceptions import HTTPException
from litestar.testing import TestClient as LitestarClient
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext
from starlette.responses import StreamingResponse
from websockets.sync.client import connect

from tests.deadline import deadline
from tests.integration.server import PATIENCE, SESSION_ID, app_of, serve

Handler = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def hard_timeout() -> Iterator[None]:
    with deadline(60):
        yield


class Seen:
    """An agent that notes on which loops its code runs, in every way in which it can be run."""

    def __init__(self) -> None:
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.threads: set[int] = set()
        self.app = BedrockAgentCoreApp()
        self.app.websocket(self.converse)
        self._tasks: set[asyncio.Task[Any]] = set()

    def note(self) -> str:
        self.loops.add(asyncio.get_running_loop())
        return "noted"

    def note_on_the_loop(self) -> str:
        self.threads.add(threading.get_ident())
        return self.note()

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        return task

    # -- Ways of being called

    async def coroutine(self, payload: Any = None) -> str:
        self.note_on_the_loop()
        await asyncio.sleep(0)
        return self.note_on_the_loop()

    async def without_await(self, payload: Any) -> str:
        return self.note()

    async def generator(self, payload: Any = None) -> AsyncIterator[str]:
        try:
            self.note_on_the_loop()
            yield "noted"
            await asyncio.sleep(0)
        finally:
            self.note_on_the_loop()

    async def coroutine_returning_a_generator(self, payload: Any) -> Any:
        await self.coroutine()
        return self.generator()

    async def without_await_returning_a_generator(self, payload: Any) -> Any:
        self.note()
        return self.generator()

    async def without_await_returning_a_coroutine(self, payload: Any) -> Any:
        self.note()
        return self.coroutine()

    async def without_await_returning_a_task(self, payload: Any) -> Any:
        return self.create_task(self.coroutine())

    async def without_await_returning_a_future(self, payload: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self.note_on_the_loop())
        asyncio.get_running_loop().call_later(0.01, future.set_result, "noted")
        return future

    async def without_await_starting_a_task(self, payload: Any) -> str:
        done = threading.Event()
        self.create_task(self.coroutine()).add_done_callback(lambda _: done.set())
        assert done.wait(PATIENCE), "the task that was made out of sight did not run meanwhile"
        return "noted"

    def plain_returning_a_generator(self, payload: Any) -> Any:
        return self.generator()

    def plain_returning_a_coroutine(self, payload: Any) -> Any:
        return self.coroutine()

    async def coroutine_with_a_task(self, payload: Any) -> Any:
        return await self.create_task(self.coroutine())

    async def coroutine_with_tasks_in_a_group(self, payload: Any) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.coroutine())
            group.create_task(self.coroutine())
        return await asyncio.wait_for(self.coroutine(), PATIENCE)

    async def coroutine_with_a_thread(self, payload: Any) -> str:
        loop = asyncio.get_running_loop()

        def call_back() -> str:
            return asyncio.run_coroutine_threadsafe(self.coroutine(), loop).result(PATIENCE)

        return await asyncio.to_thread(call_back)

    async def coroutine_returning_a_response(self, payload: Any) -> Any:
        await self.coroutine()
        return StreamingResponse(self.generator(), media_type="text/plain")

    async def without_await_returning_a_response(self, payload: Any) -> Any:
        return StreamingResponse(self.generator(), media_type="text/plain")

    def plain_returning_a_response(self, payload: Any) -> Any:
        return StreamingResponse(self.generator(), media_type="text/plain")

    async def converse(self, websocket: Any, context: Any) -> None:
        await websocket.accept()
        await self.coroutine()
        async for text in websocket.iter_data("text"):
            await self.create_task(self.coroutine())
            await websocket.send_text(text)

    @property
    def handlers(self) -> list[Handler]:
        return [
            self.coroutine,
            self.without_await,
            self.generator,
            self.coroutine_returning_a_generator,
            self.without_await_returning_a_generator,
            self.without_await_returning_a_coroutine,
            self.without_await_returning_a_task,
            self.without_await_returning_a_future,
            self.without_await_starting_a_task,
            self.plain_returning_a_generator,
            self.plain_returning_a_coroutine,
            self.coroutine_with_a_task,
            self.coroutine_with_tasks_in_a_group,
            self.coroutine_with_a_thread,
            self.coroutine_returning_a_response,
            self.without_await_returning_a_response,
            self.plain_returning_a_response,
        ]

    def invoke_all(self, post: Callable[[], str]) -> None:
        """Have each handler answer once."""
        for handler in self.handlers:
            self.app.entrypoint(handler)
            assert post().strip() in {'"noted"', 'data: "noted"', "noted"}, handler.__name__

    def assert_one_loop(self) -> None:
        assert len(self.loops) == 1
        assert len(self.threads) == 1
        assert threading.get_ident() not in self.threads


def test_there_is_one_loop_on_a_server() -> None:
    seen = Seen()
    with serve(seen.app) as server, server.client() as client:
        seen.invoke_all(lambda: client.post("/invocations", json={}).text)
        with connect(f"ws://127.0.0.1:{server.port}/ws", open_timeout=PATIENCE) as websocket:
            websocket.send("hello")
            assert websocket.recv(PATIENCE) == "hello"
    seen.assert_one_loop()


def litestar_client(app: BedrockAgentCoreApp) -> Any:
    return LitestarClient(app)


def starlette_client(app: BedrockAgentCoreApp) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of Starlette would rather use another HTTP client
        from starlette.testclient import TestClient
    return TestClient(app)


@pytest.mark.parametrize("client_of_app", [litestar_client, starlette_client])
def test_there_is_one_loop_over_two_lifespans(client_of_app: Callable[[BedrockAgentCoreApp], Any]) -> None:
    seen = Seen()
    for _ in range(2):
        with client_of_app(seen.app) as client:
            seen.invoke_all(lambda: str(client.post("/invocations", json={}).text))
            with client.websocket_connect("/ws") as websocket:
                websocket.send_text("hello")
                assert websocket.receive_text() == "hello"
    seen.assert_one_loop()


def test_there_is_one_loop_over_two_servers() -> None:
    seen = Seen()
    for _ in range(2):
        with serve(seen.app) as server, server.client() as client:
            seen.invoke_all(lambda: client.post("/invocations", json={}).text)
    seen.assert_one_loop()


def test_there_is_one_loop_where_each_call_has_a_loop_of_its_own_and_no_lifespan_runs() -> None:
    seen = Seen()

    async def post() -> str:
        transport = httpx.ASGITransport(seen.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return (await client.post("/invocations", json={})).text

    for _ in range(2):
        seen.invoke_all(lambda: asyncio.run(post()))
    seen.assert_one_loop()


def test_there_is_one_loop_where_no_lifespan_runs() -> None:
    seen = Seen()
    client = litestar_client(seen.app)  # which is not entered
    seen.invoke_all(lambda: client.post("/invocations", json={}).text)
    seen.assert_one_loop()


def test_there_is_one_loop_for_what_is_run_from_elsewhere() -> None:
    seen = Seen()
    for _ in range(2):
        assert asyncio.run(seen.app.agent.run(seen.coroutine())) == "noted"
    with litestar_client(seen.app) as client:
        seen.invoke_all(lambda: client.post("/invocations", json={}).text)
    assert asyncio.run(seen.app.agent.run(seen.coroutine())) == "noted"
    seen.assert_one_loop()


def test_there_is_one_loop_under_load() -> None:
    seen = Seen()
    draw = random.Random(0)

    async def any_of_them(payload: str) -> Any:
        await asyncio.sleep(0)
        if draw.random() < 0.2:
            time.sleep(0.05)
        result = getattr(seen, payload)(None)
        while isinstance(result, Awaitable):
            result = await result
        return result

    names = [handler.__name__ for handler in seen.handlers if handler.__name__ != "without_await_starting_a_task"]

    def session(number: int) -> None:
        with (
            server.client(2 * PATIENCE) as client,
            connect(f"ws://127.0.0.1:{server.port}/ws", open_timeout=2 * PATIENCE) as websocket,
        ):
            for name in random.Random(number).choices(names, k=15):
                answer = client.post("/invocations", json=name).text.strip()
                assert answer in {'"noted"', 'data: "noted"', "noted"}, name
                websocket.send(name)
                assert websocket.recv(2 * PATIENCE) == name

    seen.app.entrypoint(any_of_them)
    with serve(seen.app) as server, ThreadPoolExecutor(8) as threads:
        list(threads.map(session, range(8)))
    seen.assert_one_loop()


# -- Handlers without an await -----------------------------------------------------------------------------------------


@contextmanager
def client_of(handler: Handler) -> Iterator[httpx.Client]:
    with serve(app_of(handler)) as server, server.client() as client:
        yield client


async def value(payload: Any) -> Any:
    return {"you said": payload}


async def nothing(payload: Any) -> None:
    pass


async def error(payload: Any) -> None:
    raise ValueError("no")


async def http_error(payload: Any) -> None:
    raise HTTPException("no", status_code=418)


async def stop_iteration(payload: Any) -> None:
    raise StopIteration("no")


async def exit_of_the_process(payload: Any) -> None:
    raise SystemExit("no")


async def cancellation(payload: Any) -> None:
    raise asyncio.CancelledError("no")


async def nested_run(payload: Any) -> Any:
    body = value(payload)
    try:
        return asyncio.run(body)
    finally:
        body.close()


async def litestar_response(payload: Any) -> Any:
    return Response({"made": payload}, status_code=202)


async def plain_events(payload: Any) -> Any:
    return (number for number in range(3))


async def error_in_an_awaitable(payload: Any) -> Any:
    return raise_later()


async def raise_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("later")


class Agent:
    async def method(self, payload: Any) -> Any:
        return await_nothing(payload)

    async def __call__(self, payload: Any) -> Any:
        return payload


def await_nothing(payload: Any) -> Any:
    return payload


def decorated(function: Handler) -> Handler:
    @functools.wraps(function)
    async def wrapper(payload: Any) -> Any:
        return await function(payload)

    return wrapper


NESTED = "asyncio.run() cannot be called from a running event loop"


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (value, (200, '{"you said":1}')),
        (nothing, (200, "null")),
        (error, (500, '{"error":"no"}')),
        (http_error, (418, '{"error":"no"}')),
        (stop_iteration, (500, '{"error":"coroutine raised StopIteration"}')),
        (exit_of_the_process, (500, '{"error":"no"}')),
        (cancellation, (500, '{"error":"no"}')),
        (nested_run, (500, json.dumps({"error": NESTED}, separators=(",", ":")))),
        (litestar_response, (202, '{"made":1}')),
        (plain_events, (200, "data: 0\n\ndata: 1\n\ndata: 2\n\n")),
        (error_in_an_awaitable, (500, '{"error":"later"}')),
        (Agent().method, (200, "1")),
        (Agent(), (200, "1")),
        (functools.partial(value), (200, '{"you said":1}')),
        (decorated(value), (200, '{"you said":1}')),
    ],
)
def test_a_handler_without_an_await_is_answered_as_any_other(handler: Handler, answer: tuple[int, str]) -> None:
    with client_of(handler) as client:
        for _ in range(2):
            response = client.post("/invocations", json=1)
            assert (response.status_code, response.text) == answer
        assert client.get("/ping").json()["status"] == "Healthy"


lock = asyncio.Lock()


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        await asyncio.sleep(0)
        yield number


async def for_alone(payload: Any) -> list[int]:
    found = []
    async for number in numbers():
        found.append(number)
    return found


async def with_alone(payload: Any) -> list[int]:
    async with lock:
        return [0, 1, 2]


async def comprehension_alone(payload: Any) -> list[int]:
    return [number async for number in numbers()]


async def await_in_an_expression(payload: Any) -> list[int]:
    return [number or await asyncio.sleep(0, 0) for number in range(3)]


async def await_in_a_branch(payload: Any) -> list[int]:
    if payload:
        await asyncio.sleep(0.01)
    return [0, 1, 2]


@pytest.mark.parametrize(
    "handler", [for_alone, with_alone, comprehension_alone, await_in_an_expression, await_in_a_branch]
)
def test_a_handler_that_waits_in_any_way_runs_on_the_loop(handler: Handler) -> None:
    with client_of(handler) as client:
        assert [client.post("/invocations", json=payload).json() for payload in (0, 1)] == [[0, 1, 2]] * 2


visits: contextvars.ContextVar[int] = contextvars.ContextVar("visits", default=0)


def test_the_context_of_a_handler_without_an_await_goes_on_in_what_it_starts_and_returns() -> None:
    async def seen() -> list[Any]:
        await asyncio.sleep(0.01)
        return [BedrockAgentCoreContext.get_session_id(), visits.get()]

    async def events(task: "asyncio.Task[Any]") -> AsyncIterator[Any]:
        yield await task
        yield await seen()

    async def handler(payload: Any) -> Any:
        visits.set(visits.get() + 1)
        return events(asyncio.create_task(seen()))

    with client_of(handler) as client:
        for number in range(3):
            answer = client.post("/invocations", json={}, headers={SESSION_ID: f"session-{number}"}).text
            assert answer == 2 * f'data: ["session-{number}",1]\n\n'


def test_a_handler_without_an_await_runs_while_others_block_the_loop() -> None:
    async def blocks() -> str:
        await asyncio.sleep(0)
        time.sleep(1)
        return "blocked"

    async def handler(payload: Any) -> Any:
        return blocks() if payload == "block" else payload

    with client_of(handler) as client, ThreadPoolExecutor(1) as threads:
        blocked = threads.submit(client.post, "/invocations", json="block")
        time.sleep(0.2)
        began = time.monotonic()
        assert client.post("/invocations", json="hello").json() == "hello"
        assert time.monotonic() - began < 0.5
        assert blocked.result().json() == "blocked"
