"""The entrance: a Litestar plugin that puts an agent into an application."""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from logging import getLogger
from typing import TYPE_CHECKING, Any

from agentcore_telemetry.log_handlers import LogSetup, uvicorn_unconfigured
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.plugins import CLIPlugin, InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute

from litestar_agentcore.authentication import authentication_of
from litestar_agentcore.authoring import AgentAuthoring, AnyFunction
from litestar_agentcore.controllers.data_plane import data_plane_controller
from litestar_agentcore.controllers.health import health_controllers
from litestar_agentcore.controllers.invocations import invocations_controller, is_invocations_handler
from litestar_agentcore.controllers.metrics import metrics_controller
from litestar_agentcore.controllers.websocket import websocket_controller
from litestar_agentcore.data_plane import DataPlane, DataPlaneExchange
from litestar_agentcore.errors import report_once
from litestar_agentcore.exchange import InvocationExchange
from litestar_agentcore.guards import AUTHENTICATION, guarded_openapi, require_authentication
from litestar_agentcore.official_sdk import share_context
from litestar_agentcore.openapi import PayloadSchemaPlugin, document_payload, with_security_schemes
from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.protocol.settings import Settings, SettingsError, retired_variables, variable_of
from litestar_agentcore.responses import as_responder
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.server import uvicorn_bounded
from litestar_agentcore.shutdown import Shutdown, detach_stuck_tasks
from litestar_agentcore.version import __version__
from litestar_agentcore.worker_processes import sockets_of_server

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from litestar_agentcore.mounted import MountedApplication

logger = getLogger(__name__)

_numbers = itertools.count()
"""Tells the agents of this process apart, in the order in which they begin to serve; it is the same in each worker."""

MOUNTED_SECONDS = 2.0
"""How long a library's application may take to end."""

APP_LOGGER = "litestar_agentcore.app"
"""The name of the logger for the author's own lines."""


