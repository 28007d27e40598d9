"""Ready-made responses of the author's: which values are one, and how it is sent."""

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from litestar import Request
from litestar.datastructures import Cookie
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from litestar_agentcore.protocol.headers import sendable_headers

logger = logging.getLogger(__name__)

Responder = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Sends one response."""

_is_response_type: dict[type, bool] = dict.fromkeys((dict, list, tuple, str, int, float, bool, type(None)), False)


def as_responder(value: Any) -> Responder | None:
    """Tell a response from a value that is to be encoded.

    Args:
        value: What a handler returned.

    Returns:
        What sends the response, where the value is a Litestar response or any ASGI response object (a Starlette one,
        say: it has a ``status_code`` and is itself an ASGI application); else ``None``. Headers that HTTP cannot carry
        are left out, and named in the log.
    """
    kind = type(value)
    known = _is_response_type.get(kind)
    if known is None:
        known = _is_response_type[kind] = issubclass(kind, Response) or _is_asgi_response(value)
    if not known:
        return None
    return _with_sendable_headers(_litestar_responder(value) if isinstance(value, Response) else value)


def sendable_cookies(cookies: Iterable[Cookie]) -> list[Cookie]:
    """The cookies of an answer that HTTP can carry. The others are left out, and named in the log."""
    sendable = []
    for cookie in cookies:
        try:
            cookie.to_encoded_header()
        except UnicodeEncodeError:
            logger.warning("The cookie %r of an answer cannot be sent over HTTP, and is left out", cookie.key)
        else:
            sendable.append(cookie)
    return sendable


def _with_sendable_headers(responder: Responder) -> Responder:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_sendable(message: Any) -> None:
            if message["type"] in _START:
                message = message | {"headers": sendable_headers(message.get("headers", ()))}
            await send(message)

        await responder(scope, receive, send_sendable)

    return respond


_START = frozenset({"http.response.start", "websocket.http.response.start"})


def _is_asgi_response(value: Any) -> bool:
    call = getattr(type(value), "__call__", None)  # noqa: B004 - its signature is wanted, not whether there is one
    if not hasattr(value, "status_code") or not inspect.iscoroutinefunction(call):
        return False
    try:
        inspect.signature(value).bind(None, None, None)
    except (TypeError, ValueError):
        return False
    return True


def _litestar_responder(response: Response[Any]) -> Responder:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        encoders = request.route_handler.resolve_type_encoders()
        try:
            answer = response.to_asgi_response(None, request, status_code=200, type_encoders=encoders)
        except UnicodeEncodeError:  # of a header or a cookie
            sendable = copy.copy(response)
            headers = sendable_headers(response.headers.items())
            sendable.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
            sendable.cookies = sendable_cookies(response.cookies)
            answer = sendable.to_asgi_response(None, request, status_code=200, type_encoders=encoders)
        await answer(scope, receive, send)

    return respond
