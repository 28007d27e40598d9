"""A2A, the protocol between agents: an executor of the ``a2a-sdk`` (its releases 0.3 and 1), served as an agent is.

The names are the reference runtime's. AgentCore Runtime's side of it is "A2A protocol contract" in its developer guide.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
from agentcore_telemetry.metrics import Protocol
from litestar.config.app import AppConfig
from litestar.types import Message, Receive, Scope, Send

from litestar_agentcore.answer import RawHeader
from litestar_agentcore.asgi_bridge import serve_on_agent_loop
from litestar_agentcore.mounted import Call, MountedApplication, MountedExchange, current_answer
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.protocol.context import current_request, enter_request
from litestar_agentcore.protocol.headers import HeaderReader
from litestar_agentcore.protocols import ProtocolApp, ProtocolPlugin, exchange_route
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.health import PingFunction
from litestar_agentcore.runtime.tasks import TaskRegistry

DEFAULT_PORT = 9000
"""Where AgentCore Runtime expects A2A."""

RUNTIME_URL = "AGENTCORE_RUNTIME_URL"
"""The variable in which AgentCore Runtime gives the URL that the agent's card is to name."""

PORT = "A2A_PORT"

CARD = "/.well-known/agent-card.json"
CARD_OF_0_2 = "/.well-known/agent.json"
EXTENDED_CARD_OF_0_3 = "/agent/authenticatedExtendedCard"

METHODS = frozenset(
    {
        # A2A 0.3
        "message/send", "message/stream", "tasks/get", "tasks/cancel", "tasks/resubscribe",
        "tasks/pushNotificationConfig/set", "tasks/pushNotificationConfig/get", "tasks/pushNotificationConfig/list",
        "tasks/pushNotificationConfig/delete", "agent/getAuthenticatedExtendedCard",
        # A2A 1.0
        "SendMessage", "SendStreamingMessage", "GetTask", "ListTasks", "CancelTask", "SubscribeToTask",
        "CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs",
        "DeleteTaskPushNotificationConfig", "GetExtendedAgentCard",
    }
)  # fmt: skip
"""The methods of both releases of the protocol; each is a label."""

_LONGEST_ID = 128
_CANCEL_SECONDS = 1.0
"""How long the library may take to end a request that is cancelled, before it is cancelled again."""


# -- The card


def build_runtime_url(agent_arn: str, region: str | None = None) -> str:
    """The URL at which AgentCore Runtime invokes an agent.

    Args:
        agent_arn: Its ARN.
        region: The region; by default the ARN's.

    Raises:
        ValueError: There is no region in the ARN, or it is none.
    """
    if region is None:
        parts = agent_arn.split(":")
        if len(parts) < 4:
            raise ValueError(f"There is no region in {agent_arn!r}: an ARN is arn:aws:bedrock-agentcore:<region>:...")
        region = parts[3]
    if _REGION.fullmatch(region) is None:
        raise ValueError(f"{region!r} is no AWS region")
    suffix = next((suffix for prefix, suffix in _DNS_SUFFIXES if region.startswith(prefix)), "amazonaws.com")
    return f"https://bedrock-agentcore.{region}.{suffix}/runtimes/{quote(agent_arn, safe='')}/invocations"


_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]+")
_DNS_SUFFIXES = (
    ("cn-", "amazonaws.com.cn"), ("eusc-", "amazonaws.eu"), ("us-iso-", "c2s.ic.gov"), ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"), ("eu-isoe-", "cloud.adc-e.uk"),
)  # fmt: skip
"""The domains of AWS's partitions, by how the names of their regions begin, as botocore's table of endpoints has it."""


def _require_library() -> None:
    try:
        import a2a.server  # noqa: F401
        import sse_starlette  # noqa: F401
    except ImportError as error:
        raise ImportError(f"A2A needs the a2a-sdk: pip install 'litestar-agentcore[a2a]' ({error})") from None


@cache
def _is_release_1() -> bool:
    return find_spec("a2a.server.routes") is not None


