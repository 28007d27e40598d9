"""An agent whose rollouts are watched. It is served as the image serves its agent: as ``app.py`` of the directory."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

DONE = Path(os.environ["TASKS_DONE"])
"""Gets a line for each task that has finished."""

BLOB = "x" * 64 * 1024


class Ask(msgspec.Struct):
    do: Literal["answer", "stream", "research", "note", "pour out", "go on for ever"]
    seconds: float = 0.1
    task: str = ""


@app.async_task
async def research(task: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with DONE.open("a") as done:
        done.write(f"{task}\n")


async def events(seconds: float) -> AsyncIterator[int]:
    for number in range(20):
        yield number
        await asyncio.sleep(seconds / 20)


async def pour_out() -> AsyncIterator[str]:
    while True:
        yield BLOB


async def go_on_for_ever() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            app.logger.info("And yet it goes on")


async def agent(ask: Ask) -> Any:
    match ask.do:
        case "stream":
            return events(ask.seconds)
        case "research":
            asyncio.create_task(research(ask.task, ask.seconds))  # noqa: RUF006 - the service keeps it
        case "note":
            app.add_async_task("note", {"ticket": 7})
        case "pour out":
            return pour_out()
        case "go on for ever":
            await go_on_for_ever()
        case "answer":
            await asyncio.sleep(ask.seconds)
    return "done"


def plain_events(seconds: float) -> Iterator[int]:
    for number in range(20):
        yield number
        time.sleep(seconds / 20)


def plain_agent(ask: Ask) -> Any:
    if ask.do == "stream":
        return plain_events(ask.seconds)
    time.sleep(ask.seconds)
    return "done"


app.entrypoint(plain_agent if os.environ.get("HANDLER") == "plain" else agent)
