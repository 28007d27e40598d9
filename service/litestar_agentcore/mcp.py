"""MCP: a server of the library ``mcp``, releases 1 and 2, served by streamable HTTP as an agent is."""

import copy
import inspect
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar.config.app import AppConfig
from litestar.types import Receive, Scope

from litestar_agentcore.mounted import Call, MountedApplication, MountedExchange, header_of
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.protocols import ProtocolApp, ProtocolPlugin, exchange_route
from litestar_agentcore.runtime.agent import Agent

PATH = "/mcp"

PORT = 8000
"""Where AgentCore Runtime expects an MCP server."""

METHODS = frozenset(
    {
        "completion/complete", "initialize", "logging/setLevel", "notifications/cancelled", "notifications/initialized",
        "notifications/progress", "notifications/roots/list_changed", "ping", "prompts/get", "prompts/list",
        "resources/list", "resources/read", "resources/subscribe", "resources/templates/list", "resources/unsubscribe",
        "server/discover", "subscriptions/listen", "tasks/cancel", "tasks/get", "tasks/list", "tasks/result",
        "tools/call", "tools/list",
    }
)  # fmt: skip
"""What clients call, by the specification's releases up to 2026; anything else is counted as ``other``."""

_NAMED = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
"""The attribute for what a call names."""

_LONGEST_NAME = 256
"""Of what a client names and a span shows, in characters."""

_MCP_SESSION_ID = b"mcp-session-id"
_MCP_PROTOCOL_VERSION = b"mcp-protocol-version"
_CONTEXT = "litestar_agentcore.context"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class MCPPlugin(ProtocolPlugin):
    """Serves the tools, resources and prompts of an MCP server, at ``/mcp``.

    Args:
        server: A ``FastMCP`` or ``Server`` of ``mcp`` 1, an ``MCPServer`` or ``Server`` of ``mcp`` 2.
        stateless: Whether each request stands alone, as AgentCore Runtime expects by default; else a client that
            initializes gets a session, and its requests must reach this process.
        json_response: Whether what is no stream is answered with JSON; by default as the server's own settings say.
        path: Where it is served.

    Raises:
        ImportError: The extra ``mcp`` is not installed.
        TypeError: The server is none of ``mcp``'s.
        ValueError: The server has authentication of its own, which would not be asked here.
    """

    protocol = "mcp"

    def __init__(
        self, server: Any, *, stateless: bool = True, json_response: bool | None = None, path: str = PATH
    ) -> None:
        self._server = _low_level_server(server)
        self.name: str = self._server.name
        """What the server calls itself."""
        settings = getattr(server, "settings", None)
        if getattr(settings, "auth", None) is not None:
            raise ValueError(
                f"The MCP server {self.name!r} has authentication of its own, which is not asked here: leave it out,"
                " and set AGENTCORE_JWT_DISCOVERY_URL or AGENTCORE_API_KEYS_FILE"
            )
        self._stateless = stateless
        self._path = path
        if json_response is None:
            json_response = bool(getattr(settings, "json_response", False))
        self._options = {
            "json_response": json_response,
            "stateless": stateless,
            "event_store": getattr(server, "_event_store", None),
            "retry_interval": getattr(server, "_retry_interval", None),
        }

    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
        """Add the route; see :class:`ProtocolPlugin`."""
        agent = service.agent
        if not agent.settings.agent_name and agent.entrypoint is None:
            agent.telemetry.agent_name = self.name
        application = MountedApplication(f"the MCP server {self.name}", self._application_of(agent))
        service.mounted.append(application)
        exchange = MountedExchange(
            agent,
            service.authentication,
            application,
            protocol="mcp",
            route=self._path,
            describe=describe,
            is_last=is_response,
            check_call=partial(check_call, stateless=self._stateless),
            session_header=_MCP_SESSION_ID,
        )
        service.data_plane.serve(exchange)
        agent.protocol_paths["mcp"] = (self._path,)
        app_config.route_handlers.append(
            exchange_route(self._path, ["GET", "POST", "DELETE"], exchange, "agentcore-mcp")
        )

    def _application_of(self, agent: Agent) -> Callable[[], Any]:
        def make() -> _Application:
            from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

            options = {**self._options, "max_request_body_size": agent.settings.max_body_bytes}
            known = inspect.signature(StreamableHTTPSessionManager).parameters
            manager = StreamableHTTPSessionManager(
                _in_requests_context(self._server),
                **{name: value for name, value in options.items() if name in known},
            )
            return _Application(manager)

        return make


