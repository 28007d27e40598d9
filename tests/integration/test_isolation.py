"""Handlers that block hurt nobody else."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from service import BedrockAgentCoreApp, BedrockAgentCoreContext, PingStatus
from tests.integration.server import PATIENCE, PROMPT, SESSION_ID, Server, app_of, receive_until, serve

Body = Callable[[], None]
Handler = Callable[[Any], Any]


def assert_that_ping_answers(server: Server) -> None:
    with server.client(timeout=PROMPT) as client:
        for _ in range(5):
            assert client.get("/ping").status_code == 200


def async_function(body: Body) -> Handler:
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


KINDS = [async_function, sync_function, async_generator, sync_generator]


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


def test_ping_and_async_invocations_are_answered_while_more_sync_handlers_block_than_there_are_threads() -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def block() -> None:
        entered.release()
        release.wait(2 * PATIENCE)

    app = app_of(sync_function(block))
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
