"""Response objects that a handler returns: which values are one, and how it is sent."""

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from litestar import Request
from litestar.datastructures import Cookie
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from litestar_agentcore.protocol.headers import sendable_headers

logger = logging.getLogger(__name__)

Responder = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Sends one response."""

_is_application: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Whether the instances of a class are ASGI applications. Weak, since programs may make a class for each request."""


def as_responder(value: Any) -> Responder | None:
    """Tell a response from a value that is to be encoded.

    Args:
        value: What a handler returned.

    Returns:
        What sends the response, where the value is a Litestar response or another ASGI response object (an ASGI
        application with a ``status_code``, as Starlette's are); else ``None``. Headers that HTTP cannot carry
        are left out, and named in the log.
    """
    if issubclass(type(value), Response):
        return _with_sendable_headers(_litestar_responder(value))
    return _with_sendable_headers(value) if callable(value) and _is_asgi_response(value) else None


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
    kind = type(value)
    try:
        is_application = _is_application.get(kind)
        if is_application is None:
            is_application = inspect.iscoroutinefunction(kind.__call__)
            if is_application:
                inspect.signature(value).bind(None, None, None)
            _is_application[kind] = is_application
        return is_application and hasattr(value, "status_code")
    except Exception:  # it takes other arguments, its class cannot be hashed, its attributes raise
        return False


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
