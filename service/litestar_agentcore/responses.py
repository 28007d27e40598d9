"""Response objects that a handler returns: which values are one, and how it is sent."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from litestar import Request
from litestar.response import Response
from litestar.types import Receive, Scope, Send

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
        application with a ``status_code``, as Starlette's are); else ``None``.
    """
    if issubclass(type(value), Response):
        return _litestar_responder(value)
    return value if callable(value) and _is_asgi_response(value) else None


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
        await response.to_asgi_response(None, request, status_code=200, type_encoders=encoders)(scope, receive, send)

    return respond
