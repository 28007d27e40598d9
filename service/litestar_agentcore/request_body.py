"""The body of an invocation's request, read whole."""

import asyncio
import contextlib
from typing import Any

from litestar.types import Empty, Receive, Scope
from litestar.utils.scope.state import CONNECTION_STATE_KEY, ScopeState

from litestar_agentcore.protocol.headers import RequestHeaders
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.runtime.timeouts import HasTimeLimit, TimeoutQueue

DISCARD_SECONDS = 5.0
"""How long a client may go on sending a body that is too large before it is answered and cut off."""

_NO_STATE: dict[str, Any] = {}


async def read_body(
    request: RequestHeaders,
    scope: Scope,
    receive: Receive,
    limit: int,
    timeouts: TimeoutQueue | None,
    limited: HasTimeLimit,
) -> bytes | None:
    """Read the whole body. ``None`` where the client went away before it was complete.

    A middleware may have read it before: Litestar keeps it in the scope's state, for what reads it next.

    Args:
        request: The headers of the request.
        scope: Its ASGI scope.
        receive: Its ASGI receive function.
        limit: The most bytes that it may have.
        timeouts: How long it may make no progress, if not for ever.
        limited: What is timed out then; it is to cancel this.

    Raises:
        Refusal: The body is larger than the limit (status 413).
    """
    state: ScopeState | None = scope.get("state", _NO_STATE).get(CONNECTION_STATE_KEY)
    if state is not None and state.body is not Empty:
        if len(state.body) > limit:
            raise _too_large(limit)
        return state.body
    if request.content_length is not None and request.content_length > limit:
        if not request.expects:  # who expects a 100 has not begun to send
            await _discard(receive, DISCARD_SECONDS)
        raise _too_large(limit)
    if timeouts is not None:
        timeouts.start(limited)
    try:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body = message.get("body", b"")
        if message.get("more_body", False):
            whole = await _read_on(receive, body, limit, timeouts, limited)
            if whole is None:
                return None
            body = whole
    finally:
        if timeouts is not None:
            timeouts.stop(limited)
    if len(body) > limit:
        raise _too_large(limit)
    if state is not None:
        state.body = body
    return body


async def _read_on(
    receive: Receive, body: bytes, limit: int, timeouts: TimeoutQueue | None, limited: HasTimeLimit
) -> bytes | None:
    parts = [body]
    size = len(body)
    more = True
    while more:
        if size > limit:
            if timeouts is not None:
                timeouts.stop(limited)
            await _discard(receive, DISCARD_SECONDS)
            raise _too_large(limit)
        message = await receive()
        if message["type"] != "http.request":
            return None
        if part := message.get("body", b""):
            parts.append(part)
            size += len(part)
            if timeouts is not None:
                timeouts.restart(limited)
        more = message.get("more_body", False)
    return b"".join(parts)


def keep_body(scope: Scope, body: bytes | None) -> None:
    """Have a Litestar request that is made of the scope find the body that was read.

    Args:
        scope: The ASGI scope of the request.
        body: What was read, if anything.
    """
    if body is not None:
        ScopeState.from_scope(scope).body = body


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "Payload too large", f"The body exceeds the limit of {limit} bytes")


async def discard_body(scope: Scope, receive: Receive, seconds: float) -> bool:
    """Take in what a client that is answered already, or is about to be, still sends of its body, and keep none of it.

    Args:
        scope: The ASGI scope of the request.
        receive: Its ASGI receive function.
        seconds: How long it may take.

    Returns:
        Whether the body was complete in that time.
    """
    state: ScopeState | None = scope.get("state", _NO_STATE).get(CONNECTION_STATE_KEY)
    if state is not None and state.body is not Empty:
        return True
    return await _discard(receive, seconds)


async def _discard(receive: Receive, seconds: float) -> bool:
    """Let a client that still sends finish, for a while: it would not read an answer before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return True
    return False
