"""An agent that records spans of its own, as the libraries of real ones do, in every place where it can."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, RequestContext
from opentelemetry import trace

app = BedrockAgentCoreApp()
sync_app = BedrockAgentCoreApp()


class Ask(msgspec.Struct):
    prompt: str = ""
    manner: Literal["brief", "long"] = "brief"


def record(name: str = "step") -> None:
    with trace.get_tracer("a library").start_as_current_span(name):
        pass


async def record_later() -> None:
    await asyncio.sleep(0.01)
    record()


def events(count: int, seconds: float) -> AsyncIterator[int]:
    async def stream() -> AsyncIterator[int]:
        for number in range(count):
            yield number
            await asyncio.sleep(seconds)

    return stream()


async def tell(text: str) -> AsyncIterator[str]:
    yield text


async def async_generator() -> AsyncIterator[str]:
    yield "before"
    record()
    yield "after"


def generator() -> Iterator[str]:
    yield "before"
    record()
    yield "after"


@app.async_task
async def research(seconds: float) -> None:
    await asyncio.sleep(seconds)
    record("finding")


@app.entrypoint
async def helper(payload: dict[str, Any]) -> Any:
    match payload.get("do"):
        case "async function":
            record()
        case "task":
            await asyncio.create_task(record_later())
        case "thread":
            await asyncio.to_thread(record)
        case "async generator":
            return async_generator()
        case "generator":
            return generator()
        case "stream":
            return events(payload["count"], payload["seconds"])
        case "tell":
            return tell(payload["prompt"])
        case "research":
            asyncio.create_task(research(payload["seconds"]))  # noqa: RUF006 - the service keeps it
        case "fail":
            raise LookupError("no such tool")
    return {"answer": payload.get("prompt")}


@app.websocket
async def echo(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    await websocket.accept()
    async for text in websocket.iter_data("text"):
        await websocket.send_text(text)


@sync_app.entrypoint
def sync_helper(payload: Ask) -> Any:
    record()
    return {"answer": payload.prompt}
