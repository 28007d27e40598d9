"""The agent on our runtime, and with one import line changed on the Python SDK: ``python agent.py PORT HANDLER``."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

EVENTS = 100


def unary(payload: dict[str, Any]) -> dict[str, Any]:
    return {"echo": payload["prompt"]}


async def unary_async(payload: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"echo": payload["prompt"]}


async def unary_one_step(payload: dict[str, Any]) -> dict[str, Any]:
    return {"echo": payload["prompt"]}


def stream(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number in range(EVENTS):
        yield {"token": f"token {number}"}


async def stream_async(payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for number in range(EVENTS):
        yield {"token": f"token {number}"}


async def sleeper(payload: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(1)
    return {"echo": payload["prompt"]}


async def clock(payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Say once a second when that was due, on the machine's monotonic clock."""
    start = time.monotonic()
    second = 0
    while True:
        await asyncio.sleep(start + second - time.monotonic())
        yield {"due": start + second}
        second += 1


HANDLERS = {
    "unary-async": unary_async,
    "unary-one-step": unary_one_step,
    "unary-sync": unary,
    "stream-async": stream_async,
    "stream-sync": stream,
    "sleepers": sleeper,
    "open-streams": clock,
}

if __name__ == "__main__":
    port, handler = sys.argv[1:]
    app = BedrockAgentCoreApp()
    app.entrypoint(HANDLERS[handler])
    app.run(int(port), "127.0.0.1", access_log=False, log_level="warning", loop="uvloop", http="httptools")
