"""``POST /invocations``."""

from typing import cast

from litestar import Controller, post
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from service.exchange import InvocationExchange
from service.openapi import INVOCATION_ERRORS, invocation_operation
from service.runtime.agent import Agent

ROUTE_NAME = "agentcore-invocations"


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
        async def invoke(self) -> ASGIResponse:
            """Invoke the agent."""
            # Litestar serves any ASGI application that a handler returns, which leaves the body unread and the answer,
            # be it one value or a stream, to the exchange.
            return cast("ASGIResponse", exchange)

    return InvocationsController


def is_invocations_handler(handler: object) -> bool:
    """Tell the route handler of ``/invocations`` from others."""
    return isinstance(handler, HTTPRouteHandler) and handler.name == ROUTE_NAME
