"""AG-UI: a run is an invocation whose payload is a ``RunAgentInput``, and whose events are AG-UI's.

The names are those of the official SDK's ``bedrock_agentcore.runtime.ag_ui``. Types, validation and encoding are the
work of the library ``ag-ui-protocol``, releases 0.1 and 1.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import msgspec
from agentcore_telemetry.recording import ProtocolRecord, WebSocketRecord
from litestar import WebSocket, websocket
from litestar.config.app import AppConfig
from litestar.connection.base import empty_receive, empty_send
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Receive, Scope
from litestar.utils.path import normalize_path

from litestar_agentcore.answer import STREAM_HEADERS, Answer
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.connections import agent_websocket
from litestar_agentcore.controllers.invocations import PATH as INVOCATIONS
from litestar_agentcore.exchange import InvocationExchange
from litestar_agentcore.mounted import wrong_protocol
from litestar_agentcore.plugin import AgentCorePlugin
from litestar_agentcore.protocol.context import RequestValues, current_request
from litestar_agentcore.protocol.headers import handshake_headers
from litestar_agentcore.protocol.models import Refusal, StreamError, internal_error, session_stopped, shutting_down
from litestar_agentcore.protocol.recognition import recognize
from litestar_agentcore.protocol.serialization import Decode, decode_body, encode_events, payload_decoder
from litestar_agentcore.protocols import ProtocolApp, ProtocolPlugin, exchange_route
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.callbacks import callbacks_of
from litestar_agentcore.runtime.execution import HandlerCall
from litestar_agentcore.runtime.failure import Failure, message_of
from litestar_agentcore.runtime.handler import Handler, HandlerKind, inspect_handler
from litestar_agentcore.runtime.health import PingFunction
from litestar_agentcore.runtime.running import Running
from litestar_agentcore.runtime.streams import EventStream
from litestar_agentcore.websocket import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL_CLOSURE,
    TRY_AGAIN_LATER,
    WebSocketConnection,
)

logger = logging.getLogger(__name__)

AnyAgent = TypeVar("AnyAgent")
Encode = Callable[[Any], str]

UNSUPPORTED_DATA = 1003
"""The close code of RFC 6455, section 7.4.1, for a message that is of no use."""

ERROR_CODE = "INTERNAL_ERROR"
"""The code of the ``RUN_ERROR`` events that are the service's."""

_MAX_ID_LENGTH = 256
"""How much of a thread's or a run's id a span is given."""

_MAX_REASON_BYTES = 123
"""Of a close frame (RFC 6455, section 5.5)."""


class RunFailedError(Exception):
    """A run ended with a ``RUN_ERROR`` event that was the agent's own."""


class _Library:
    """What is used of ``ag-ui-protocol``, which is imported by this.

    Raises:
        ImportError: It is not installed.
    """

    def __init__(self) -> None:
        try:
            from ag_ui.core import RunAgentInput, RunErrorEvent
            from ag_ui.encoder import EventEncoder
        except ImportError as error:
            raise ImportError(
                "AG-UI is the work of ag-ui-protocol, which is not installed: pip install 'litestar-agentcore[ag-ui]'"
            ) from error
        self.input_type: Any = RunAgentInput
        self._error_type: Any = RunErrorEvent
        self._encode: Encode = EventEncoder().encode
        decode = payload_decoder(RunAgentInput)
        assert decode is not None  # noqa: S101 - for the type checker  # nosec B101
        self._decode: Decode = decode

    def decode(self, body: bytes) -> Any:
        """Decode and validate a ``RunAgentInput``.

        Raises:
            Refusal: It is none (status 400).
        """
        return decode_body(body, self._fit)

    def _fit(self, body: bytes | bytearray) -> Any:
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            if (found := recognize(bytes(body))) not in (None, "ag-ui"):
                raise Refusal(400, "Wrong protocol", wrong_protocol(found, "ag-ui")) from None
            raise Refusal(400, "Invalid RunAgentInput", str(error)) from None

    def encode(self, event: Any) -> msgspec.Raw:
        """The JSON of an event, as the library's encoder has it. What it raises is the agent's fault."""
        return msgspec.Raw(self._encode(event).removeprefix("data: ").removesuffix("\n\n").encode())

    def error(self, message: str) -> msgspec.Raw:
        """The JSON of a ``RUN_ERROR`` event.

        Args:
            message: What went wrong.
        """
        sendable = message.encode("utf-8", "replace").decode()  # without unpaired surrogates
        return self.encode(self._error_type(message=sendable, code=ERROR_CODE))

    def failure(self, error: BaseException, values: RequestValues, *, exposed: bool) -> msgspec.Raw:
        """The JSON of the ``RUN_ERROR`` event for what an agent raised. On the agent's side: its text is asked for.

        Args:
            error: What was raised.
            values: The ids of the request.
            exposed: Whether the client may be told.
        """
        if exposed:
            return self.error(message_of(error))
        hidden = internal_error(values.request_id)
        return self.error(f"{hidden.error} (request {hidden.request_id})")


