"""The agent that the playground's tests and pictures call: one of everything that a handler can do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Litestar, WebSocket, asgi
from litestar.exceptions import HTTPException
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

app = BedrockAgentCoreApp()

ANSWER = (
    "Take the night train to Ljubljana, walk along the river to the Dragon Bridge, and be at the market before eight. "
    "In the afternoon the bus to Bled takes an hour; row to the island while the light is low."
)


class Traveller(msgspec.Struct):
    """Who travels."""

    name: str = "Ann"
    vegetarian: bool = False


class Trip(msgspec.Struct, forbid_unknown_fields=True):
    """Plan a trip: what you would like to see, and how to answer."""

    prompt: Annotated[str, msgspec.Meta(description="What you would like to do.", examples=["A weekend by a lake"])]
    days: Annotated[int, msgspec.Meta(ge=1, le=30)] = 2
    style: Literal["relaxed", "packed"] = "relaxed"
    mode: Annotated[
        Literal["answer", "stream", "flood", "wait", "fail", "break", "research"],
        msgspec.Meta(description="How to answer."),
    ] = "stream"
    tags: list[str] = []
    traveller: Traveller | None = None
    budget: Annotated[float | None, msgspec.Meta(description="In euros.")] = None


@app.async_task
async def compare_trains(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def words(payload: Trip) -> AsyncIterator[dict[str, str]]:
    for word in ANSWER.split():
        yield {"token": f"{word} "}
        await asyncio.sleep(0.025)


async def flood() -> AsyncIterator[dict[str, int]]:
    for number in range(20_000):
        yield {"number": number}


async def until_left() -> AsyncIterator[str]:
    yield "first"
    await asyncio.sleep(600)


async def broken() -> AsyncIterator[str]:
    yield "one"
    raise LookupError("the map is lost")


@app.entrypoint
async def trip_planner(payload: Trip, context: RequestContext) -> Any:
    """Plan a trip."""
    match payload.mode:
        case "stream":
            return words(payload)
        case "flood":
            return flood()
        case "wait":
            return until_left()
        case "break":
            return broken()
        case "fail":
            raise HTTPException(status_code=409, detail="The trip is over")
        case "research":
            asyncio.create_task(compare_trains(payload.days))  # noqa: RUF006 - the service keeps it
    return {"answer": ANSWER, "asked": payload, "session": context.session_id, "markup": "<img src=x onerror=alert(1)>"}


@app.websocket
async def converse(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    """Send back each message; close with 4000 when asked to."""
    await websocket.accept()
    async for message in websocket.iter_data("text"):
        if message == "bye":
            await websocket.close(4000, "as you like")
            return
        await websocket.send_json({"echo": message, "session": context.session_id})


mounted = Litestar(route_handlers=[asgi("/agents/one", is_mount=True, copy_scope=True)(app)], logging_config=None)
"""The same below a prefix."""
