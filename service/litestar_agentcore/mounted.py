"""Applications of protocol libraries, served as an agent's handlers are: admitted, recorded, on the agent's loop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import Context, ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from agentcore_telemetry.metrics import Protocol
from agentcore_telemetry.recording import ProtocolRecord
from litestar.types import Message, Receive, Scope, Send

from litestar_agentcore.answer import Answer, RawHeader
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.errors import BrokenResponseError
from litestar_agentcore.exchange import InvocationExchange
from litestar_agentcore.protocol.headers import SESSION_ID, RequestHeaders, is_identifier
from litestar_agentcore.protocol.json_rpc import error_code
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.protocol.recognition import TITLES, recognize
from litestar_agentcore.request_body import read_body
from litestar_agentcore.runtime.agent import Agent

if TYPE_CHECKING:
    from litestar.types import HTTPScope

logger = logging.getLogger(__name__)

Application = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]
"""An ASGI application."""

_EVENT_STREAM = b"text/event-stream"
_COMMENT = b":"
_SESSION_ID = SESSION_ID.lower().encode()
_WITHOUT_BODY = frozenset({202, 204})
"""Statuses after which a client need not wait for anything."""


class Call(NamedTuple):
    """What is recorded of one call of a protocol. Nothing in it may come from people's data."""

    name: str = "other"
    """Which of the protocol's calls it is: of a set that is bounded, since it becomes a label."""
    attributes: Mapping[str, Any] = {}
    """Attributes of its span."""


IsLast = Callable[[bytes], bool]
"""Tells whether what is sent of a stream holds the last event that a client waits for: it may leave after that."""

CheckCall = Callable[[Scope, bytes], None]
"""Raises the :class:`Refusal` of a request, by its scope, whose headers it may replace, and its body."""

Describe = Callable[[Scope, bytes], Call]
"""Tells what a request calls, of its scope and its body; raises nothing, whatever the body is."""


class MountedApplication:
    """A library's ASGI application that runs on the agent's loop, its lifespan included.

    The lifespan begins with the service's or, where that has none (a test client), with the first request. An
    application lives once: ``make`` is called for each life.

    Args:
        name: What it is called in the log.
        make: Makes the application; called on the agent's loop.
    """

    def __init__(self, name: str, make: Callable[[], Application]) -> None:
        self.name = name
        self._make = make
        self._life: _Life | None = None

    async def start(self) -> None:
        """Begin its lifespan, unless it has begun. On the agent's loop.

        Raises:
            Exception: What making or starting it raised.
        """
        life = self._life
        if life is None or life.is_over:
            life = self._life = _Life(self.name, self._make())
        await life.begun()

    async def stop(self) -> None:
        """End its lifespan, if it has begun. On the agent's loop."""
        life, self._life = self._life, None
        if life is not None and not life.is_over:
            await life.end()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request. On the agent's loop."""
        life = self._life
        if life is None or life.is_over:
            await self.start()
            life = self._life
        else:
            await life.begun()
        assert life is not None  # noqa: S101 - for the type checker  # nosec B101
        own = {key: value for key, value in scope.items() if key not in _OF_THE_HOST}
        await life.application({**own, "state": dict(life.state)}, receive, send)


_OF_THE_HOST = frozenset({"app", "litestar_app", "route_handler", "path_template", "path_params", "state"})
"""What Litestar has put into a scope, and another framework would take for its own."""


