"""An agent that answers in every way there is. It runs on the official SDK too, after its import is changed."""

import json
import sys
from typing import Any

from bedrock_agentcore.runtime import BedrockAgentCoreApp  # type: ignore[import-not-found]

app = BedrockAgentCoreApp()


@app.entrypoint  # type: ignore[untyped-decorator]
async def answer(payload: Any) -> Any:
    if isinstance(payload, dict) and payload.get("stream"):
        return events(payload)
    return payload


async def events(payload: Any) -> Any:
    for number in range(20):
        yield {"number": number, "payload": payload}


@app.websocket  # type: ignore[untyped-decorator]
async def converse(websocket: Any, context: Any) -> None:
    await websocket.accept()
    while True:
        message = await websocket.receive_text()
        await websocket.send_text(message)


if __name__ == "__main__":
    app.run(int(sys.argv[1]), **json.loads(sys.argv[2]))
