"""An agent that answers in every way there is. It runs on the official SDK too, after its import is changed."""

import json
import sys

from bedrock_agentcore.runtime import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
async def answer(payload):
    if isinstance(payload, dict) and payload.get("stream"):
        return events(payload)
    return payload


async def events(payload):
    for number in range(20):
        yield {"number": number, "payload": payload}


@app.websocket
async def converse(websocket, context):
    await websocket.accept()
    while True:
        message = await websocket.receive_text()
        await websocket.send_text(message)


if __name__ == "__main__":
    app.run(int(sys.argv[1]), **json.loads(sys.argv[2]))
