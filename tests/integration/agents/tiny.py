import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def handler(payload: Any) -> Any:
    logging.getLogger("x").info("Invoked")
    if payload == "raise":
        raise ValueError("No\nsuch luck")
    if payload == "block":
        threading.Event().wait()
    if payload == "block in a stream":
        return blocked_stream()
    return {"payload": payload}


def blocked_stream() -> Iterator[str]:
    yield "first"
    threading.Event().wait()


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
