"""An agent whose lifespan and routes, which run on the accepting loop, make and use what belongs to the agent's."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import get
from litestar_agentcore import BedrockAgentCoreApp


class Doubling:
    """A worker task behind a queue, both of which belong to the loop that they were made on."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self._lock = asyncio.Lock()
        self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            number, answer = await self._jobs.get()
            await asyncio.sleep(0.05)
            answer.set_result(2 * number)

    async def double(self, number: int) -> int:
        async with self._lock:
            answer = asyncio.get_running_loop().create_future()
            await self._jobs.put((number, answer))
            result: int = await answer
            return result

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


workers: list[Doubling] = []


async def open_worker() -> Doubling:
    return Doubling()


async def loop_id() -> int:
    return id(asyncio.get_running_loop())


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("not there")


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    workers.append(await app.agent.run(open_worker()))
    yield
    await app.agent.run(workers[0].close())
    app.logger.info("The worker is closed")


@get("/loops")
async def loops() -> dict[str, int]:
    return {"own": await loop_id(), "across": await app.agent.run(loop_id())}


@get("/double")
async def double(number: int) -> int:
    doubled: int = await app.agent.run(workers[0].double(number))
    return doubled


@get("/open")
async def open_another() -> int:
    workers.append(await app.agent.run(open_worker()))
    return len(workers)


@get("/fail")
async def fail_across() -> str:
    try:
        await app.agent.run(fail())
    except ValueError as error:
        return f"caught: {error}"
    return "nothing was raised"


app = BedrockAgentCoreApp(lifespan=lifespan, route_handlers=[loops, double, open_another, fail_across])


@app.entrypoint
async def handler(payload: dict[str, int]) -> dict[str, int]:
    return {
        "doubled": await workers[payload["worker"]].double(payload["number"]),
        "loop": await loop_id(),
        "across": await app.agent.run(loop_id()),
    }


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
