"""An agent that does what agents should not: it blocks, computes, and streams without end."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from litestar import get, put
from litestar_agentcore import BedrockAgentCoreApp


class Ask(msgspec.Struct):
    do: str = "answer"
    seconds: float = 0.0
    events: int | None = None
    """How many to stream; without end where it is not said."""
    tokens: int = 100
    """In each event."""


class Generators:
    """How many generators were begun and closed, counted from many threads.

    All are kept, so that none is closed by the garbage collector, whom nobody may rely on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[object] = []
        self.opened = self.closed = 0

    def keep(self, generator: object) -> object:
        self._kept.append(generator)
        return generator

    def open(self) -> None:
        with self._lock:
            self.opened += 1

    def close(self) -> None:
        with self._lock:
            self.closed += 1


generators = Generators()


@get("/generators", sync_to_thread=False)
def count_generators() -> dict[str, int]:
    return {"opened": generators.opened, "closed": generators.closed}


def events_of(ask: Ask) -> Iterator[dict[str, Any]]:
    text = "token " * ask.tokens
    numbers = itertools.count() if ask.events is None else range(ask.events)
    return ({"number": number, "text": text} for number in numbers)


async def async_events(ask: Ask) -> AsyncIterator[Any]:
    generators.open()
    try:
        for event in events_of(ask):
            yield event
            await asyncio.sleep(0)
    finally:
        generators.close()


def plain_events(ask: Ask) -> Iterator[Any]:
    generators.open()
    try:
        yield from events_of(ask)
    finally:
        generators.close()


@put("/entrypoint/{name:str}", sync_to_thread=False)
def choose_entrypoint(name: str) -> None:
    """Have another handler answer from now on; what runs goes on."""
    app.entrypoint({handler.__name__: handler for handler in (chat, chat_plainly, chat_without_await)}[name])


app = BedrockAgentCoreApp(route_handlers=[count_generators, choose_entrypoint])


@app.entrypoint
async def chat(payload: Ask) -> Any:
    await asyncio.sleep(0)
    match payload.do:
        case "block":
            time.sleep(payload.seconds)
        case "compute":
            deadline = time.monotonic() + payload.seconds
            while time.monotonic() < deadline:
                pass
        case "wait":
            await asyncio.sleep(payload.seconds)
        case "stream":
            return generators.keep(async_events(payload))
        case "stream plainly":
            return generators.keep(plain_events(payload))
    return "done"


def chat_plainly(payload: Ask) -> Any:
    if payload.do == "stream plainly":
        return generators.keep(plain_events(payload))
    time.sleep(payload.seconds)
    return "done"


async def chat_without_await(payload: Ask) -> str:
    time.sleep(payload.seconds)
    return "done"