class _Life:
    """One life of an application, from the startup of its lifespan to its shutdown. Made on the agent's loop.

    Args:
        name: What it is called in the log.
        application: The application.
    """

    def __init__(self, name: str, application: Application) -> None:
        self._name = name
        self.application = application
        self.state: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._to_application: asyncio.Queue[Message] = asyncio.Queue()
        self._to_application.put_nowait({"type": "lifespan.startup"})  # type: ignore[typeddict-item]
        # Not in the context of the request that may have been the first: it would be that of all that comes.
        self._task = self._loop.create_task(self._run(), context=Context())

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was begun on another loop."""
        failed = self._begun.done() and self._begun.exception() is not None
        return failed or self._task.cancelled() or self._loop is not asyncio.get_running_loop()

    async def begun(self) -> None:
        """Wait until the startup is complete. Raises what it raised."""
        if not self._begun.done():
            await asyncio.wait([self._begun])
        self._begun.result()

    async def end(self) -> None:
        """Have the shutdown run."""
        self._to_application.put_nowait({"type": "lifespan.shutdown"})  # type: ignore[typeddict-item]
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        error: BaseException | None = None
        try:
            await self.application(scope, self._to_application.get, self._send)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except BaseException as raised:
            error = raised
            if self._begun.done():
                logger.exception("The lifespan of %s raised", self._name)
        finally:
            if not self._begun.done():
                # An application that raises at "lifespan" has none (ASGI specification, "Lifespan Protocol").
                if isinstance(error, asyncio.CancelledError):
                    self._begun.set_exception(RuntimeError(f"the agent's loop ended while {self._name} started"))
                else:
                    logger.debug("There is no lifespan in %s", self._name, exc_info=error)
                    self._begun.set_result(None)

    async def _send(self, message: Any) -> None:
        if self._begun.done():
            return
        if message["type"] == "lifespan.startup.complete":
            self._begun.set_result(None)
        elif message["type"] == "lifespan.startup.failed":
            self._begun.set_exception(RuntimeError(f"{self._name} failed to start: {message.get('message')}"))


class MountedAnswer(Answer):
    """The answer that a mounted application gives."""

    __slots__ = ("_is_stream", "is_last", "waits_for_server")

    record: ProtocolRecord

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_stream = False
        self.is_last: IsLast | None = None
        """Tells the last event that the client waits for, where the protocol has such."""
        self.waits_for_server = False
        """Whether it is a stream by which the server may speak first, and nobody waits for its end."""

    async def send(self, message: Message) -> None:  # noqa: D102 - inherited
        if message["type"] == "http.response.start":
            if message["status"] in _WITHOUT_BODY:
                self.answered()
            headers: list[tuple[bytes, bytes]] = list(message["headers"])
            if any(name == b"content-type" and value.startswith(_EVENT_STREAM) for name, value in headers):
                self._is_stream = True
                self.kind = "stream"
                self.record.mode = "stream"
        elif self._is_stream and message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body and not body.startswith(_COMMENT):
                self.record.chunks(1)
                if self.is_last is not None and self.is_last(body):
                    self.answered()
        elif (
            message["type"] == "http.response.body"
            and not message.get("more_body", False)
            and (code := error_code(message.get("body", b""))) is not None
        ):
            self.record.answer_error(code)  # which comes with status 200
        await super().send(message)

    def answered(self) -> None:
        """Note that the client has what it asked for, and may leave."""
        self.record.answered = True

    def announce_expiry(self, *, stopped: bool) -> None:  # noqa: D102 - inherited
        if self.waits_for_server:
            self.expired, self.stopped = True, stopped
        else:
            super().announce_expiry(stopped=stopped)


current_answer: ContextVar[MountedAnswer | None] = ContextVar("agentcore_mounted_answer", default=None)
"""The answer that the current request is given, for the code around a library's application."""


