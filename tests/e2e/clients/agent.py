"""The agent that AWS's clients call: ``app``, and ``empty``, which has no entrypoint."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from litestar import post
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

ended: list[str | None] = []
go_on = asyncio.Event()


@post("/go", status_code=204)
async def go() -> None:
    """Let the stream that waits come to its end."""
    await app.agent.run(let_go())


async def let_go() -> None:
    go_on.set()


app = BedrockAgentCoreApp(route_handlers=[go])
empty = BedrockAgentCoreApp()


@app.entrypoint
async def handler(payload: Any, context: RequestContext) -> Any:
    """Do what the payload says."""
    match payload:
        case {"do": "stream"}:
            return stream()
        case {"do": "wait"}:
            await until_cancelled(context.session_id)
        case {"do": "wait in a stream"}:
            return endless(context.session_id)
        case {"do": "ended"}:
            await asyncio.sleep(0)
            return ended
        case {"do": "fail"}:
            raise RuntimeError("the agent is broken")
    headers = {name.lower(): value for name, value in context.request.headers.items()}
    return {"payload": payload, "session": context.session_id, "headers": headers, "url": str(context.request.url)}


async def stream() -> AsyncIterator[str]:
    """One event, and another once the client has asked for it."""
    go_on.clear()
    yield "first"
    async with asyncio.timeout(60):
        await go_on.wait()
    yield "last"


async def until_cancelled(session: str | None) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(session)


async def endless(session: str | None) -> AsyncIterator[str]:
    yield "first"
    await until_cancelled(session)


@app.websocket
async def converse(websocket: Any, context: RequestContext) -> None:
    """Tell what of the handshake is seen, and repeat what is said."""
    await websocket.accept()
    names = [name.lower() for name in websocket.headers]
    seen = {"session": context.session_id, "forwarded": context.request_headers}
    await websocket.send_json(seen | {"headers": names, "url": str(websocket.url)})
    async for text in websocket.iter_text():
        await websocket.send_text(text)
