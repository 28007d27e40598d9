"""``GET /ping`` and ``GET /ready``."""

import msgspec
from litestar import Controller, Response, get, head
from litestar.openapi.datastructures import ResponseSpec

from litestar_agentcore.protocol.models import PingAnswer, ReadyAnswer
from litestar_agentcore.runtime.agent import Agent


def health_controllers(agent: Agent, ping_path: str | None, ready_path: str | None) -> list[type[Controller]]:
    """Make the controllers that tell how an agent is.

    Args:
        agent: The agent.
        ping_path: Where its health is asked for, or ``None`` for nowhere.
        ready_path: Where it is asked whether it takes requests, or ``None`` for nowhere.

    Returns:
        Litestar controllers.
    """

    class PingController(Controller):
        path = ping_path or ""
        tags = ("health",)

        @get(
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

        @head(operation_id="ping_head", summary="Health, without a body")
        async def ping_head(self) -> Response[None]:
            """What load balancers ask that want no body: the headers of the answer to GET (RFC 9110, section 9.3.2)."""
            length = len(msgspec.json.encode(await agent.health.answer()))
            return Response(None, headers={"content-length": str(length)}, media_type="application/json")

    class ReadyController(Controller):
        path = ready_path or ""
        tags = ("health",)

        @get(
            name="agentcore-ready",
            operation_id="ready",
            summary="Readiness",
            response_description="The service takes requests",
            responses={503: ResponseSpec(ReadyAnswer, description="The service is shutting down")},
        )
        async def ready(self) -> Response[ReadyAnswer]:
            """Whether new requests are welcome: not once the service is shutting down."""
            return Response(ReadyAnswer(not agent.shutting_down), status_code=503 if agent.shutting_down else 200)

    controllers: list[type[Controller]] = []
    if ping_path is not None:
        controllers.append(PingController)
    if ready_path is not None:
        controllers.append(ReadyController)
    return controllers
