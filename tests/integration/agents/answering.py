"""An agent that answers with what it was asked, over HTTP and on sockets."""

import sys
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
async def answer(payload: Any) -> Any:
    return payload


@app.websocket
async def converse(websocket: Any, context: Any) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


if __name__ == "__main__":
    app.run(port=int(sys.argv[2]), http=sys.argv[1])