def _card_of(executor: Any, url: str) -> Any:
    """The card of an executor that comes without one, by the name and the description of its ``agent``."""
    from a2a.types import AgentCapabilities, AgentCard, AgentSkill

    agent = getattr(executor, "agent", None)
    name = getattr(agent, "name", None) or "agent"
    description = getattr(agent, "description", None) or "A Bedrock AgentCore agent"
    members: dict[str, Any] = {
        "name": name,
        "description": description,
        "version": "0.1.0",
        "capabilities": AgentCapabilities(streaming=True),
        "skills": [AgentSkill(id="main", name=name, description=description, tags=["main"])],
        "default_input_modes": ["text"],
        "default_output_modes": ["text"],
    }
    if not _is_release_1():
        return AgentCard(url=url, **members)
    # The second one is what clients of 0.3 look for: the library answers them too.
    interfaces = [_interface(url, version) for version in ("1.0", "0.3")]
    return AgentCard(supported_interfaces=interfaces, **members)


def _interface(url: str, version: str) -> Any:
    from a2a.types import AgentInterface

    return AgentInterface(protocol_binding="JSONRPC", protocol_version=version, url=url)


def _set_url(card: Any, url: str) -> None:
    if not _is_release_1():
        card.url = url
        return
    interfaces = [interface for interface in card.supported_interfaces if interface.protocol_binding == "JSONRPC"]
    for interface in interfaces:
        interface.url = url
    if not interfaces:
        card.supported_interfaces.append(_interface(url, "1.0"))


# -- The context of a call


class BedrockCallContextBuilder:
    """Makes the library's context of a call out of a request.

    Its ``state`` has ``headers``, ``bedrock_request_id``, ``request_id``, ``session_id`` and, where they came,
    ``workload_access_token`` and ``oauth2_callback_url``. (Release 1 of the library puts the JSON-RPC id into
    ``request_id`` afterwards.) Where callers are authenticated, its user is the subject of the token.
    """

    def __init__(self) -> None:
        if find_spec("a2a") is not None:
            _context_builder_type().register(BedrockCallContextBuilder)

    def build(self, request: Any) -> Any:
        """Make the context of a call.

        Outside of this service, where nobody has done so, the values of the request become the current ones.

        Args:
            request: The ``starlette.requests.Request``.

        Returns:
            The library's ``ServerCallContext``.
        """
        from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
        from a2a.server.context import ServerCallContext

        values = current_request.get()
        if values.request_id is None or current_answer.get() is None:
            values = HeaderReader(()).read(request.scope["headers"]).values
            enter_request(values)
        state = {
            "headers": dict(request.headers),
            "bedrock_request_id": values.request_id,
            "request_id": values.request_id,
            "session_id": values.session_id,
        }
        if values.workload_access_token:
            state["workload_access_token"] = values.workload_access_token
        if values.oauth2_callback_url:
            state["oauth2_callback_url"] = values.oauth2_callback_url
        options = {} if values.claims is None else {"user": _user_type()(values.claims)}
        extensions = get_requested_extensions(request.headers.getlist(HTTP_EXTENSION_HEADER))
        return ServerCallContext(state=state, requested_extensions=extensions, **options)


@cache
def _context_builder_type() -> Any:
    if _is_release_1():
        from a2a.server.routes import ServerCallContextBuilder

        return ServerCallContextBuilder
    from a2a.server.apps import CallContextBuilder

    return CallContextBuilder


@cache
def _user_type() -> Any:
    from a2a.auth.user import User

    class Caller(User):  # type: ignore[misc]  # which is Any where the library is not installed
        """The caller, as the service has authenticated it."""

        def __init__(self, claims: dict[str, Any]) -> None:
            self.claims = claims

        @property
        def is_authenticated(self) -> bool:
            return True

        @property
        def user_name(self) -> str:
            claims = self.claims
            return str(claims.get("sub") or claims.get("client_id") or claims.get("api_key") or "")

    return Caller


# -- What a request executes


_current: ContextVar["_Request | None"] = ContextVar("agentcore_a2a_request", default=None)


