"""An agent whose host program has an error tracker on the root logger, and which fails in many ways."""

import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import litestar
from litestar_agentcore import BedrockAgentCoreApp
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse


class Tracker(logging.Handler):
    """Writes what it is told where the test can read it."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        sys.stderr.write(json.dumps({"tracked": record.getMessage(), "error": str(error)}) + "\n")


logging.getLogger().addHandler(Tracker(logging.ERROR))


@litestar.get("/own")
async def own() -> None:
    raise LookupError("in a route")


app = BedrockAgentCoreApp(route_handlers=[own])


async def broken() -> AsyncIterator[bytes]:
    yield b"x"
    raise LookupError("in a response")


async def stream() -> AsyncIterator[int]:
    yield 1
    raise LookupError("in a stream")


@app.entrypoint
async def handler(payload: Any) -> Any:
    match payload:
        case "status":
            raise HTTPException(503, "with a status")
        case "stream":
            return stream()
        case "response":
            return StreamingResponse(broken())
        case _:
            raise LookupError("in a handler")


@app.websocket
async def socket(websocket: Any, context: Any) -> None:
    await websocket.accept()
    raise LookupError("in a socket")


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
