"""``POST /invocations``."""

from functools import partial
from typing import Any, cast

from litestar import Controller, Litestar, Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from service.exchange import InvocationExchange
from service.openapi import INVOCATION_ERRORS, invocation_operation
from service.runtime.agent import Agent

ROUTE_NAME = "agentcore-invocations"


class InvocationResponse(Response[None]):
    """An invocation as Litestar sees it: a response like any other, to its hooks and its layers.

    Args:
        exchange: What serves the invocation once it is sent.
    """

    def __init__(self, exchange: InvocationExchange) -> None:
        super().__init__(None)
        self._exchange = exchange

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **options: Any) -> ASGIResponse:
        """Give the ASGI application that answers, with the headers and cookies that were set meanwhile."""
        fields = {**(options.get("headers") or {}), **self.headers}
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        headers += [cookie.to_encoded_header() for cookie in (*self.cookies, *(options.get("cookies") or ()))]
        return cast("ASGIResponse", partial(self._exchange, headers=headers) if headers else self._exchange)


def invocations_controller(agent: Agent, exchange: InvocationExchange) -> type[Controller]:
    """Make the controller that invokes an agent.

    Args:
        agent: The agent; its entrypoint, whenever it is registered, is what the OpenAPI page describes.
        exchange: What serves the requests.

    Returns:
        A Litestar controller.
    """

    class InvocationsController(Controller):
        tags = ("agent",)

        @post(
            "/invocations",
            name=ROUTE_NAME,
            status_code=200,
            request_max_body_size=agent.settings.max_body_bytes,
            operation_id="invoke",
            operation_class=invocation_operation(agent),
            responses=INVOCATION_ERRORS,
        )
        async def invoke(self) -> Any:
            """Invoke the agent."""
            return InvocationResponse(exchange)

    return InvocationsController


def is_invocations_handler(handler: object) -> bool:
    """Tell the route handler of ``/invocations`` from others."""
    return isinstance(handler, HTTPRouteHandler) and handler.name == ROUTE_NAME
