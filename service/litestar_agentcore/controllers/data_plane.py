"""``/runtimes/{arn}/...``: AWS's data plane."""

from typing import Any

from litestar import Controller, HttpMethod, Request, Response, WebSocket, post, route, websocket
from litestar.exceptions import HTTPException

from litestar_agentcore.authentication import Authentication
from litestar_agentcore.controllers.invocations import DATA_PLANE_ROUTE_NAME, InvocationResponse
from litestar_agentcore.data_plane import (
    INVOKE,
    PARAMETER,
    STOP,
    WEBSOCKET,
    DataPlaneConnection,
    DataPlaneExchange,
    StopOperation,
    error_response,
    exception_handler,
    not_served,
    target,
)
from litestar_agentcore.openapi import (
    data_plane_invocation_operation,
    data_plane_responses,
    security_requirements,
    stop_operation,
)
from litestar_agentcore.protocol.aws_errors import error_of
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.runtime.agent import Agent


def data_plane_controller(
    agent: Agent, debug: bool, authentication: Authentication | None, prefix: str
) -> type[Controller]:
    """Make the controller that answers AWS's clients.

    The slash in an ARN comes decoded, so one route takes whatever is below the prefix. The others are there for the
    OpenAPI page, and Litestar never chooses them.

    Args:
        agent: The agent.
        debug: Whether payloads may ask for debug actions.
        authentication: Who may call; ``None`` for everybody.
        prefix: The path that all of it is below.

    Returns:
        A Litestar controller.
    """
    template = f"{prefix.rstrip('/')}/{{arn}}"
    exchange = DataPlaneExchange(agent, debug, authentication, f"{template}/{INVOKE}")
    on_exception: Any = exception_handler(agent)
    stop_session = StopOperation(agent, authentication)
    security = None if authentication is None else security_requirements(authentication.takes_api_keys)

    async def answer(request: Request[Any, Any, Any]) -> Any:
        asked = target(request.scope)
        if asked.operation not in (INVOKE, STOP):
            return _refused(request, not_served(asked))
        if request.method == "OPTIONS":
            return Response(None, status_code=204, headers={"allow": "OPTIONS, POST"})
        if request.method != "POST":
            refusal = Refusal(405, f"The method is POST, and not {request.method}", headers=[(b"allow", b"POST")])
            return _refused(request, refusal)
        return InvocationResponse(exchange) if asked.operation == INVOKE else await stop_session(request)

    def _refused(request: Request[Any, Any, Any], refusal: Refusal) -> Response[bytes]:
        values = agent.headers.read(request.scope["headers"]).values
        return error_response(error_of(refusal), values, refusal.headers)

    class DataPlaneController(Controller):
        path = prefix
        tags = ("AWS data plane",)
        exception_handlers = {HTTPException: on_exception, 500: on_exception}  # noqa: RUF012 - as Litestar has it
        request_max_body_size = agent.settings.max_body_bytes

        @route(f"/{{{PARAMETER}:path}}", http_method=list(HttpMethod), status_code=200, include_in_schema=False)
        async def answer(self, request: Request[Any, Any, Any]) -> Any:
            """Answer whatever is asked for."""
            return await answer(request)

        @websocket(f"/{{{PARAMETER}:path}}")
        async def converse(self, socket: WebSocket[Any, Any, Any]) -> None:
            await DataPlaneConnection(agent, socket, authentication, f"{template}/{WEBSOCKET}").serve()

        @post(
            f"/{{arn:str}}/{INVOKE}",
            name=DATA_PLANE_ROUTE_NAME,
            status_code=200,
            operation_id="InvokeAgentRuntime",
            operation_class=data_plane_invocation_operation(agent),
            responses=data_plane_responses(),
            security=security,
        )
        async def invoke(self, request: Request[Any, Any, Any]) -> Any:
            """Invoke the agent."""
            return await answer(request)

        @post(
            f"/{{arn:str}}/{STOP}",
            status_code=200,
            operation_id="StopRuntimeSession",
            operation_class=stop_operation(),
            responses=data_plane_responses(stop=True),
            security=security,
        )
        async def stop(self, request: Request[Any, Any, Any]) -> Any:
            """Stop a session."""
            return await answer(request)

    return DataPlaneController