class _Request:
    """A request, and the executions that it has begun. On the agent's loop.

    The library has an executor run on when its client has left, or did not want to wait: what outlives the request
    is an active task from then on. What the service itself ends takes its executions with it.
    """

    def __init__(self, tasks: TaskRegistry, name: str) -> None:
        self._tasks = tasks
        self._name = name
        self._answer = current_answer.get()
        self._running: dict[asyncio.Task[Any], tuple[Any, int | None]] = {}
        """The context of each execution and, once it has outlived the request, the id of the active task."""
        self._is_over = False

    async def execute(self, executor: Any, context: Any, event_queue: Any) -> None:
        runner = asyncio.current_task()
        assert runner is not None  # noqa: S101 - for the type checker  # nosec B101
        self._running[runner] = (context, None)
        if self._is_over:
            self.outlive()
        else:
            self._describe(context)
        error: BaseException | None = None
        try:
            await executor.execute(context, event_queue)
        except BaseException as raised:
            error = raised
            if self._answer is not None and not self._is_over and _is_failure(raised):
                self._answer.note(raised)
            raise
        finally:
            _, task_id = self._running.pop(runner)
            if task_id is not None:
                self._tasks.finish(task_id, "completed" if error is None else "failed", error)

    def _describe(self, context: Any) -> None:
        if self._answer is None:
            return
        attributes = {"a2a.task.id": context.task_id}
        if self._answer.values.session_id is None:
            attributes["gen_ai.conversation.id"] = context.context_id
        self._answer.record.describe({key: value for key, value in attributes.items() if value})

    def outlive(self) -> None:
        """Count what still runs as active tasks: the request is over."""
        self._is_over = True
        for runner, (context, task_id) in self._running.items():
            if task_id is None:
                metadata = {"task_id": context.task_id, "context_id": context.context_id}
                self._running[runner] = (context, self._tasks.add(self._name, metadata, runner))

    def cancel(self) -> None:
        """Cancel what still runs."""
        for runner in self._running:
            runner.cancel()


def _is_failure(error: BaseException) -> bool:
    """Tell what went wrong in an executor from what it tells its client by an error of the protocol's."""
    from a2a.utils import errors

    declared = errors.A2AError if _is_release_1() else errors.ServerError
    return isinstance(error, Exception) and not isinstance(error, declared)


@cache
def _executor_type() -> Any:
    from a2a.server.agent_execution import AgentExecutor

    class Executor(AgentExecutor):  # type: ignore[misc]  # which is Any where the library is not installed
        """An author's executor, of which it is known what it executes."""

        def __init__(self, executor: Any) -> None:
            self._executor = executor

        async def execute(self, context: Any, event_queue: Any) -> None:
            request = _current.get()
            if request is None:
                await self._executor.execute(context, event_queue)
            else:
                await request.execute(self._executor, context, event_queue)

        async def cancel(self, context: Any, event_queue: Any) -> None:
            await self._executor.cancel(context, event_queue)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._executor, name)

    return Executor


# -- The library's application


