"""``GET /metrics``."""

from collections.abc import Sequence
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.types import Guard

from litestar_agentcore.runtime.agent import Agent


def metrics_controller(agent: Agent, path: str, guards: Sequence[Guard] = ()) -> type[Controller]:
    """Make the controller that Prometheus scrapes.

    Args:
        agent: The agent.
        path: Where it is scraped.
        guards: Who may do that.

    Returns:
        A Litestar controller.
    """

    class MetricsController(Controller):
        @get(path, name="agentcore-metrics", include_in_schema=False, guards=guards)
        async def metrics(self, request: Request[Any, Any, Any]) -> Response[bytes]:
            """The metrics: Prometheus text, or OpenMetrics where the scraper accepts it."""
            await agent.health.answer()  # asks a health function of the author's, which the metrics then tell of
            body, content_type = agent.telemetry.metrics.expose(request.headers.get("accept", ""))
            return Response(body, headers={"content-type": content_type}, media_type=content_type)

    return MetricsController