class _MCPApp(ProtocolApp):
    """An MCP server as an application of its own; see :func:`mcp_app`."""

    default_port = PORT


def mcp_app(
    server: Any,
    *,
    stateless: bool = True,
    json_response: bool | None = None,
    ping_handler: Callable[[], Any] | None = None,
    **litestar_options: Any,
) -> ProtocolApp:
    """Make the application that serves an MCP server at ``/mcp``, with ``/ping``, ``/ready`` and ``/metrics``.

    Args:
        server: A ``FastMCP`` or ``Server`` of ``mcp`` 1, an ``MCPServer`` or ``Server`` of ``mcp`` 2.
        stateless: Whether each request stands alone; see :class:`MCPPlugin`.
        json_response: Whether what is no stream is answered with JSON; by default as the server's own settings say.
        ping_handler: A custom health function.
        **litestar_options: Whatever :class:`BedrockAgentCoreApp` takes.

    Raises:
        ImportError, TypeError, ValueError: As :class:`MCPPlugin`.
    """
    plugin = MCPPlugin(server, stateless=stateless, json_response=json_response)
    app = _MCPApp(plugins=[plugin, *litestar_options.pop("plugins", ())], **litestar_options)
    if ping_handler is not None:
        app.ping(ping_handler)
    return app


def serve_mcp(
    server: Any,
    *,
    port: int = PORT,
    host: str | None = None,
    stateless: bool = True,
    json_response: bool | None = None,
    ping_handler: Callable[[], Any] | None = None,
    **kwargs: Any,
) -> None:
    """Serve an MCP server until the process is told to end.

    Args:
        server: A ``FastMCP`` or ``Server`` of ``mcp`` 1, an ``MCPServer`` or ``Server`` of ``mcp`` 2.
        port: The port to listen on.
        host: The address to listen on; by default as :meth:`BedrockAgentCoreApp.run` has it.
        stateless: Whether each request stands alone; see :class:`MCPPlugin`.
        json_response: Whether what is no stream is answered with JSON; by default as the server's own settings say.
        ping_handler: A custom health function.
        **kwargs: Options of ``uvicorn.run``, which win over the defaults.

    Raises:
        ImportError, TypeError, ValueError: As :class:`MCPPlugin`.
    """
    app = mcp_app(server, stateless=stateless, json_response=json_response, ping_handler=ping_handler)
    app.run(port, host, **kwargs)