class _Application:
    """The library's routes as an ASGI application. Made and called on the agent's loop.

    Args:
        routes: Starlette's routes, of different paths.
        close: Called at the end of its lifespan.
        begin: Makes what a request of the protocol keeps.
    """

    def __init__(
        self, routes: Iterable[Any], close: Callable[[], Awaitable[None]] | None, begin: Callable[[], _Request]
    ) -> None:
        self._routes = {route.path: route for route in routes}
        self._close = close
        self._begin = begin
        self._ending: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["method"] != "POST":
            await self._routes[scope["path"]].handle(scope, receive, send)
        else:
            await self._serve(self._begin(), scope, receive, send)

    async def _live(self, receive: Receive, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._close is not None:
            await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, request: _Request, scope: Any, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                request.outlive()  # before the client can know that it has the whole answer
            await send(message)

        token = _current.set(request)
        # In a task of its own, since the library may wait for an execution before it heeds a cancellation.
        serving = asyncio.ensure_future(self._routes[scope["path"]].handle(scope, receive, send_last))
        _current.reset(token)
        try:
            await asyncio.wait([serving])
        except asyncio.CancelledError:
            request.cancel()
            serving.cancel()
            if (await asyncio.wait([serving], timeout=_CANCEL_SECONDS))[1]:
                serving.cancel()  # the library goes on after the first where it waited for an event
                self._ending.add(serving)
                serving.add_done_callback(self._ending.discard)
            raise
        finally:
            request.outlive()
        serving.result()


def _make_application(executor: Any, card: Any, task_store: Any, context_builder: Any, tasks: TaskRegistry) -> Any:
    from a2a.server.request_handlers import DefaultRequestHandler
    from a2a.server.tasks import InMemoryTaskStore

    options = {"agent_executor": _executor_type()(executor), "task_store": task_store or InMemoryTaskStore()}
    context_builder = context_builder or BedrockCallContextBuilder()
    close = None
    if _is_release_1():
        from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes

        handler = DefaultRequestHandler(**options, agent_card=card)
        close = getattr(handler, "aclose", None)
        routes = [
            *create_jsonrpc_routes(handler, "/", context_builder=context_builder, enable_v0_3_compat=True),
            *create_agent_card_routes(card),
        ]
    else:
        from a2a.server.apps import A2AStarletteApplication

        handler = DefaultRequestHandler(**options)
        application = A2AStarletteApplication(card, handler, context_builder=context_builder)
        routes = application.routes()
    name = type(executor).__name__
    return _Application(routes, close, lambda: _Request(tasks, name))


class _CardExchange:
    """Answers for a card of the agent, without a span or a count.

    Args:
        agent: The agent.
        application: The library's application.
        path: The path that the application has for it.
    """

    def __init__(self, agent: Agent, application: MountedApplication, path: str) -> None:
        self._agent = agent
        self._application = application
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one request; see :class:`litestar_agentcore.exchange.Exchange`."""
        own = {**scope, "path": self._path, "raw_path": self._path.encode(), "root_path": ""}

        async def respond(receive: Receive, send: Send) -> None:
            await self._application(own, receive, send)

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        error = await serve_on_agent_loop(self._agent.execution, "the agent's card", respond, receive, send_headers)
        if error is not None:
            raise error


# -- Calls


class _Head(msgspec.Struct):
    id: Any = None
    method: Any = None


_heads = msgspec.json.Decoder(_Head)


def describe(scope: Scope, body: bytes) -> Call:
    """Tell what is recorded of a request: the OpenTelemetry conventions for JSON-RPC.

    Args:
        scope: Its ASGI scope.
        body: Its body; anything.
    """
    try:
        head = _heads.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Call()
    method = head.method if isinstance(head.method, str) and head.method in METHODS else None
    attributes = {"rpc.system.name": "jsonrpc", "rpc.method": method or "_OTHER", "jsonrpc.protocol.version": "2.0"}
    if isinstance(head.id, str | int) and len(text := str(head.id)) <= _LONGEST_ID:
        attributes["jsonrpc.request.id"] = text
    return Call(method or "other", attributes)


# -- Entrances


class A2APlugin(ProtocolPlugin):
    """Serves an executor to other agents: ``POST /``, and the agent's card at ``/.well-known/agent-card.json``.

    Args:
        executor: The library's ``AgentExecutor``.
        agent_card: The library's ``AgentCard``; by default one with the name and the description that the executor's
            ``agent`` has.
        runtime_url: The URL that the card names; by default a card's own, or ``http://localhost:9000/``. The variable
            ``AGENTCORE_RUNTIME_URL`` wins.
        task_store: The library's ``TaskStore``; by default tasks are kept in memory.
        context_builder: The library's builder of a call's context; by default :class:`BedrockCallContextBuilder`.
        path: Where it is served; the card is below it.

    Raises:
        ImportError: The library is not installed.
    """

    protocol: ClassVar[Protocol] = "a2a"

    def __init__(
        self,
        executor: Any,
        agent_card: Any = None,
        *,
        runtime_url: str | None = None,
        task_store: Any = None,
        context_builder: Any = None,
        path: str = "/",
    ) -> None:
        _require_library()
        url = os.environ.get(RUNTIME_URL) or runtime_url
        if agent_card is None:
            agent_card = _card_of(executor, url or f"http://localhost:{DEFAULT_PORT}/")
        elif url:
            _set_url(agent_card, url)
        self.executor = executor
        self.agent_card = agent_card
        self._task_store = task_store
        self._context_builder = context_builder
        self._path = path

    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:  # noqa: D102 - inherited
        agent, card = service.agent, self.agent_card
        if agent.entrypoint is None:
            agent.telemetry.agent_name = agent.settings.agent_name or card.name

        def make() -> Any:
            return _make_application(self.executor, card, self._task_store, self._context_builder, agent.tasks)

        application = MountedApplication("the a2a-sdk", make)
        service.mounted.append(application)
        exchange = MountedExchange(
            agent,
            service.authentication,
            application,
            protocol=self.protocol,
            route=self._path,
            describe=describe,
            path="/",
        )
        app_config.route_handlers.append(exchange_route(self._path, ["POST"], exchange, "agentcore-a2a"))
        paths = [CARD]
        if not _is_release_1():
            paths.append(CARD_OF_0_2)
            if card.supports_authenticated_extended_card:
                paths.append(EXTENDED_CARD_OF_0_3)
        for path in paths:
            cards = _CardExchange(agent, application, path)
            route = exchange_route(f"{self._path.rstrip('/')}{path}", ["GET", "HEAD"], cards, f"agentcore-a2a-{path}")
            app_config.route_handlers.append(route)
        agent.protocol_paths["a2a"] = (self._path,)
        service.data_plane.serve(exchange)
        service.data_plane.agent_card = _CardExchange(agent, application, CARD)


class _A2AApp(ProtocolApp):
    default_port: ClassVar[int] = DEFAULT_PORT


def build_a2a_app(
    executor: Any,
    agent_card: Any = None,
    *,
    runtime_url: str | None = None,
    task_store: Any = None,
    context_builder: Any = None,
    ping_handler: PingFunction | None = None,
) -> ProtocolApp:
    """Make an application that serves an executor to other agents, and nothing else.

    Args:
        executor: As :class:`A2APlugin` has it.
        agent_card: Likewise.
        runtime_url: Likewise.
        task_store: Likewise.
        context_builder: Likewise.
        ping_handler: What ``/ping`` answers: a function that returns a :class:`PingStatus`.

    Returns:
        A Litestar application, whose ``run()`` serves it on port 9000.

    Raises:
        ImportError: The library is not installed.
        SettingsError: An ``AGENTCORE_*`` variable makes no sense.
    """
    plugin = A2APlugin(
        executor, agent_card, runtime_url=runtime_url, task_store=task_store, context_builder=context_builder
    )
    app = _A2AApp(plugins=[plugin])
    if ping_handler is not None:
        app.ping(ping_handler)
    return app


def serve_a2a(
    executor: Any,
    agent_card: Any = None,
    *,
    port: int | None = None,
    host: str | None = None,
    task_store: Any = None,
    context_builder: Any = None,
    ping_handler: PingFunction | None = None,
    **kwargs: Any,
) -> None:
    """Serve an executor to other agents until the process is told to end.

    Args:
        executor: As :class:`A2APlugin` has it.
        agent_card: Likewise; its URL becomes that of the port, or ``AGENTCORE_RUNTIME_URL``.
        port: The port to listen on; by default the variable ``A2A_PORT``, else 9000.
        host: The address to listen on; by default as :meth:`BedrockAgentCoreApp.run` has it.
        task_store: As :class:`A2APlugin` has it.
        context_builder: Likewise.
        ping_handler: As :func:`build_a2a_app` has it.
        **kwargs: Options of ``uvicorn.run``, which win over the defaults.

    Raises:
        ImportError: The library is not installed.
        ValueError: ``A2A_PORT`` is no port.
    """
    if port is None:
        port = _port_of_environment()
    app = build_a2a_app(
        executor,
        agent_card,
        runtime_url=f"http://localhost:{port}/",
        task_store=task_store,
        context_builder=context_builder,
        ping_handler=ping_handler,
    )
    app.run(port, host, **kwargs)


def _port_of_environment() -> int:
    text = os.environ.get(PORT, "").strip()
    if not text:
        return DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{PORT}={text!r} makes no sense: a port is a number from 0 to 65535")
    return int(text)
