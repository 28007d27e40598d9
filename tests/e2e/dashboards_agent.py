"""An agent that can be made to do whatever a dashboard shows."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from litestar import WebSocket
from litestar.config.app import AppConfig
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, RequestContext
from litestar_agentcore.mounted import Call, MountedApplication, MountedExchange
from litestar_agentcore.protocols import ProtocolPlugin, exchange_route


class Protocol(ProtocolPlugin):
    """A protocol beside HTTP, whose library has nothing to say."""

    protocol = "mcp"

    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
        """Add its one route."""
        library = MountedApplication("a library", lambda: accepted)
        exchange = MountedExchange(
            service.agent,
            service.authentication,
            library,
            protocol="mcp",
            route="/mcp",
            describe=lambda scope, body: Call("tools/call"),
        )
        app_config.route_handlers.append(exchange_route("/mcp", ["POST"], exchange, "mcp"))


async def accepted(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


app = BedrockAgentCoreApp(plugins=[Protocol()])


@app.async_task
async def research(fail: bool) -> None:
    if fail:
        raise LookupError("nothing was found")


async def words(count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield "word"
        await asyncio.sleep(0.01)


async def tasks() -> AsyncIterator[str]:
    await research(fail=False)
    try:
        await research(fail=True)
    except LookupError:
        yield "one ended well, one did not"


def pages() -> Iterator[str]:
    while True:
        yield "page " * 10_000


async def block(seconds: float) -> AsyncIterator[str]:
    await asyncio.sleep(0)
    time.sleep(seconds)
    yield "held the event loop"


@app.entrypoint
def helper(payload: dict[str, Any]) -> Any:
    match payload.get("do"):
        case "raise":
            raise RuntimeError("the model is out of order")
        case "sleep":
            time.sleep(payload["seconds"])
        case "words":
            return words(payload["count"])
        case "pages":
            return pages()
        case "tasks":
            return tasks()
        case "block":
            return block(payload["seconds"])
        case "begin a task":
            app.add_async_task("digging")
        case "lose tasks":
            for task in app.agent.tasks.running():
                app.agent.tasks.finish(task.task_id, "lost")
    return "done"


@app.websocket
async def listen(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    await websocket.accept()
    async for _ in websocket.iter_data("text"):
        pass
