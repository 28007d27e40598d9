"""What the plugins and the applications of AG-UI, A2A and MCP have in common."""

from abc import abstractmethod
from typing import Any, ClassVar

from agentcore_telemetry.metrics import Protocol
from litestar.config.app import AppConfig
from litestar.handlers import HTTPRouteHandler, route
from litestar.plugins import InitPlugin

from litestar_agentcore.app import BedrockAgentCoreApp
from litestar_agentcore.controllers.invocations import InvocationResponse, exchange_middleware
from litestar_agentcore.exchange import Exchange
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.runtime.handler import Handler


class ProtocolPlugin(InitPlugin):
    """A protocol that is served beside plain HTTP, or in its place.

    It stands on the application's :class:`AgentCorePlugin`: the same agent, its loop, tasks, health, sessions,
    admission, telemetry and shutdown. Where an application has none, one that serves no plain HTTP is added.
    """

    protocol: ClassVar[Protocol]

    handler: Handler | None = None
    """What is called for each call, where that is a handler of the author's."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Mount the protocol; called by Litestar."""
        service = next((plugin for plugin in app_config.plugins if isinstance(plugin, AgentCorePlugin)), None)
        if service is None:
            service = AgentCorePlugin(http=False)
            app_config.plugins.append(service)  # whose own turn comes, since Litestar goes on through the list
        service.protocols.add(self.protocol)
        if service.serves_protocol(self.protocol):
            service.agent.telemetry.metrics.expose_protocols()
            self.mount(app_config, service)
        return app_config

    @abstractmethod
    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
        """Add the protocol's routes.

        Args:
            app_config: What the application is made of.
            service: What the protocol stands on.
        """


class ProtocolApp(BedrockAgentCoreApp):
    """An agent that is served over another protocol than plain HTTP, as an application of its own."""

    _serves_http = False

    default_port: ClassVar[int] = 8080
    """Where AgentCore Runtime expects the protocol."""

    def run(self, port: int | None = None, host: str | None = None, **kwargs: Any) -> None:
        """Serve the agent with uvicorn until the process is told to end.

        Args:
            port: The port to listen on; by default the protocol's.
            host: The address to listen on; by default as :meth:`BedrockAgentCoreApp.run` has it.
            **kwargs: Options of ``uvicorn.run``, which win over the defaults.

        Raises:
            ValueError, RuntimeError: As :meth:`BedrockAgentCoreApp.run`.
        """
        super().run(self.default_port if port is None else port, host, **kwargs)


def exchange_route(path: str, methods: list[Any], exchange: Exchange, name: str) -> HTTPRouteHandler:
    """Make a route that an exchange serves.

    Args:
        path: Its path.
        methods: Its HTTP methods.
        exchange: What serves the requests.
        name: Its name in Litestar.
    """

    @route(
        path,
        http_method=methods,
        name=name,
        status_code=200,
        include_in_schema=False,
        middleware=[exchange_middleware(exchange)],
    )
    async def serve() -> Any:
        return InvocationResponse(exchange)

    return serve
