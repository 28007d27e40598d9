"""The quick-start agent. Serve it with ``litestar run --port 8080``; the README and docs/quick-start.md talk to it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import WebSocket
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

app = BedrockAgentCoreApp()


class Ask(msgspec.Struct):
    """What to ask the agent."""

    prompt: str
    """The question."""

    stream: bool = False
    """Whether to answer word by word."""

    research_seconds: float = 0
    """How long to go on thinking in the background afterwards."""


@app.async_task
async def research(prompt: str, seconds: float) -> None:
    """Stand in for work that goes on after the answer. ``/ping`` says ``HealthyBusy`` meanwhile."""
    await asyncio.sleep(seconds)
    app.logger.info("Done with the research on a prompt of %d characters", len(prompt))


async def tell(text: str) -> AsyncIterator[dict[str, str]]:
    """Stand in for a model that answers one token at a time."""
    for word in text.split():
        yield {"token": word}
        await asyncio.sleep(0.05)


@app.entrypoint
async def agent(payload: Ask, context: RequestContext) -> Any:
    """Answer a question: at once, or word by word, and think on in the background if asked to."""
    answer = f"You said: {payload.prompt}"
    if payload.research_seconds > 0:
        asyncio.create_task(research(payload.prompt, payload.research_seconds))  # noqa: RUF006 - the service keeps it
    if payload.stream:
        return tell(answer)
    return {"answer": answer, "session": context.session_id}


@app.websocket
async def echo(websocket: WebSocket[Any, Any, Any], context: RequestContext) -> None:
    """Send back each message, until the client leaves."""
    await websocket.accept()
    async for message in websocket.iter_data("text"):
        await websocket.send_json({"echo": message, "session": context.session_id})


if __name__ == "__main__":
    app.run()
