"""An agent whose clients are rude: every line that it logs from WARNING on is one too many, but those that refuse."""

from collections.abc import AsyncIterator
from typing import Any

from litestar import WebSocket  # noqa: TC002 - which Litestar reads
from litestar_agentcore import BedrockAgentCoreApp, RequestContext

app = BedrockAgentCoreApp()


@app.entrypoint
async def handler(payload: Any) -> Any:
    prompt = payload.get("prompt") if isinstance(payload, dict) else None
    if prompt == "stream":
        return stream()
    return {"echo": prompt}


async def stream() -> AsyncIterator[str]:
    for number in range(20):
        yield f"event {number}"


@app.websocket
async def conversation(websocket: "WebSocket[Any, Any, Any]", context: RequestContext) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())
