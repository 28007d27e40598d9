"""``POST /invocations``."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from litestar import Controller, Litestar, Request, Response, post
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.authentication import Authentication
from litestar_agentcore.exchange import Exchange, InvocationExchange
from litestar_agentcore.openapi import (
    INVOCATION_ERRORS,
    invocation_operation,
    security_requirements,
)
from litestar_agentcore.protocol.headers import sendable_headers
from litestar_agentcore.responses import sendable_cookies
from litestar_agentcore.runtime.agent import Agent

PATH = "/invocations"
ROUTE_NAME = "agentcore-invocations"
DATA_PLANE_ROUTE_NAME = "agentcore-invoke-agent-runtime"


class InvocationResponse(Response[None]):
    """An invocation as Litestar sees it: a response like any other, to its hooks and its layers.

    Args:
        exchange: What serves the invocation once it is sent.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(None)
        self._exchange = exchange

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **options: Any) -> ASGIResponse:
        """Give the ASGI application that answers, with the headers and cookies that were set meanwhile."""
        fields = {**(options.get("headers") or {}), **self.headers}
        headers = sendable_headers((name.lower(), value) for name, value in fields.items())
        cookies = sendable_cookies((*self.cookies, *(options.get("cookies") or ())))
        headers += sendable_headers(cookie.to_encoded_header() for cookie in cookies)
        return cast("ASGIResponse", partial(self._exchange, headers=headers) if headers else self._exchange)


class _ExchangeMiddleware:
    """The innermost middleware of the route: serves the invocation, where the handler has nothing to add to it.

    Litestar makes a request and a response for each call of a handler. That is only needed for what an application
    may have put around this one: guards, hooks, response headers and cookies.

    Args:
        app: The route's handler.
        exchange: What serves the invocation.
    """

    def __init__(self, app: ASGIApp, exchange: Exchange) -> None:
        self._handle = app
        self._exchange = exchange
        self._next: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serve = self._next
        if serve is None:
            handler = cast("HTTPRouteHandler", scope["route_handler"])
            long = _adds_something(handler, scope["litestar_app"])
            serve = self._next = self._handle if long else self._exchange
        await serve(scope, receive, send)


def _adds_something(handler: HTTPRouteHandler, app: Litestar) -> bool:
    return bool(
        # These three Litestar puts inside of a handler's own middleware.
        app.csrf_config
        or app.compression_config
        or app.allowed_hosts
        or handler.resolve_guards()
        or handler.resolve_before_request()
        or any(layer.after_request for layer in handler.ownership_layers)
        or handler.resolve_after_response()
        or handler.resolve_response_headers()
        or handler.resolve_response_cookies()
        or handler.cache
    )


class FastPath:
    """Serves an application's ``POST /invocations`` where nothing stands between the server and the exchange.

    Litestar finds the route and the exception handlers of each request anew. Here they are found once, and only what
    an application has asked for is done: with middleware, guards, hooks, CORS, CSRF, compression, allowed hosts,
    response headers or a path of its own there is no fast path, and Litestar routes every request.

    Args:
        app: The application, with all its routes.
        exchange: What serves its invocations.
    """

    def __init__(self, app: Litestar, exchange: InvocationExchange) -> None:
        self._outer = app.asgi_handler
        self._hosts: set[bytes] = set()
        self._app = app
        self._exchange = exchange
        self._is_open = False
        try:
            stack, handler, *_ = app.asgi_router.handle_routing(path=PATH, method="POST")
        except (NotFoundException, MethodNotAllowedException):
            return  # the application has a path of its own
        self._is_open = (
            getattr(self._outer, "app", None) is app.asgi_router
            and isinstance(stack, _ExchangeMiddleware)
            and not _adds_something(cast("HTTPRouteHandler", handler), app)
        )
        # What stands around the router: what an exchange raises is answered as it is on any route.
        self._guard: Any = type(self._outer)
        self._handler = handler
        self._exception_handlers = handler.resolve_exception_handlers() if self._is_open else {}

    def serves(self, scope: Any) -> bool:
        """Tell whether a request may go this way.

        Args:
            scope: Its ASGI scope.
        """
        app = self._app
        if not self._is_open or scope.get("root_path") or app.asgi_handler is not self._outer or app.before_send:
            return False
        for name, value in scope["headers"]:
            if name == b"host":
                return value in self._hosts or self._is_plain(value)
        return True

    def _is_plain(self, host: bytes) -> bool:
        """Tell whether a host is none that Litestar might refuse."""
        if _PLAIN_HOST.fullmatch(host) is None:
            return False
        if len(self._hosts) < _HOSTS_REMEMBERED:
            self._hosts.add(host)
        return True

    async def serve(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a request that :meth:`serves` was true for.

        Args:
            scope: Its ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
        """
        scope["app"] = scope["litestar_app"] = self._app
        scope["path_params"] = {}
        scope["path_template"] = PATH
        scope["route_handler"] = self._handler
        try:
            await self._exchange(scope, receive, send)
        except Exception as error:
            ScopeState.from_scope(scope).exception_handlers = self._exception_handlers
            await self._guard(app=_raising(error), debug=None)(scope, receive, send)


def _raising(error: Exception) -> ASGIApp:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return fail


_PLAIN_HOST = re.compile(rb"[0-9A-Za-z.:\[\]-]{1,255}")
_HOSTS_REMEMBERED = 100


def exchange_middleware(exchange: Exchange) -> Callable[[ASGIApp], ASGIApp]:
    """Make the innermost middleware of a route that an exchange serves.

    Args:
        exchange: What serves the requests.
    """

    def middleware(app: ASGIApp) -> ASGIApp:  # Litestar copies handlers deeply, and a function stays itself in that
        return _ExchangeMiddleware(app, exchange)

    return middleware


def invocations_controller(
    agent: Agent, exchange: InvocationExchange, authentication: Authentication | None
) -> type[Controller]:
    """Make the controller that invokes an agent.

    Args:
        agent: The agent; its entrypoint, whenever it is registered, is what the OpenAPI page describes.
        exchange: What serves the requests.
        authentication: Who may invoke it, as the OpenAPI page says; ``None`` for everybody.

    Returns:
        A Litestar controller.
    """
    security = None if authentication is None else security_requirements(authentication.takes_api_keys)

    class InvocationsController(Controller):
        tags = ("agent",)

        @post(
            PATH,
            name=ROUTE_NAME,
            status_code=200,
            request_max_body_size=agent.settings.max_body_bytes,
            operation_id="invoke",
            operation_class=invocation_operation(agent),
            responses=INVOCATION_ERRORS,
            security=security,
            middleware=[exchange_middleware(exchange)],
        )
        async def invoke(self) -> Any:
            """Invoke the agent."""
            return InvocationResponse(exchange)

    return InvocationsController


def is_invocations_handler(handler: object) -> bool:
    """Tell a route handler that invokes the agent from others."""
    return isinstance(handler, HTTPRouteHandler) and handler.name in (ROUTE_NAME, DATA_PLANE_ROUTE_NAME)
