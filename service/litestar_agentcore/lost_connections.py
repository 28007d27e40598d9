"""Connections that end under an answer: what is sent to them is dropped, and is no error of the service's."""

from collections.abc import Awaitable
from typing import Any

from litestar.types import Message, Send

_SERVERS = frozenset({"uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.http.h11_impl"})


class ClientSend:
    """The send function of one request, that stays silent where the client can no longer be reached.

    uvicorn closes a connection on which something follows that is no HTTP, and does not tell the request that it is
    still answering: its ``send`` then writes to a closed transport, or to a parser in a state that allows no answer,
    and raises. Here the request is told what uvicorn tells it of any client that left: ``receive`` gives
    ``http.disconnect``, and ``send`` drops what it is given (ASGI specification 2.3).

    Args:
        server_send: The send function of uvicorn.
    """

    __slots__ = ("_cycle", "lost", "server_send")

    def __init__(self, server_send: Send) -> None:
        self.server_send = server_send
        self._cycle: Any = getattr(server_send, "__self__", None)
        self.lost = False
        """Whether something was dropped."""

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send a message, or drop it; what is returned is to be awaited at once."""
        cycle = self._cycle
        if cycle.disconnected:
            self.lost = True
        elif cycle.transport.is_closing() and not cycle.response_complete:
            self.lost = cycle.disconnected = True
            cycle.message_event.set()
        return self.server_send(message)  # and not awaited here: a coroutine more for each message


def client_send(send: Send) -> Send:
    """Give the send function that stays silent once the client is gone, where the server is uvicorn.

    Args:
        send: The ASGI send function.

    Returns:
        A :class:`ClientSend`, or the function itself where the server is another or a middleware stands in between.
    """
    return ClientSend(send) if type(getattr(send, "__self__", None)).__module__ in _SERVERS else send


def server_cycle(send: Send) -> Any:
    """What answers the request in uvicorn, with no middleware in between.

    Args:
        send: The ASGI send function.

    Returns:
        uvicorn's own object; ``None`` where a middleware stands in between, or the server is another.
    """
    cycle = getattr(getattr(send, "server_send", send), "__self__", None)
    return cycle if type(cycle).__module__ in _SERVERS else None
