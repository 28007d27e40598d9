"""What middleware of Litestar's and Starlette's sees of an invocation, and does to its answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from litestar.config.compression import CompressionConfig
from litestar_agentcore import BedrockAgentCoreApp
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

PATIENCE = 10.0

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/invocations",
    "raw_path": b"/invocations",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"agent"), (b"accept-encoding", b"gzip")],
    "client": ("127.0.0.1", 1),
    "server": ("agent", 80),
}


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


class Exchange:
    """One request to an app, as a server makes it, whose client may leave."""

    def __init__(self, app: BedrockAgentCoreApp) -> None:
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.first_sent = asyncio.Event()
        self._app = app
        self._body_read = False

    async def run(self) -> None:
        await self._app({**SCOPE, "state": {}}, self._receive, self._send)

    async def _receive(self) -> Any:
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.first_sent.set()


@pytest.mark.parametrize("middleware", [(), (Middleware(BaseHTTPMiddleware, dispatch=pass_on),)], ids=["none", "one"])
@pytest.mark.parametrize("isolation", ["isolated", "inline"])
def test_a_client_that_leaves_is_no_error_whatever_stands_around(
    middleware: tuple[Any, ...], isolation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", isolation)
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = BedrockAgentCoreApp(middleware=middleware)
    done = []

    @app.entrypoint
    async def slow(payload: Any) -> str:
        await asyncio.sleep(0.3)
        done.append(True)
        return "late"

    async def main() -> None:
        exchange = Exchange(app)
        running = asyncio.create_task(exchange.run())
        await asyncio.sleep(0.1)
        exchange.left.set()
        await asyncio.wait_for(running, PATIENCE)
        while not done:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    counted = app.agent.telemetry.metrics.expose("")[0].decode()
    assert 'agentcore_invocations_total{mode="unary",outcome="disconnected"} 1.0' in counted


@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {"compression_config": CompressionConfig(backend="gzip")},
        lambda: {"middleware": [Middleware(GZipMiddleware)]},
        lambda: {"middleware": [Middleware(GZipMiddleware, exclude_content_types=())]},
    ],
    ids=["none", "Litestar's", "Starlette's", "Starlette's of event streams"],
)
def test_the_head_of_a_stream_leaves_at_once_whatever_compresses_it(options: Callable[[], dict[str, Any]]) -> None:
    app = BedrockAgentCoreApp(**options())
    go_on = asyncio.Event()

    @app.entrypoint
    async def thinks(payload: Any) -> AsyncIterator[str]:
        await go_on.wait()
        yield "thought"

    async def main() -> None:
        exchange = Exchange(app)
        running = asyncio.create_task(exchange.run())
        await asyncio.wait_for(exchange.first_sent.wait(), PATIENCE)
        assert (exchange.sent[0]["type"], exchange.sent[0]["status"]) == ("http.response.start", 200)
        app.agent.loop.loop.call_soon(go_on.set)
        await asyncio.wait_for(running, PATIENCE)

    asyncio.run(main())


def test_the_events_of_a_stream_are_not_held_back_by_litestars_compression() -> None:
    app = BedrockAgentCoreApp(compression_config=CompressionConfig(backend="gzip"))
    go_on = asyncio.Event()

    @app.entrypoint
    async def counts(payload: Any) -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2

    async def main() -> None:
        exchange = Exchange(app)
        running = asyncio.create_task(exchange.run())
        async with asyncio.timeout(PATIENCE):
            while b"data: 1\n\n" not in b"".join(message.get("body", b"") for message in exchange.sent):
                await asyncio.sleep(0.01)
        app.agent.loop.loop.call_soon(go_on.set)
        await asyncio.wait_for(running, PATIENCE)

    asyncio.run(main())