class MountedExchange(InvocationExchange):
    """Answers the requests of a protocol with a library's application.

    Args:
        agent: The agent that is served.
        authentication: Who may call it; ``None`` for everybody.
        application: The library's application.
        protocol: Which protocol it speaks.
        route: The path's template, for spans.
        describe: Tells what is recorded of a request.
        path: The path that the application has for it; by default the route.
        span_path: By what path its spans are named, whichever way a request came; by default the route.
        is_last: Tells the last event that a client waits for, where the protocol has such.
        check_call: Raises the refusal of a request that the application should not see.
        session_header: The protocol's own header for a session, in lower case; it counts where AgentCore's is absent.
    """

    answer_type = MountedAnswer

    def __init__(
        self,
        agent: Agent,
        authentication: Authentication | None,
        application: MountedApplication,
        *,
        protocol: Protocol,
        route: str,
        describe: Describe,
        path: str | None = None,
        span_path: str | None = None,
        is_last: IsLast | None = None,
        check_call: CheckCall | None = None,
        session_header: bytes | None = None,
    ) -> None:
        super().__init__(agent, debug=False, authentication=authentication)
        self.options: dict[str, Any] = {
            "agent": agent,
            "authentication": authentication,
            "application": application,
            "protocol": protocol,
            "describe": describe,
            "path": path or route,
            "span_path": span_path or route,
            "is_last": is_last,
            "check_call": check_call,
            "session_header": session_header,
        }
        """What another exchange of the same application is made with, beside its route."""
        self._application = application
        self._protocol = protocol
        self._describe = describe
        self._path = path or route
        self._is_last = is_last
        self._check_call = check_call
        self._session_header = session_header
        self._begin_record = partial(
            agent.telemetry.protocol_request, route=route, protocol=protocol, path=span_path or route
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one request.

        Args:
            scope: The ASGI scope.
            receive: The ASGI receive function.
            send: The ASGI send function.
            headers: Headers for the answer, beside its own.
        """
        if self._session_header is not None:
            add_session(scope, self._session_header)
        await super().__call__(scope, receive, send, headers)

    async def _invoke(
        self, request: RequestHeaders, scope: Scope, receive: Receive, answer: Answer, clients: Any
    ) -> None:
        assert isinstance(answer, MountedAnswer)  # noqa: S101 - for the type checker  # nosec B101
        method = cast("HTTPScope", scope)["method"]
        self._check(request)
        body = answer.request_body = await read_body(
            request, scope, receive, self._max_body_bytes, clients.bodies, answer
        )
        if body is None:
            logger.info("The client went away before its request was complete")
            await answer.close_without_client()
            return
        self._record_call(scope, body, answer)
        answer.is_last = self._is_last
        if method == "GET":
            self._agent.running.discard(answer)
            self._agent.standing.add(answer)
            answer.waits_for_server = True
            answer.answered()
        elif (
            method == "POST"
            and (admission := self._agent.admission) is not None
            and not await self._admit(admission, clients.disconnects, receive, answer)
        ):
            logger.info("The client went away before there was a place for its invocation")
            await answer.close_without_client()
            return
        token = current_answer.set(answer)
        try:
            await self._respond(
                self._application,
                cast("Scope", {**scope, "path": self._path, "raw_path": self._path.encode(), "root_path": ""}),
                _replayed(body, receive),
                answer,
                self._application.name,
            )
        finally:
            current_answer.reset(token)
            self._agent.standing.discard(answer)
        record = answer.record
        if not (answer.finished or record.left or record.answered) and record.error is None:
            raise BrokenResponseError("the application gave no whole answer")

    def _record_call(self, scope: Scope, body: bytes, answer: Answer) -> None:
        call = self._describe(scope, body)
        record = answer.record
        assert isinstance(record, ProtocolRecord)  # noqa: S101 - for the type checker  # nosec B101
        record.call = call.name
        record.describe(call.attributes)
        if body and (found := recognize(body)) not in (None, self._protocol):
            raise Refusal(400, "Wrong protocol", wrong_protocol(found, self._protocol))
        if self._check_call is not None:
            self._check_call(scope, body)

    async def _expire(self, answer: Answer) -> None:
        await super()._expire(answer)
        if not answer.finished and answer.started:
            if not isinstance(answer, MountedAnswer) or not answer.waits_for_server:
                raise BrokenResponseError("the answer was cut off: the service, or its session, ends")
            await answer.send({"type": "http.response.body", "body": b"", "more_body": False})


def header_of(scope: Scope, name: bytes) -> str | None:
    """The value of a header.

    Args:
        scope: The ASGI scope of a request.
        name: The header's name, in lower case.
    """
    for header, value in scope["headers"]:
        if header.lower() == name:
            return value.decode("latin-1")
    return None


def add_session(scope: Scope, own: bytes) -> None:
    """Have a protocol's own session be the session of a request that has no other.

    Args:
        scope: The ASGI scope of the request.
        own: The protocol's header, in lower case.
    """
    session = header_of(scope, own)
    if session is not None and is_identifier(session) and header_of(scope, _SESSION_ID) is None:
        scope["headers"] = [*scope["headers"], (_SESSION_ID, session.encode("latin-1"))]


def wrong_protocol(found: str | None, served: str) -> str:
    """The sentence for a request of another protocol.

    Args:
        found: What it looks like.
        served: What is served.
    """
    return f"This looks like an {TITLES[found or 'http']} request; the agent serves {TITLES[served]} here"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive function that begins with a body that was read."""
    is_read = False

    async def replay() -> Any:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
