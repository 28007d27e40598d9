"""``/runtimes/{arn}/...``: AWS's data plane."""

from typing import Any

from litestar import Controller, HttpMethod, Request, Response, WebSocket, post, route, websocket
from litestar.exceptions import HTTPException

from litestar_agentcore.authentication import Authentication
from litestar_agentcore.controllers.invocations import DATA_PLANE_ROUTE_NAME, InvocationResponse
from litestar_agentcore.data_plane import (
    CARD,
    INVOKE,
    PARAMETER,
    STOP,
    WEBSOCKET,
    DataPlane,
    DataPlaneConnection,
    StopOperation,
    admit_card_request,
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


class _Operations:
    """Answers whatever is asked for below the prefix.

    Args:
        agent: The agent.
        data_plane: What is served, by the time when it is asked for.
        authentication: Who may call; ``None`` for everybody.
    """

    def __init__(self, agent: Agent, data_plane: DataPlane, authentication: Authentication | None) -> None:
        self._agent = agent
        self._data_plane = data_plane
        self._authentication = authentication
        self._stop = StopOperation(agent, authentication)

    async def answer(self, request: Request[Any, Any, Any]) -> Any:
        asked = target(request.scope)
        operation, exchange = asked.operation, self._data_plane.serving(asked.operation)
        if operation != STOP and exchange is None:
            return self._refused(request, not_served(asked))
        method = "GET" if operation == CARD else "POST"
        if request.method == "OPTIONS":
            return Response(None, status_code=204, headers={"allow": f"OPTIONS, {method}"})
        if request.method != method:
            allow = [(b"allow", method.encode())]
            refusal = Refusal(405, f"The method is {method}, and not {request.method}", headers=allow)
            return self._refused(request, refusal)
        if exchange is None:
            return await self._stop(request)
        response = InvocationResponse(exchange)
        if operation == CARD:
            try:
                headers = await admit_card_request(request.scope, self._agent, self._authentication)
            except Refusal as refusal:
                return self._refused(request, refusal)
            response.headers.update((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        return response

    def _refused(self, request: Request[Any, Any, Any], refusal: Refusal) -> Response[bytes]:
        values = self._agent.headers.read(request.scope["headers"]).values
        return error_response(error_of(refusal), values, refusal.headers)


def data_plane_controller(
    agent: Agent, data_plane: DataPlane, authentication: Authentication | None, prefix: str
) -> type[Controller]:
    """Make the controller that answers AWS's clients.

    The slash in an ARN comes decoded, so one route takes whatever is below the prefix. The others are there for the
    OpenAPI page, and Litestar never chooses them.

    Args:
        agent: The agent.
        data_plane: What is served, by the time when it is asked for.
        authentication: Who may call; ``None`` for everybody.
        prefix: The path that all of it is below.

    Returns:
        A Litestar controller.
    """
    on_exception: Any = exception_handler(agent)
    security = None if authentication is None else security_requirements(authentication.takes_api_keys)
    operations = _Operations(agent, data_plane, authentication)

    class DataPlaneController(Controller):
        path = prefix
        tags = ("AWS data plane",)
        exception_handlers = {HTTPException: on_exception, 500: on_exception}  # noqa: RUF012 - as Litestar has it
        request_max_body_size = agent.settings.max_body_bytes

        @route(f"/{{{PARAMETER}:path}}", http_method=list(HttpMethod), status_code=200, include_in_schema=False)
        async def answer(self, request: Request[Any, Any, Any]) -> Any:
            """Answer whatever is asked for."""
            return await operations.answer(request)

        @websocket(f"/{{{PARAMETER}:path}}")
        async def converse(self, socket: WebSocket[Any, Any, Any]) -> None:
            await DataPlaneConnection(agent, socket, authentication, f"{data_plane.template}/{WEBSOCKET}").serve()

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
            return await operations.answer(request)

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
            return await operations.answer(request)

    return DataPlaneController
