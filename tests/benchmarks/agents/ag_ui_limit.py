"""AG-UI's library and an ASGI function on uvicorn, and nothing else: ``python ag_ui_limit.py PORT HANDLER``."""

import sys
from typing import Any

import uvicorn
from ag_ui.core import RunAgentInput, TextMessageContentEvent
from ag_ui.encoder import EventEncoder

EVENTS = 100
SSE = [(b"content-type", b"text/event-stream")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    more = scope["method"] == "POST"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    if body:
        RunAgentInput.model_validate_json(body)
    encoder = EventEncoder()
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for number in range(EVENTS):
        event = encoder.encode(TextMessageContentEvent(message_id="message-2", delta=f"token {number}"))
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
    await send({"type": "http.response.body"})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="off",
        access_log=False,
        log_level="warning",
        loop="uvloop",
        http="httptools",
    )
