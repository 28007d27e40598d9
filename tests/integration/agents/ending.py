"""An agent that is busy in every way, and with all that makes it hard to end."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

app = BedrockAgentCoreApp()

BLOB = "x" * 64 * 1024


class Ask(msgspec.Struct):
    do: str
    seconds: float = 60
    count: int = 1000


@app.async_task
async def research(seconds: float) -> None:
    await asyncio.sleep(seconds)
    app.logger.info("The research is done")


@app.async_task
async def research_stubbornly(_: float) -> None:
    await never_end()


@app.async_task
async def research_tidily(_: float) -> None:
    await be_tidy("task")


TASKS = {"research": research, "research stubbornly": research_stubbornly, "research tidily": research_tidily}


async def never_end() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            app.logger.info("And yet it goes on")


async def be_tidy(kind: str) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.5)
        app.logger.info("The %s is tidied up", kind)


async def count_slowly(ask: Ask) -> AsyncIterator[int]:
    for number in range(ask.count):
        yield number
        await asyncio.sleep(0.1)


def count_plainly(ask: Ask) -> Iterator[int]:
    for number in range(ask.count):
        yield number
        time.sleep(0.1)


async def pour_out() -> AsyncIterator[str]:
    while True:
        yield BLOB


@app.entrypoint
async def agent(ask: Ask, context: RequestContext) -> Any:
    match ask.do:
        case "sleep":
            await asyncio.sleep(ask.seconds)
        case "hold the loop":
            time.sleep(ask.seconds)
        case "block in a thread":
            await asyncio.to_thread(time.sleep, ask.seconds)
        case "swallow the cancellation":
            await never_end()
        case "tidy up":
            await be_tidy("invocation")
        case "stream":
            return count_slowly(ask)
        case "stream plainly":
            return count_plainly(ask)
        case "pour out":
            return pour_out()
        case "research and sleep":
            asyncio.create_task(research(ask.seconds))  # noqa: RUF006 - the service keeps it
            await asyncio.sleep(60)
        case do if do in TASKS:
            asyncio.create_task(TASKS[do](ask.seconds))  # noqa: RUF006
        case "note":
            app.add_async_task("note", {"ticket": 7})
    return "done"


@app.websocket
async def echo(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    await websocket.accept()
    async for text in websocket.iter_data("text"):
        await websocket.send_text(text)


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