class _Run:
    """One run, as its handler's side has it: what came, and where it is recorded.

    Args:
        body: What is to be a ``RunAgentInput``.
        record: What is recorded of it.
        library: The library.
    """

    __slots__ = ("_body", "_library", "_record")

    def __init__(self, body: bytes, record: ProtocolRecord | WebSocketRecord, library: _Library) -> None:
        self._body = body
        self._record = record
        self._library = library

    def input(self) -> Any:
        """The ``RunAgentInput``, whose ids the spans of the run have from now on.

        Raises:
            Refusal: It is none (status 400).
        """
        decoded = self._library.decode(self._body)
        thread, run = decoded.thread_id[:_MAX_ID_LENGTH], decoded.run_id[:_MAX_ID_LENGTH]
        attributes = {"ag_ui.thread_id": thread, "ag_ui.run_id": run}
        values = current_request.get()
        if values.session_id is None:
            attributes["gen_ai.conversation.id"] = thread
            current_request.set(msgspec.structs.replace(values, conversation_id=thread))
        self._record.describe(attributes)
        return decoded

    def events(self, value: Any) -> Any:
        """A generator of the encoded events of what an agent gave, in the kind that it gave.

        Raises:
            TypeError: That is nothing with events.
        """
        if inspect.isawaitable(value):
            return self._awaited(value)
        if isinstance(value, AsyncIterable):
            return self._encoded(value)
        # A pydantic model, as an event is, can be iterated, and gives its fields.
        if (
            isinstance(value, Iterable)
            and not isinstance(value, str | bytes | Mapping)
            and not hasattr(value, "model_dump")
        ):
            return self._encoded_plain(value)
        raise TypeError(f"An AG-UI agent is, or gives, a generator of events, and this gave {type(value).__name__}")

    async def _awaited(self, value: Awaitable[Any]) -> Any:
        return self.events(await value)

    async def _encoded(self, source: AsyncIterable[Any]) -> AsyncGenerator[msgspec.Raw, None]:
        try:
            async for event in source:
                yield self._encode(event)
        finally:
            if (close := getattr(source, "aclose", None)) is not None:
                await close()

    def _encoded_plain(self, source: Iterable[Any]) -> Generator[msgspec.Raw, None, None]:
        try:
            for event in source:
                yield self._encode(event)
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()

    def _encode(self, event: Any) -> msgspec.Raw:
        encoded = self._library.encode(event)
        if getattr(event, "type", None) == "RUN_ERROR":
            logger.error("The agent ended its run with RUN_ERROR")
            self._record.fail(RunFailedError(str(getattr(event, "message", ""))))
        return encoded


