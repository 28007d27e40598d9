"""The agent of the cluster's tests: it answers, streams, talks, works on, hangs and crashes, as it is asked to."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import msgspec
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

VERSION = 0
"""Another number in each upgrade."""

EVENTS = 20

app = BedrockAgentCoreApp()

if seconds := float(os.environ.get("IMPORT_SECONDS", "0")):
    time.sleep(seconds)  # as agents do that load a model


class Ask(msgspec.Struct):
    do: Literal["answer", "stream", "research", "hold the interpreter", "take memory", "compute"] = "answer"
    seconds: float = 0.0
    task: str = ""
    report: str = ""
    """Where a task says that it is done."""


def own() -> dict[str, Any]:
    """What tells this pod from others."""
    return {"version": VERSION, "pod": os.environ["K8S_POD"]}


@app.async_task
async def research(task: str, seconds: float, report: str) -> None:
    await asyncio.sleep(seconds)
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(report, content=task)
        answer.raise_for_status()
    app.logger.info("The task %s is done", task)


async def events(seconds: float) -> AsyncIterator[dict[str, Any]]:
    for number in range(EVENTS):
        yield own() | {"number": number}
        await asyncio.sleep(seconds / EVENTS)


@app.entrypoint
async def agent(ask: Ask) -> Any:
    match ask.do:
        case "stream":
            return events(ask.seconds)
        case "research":
            asyncio.create_task(research(ask.task, ask.seconds, ask.report))  # noqa: RUF006 - the service keeps it
        case "hold the interpreter":
            re.match(r"(a+)+$", "a" * 40 + "b")  # hours, and no other thread has a turn meanwhile
        case "take memory":
            return len([bytearray(b"x" * 2**20) for _ in range(2**20)])
        case "compute":
            until = time.monotonic() + ask.seconds
            while time.monotonic() < until:
                await asyncio.sleep(0)
        case "answer":
            await asyncio.sleep(ask.seconds)
    return own()


@app.websocket
async def converse(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():  # type: ignore[attr-defined]
        await websocket.send_json(own() | {"echo": text})