class _Application:
    """The session manager of the library as an ASGI application.

    Args:
        manager: A ``StreamableHTTPSessionManager``, which lives once.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._manager.handle_request({**scope, _CONTEXT: copy_context()}, receive, send)
            return
        await receive()
        async with self._manager.run():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


class _Parameters(msgspec.Struct):
    name: Any = None


class _Message(msgspec.Struct):
    """What is looked at of a JSON-RPC message."""

    method: Any = None
    id: Any = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decoder = msgspec.json.Decoder(_Message)
_parameters_decoder = msgspec.json.Decoder(_Parameters)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NO_MESSAGE = _Message()


def _message_of(body: bytes) -> _Message:
    """The message in a body; an empty one where there is none, or several."""
    try:
        return _decoder.decode(body)
    except _UNREADABLE:
        return _NO_MESSAGE


class _Response(msgspec.Struct):
    method: Any = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_response_decoder = msgspec.json.Decoder(_Response)


def is_response(events: bytes) -> bool:
    """Tell whether there is a response among events, and not only requests and notifications of the server's.

    Args:
        events: Events of a stream, whole.
    """
    for line in events.splitlines():
        if line.startswith(b"data:"):
            try:
                message = _response_decoder.decode(line[5:])
            except _UNREADABLE:
                continue
            if message.method is msgspec.UNSET and (message.result, message.error) != (msgspec.UNSET, msgspec.UNSET):
                return True
    return False


def _name_in(parameters: msgspec.Raw) -> str | None:
    """The name of the tool, or the prompt, that is asked for."""
    try:
        name = _parameters_decoder.decode(parameters).name
    except _UNREADABLE:
        return None
    return name[:_LONGEST_NAME] if isinstance(name, str) else None


def describe(scope: Scope, body: bytes) -> Call:
    """Tell what is recorded of a request, by OpenTelemetry's conventions for MCP.

    Args:
        scope: The ASGI scope of the request.
        body: Its body.
    """
    attributes: dict[str, Any] = {}
    for header, attribute in ((_MCP_SESSION_ID, "mcp.session.id"), (_MCP_PROTOCOL_VERSION, "mcp.protocol.version")):
        if value := header_of(scope, header):
            attributes[attribute] = value[:_LONGEST_NAME]
    if scope["method"] != "POST":  # type: ignore[typeddict-item]
        return Call(scope["method"], attributes)  # type: ignore[typeddict-item]
    message = _message_of(body)
    if not isinstance(message.method, str):
        return Call("response" if message is not _NO_MESSAGE and body else "other", attributes)
    if message.method not in METHODS:
        return Call("other", attributes)
    attributes["mcp.method.name"] = message.method
    if isinstance(message.id, str | int):
        attributes["jsonrpc.request.id"] = str(message.id)[:_LONGEST_NAME]
    if message.method == "tools/call":
        attributes["gen_ai.operation.name"] = "execute_tool"
    if (named := _NAMED.get(message.method)) and (name := _name_in(message.params)) is not None:
        attributes[named] = name
    return Call(message.method, attributes)


def check_call(scope: Scope, body: bytes, *, stateless: bool) -> None:
    """Raise the refusal of a request that the library should not see.

    Args:
        scope: The ASGI scope of the request; its headers may be replaced.
        body: Its body.
        stateless: Whether each request stands alone.

    Raises:
        Refusal: It comes from a page of another origin (status 403).
    """
    if not _comes_from_here(scope):
        raise Refusal(
            403, "Forbidden", "A page of another origin may not call an MCP server on this machine (DNS rebinding)"
        )
    # The platform gives the first request a session id of its own, which a stateful server cannot know.
    if not stateless and _message_of(body).method == "initialize":
        scope["headers"] = [header for header in scope["headers"] if header[0].lower() != _MCP_SESSION_ID]


def _comes_from_here(scope: Scope) -> bool:
    """Tell whether a request to this machine itself may be answered: the specification has servers look at the origin.

    Only browsers send one, and a page on the web that has its own name resolve to a loopback address sends its name.
    """
    server = scope.get("server")
    origin = header_of(scope, b"origin")
    if origin is None or server is None or server[0] not in _LOOPBACK:
        return True
    try:
        return urlsplit(origin).hostname in _LOOPBACK
    except ValueError:
        return False


def _low_level_server(server: Any) -> Any:
    """The library's ``Server`` behind whatever the author made."""
    try:
        from mcp.server.lowlevel import Server
    except ImportError:
        raise ImportError("MCP needs a library: pip install 'litestar-agentcore[mcp]'") from None
    # ``Server`` itself, what ``FastMCP`` of release 1 stands on, and ``MCPServer`` of release 2.
    for found in (server, getattr(server, "_mcp_server", None), getattr(server, "_lowlevel_server", None)):
        if isinstance(found, Server) and type(server).__module__.partition(".")[0] == "mcp":
            return found
        if found is server and isinstance(server, Server):
            return server
    raise TypeError(f"An MCP server of the library mcp is needed, and {server!r} is none")


def _in_requests_context(server: Any) -> Any:
    """A server whose handlers run in the context of the request that asked, which release 2 sees to by itself.

    In release 1 all requests of a session are handled in copies of the context of its first.
    """
    handlers = getattr(server, "request_handlers", None)
    if not isinstance(handlers, dict):
        return server
    from mcp.server.lowlevel.server import request_ctx

    def within(handle: Callable[..., Any]) -> Callable[..., Any]:
        async def handle_in_context(request: Any) -> Any:
            current = request_ctx.get(None)
            scope = getattr(getattr(current, "request", None), "scope", {})
            context: Context | None = scope.get(_CONTEXT)
            if context is not None:
                for variable, value in context.items():
                    if variable.get(None) is not value:
                        variable.set(value)  # in the task of this message alone
            return await handle(request)

        return handle_in_context

    own = copy.copy(server)
    own.request_handlers = {kind: within(handle) for kind, handle in handlers.items()}
    return own