def _run_handler(agent: Any, input_type: Any) -> Handler:
    """Inspect an agent, and make of it what is called with a :class:`_Run` and gives its encoded events.

    Raises:
        TypeError: It cannot be called with a ``RunAgentInput``.
    """
    has_run = not inspect.isroutine(agent) and callable(getattr(agent, "run", None))
    inspected = inspect_handler(agent.run if has_run else agent, Any)
    call, kind = inspected.call, inspected.kind
    name = inspected.name
    if has_run:
        own = getattr(agent, "name", None)
        name = own if isinstance(own, str) and own else type(agent).__name__

    def start(run: _Run, context: Any) -> Any:
        return run.events(call(run.input(), context))

    async def start_there(run: _Run, context: Any) -> Any:
        value = call(run.input(), context)
        return run.events(value if kind is HandlerKind.ASYNC_GENERATOR else await value)

    is_plain = kind in (HandlerKind.PLAIN, HandlerKind.PLAIN_GENERATOR)
    return msgspec.structs.replace(
        inspected,
        call=start if is_plain else start_there,
        # A generator cannot be had before its input is, so one is returned by a coroutine in its place.
        kind=HandlerKind.COROUTINE if kind is HandlerKind.ASYNC_GENERATOR else kind,
        name=name,
        payload_type=input_type,
        decode=_decode_there,
    )


def _decode_there(_: bytes | bytearray) -> NoReturn:
    """Stands for the decoder, which :meth:`_Run.input` is: where a handler has one, it is given the body."""
    raise NotImplementedError


class AGUIAnswer(Answer):
    """The answer of a run: whatever becomes of it once its agent has been called is an event."""

    __slots__ = ("library",)

    record: ProtocolRecord

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.library: _Library | None = None
        """The library, once the agent has been called."""

    def note(self, error: BaseException) -> Any:  # noqa: D102 - inherited
        self.record.fail(error)
        return self._called.failure(error, self.values, exposed=self._expose_errors)

    def describe(self, error: BaseException) -> Failure:  # noqa: D102 - inherited
        if isinstance(error, Refusal):  # what came is no RunAgentInput
            return Failure(error)
        logger.error("The agent raised", exc_info=error)
        return Failure(error, self.note(error))

    def stream_error(self, error: StreamError) -> Any:  # noqa: D102 - inherited
        return self._called.error(error.error)

    @property
    def _called(self) -> _Library:
        assert self.library is not None  # noqa: S101 - for the type checker  # nosec B101
        return self.library

    async def refuse(self, refusal: Refusal, *args: Any) -> None:  # noqa: D102 - inherited
        if self.library is not None and self.record.interrupted is not None:
            await self.end_run(self.library.error(refusal.error))
        else:
            await super().refuse(refusal, *args)

    async def end_run(self, event: msgspec.Raw) -> None:
        """Answer with one event, for a run that failed before it had any.

        Args:
            event: Its JSON.
        """
        self.kind = self.record.mode = "stream"
        self.record.status = 200
        self.begin()
        await self._send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *self._headers]})
        await self._send({"type": "http.response.body", "body": encode_events([bytes(event)]), "more_body": False})
        self.record.chunks(1)


class AGUIExchange(InvocationExchange):
    """Answers the runs of an agent as an ASGI application.

    Args:
        agent: What the service is of.
        authentication: Who may call it; ``None`` for everybody.
        plugin: What has the agent that is run.
        route: The template of the path, for spans.
    """

    answer_type = AGUIAnswer

    def __init__(self, agent: Agent, authentication: Authentication | None, plugin: "AGUIPlugin", route: str) -> None:
        super().__init__(agent, debug=False, authentication=authentication)
        self._plugin = plugin
        self._begin_record = partial(agent.telemetry.protocol_request, route=route, protocol="ag-ui")

    @property
    def handler(self) -> Handler | None:  # noqa: D102 - inherited
        return self._plugin.handler

    async def _outcome(
        self, handler: Handler, payload: Any, context: Any, disconnects: Any, receive: Receive, answer: Answer
    ) -> Any:
        assert isinstance(answer, AGUIAnswer)  # noqa: S101 - for the type checker  # nosec B101
        library = answer.library = self._plugin.library
        answer.record.call = "run"
        run = _Run(payload, answer.record, library)
        return await super()._outcome(handler, run, context, disconnects, receive, answer)

    async def _answer_failure(self, failure: Failure, scope: Scope, receive: Receive, answer: Answer) -> None:
        assert isinstance(answer, AGUIAnswer)  # noqa: S101 - for the type checker  # nosec B101
        if isinstance(failure.error, Refusal):
            raise failure.error
        await answer.end_run(failure.answer)


