"""Routes for authenticated callers alone: a guard for an author's own, and for what is open by default."""

import copy
from typing import TYPE_CHECKING, Any

from litestar import Router
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig

from litestar_agentcore.protocol.models import Refusal

if TYPE_CHECKING:
    from litestar_agentcore.authentication import Authentication

AUTHENTICATION = "agentcore_authentication"
"""The key in an application's state of its authentication, or of ``None``."""


async def require_authentication(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let authenticated callers in alone, as ``/invocations`` does: ``@get("/", guards=[require_authentication])``.

    Where authentication is off, everybody may come in. The handler finds the claims in ``request.auth``.

    Args:
        connection: The request, or the WebSocket.

    Raises:
        HTTPException: With status 401, 403 or 503, in the same cases.
        ImproperlyConfiguredException: The application has no agent.
    """
    try:
        authentication: Authentication | None = connection.app.state[AUTHENTICATION]
    except KeyError:
        raise ImproperlyConfiguredException(
            "require_authentication needs an AgentCorePlugin in the application"
        ) from None
    if authentication is None:
        connection.scope["auth"] = None
        return
    try:
        connection.scope["auth"] = await authentication.authenticate(connection.scope)
    except Refusal as refusal:
        headers = {name.decode(): value.decode() for name, value in refusal.headers}
        raise HTTPException(detail=refusal.error, status_code=refusal.status, headers=headers) from None


def guarded_openapi(config: OpenAPIConfig) -> OpenAPIConfig:
    """Have an application's OpenAPI pages be for authenticated callers alone.

    Args:
        config: The application's configuration.

    Returns:
        The same, but for who may see the pages.
    """
    guarded = copy.copy(config)  # which ``dataclasses.replace`` would warn of, in its own __post_init__
    if (controller := config.openapi_controller) is not None:
        guards = [*(controller.guards or ()), require_authentication]
        guarded.openapi_controller = type(controller.__name__, (controller,), {"guards": guards})
        return guarded
    router = config.openapi_router or Router(config.path or "/schema", route_handlers=[], include_in_schema=False)
    router.guards = [*router.guards, require_authentication]
    guarded.openapi_router = router
    return guarded
