"""What is sent at once leaves at once: uvicorn writes the head and the body of an answer to its socket one by one."""

from typing import Any

from litestar.types import Send

from litestar_agentcore.lost_connections import server_cycle

MOST_BYTES = 64 * 1024
"""Larger bodies are written on their own: to copy them would cost more than it saves."""


class Gathered:
    """Replaces the transport of one of uvicorn's answers, and keeps what is written until it is passed on.

    Args:
        cycle: What answers the request.
        transport: Its transport.
    """

    __slots__ = ("_cycle", "_parts", "_transport", "is_closing", "write", "writelines")

    def __init__(self, cycle: Any, transport: Any) -> None:
        self._cycle = cycle
        self._transport = transport
        self._parts: list[bytes] = []
        self.write = self._parts.append
        self.writelines = self._parts.extend
        self.is_closing = transport.is_closing
        cycle.transport = self

    def pass_on(self) -> None:
        """Write what was kept, and step aside."""
        self._cycle.transport = transport = self._transport
        if parts := self._parts:
            if not transport.is_closing():  # uvloop's raises where it is closed
                transport.write(b"".join(parts))
            parts.clear()

    def close(self) -> None:
        """Write what was kept, and close."""
        self.pass_on()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def gather(send: Send, size: int) -> Gathered | None:
    """Have what is sent from here on leave with one write of the socket, where the server is uvicorn.

    Each write is a system call, and wakes a client that then finds half an answer.

    Args:
        send: The ASGI send function.
        size: How many bytes the body has.

    Returns:
        What passes on what was sent; ``None`` where each message is sent by itself.
    """
    if size > MOST_BYTES:
        return None
    cycle = server_cycle(send)
    if cycle is None or (transport := getattr(cycle, "transport", None)) is None:
        return None
    return Gathered(cycle, transport)


def writes_to_server(send: Send) -> bool:
    """Tell whether an ASGI send function is uvicorn's own, with no middleware in between.

    Args:
        send: The ASGI send function.
    """
    return server_cycle(send) is not None
