"""An agent that answers in every way that its clients must understand."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from litestar import Response
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp(debug=True)


async def text(pieces: list[str]) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def words(message: str) -> AsyncIterator[dict[str, str]]:
    for word in message.split(" "):
        yield {"data": f"{word} "}


async def numbers() -> AsyncIterator[dict[str, int]]:
    yield {"number": 1}
    yield {"number": 2}


async def failing() -> AsyncIterator[str]:
    yield "before"
    raise ValueError("no more")


async def endless() -> AsyncIterator[str]:
    yield "begun\n"
    await asyncio.Event().wait()


async def flood() -> AsyncIterator[str]:
    while True:
        yield "x" * 1000 + "\n"


@app.entrypoint
async def agent(payload: Any, context: Any) -> Any:
    await asyncio.sleep(0)
    message = payload.get("prompt") if isinstance(payload, dict) else None
    match message:
        case "text":
            return text(["Hel", "lo", " \N{CAT}\n", "bye\x1b[31m"])
        case "numbers":
            return numbers()
        case "failing":
            return failing()
        case "endless":
            return endless()
        case "flood":
            return flood()
        case "fail":
            raise RuntimeError("it broke")
        case "binary":
            return Response(b"\x00\xff\x1b[31m", media_type="application/octet-stream")
        case "task":
            return app.add_async_task("research")
        case "headers":
            return context.request_headers
        case "session":
            return {"session": context.session_id}
        case str() if message.startswith("say "):
            return words(message.removeprefix("say "))
    return payload


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
