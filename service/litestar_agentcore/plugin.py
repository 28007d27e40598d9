"""The entrance: a Litestar plugin that puts an agent into an application."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from agentcore_telemetry.logs import configure_logging, reform_server_lines, uvicorn_unconfigured
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.plugins import CLIPlugin, InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute

from litestar_agentcore.authoring import AgentAuthoring, AnyFunction
from litestar_agentcore.controllers.health import health_controllers
from litestar_agentcore.controllers.invocations import invocations_controller, is_invocations_handler
from litestar_agentcore.controllers.metrics import metrics_controller
from litestar_agentcore.controllers.websocket import websocket_controller
from litestar_agentcore.exchange import InvocationExchange
from litestar_agentcore.openapi import PayloadSchemaPlugin, document_payload
from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.protocol.settings import Settings
from litestar_agentcore.responses import as_responder
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.shutdown import Shutdown, leave_behind
from litestar_agentcore.version import __version__

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler


class AgentCorePlugin(AgentAuthoring, PayloadSchemaPlugin, InitPlugin, ReceiveRoutePlugin, CLIPlugin):
    """Serves an agent inside a Litestar application, beside whatever else is there.

    ``Litestar(plugins=[AgentCorePlugin(handler)])`` adds ``/invocations``, ``/ping``, ``/ready``,
    ``/metrics`` and ``/ws``. The
    application keeps its own routes, middleware, exception handlers, lifespan and logging.

    Args:
        entrypoint: The handler of ``/invocations``; may as well be registered later with :meth:`entrypoint`.
        settings: How the service behaves; by default as the ``AGENTCORE_*`` variables say.
        debug: Whether payloads may ask for debug actions; by default as the application's own ``debug``.
        logging: Whether log lines are written as JSON where the host program has not set up logging. Meant for an
            application that is nothing but the agent.
        ping_path: Where ``/ping`` is, in an application that has one of its own; ``None`` leaves it out.
        ready_path: Likewise for ``/ready``.
        metrics_path: Likewise for ``/metrics``.

    Raises:
        SettingsError: An ``AGENTCORE_*`` variable makes no sense.
        TelemetryError: An ``OTEL_*`` variable makes no sense.
        TypeError: The entrypoint cannot be called with a payload.
    """

    def __init__(
        self,
        entrypoint: Any = None,
        *,
        settings: Settings | None = None,
        debug: bool | None = None,
        logging: bool = False,
        ping_path: str | None = "/ping",
        ready_path: str | None = "/ready",
        metrics_path: str | None = "/metrics",
    ) -> None:
        super().__init__()
        self.agent = Agent(settings or Settings.from_environment(), as_responder, __version__)
        self._debug = debug
        self._ping_path = ping_path
        self._ready_path = ready_path
        self._metrics_path = metrics_path
        self._logging = logging
        self._documented: list[HTTPRouteHandler] = []
        if entrypoint is not None:
            self.entrypoint(entrypoint)

    def _register_entrypoint(self, function: AnyFunction, payload: Any) -> AnyFunction:
        super()._register_entrypoint(function, payload)
        self._document()
        return function

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Mount the endpoints; called by Litestar."""
        debug = app_config.debug if self._debug is None else self._debug
        self.exchange = exchange = InvocationExchange(self.agent, debug)
        app_config.route_handlers += [
            invocations_controller(self.agent, exchange),
            *health_controllers(self.agent, self._ping_path, self._ready_path),
            websocket_controller(self.agent),
        ]
        if self._metrics_path is not None:
            app_config.route_handlers.append(metrics_controller(self.agent, self._metrics_path))
        app_config.lifespan.append(self._lifespan)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Take note of the route that the payload's type is to be documented on; called by Litestar."""
        if isinstance(route, HTTPRoute):
            self._documented += filter(is_invocations_handler, route.route_handlers)
            self._document()

    def on_cli_init(self, cli: Any) -> None:
        """Add nothing to Litestar's command line; called by Litestar."""

    @contextmanager
    def server_lifespan(self, app: Litestar) -> Iterator[None]:
        """Have ``litestar run`` write its lines in the same form as the agent's; called by Litestar."""
        with uvicorn_unconfigured() if self.configure_logging() else nullcontext():
            yield

    def reform_server_lines(self) -> None:
        """Have the lines that the ``uvicorn`` command writes before the app starts be in the same form as the rest."""
        if self._logging:
            reform_server_lines(_request_ids, self.agent.settings.log_format)

    def configure_logging(self) -> bool:
        """Write log lines as JSON, where that is wanted and the host program has not set up logging.

        Returns:
            True where this is in force.
        """
        settings = self.agent.settings
        return self._logging and configure_logging(_request_ids, settings.log_level, style=settings.log_format)

    def _document(self) -> None:
        if self.agent.entrypoint is None:
            return
        payload_type = self.agent.entrypoint.payload_type
        self.describe_payload(payload_type)
        for handler in self._documented:
            document_payload(handler, payload_type)

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        self.configure_logging()
        self.agent.start()
        shutdown = Shutdown(self.agent)
        with shutdown.on_termination():
            try:
                yield
            finally:
                self.agent.shutting_down = True
                await shutdown.finish()
                await leave_behind()
                await asyncio.to_thread(self.agent.stop)
                self.agent.refuses_work = False  # who calls the application without a lifespan is welcome again


def _request_ids() -> tuple[str | None, str | None]:
    values = current_request.get()
    return values.request_id, values.session_id
