"""Sessions over real sockets: stopped while their clients wait, and ended when the server ends."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp
from websockets.sync.client import connect

from tests.integration.server import PATIENCE, SESSION_ID, eventually, serve


def test_a_stopped_session_answers_its_clients_and_the_next_request_begins_anew() -> None:
    app = BedrockAgentCoreApp()
    ended: list[str] = []
    called: list[str] = []
    app.session_end(called.append)
    sessions = app.agent.sessions

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.append(name)

    @app.async_task
    async def research() -> None:
        await wait("task")

    async def stream() -> AsyncIterator[int]:
        yield 0
        await wait("stream")

    @app.entrypoint
    async def handler(payload: str) -> Any:
        if payload == "task":
            asyncio.create_task(research())  # noqa: RUF006 - the service keeps it
            await asyncio.sleep(0)
            return None
        if payload == "stream":
            return stream()
        if payload == "now":
            await asyncio.sleep(0)
            return "now"
        return await wait("invocation")

    @app.websocket
    async def converse(websocket: Any, context: Any) -> None:
        await websocket.accept()
        await wait("socket")

    with serve(app) as server, server.client() as client, ThreadPoolExecutor() as pool:

        def invoke(payload: str) -> Any:
            return client.post("/invocations", json=payload, headers={SESSION_ID: "one"})

        assert invoke("task").status_code == 200
        unary, streamed = pool.submit(invoke, "wait"), pool.submit(invoke, "stream")
        with connect(f"ws://127.0.0.1:{server.port}/ws?{SESSION_ID}=one", proxy=None) as socket:

            def everything_runs() -> bool:
                known = sessions.get("one")
                return known is not None and (
                    (known.invocations, known.streams, known.websockets, known.tasks) == (1, 1, 1, 1)
                )

            eventually(everything_runs)
            assert asyncio.run(sessions.stop("one")) is True
            assert sorted(ended) == ["invocation", "socket", "stream", "task"]
            assert called == ["one"]
            answer = unary.result(PATIENCE)
            assert (answer.status_code, answer.json()) == (409, {"error": "The session was stopped"})
            last = streamed.result(PATIENCE).text.split("\n\n")[-2]
            assert json.loads(last.removeprefix("data: "))["error_type"] == "SessionStopped"
            eventually(lambda: socket.protocol.close_code is not None)
            assert socket.protocol.close_code == 1001
        assert asyncio.run(sessions.stop("one")) is False
        assert invoke("now").json() == "now"
        assert list(sessions) == ["one"]
    assert called == ["one", "one"]


def test_the_client_of_a_plain_handler_is_answered_though_the_handler_runs_on() -> None:
    app = BedrockAgentCoreApp()
    release = threading.Event()

    @app.entrypoint
    def handler(payload: Any) -> None:
        release.wait(PATIENCE)

    with serve(app) as server, server.client() as client, ThreadPoolExecutor() as pool:
        call = pool.submit(client.post, "/invocations", json=1, headers={SESSION_ID: "one"})
        eventually(lambda: "one" in app.agent.sessions)
        stop = pool.submit(lambda: asyncio.run(app.agent.sessions.stop("one")))
        assert call.result(PATIENCE).status_code == 409
        assert "one" in app.agent.sessions
        release.set()
        assert stop.result(PATIENCE) is True
        assert list(app.agent.sessions) == []