class AGUIConnection(WebSocketConnection):
    """One run over a WebSocket: its input is the first message, each event a text message, and then it is closed.

    Args:
        agent: What the service is of.
        socket: The connection, before the handshake.
        authentication: Who may call it; ``None`` for everybody.
        plugin: What has the agent that is run.
        route: The template of the path, for spans.
    """

    def __init__(
        self,
        agent: Agent,
        socket: WebSocket[Any, Any, Any],
        authentication: Authentication | None,
        plugin: "AGUIPlugin",
        route: str,
    ) -> None:
        super().__init__(agent, socket, authentication, route)
        self._plugin = plugin
        self._library = plugin.library
        self._values = RequestValues()
        self._runs = False
        """Whether the agent has been called, and its end has not been told."""

    # -- On the handler's side

    def note(self, error: BaseException) -> Any:
        """Record what the agent raised.

        Args:
            error: What was raised.

        Returns:
            The event that ends the run.
        """
        self._record.fail(error)
        return self._library.failure(error, self._values, exposed=self._agent.settings.expose_errors)

    def describe(self, error: BaseException) -> Failure:
        """Log and record what the agent raised before it gave any event.

        Args:
            error: What was raised.

        Returns:
            The failure, with the event that ends the run.
        """
        if isinstance(error, Refusal):
            return Failure(error)
        logger.error("The agent raised", exc_info=error)
        return Failure(error, self.note(error))

    # -- On the loop that serves it

    async def _converse(self, values: RequestValues, running: Running) -> None:
        self._values = values
        handler = self._plugin.handler
        if handler is None:
            logger.error("A run was asked for, and no entrypoint is registered")
            await self._close(INTERNAL_ERROR, "No entrypoint defined")
            return
        await self._receive_message()  # that there is a connection
        await self._send_message({"type": "websocket.accept", "subprotocol": None, "headers": []})
        message: Any = await self._receive_message()
        if message["type"] != "websocket.receive":
            logger.debug("The client left before it sent its input")
            return
        text = message.get("text")
        body: bytes = (message.get("bytes") or b"") if text is None else text.encode()
        if not self._agent.execution.has_room_for(handler):
            await self._close(TRY_AGAIN_LATER, "Every thread is taken by a stream whose client reads slowly")
            return
        await self._run_agent(handler, body, running)

    async def _run_agent(self, handler: Handler, body: bytes, running: Running) -> None:
        context = self._values.context(agent_websocket(self._scope, empty_receive, empty_send))
        callbacks = callbacks_of(asyncio.get_running_loop())
        start = partial(handler.call, _Run(body, self._record, self._library), context)
        call = HandlerCall(self._agent.execution, handler.name, handler.kind, start, callbacks, self)
        running.work = call
        self._runs = True
        reading = callbacks.loop.create_task(self._wait_for_disconnect())
        cancels = self._agent.settings.cancel_on_disconnect
        reading.add_done_callback(lambda _: call.abandon(cancel=cancels))
        try:
            outcome = await call.run()
            if isinstance(outcome, EventStream):
                reading.add_done_callback(lambda _: outcome.close())
                await self._send_events(outcome)
            elif isinstance(outcome, Failure) and isinstance(outcome.error, Refusal):
                await self._refuse_input(outcome.error)
            elif isinstance(outcome, Failure):
                await self._send_event(encode_events([bytes(outcome.answer)]))
            self._runs = False
            await self._close(NORMAL_CLOSURE)
        except (OSError, WebSocketDisconnect):
            logger.info("The client went away while its run went on")
        finally:
            reading.cancel()
            running.outlive_client(partial(self._agent.running.discard, running))

    async def _send_events(self, stream: EventStream) -> None:
        try:
            while (taken := await stream.take())[1]:
                for event in taken[0].split(b"\n\n")[:-1]:
                    await self._send_event(event + b"\n\n")
        finally:
            stream.close()

    async def _send_event(self, event: bytes) -> None:
        if not self._closed:
            await self._send_message({"type": "websocket.send", "text": event.decode(), "bytes": None})

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive_message())["type"] != "websocket.disconnect":
            pass

    async def _refuse_input(self, refusal: Refusal) -> None:
        logger.warning("The run was refused: %s", refusal.reason)
        reason = refusal.error if refusal.details is None else f"{refusal.error}: {refusal.details}"
        await self._close(UNSUPPORTED_DATA, reason.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore"))

    async def _close(self, code: int, reason: str = "") -> None:
        if code == GOING_AWAY and self._runs:
            stopped = self._running is not None and self._running.stopped
            refusal = session_stopped() if stopped else shutting_down()
            await self._send_event(encode_events([bytes(self._library.error(refusal.error))]))
        await super()._close(code, reason)


class AGUIPlugin(ProtocolPlugin):
    """Serves an agent over AG-UI, in a Litestar application.

    ``Litestar(plugins=[AGUIPlugin(agent)])`` is all that it takes; beside plain HTTP, which has ``/invocations`` and
    ``/ws`` too, it needs paths of its own.

    Args:
        agent: An agent, as :meth:`entrypoint` takes it; may as well be registered later.
        path: Where runs are asked for with ``POST``.
        websocket_path: Where a run is asked for over a WebSocket; ``None`` leaves that out.

    Raises:
        ImportError: ``ag-ui-protocol`` is not installed.
        TypeError: The agent cannot be called with a ``RunAgentInput``.
    """

    protocol = "ag-ui"

    def __init__(self, agent: Any = None, path: str = INVOCATIONS, websocket_path: str | None = "/ws") -> None:
        self.library = _Library()
        self.handler: Handler | None = None
        self._path = normalize_path(path)
        self._websocket_path = None if websocket_path is None else normalize_path(websocket_path)
        self._service: AgentCorePlugin | None = None
        if agent is not None:
            self.entrypoint(agent)

    def entrypoint(self, agent: AnyAgent) -> AnyAgent:
        """Register the agent that is run, as a decorator or by a call.

        Args:
            agent: A function of ``(input)`` or ``(input, context)``, or an object with such a method ``run``. It is, or
                returns, a generator of events, async or plain.

        Returns:
            The agent, unchanged.

        Raises:
            TypeError: It cannot be called like that.
        """
        self.handler = _run_handler(agent, self.library.input_type)
        self._name_agent()
        return agent

    def _name_agent(self) -> None:
        if self._service is not None and self.handler is not None:
            agent = self._service.agent
            if agent.entrypoint is None:
                agent.telemetry.agent_name = agent.settings.agent_name or self.handler.name

    def mount(self, app_config: AppConfig, service: AgentCorePlugin) -> None:
        """Add the routes.

        Args:
            app_config: What the application is made of.
            service: What they stand on.

        Raises:
            ValueError: Plain HTTP is served at the same path.
        """
        if service.serves_protocol("http"):
            self._check_paths()
        self._service = service
        self._name_agent()
        agent, authentication, path = service.agent, service.authentication, self._path
        exchange = AGUIExchange(agent, authentication, self, path)
        app_config.route_handlers.append(exchange_route(path, ["POST"], exchange, "agentcore-ag-ui"))
        if path == INVOCATIONS:
            service.exchange = exchange  # for the fast path
        agent.protocol_paths["ag-ui"] = (path, *([self._websocket_path] if self._websocket_path else ()))
        if self._websocket_path is not None:
            app_config.route_handlers.append(self._websocket_route(self._websocket_path, service))

    def _check_paths(self) -> None:
        for argument, path, taken in (
            ("path", self._path, INVOCATIONS),
            ("websocket_path", self._websocket_path, "/ws"),
        ):
            if path == taken:
                raise ValueError(
                    f"Plain HTTP and AG-UI cannot both be at {path}: AGUIPlugin({argument}=...) moves AG-UI, and"
                    " AGENTCORE_PROTOCOL=ag-ui or =http serves only one of them"
                )

    def _websocket_route(self, path: str, service: AgentCorePlugin) -> Any:
        @websocket(path, name="agentcore-ag-ui-ws")
        async def converse(socket: WebSocket[Any, Any, Any]) -> None:
            socket.scope["headers"] = handshake_headers(socket.scope["headers"], socket.scope.get("query_string", b""))
            await AGUIConnection(service.agent, socket, service.authentication, self, path).serve()

        return converse


class AGUIApp(ProtocolApp):
    """An agent that is served over AG-UI: ``POST /invocations`` with server-sent events, ``/ws``, ``/ping``.

    An agent written for the official SDK's class of that name moves here by importing this one in its place.

    Args:
        debug: Whether Litestar's debug mode is on.
        lifespan: As :class:`BedrockAgentCoreApp` has it.
        middleware: Likewise.
        **litestar_options: Whatever ``litestar.Litestar`` takes.

    Raises:
        ImportError: ``ag-ui-protocol`` is not installed.
    """

    def __init__(
        self, debug: bool = False, lifespan: Any = None, middleware: Any = None, **litestar_options: Any
    ) -> None:
        self._ag_ui = AGUIPlugin()
        plugins = [self._ag_ui, *(litestar_options.pop("plugins", None) or ())]
        super().__init__(debug, lifespan, middleware, plugins=plugins, **litestar_options)

    def entrypoint(self, agent: AnyAgent) -> AnyAgent:  # type: ignore[override] # no payload's type is to be said
        """Register the agent that is run: :meth:`AGUIPlugin.entrypoint`."""
        return self._ag_ui.entrypoint(agent)

    @property
    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """What is registered: ``{"main": entrypoint}``, or nothing."""
        handler = self._ag_ui.handler
        return MappingProxyType({} if handler is None else {"main": handler.function})

    def websocket(self, function: Any) -> NoReturn:
        """Refuse a handler of ``/ws``.

        Raises:
            TypeError: Always: it is AG-UI's, with the same agent.
        """
        raise TypeError("/ws is AG-UI's here, and served by the entrypoint: AGUIPlugin(websocket_path=...) moves it")


def build_ag_ui_app(agent: Any, *, ping_handler: PingFunction | None = None) -> AGUIApp:
    """Make an application of an agent.

    Args:
        agent: As :meth:`AGUIPlugin.entrypoint` takes it.
        ping_handler: A health function, as :meth:`BedrockAgentCoreApp.ping` takes it.

    Raises:
        ImportError: ``ag-ui-protocol`` is not installed.
        TypeError: The agent, or the function, cannot be called so.
    """
    app = AGUIApp()
    app.entrypoint(agent)
    if ping_handler is not None:
        app.ping(ping_handler)
    return app


def serve_ag_ui(
    agent: Any, *, port: int = 8080, host: str | None = None, ping_handler: PingFunction | None = None, **kwargs: Any
) -> None:
    """Serve an agent with uvicorn until the process is told to end.

    Args:
        agent: As :meth:`AGUIPlugin.entrypoint` takes it.
        port: The port to listen on.
        host: The address to listen on; by default as :meth:`BedrockAgentCoreApp.run` has it.
        ping_handler: A health function.
        **kwargs: Options of ``uvicorn.run``, which win over the defaults.

    Raises:
        ImportError, TypeError: As :func:`build_ag_ui_app`.
        ValueError, RuntimeError: As :meth:`BedrockAgentCoreApp.run`.
    """
    build_ag_ui_app(agent, ping_handler=ping_handler).run(port, host, **kwargs)
