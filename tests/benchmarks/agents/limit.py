"""As little as can answer: an ASGI function on uvicorn, with msgspec. ``python limit.py PORT HANDLER``.

Knows no sessions, no contexts, no errors, no telemetry and no handlers: what a runtime costs is what it adds to this.
"""

import asyncio
import sys
from typing import Any

import msgspec
import uvicorn

EVENTS = 100
JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]


async def unary_async(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0)
    await unary(scope, receive, send)


async def unary(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    more = scope["method"] == "POST"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    payload = msgspec.json.decode(body) if body else {"prompt": None}
    answer = msgspec.json.encode({"echo": payload["prompt"]})
    headers = [*JSON, (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for number in range(EVENTS):
        event = b"data: " + msgspec.json.encode({"token": f"token {number}"}) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body"})


if __name__ == "__main__":
    port, handler = sys.argv[1:]
    uvicorn.run(
        {"unary-async": unary_async, "unary-one-step": unary, "stream-async": stream}[handler],
        host="127.0.0.1",
        port=int(port),
        lifespan="off",
        access_log=False,
        log_level="warning",
        loop="uvloop",
        http="httptools",
    )
