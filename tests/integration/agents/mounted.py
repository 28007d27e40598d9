"""An agent inside an application that has routes of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from litestar import Litestar, get
from litestar_agentcore import AgentCorePlugin


class Ask(msgspec.Struct):
    seconds: float


async def agent(ask: Ask) -> str:
    await asyncio.sleep(ask.seconds)
    return "done"


@get("/report")
async def report(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "reported"


@asynccontextmanager
async def lifespan(_: Litestar) -> AsyncIterator[None]:
    yield
    print("The application has ended", file=sys.stderr)


app = Litestar(route_handlers=[report], plugins=[AgentCorePlugin(agent)], lifespan=[lifespan])
