"""Ready-made responses of the author's: which values are one, and how it is sent."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request
from litestar.response import Response
from litestar.types import Receive, Scope, Send

Responder = Callable[[Scope, Receive, Send], Awaitable[None]]
"""Sends one response."""

_is_response_type: dict[type, bool] = dict.fromkeys((dict, list, tuple, str, int, float, bool, type(None)), False)


def as_responder(value: Any) -> Responder | None:
    """Tell a response from a value that is to be encoded.

    Args:
        value: What a handler returned.

    Returns:
        What sends the response, where the value is a Litestar response or any ASGI response object (a Starlette one,
        say: it has a ``status_code`` and is itself an ASGI application); else ``None``.
    """
    kind = type(value)
    known = _is_response_type.get(kind)
    if known is None:
        known = _is_response_type[kind] = issubclass(kind, Response) or _is_asgi_response(value)
    if not known:
        return None
    return _litestar_responder(value) if isinstance(value, Response) else value


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
        await response.to_asgi_response(None, request, status_code=200, type_encoders=encoders)(scope, receive, send)

    return respond
