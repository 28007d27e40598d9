"""``GET /ping`` and ``GET /ready``."""

from litestar import Controller, Response, get, head
from litestar.openapi.datastructures import ResponseSpec

from litestar_agentcore.protocol.models import PingAnswer, ReadyAnswer
from litestar_agentcore.runtime.agent import Agent


def health_controller(agent: Agent) -> type[Controller]:
    """Make the controller that tells how an agent is.

    Args:
        agent: The agent.

    Returns:
        A Litestar controller.
    """

    class HealthController(Controller):
        tags = ("health",)

        @get(
            "/ping",
            name="agentcore-ping",
            operation_id="ping",
            summary="Health",
            response_description="The status",
        )
        async def ping(self) -> PingAnswer:
            """Whether the agent is free or busy with background tasks, and since when.

            Answers whatever the handlers are doing.
            """
            return await agent.health.answer()

        @head("/ping", operation_id="ping_head", summary="Health, without a body")
        async def ping_head(self) -> None:
            """What load balancers ask that want no body."""

        @get(
            "/ready",
            name="agentcore-ready",
            operation_id="ready",
            summary="Readiness",
            response_description="The service takes requests",
            responses={503: ResponseSpec(ReadyAnswer, description="The service is shutting down")},
        )
        async def ready(self) -> Response[ReadyAnswer]:
            """Whether new requests are welcome: not once the service is shutting down."""
            return Response(ReadyAnswer(not agent.shutting_down), status_code=503 if agent.shutting_down else 200)

    return HealthController