class AgentCorePlugin(AgentAuthoring, PayloadSchemaPlugin, InitPlugin, ReceiveRoutePlugin, CLIPlugin):
    """Serves an agent inside a Litestar application, beside whatever else is there.

    ``Litestar(plugins=[AgentCorePlugin(handler)])`` adds ``/invocations``, ``/ping``, ``/ready``,
    ``/metrics``, ``/ws`` and ``/runtimes/...``. The
    application keeps its own routes, middleware, exception handlers, lifespan and logging.

    Args:
        entrypoint: The handler of ``/invocations``; may as well be registered later with :meth:`entrypoint`.
        settings: How the service behaves; by default as the ``AGENTCORE_*`` variables say.
        debug: Whether payloads may ask for debug actions; by default as the application's own ``debug``.
        logging: Whether the log lines of the service are written to standard error, and those of all other loggers
            where the root logger is not set up. Meant for an application that is nothing but the agent.
        ping_path: Where ``/ping`` is, in an application that has one of its own; ``None`` leaves it out.
        ready_path: Likewise for ``/ready``.
        metrics_path: Likewise for ``/metrics``.
        runtimes_path: Likewise for ``/runtimes``, below which AWS's own clients are answered.
        playground_path: Likewise for ``/playground``, which is there in debug mode and where a setting says so,
            unless the application's own ``route_handlers`` have it.
        http: Whether ``/invocations`` and ``/ws`` are served: plain HTTP, the protocol of the entrypoint. Without,
            this is what plugins of other protocols stand on.

    Raises:
        SettingsError: An ``AGENTCORE_*`` variable makes no sense, or something that it needs is not there.
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
        runtimes_path: str | None = "/runtimes",
        playground_path: str | None = "/playground",
        http: bool = True,
    ) -> None:
        super().__init__()
        self._retired = retired_variables() if settings is None else []
        settings = settings or Settings.from_environment()
        self.log_setup = LogSetup(_request_ids, settings.log_level, settings.log_format if logging else "none")
        self.log_setup.configure_package("litestar_agentcore", without=APP_LOGGER)
        self.log_setup.configure_package("agentcore_telemetry")
        self.log_setup.format_server_lines()
        self.serves = False
        self._number: int | None = None
        share_context()
        self.agent = Agent(settings, as_responder, __version__)
        self.authentication = authentication_of(settings, self.agent.telemetry.metrics)
        self._debug = debug
        self._ping_path = ping_path
        self._ready_path = ready_path
        self._metrics_path = metrics_path
        self._runtimes_path = runtimes_path
        self._playground_path = playground_path
        self.protocols: set[str] = {"http"} if http else set()
        """The protocols that the application has, whichever of them the settings choose."""
        self.mounted: list[MountedApplication] = []
        """Libraries' applications, which live as long as the service does."""
        self.data_plane = DataPlane(runtimes_path or "/runtimes")
        """What AWS's clients are answered with below ``runtimes_path``."""
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
        authentication, settings = self.authentication, self.agent.settings
        app_config.state[AUTHENTICATION] = authentication
        app_config.route_handlers += health_controllers(self.agent, self._ping_path, self._ready_path)
        self.exchange: InvocationExchange | None = None
        if self.serves_protocol("http"):
            self.exchange = exchange = InvocationExchange(self.agent, debug, authentication)
            self.agent.protocol_paths["http"] = ("/invocations", "/ws")
            route = self.data_plane.invocations_route
            self.data_plane.invocations = DataPlaneExchange(self.agent, debug, authentication, route)
            app_config.route_handlers += [
                invocations_controller(self.agent, exchange, authentication),
                websocket_controller(self.agent, authentication),
            ]
        if self._runtimes_path is not None:
            data_plane = data_plane_controller(self.agent, self.data_plane, authentication, self._runtimes_path)
            app_config.route_handlers.append(data_plane)
        if self._metrics_path is not None:
            guards = [require_authentication] if settings.auth_metrics else []
            app_config.route_handlers.append(metrics_controller(self.agent, self._metrics_path, guards))
        if self._playground_path is not None and (debug or settings.playground):
            from litestar_agentcore.controllers.playground import (  # which most starts have no use for
                declares_path,
                playground_controllers,
            )

            if declares_path(app_config.route_handlers, self._playground_path):
                logger.warning("The playground is not served: the application has %s itself", self._playground_path)
            else:
                app_config.route_handlers += playground_controllers(self.agent, self._playground_path)
        if (config := app_config.openapi_config) is not None and authentication is not None:
            config = with_security_schemes(config, authentication.takes_api_keys)
            app_config.openapi_config = guarded_openapi(config) if settings.auth_schema else config
        app_config.lifespan.append(self._lifespan)
        report_once(app_config.after_exception)
        return app_config

    def serves_protocol(self, protocol: str) -> bool:
        """Tell whether the application has a protocol, and the settings choose no other.

        Args:
            protocol: ``http``, ``ag-ui``, ``a2a`` or ``mcp``.
        """
        return protocol in self.protocols and self.agent.settings.protocol in (None, protocol)

    def receive_route(self, route: BaseRoute) -> None:
        """Find the route that the payload's type is to be documented on; called by Litestar."""
        if isinstance(route, HTTPRoute):
            self._documented += filter(is_invocations_handler, route.route_handlers)
            self._document()

    def on_cli_init(self, cli: Any) -> None:
        """Add nothing to Litestar's command line; called by Litestar."""

    @contextmanager
    def server_lifespan(self, app: Litestar) -> Iterator[None]:
        """Have ``litestar run`` keep to the limits, and log in the same form as the agent; called by Litestar."""
        unconfigured = uvicorn_unconfigured() if self.log_setup.configure_server() else nullcontext()
        with uvicorn_bounded(self.agent.settings), unconfigured:
            yield

    def begin_to_serve(self) -> None:
        """Set up the other loggers; called when the lifespan begins or, where none does, by the first request.

        Not before, so that the host program, its lifespan included, has had its chance to do so itself.
        """
        self.serves = True
        self.log_setup.configure_server()
        self.log_setup.configure_root()

    def _document(self) -> None:
        if self.agent.entrypoint is None:
            return
        payload_type = self.agent.entrypoint.payload_type
        self.describe_payload(payload_type)
        for handler in self._documented:
            document_payload(handler, payload_type)

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        chosen = self.agent.settings.protocol
        if chosen is not None and chosen not in self.protocols:
            variable, served = variable_of("protocol"), ", ".join(sorted(self.protocols)) or "none"
            raise SettingsError(f"{variable}={chosen!r} makes no sense here: the application has {served}")
        self.begin_to_serve()
        if self._retired:
            logger.warning("Variables that are set and no longer mean anything: %s", ", ".join(self._retired))
            self._retired = []
        self.agent.start()
        if self.authentication is not None:
            self.authentication.start()
        try:
            async with self._joined_workers():
                shutdown = Shutdown(self.agent)
                with shutdown.on_termination(), startup_objects_frozen() if shutdown.has_server else nullcontext():
                    try:
                        for application in self.mounted:
                            await self.agent.run(application.start())
                        yield
                    finally:
                        self.agent.shutting_down = True
                        await shutdown.finish()
                        await self._stop_mounted()
                        await detach_stuck_tasks()
                        await asyncio.to_thread(self.agent.stop)
        finally:
            self.agent.refuses_work = False  # who calls the application without a lifespan is welcome again

    async def _stop_mounted(self) -> None:
        """End the lifespans of libraries' applications, unless one takes too long, or a handler holds their loop."""
        for application in self.mounted:
            try:
                async with asyncio.timeout(MOUNTED_SECONDS):
                    await self.agent.run(application.stop())
            except TimeoutError:
                logger.warning("%s does not end, and is not waited for", application.name)

    def _joined_workers(self) -> AbstractAsyncContextManager[None]:
        sockets = sockets_of_server()
        if sockets is None:
            return nullcontext()
        if self._number is None:
            self._number = next(_numbers)
        from litestar_agentcore.runtime.workers import Workers  # which one process has no use for

        return Workers(self.agent, sockets, self._number).joined()


@contextmanager
def startup_objects_frozen() -> Iterator[None]:
    """Have the garbage collector pass over what was made before a server began to serve, as long as it serves.

    A full collection looks at all of it each time, for nothing, and was most of the p99 under load. Reference counting
    goes on; what stays uncollected are cycles among objects of the start that become garbage later.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _request_ids() -> tuple[str | None, str | None]:
    values = current_request.get()
    return values.request_id, values.session_id
