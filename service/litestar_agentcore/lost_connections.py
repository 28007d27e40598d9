"""What a server raises from ``send`` where the connection is closed, though the ASGI specification has it not raise so.

Between the moment in which uvicorn gives a connection up (its parser met something that is not HTTP, say) and the one in
which it tells the application, uvloop's transports raise RuntimeError and h11 raises LocalProtocolError.
"""

import asyncio
from typing import Any

from litestar.types import Receive

DISCONNECT_SECONDS = 1.0
"""How long it may take until a server that has given a connection up tells the application so."""

_UVLOOP_CLOSED = "the handler is closed"
_CAUSES = 5


def may_be_lost_connection(error: BaseException) -> bool:
    """Tell whether an exception, or one that it was raised from, is what a server raises on a closed connection.

    Args:
        error: What ``send`` raised, or Litestar made of it.
    """
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is None:
            return False
        kind = type(cause)
        if isinstance(cause, RuntimeError) and _UVLOOP_CLOSED in str(cause):
            return True
        if kind.__name__ == "LocalProtocolError" and kind.__module__.partition(".")[0] == "h11":
            return True
        cause = cause.__cause__ or cause.__context__
    return False


async def is_lost_connection(error: BaseException, receive: Receive) -> bool:
    """Tell whether ``send`` raised because the connection is closed: the server then tells that the client has left.

    Args:
        error: What was raised.
        receive: The ASGI receive function of the connection.
    """
    if not may_be_lost_connection(error):
        return False
    cycle: Any = getattr(receive, "__self__", None)
    if hasattr(cycle, "disconnected") and cycle.transport.is_closing():
        # uvicorn tells this to the last of several pipelined requests alone.
        cycle.disconnected = True
        return True
    try:
        async with asyncio.timeout(DISCONNECT_SECONDS):
            message: Any = await receive()
            while message["type"] == "http.request":
                message = await receive()
    except TimeoutError:
        return False
    return bool(message["type"] == "http.disconnect")
