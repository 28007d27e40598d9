"""AWS's data plane: invocations, WebSockets and the end of sessions as AWS's own clients ask for them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, Response, WebSocket
from litestar.types import Empty, Receive, Scope, Send
from litestar.utils.scope.state import ScopeState

from litestar_agentcore.answer import Answer, RawHeader
from litestar_agentcore.authentication import Authentication
from litestar_agentcore.errors import ExceptionHandlers, headers_of, status_of
from litestar_agentcore.exchange import Exchange, InvocationExchange
from litestar_agentcore.mounted import MountedAnswer, MountedExchange
from litestar_agentcore.protocol.aws_errors import AwsError, InvalidFieldError, agent_error, error_of
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request
from litestar_agentcore.protocol.data_plane import (
    CLIENT_TOKEN_PATTERN,
    GET_AGENT_CARD,
    MAX_PAYLOAD_BYTES,
    RETURNED,
    Operation,
    Target,
    check_headers,
    check_runtime,
    target_of,
    unsigned_headers,
    unsigned_query,
)
from litestar_agentcore.protocol.headers import (
    SESSION_ID,
    RequestHeaders,
    handshake_headers,
    new_request_id,
    response_headers,
)
from litestar_agentcore.protocol.models import Refusal, internal_error, too_slow_body
from litestar_agentcore.request_body import read_body
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.failure import message_of
from litestar_agentcore.runtime.sessions import KeptSession, Session, Sessions
from litestar_agentcore.websocket import WebSocketConnection

logger = logging.getLogger(__name__)

PARAMETER = "target"
"""The path parameter with what follows ``/runtimes/``."""

TOKEN_SECONDS = 600.0
"""How long a client token is remembered."""

MAX_TOKENS = 10_000
"""How many client tokens are remembered at the most. Beyond it the oldest are forgotten."""

MAX_STOP_BYTES = 4096
"""How large the body of a StopRuntimeSession may be: a client token."""

_SESSION_ID = SESSION_ID.lower().encode()
_AWS_REQUEST_ID = b"x-amzn-requestid"
_MAX_ERROR_BYTES = 64 * 1024
"""How much of the body of an agent's response that is beyond 2xx is read; a message has less."""

INVOKE: Operation = "invocations"
CARD: Operation = GET_AGENT_CARD
STOP: Operation = "stopruntimesession"
WEBSOCKET: Operation = "ws"

AnyScope = Any


def target(scope: AnyScope) -> Target:
    """What a request on the data plane asks for.

    Args:
        scope: Its ASGI scope, routed.
    """
    return target_of(str(scope["path_params"][PARAMETER]))


def make_unsigned(scope: AnyScope) -> None:
    """Take what signs a call out of a scope, before an agent, a span or a log line could have it.

    Args:
        scope: The ASGI scope, which is changed.
    """
    scope["headers"] = unsigned_headers(scope["headers"])
    scope["query_string"] = unsigned_query(scope.get("query_string", b""))
    state = ScopeState.from_scope(scope)
    state.headers = state.parsed_query = state.url = Empty  # which may have been read already


def has_session(headers: Iterable[RawHeader]) -> bool:
    """Tell whether a request has a session id."""
    return any(name.lower() == _SESSION_ID for name, _ in headers)


def aws_ids(request_id: str) -> list[RawHeader]:
    """The header in which clients of AWS look for the id of a request."""
    return [(_AWS_REQUEST_ID, request_id.encode())]


def _begin(scope: AnyScope) -> None:
    """Have a request in the form in which the agent may see it, with a session of its own where it has none."""
    make_unsigned(scope)
    if not has_session(scope["headers"]):
        scope["headers"].append((_SESSION_ID, new_request_id().encode()))


class DataPlaneAnswer(Answer):
    """The response of one invocation, with errors in AWS's form: whatever an agent answers beyond 2xx is one.

    Args:
        *args: As :class:`Answer` has them.
    """

    # Without __slots__, of which only one of two bases may have some.

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._status: int | None = None
        """The status of an agent's response that is beyond 2xx, of which the body is awaited."""
        self._body = b""
        carried = {name.lower().encode(): value.encode("latin-1") for name, value in self.record.carrier().items()}
        for name, value in self._scope["headers"]:
            if (lower := name.lower()) in RETURNED:
                carried.setdefault(lower, value)
        self._headers += [*aws_ids(self.values.request_id or ""), *carried.items()]

    @property
    def exception_handlers(self) -> ExceptionHandlers:
        """The application's: those of the route have AWS's form, which comes afterwards."""
        handlers: Any = self._scope["litestar_app"].exception_handlers
        return cast("ExceptionHandlers", handlers)

    async def value(
        self,
        body: bytes,
        status: int = 200,
        headers: list[RawHeader] | None = None,
        before_end: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Answer with one JSON document, as :meth:`Answer.value` does, or with the error that it is."""
        if _is_success(status):
            await super().value(body, status, headers, before_end)
        else:
            await self._fail(status, agent_error(status, body), None, before_end)

    async def refuse(
        self,
        refusal: Refusal,
        headers: list[RawHeader] | None = None,
        before_end: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Answer with what the service itself has to say, in the place of the agent."""
        await self._fail(refusal.status, error_of(refusal), headers, before_end)

    async def send(self, message: Any) -> None:
        """Send an ASGI message of a response that the author made, or make an error of that."""
        kind = message["type"]
        if kind == "http.response.start" and not _is_success(message["status"]):
            self._status = message["status"]
            self._body = b""
            return
        if self._status is None:
            if kind == "http.response.start" and not any(
                name.lower() == b"content-type" for name, _ in message.get("headers", ())
            ):  # which the model requires
                typed = [*message.get("headers", ()), (b"content-type", b"application/octet-stream")]
                message = {**message, "headers": typed}
            await super().send(message)
            return
        if kind != "http.response.body":
            return
        if len(self._body) < _MAX_ERROR_BYTES:
            self._body += message.get("body", b"")
        if not message.get("more_body", False):
            status, self._status = self._status, None
            await self._fail(status, agent_error(status, self._body), None, None)
            self.finished = True

    async def _fail(
        self,
        status: int,
        error: AwsError,
        headers: list[RawHeader] | None,
        before_end: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self.record.sent_status = error.status
        try:
            await super().value(error.body, error.status, [*(headers or ()), error.header], before_end)
        finally:
            self.record.status = status


def _is_success(status: int) -> bool:
    return 200 <= status < 300


class MountedDataPlaneAnswer(DataPlaneAnswer, MountedAnswer):
    """The same, where a mounted application answers."""


class _Invocation(InvocationExchange):
    """Answers InvokeAgentRuntime as an ASGI application: an invocation of which request and answer are AWS's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[RawHeader] = ()) -> None:
        """Serve one invocation.

        Args:
            scope: The ASGI scope, routed.
            receive: The ASGI receive function.
            send: The ASGI send function.
            headers: Headers for the answer, beside its own.
        """
        _begin(scope)
        await super().__call__(scope, receive, send, headers)

    def _begin_session(self, values: RequestValues) -> KeptSession | None:
        return None  # not before it is known whether this is the session's agent

    async def _invoke(
        self, request: RequestHeaders, scope: Scope, receive: Receive, answer: Answer, clients: Any
    ) -> None:
        check_runtime(target(scope).runtime, scope["query_string"], self._agent.settings.runtime_arn)
        check_headers(scope["headers"])
        kept = super()._begin_session(request.values)
        try:
            await super()._invoke(request, scope, receive, answer, clients)
        finally:
            if kept is not None:
                self._agent.sessions.end(kept)


class DataPlaneExchange(_Invocation):
    """Answers InvokeAgentRuntime of an agent that has an entrypoint.

    Args:
        agent: The agent that is invoked.
        debug: Whether payloads may ask for debug actions.
        authentication: Who may invoke it; ``None`` for everybody.
        route: The template of its path, for spans.
    """

    answer_type = DataPlaneAnswer

    def __init__(self, agent: Agent, debug: bool, authentication: Authentication | None, route: str) -> None:
        super().__init__(agent, debug, authentication)
        self._begin_record = partial(agent.telemetry.invocation, route=route)
        self._max_body_bytes = min(self._max_body_bytes, MAX_PAYLOAD_BYTES)


class MountedDataPlaneExchange(_Invocation, MountedExchange):
    """Answers InvokeAgentRuntime of an agent that serves another protocol, with that protocol's application.

    Args:
        exchange: What answers the protocol's own path.
        route: The template of the data plane's path, for spans.
    """

    answer_type = MountedDataPlaneAnswer

    def __init__(self, exchange: MountedExchange, route: str) -> None:
        super().__init__(**exchange.options, route=route)
        self._max_body_bytes = min(self._max_body_bytes, MAX_PAYLOAD_BYTES)


class DataPlane:
    """What is served to AWS's clients, by operation.

    Args:
        prefix: The path that all of it is below.
    """

    def __init__(self, prefix: str) -> None:
        self.template = f"{prefix.rstrip('/')}/{{arn}}"
        self.invocations: InvocationExchange | None = None
        """InvokeAgentRuntime; of an application that has several protocols, plain HTTP's, else the first one's."""
        self.agent_card: Exchange | None = None
        """GetAgentCard, where A2A is served."""

    @property
    def invocations_route(self) -> str:
        """The template of the path of InvokeAgentRuntime."""
        return f"{self.template}/{INVOKE}"

    def serving(self, operation: str) -> Exchange | None:
        """What answers an operation; ``None`` where it is not served, or needs no exchange.

        Args:
            operation: The end of the path.
        """
        if operation == INVOKE:
            return self.invocations
        return self.agent_card if operation == CARD else None

    def serve(self, exchange: MountedExchange) -> None:
        """Have InvokeAgentRuntime reach a protocol, unless it reaches another already.

        Args:
            exchange: What answers the protocol's own path.
        """
        if self.invocations is None:
            self.invocations = MountedDataPlaneExchange(exchange, self.invocations_route)


class DataPlaneConnection(WebSocketConnection):
    """Hands one connection to the author's handler, as :class:`WebSocketConnection` does; refused in AWS's form.

    Args:
        agent: The agent that is talked to.
        socket: The connection, before the handshake.
        authentication: Who may talk to it; ``None`` for everybody.
        route: The template of its path, for spans.
    """

    def __init__(
        self, agent: Agent, socket: WebSocket[Any, Any, Any], authentication: Authentication | None, route: str
    ) -> None:
        scope = socket.scope
        scope["headers"] = handshake_headers(scope["headers"], scope.get("query_string", b""))
        _begin(scope)
        super().__init__(agent, socket, authentication, route)

    def _check(self, request: RequestHeaders) -> Refusal | None:
        asked = target(self._scope)
        try:
            if asked.operation != WEBSOCKET:
                raise not_served(asked)
            check_runtime(asked.runtime, self._scope["query_string"], self._agent.settings.runtime_arn)
            check_headers(self._scope["headers"])
        except Refusal as refusal:
            return refusal
        return super()._check(request)

    def _denial(self, refusal: Refusal) -> tuple[int, bytes, list[RawHeader]]:
        error = error_of(refusal)
        return error.status, error.body, [*refusal.headers, error.header]


def not_served(asked: Target) -> Refusal:
    """The refusal of what is asked for and not served."""
    return Refusal(404, f"The operation {asked.operation!r} of the data plane is not served", reason="Not served")


class StopRequest(msgspec.Struct, frozen=True, rename="camel"):
    """The body of a StopRuntimeSession."""

    client_token: Annotated[str, msgspec.Meta(min_length=33, max_length=256, pattern=CLIENT_TOKEN_PATTERN)] | None = (
        None
    )
    """The same in each repeat of a call; those of ten minutes are remembered, and do nothing twice."""


class StopOperation:
    """Answers StopRuntimeSession.

    Args:
        agent: The agent whose sessions are ended.
        authentication: Who may end them; ``None`` for everybody.
    """

    def __init__(self, agent: Agent, authentication: Authentication | None) -> None:
        self._agent = agent
        self._authentication = authentication
        self.stops = SessionStops(agent.sessions)

    async def __call__(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Serve one call.

        Args:
            request: The request.
        """
        scope = request.scope
        make_unsigned(scope)
        headers = self._agent.headers.read(scope["headers"])
        token = enter_request(headers.values)
        try:
            if self._authentication is not None:
                await self._authentication.admit(scope, headers)
            await self._stop(request, headers)
        except Refusal as refusal:
            logger.warning("A session was not stopped: %s", refusal.reason)
            return error_response(error_of(refusal, unauthorized=True), headers.values, refusal.headers)
        finally:
            current_request.reset(token)
        return aws_response(b"{}", 200, headers.values)

    async def _stop(self, request: Request[Any, Any, Any], headers: RequestHeaders) -> None:
        scope = request.scope
        check_runtime(target(scope).runtime, scope["query_string"], self._agent.settings.runtime_arn)
        session_id = headers.values.session_id
        if not has_session(scope["headers"]):
            raise InvalidFieldError("runtimeSessionId", "The id of the session to stop is needed")
        check_headers(scope["headers"])
        if headers.refusal is not None or session_id is None:
            raise headers.refusal or InvalidFieldError("runtimeSessionId", "It makes no sense")
        await self.stops.stop(session_id, await self._client_token(request, headers))

    async def _client_token(self, request: Request[Any, Any, Any], headers: RequestHeaders) -> str | None:
        seconds = self._agent.settings.body_idle_seconds or None
        try:
            async with asyncio.timeout(seconds):
                body = await read_body(headers, request.scope, request.receive, MAX_STOP_BYTES, None, self)
        except TimeoutError:
            raise too_slow_body() from None
        try:
            return msgspec.json.decode(body or b"{}", type=StopRequest).client_token
        except msgspec.ValidationError as error:
            raise InvalidFieldError("clientToken", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidFieldError("body", str(error), "CannotParse") from None

    def time_out(self) -> None:
        """Do nothing: its time is limited otherwise."""


async def admit_card_request(scope: AnyScope, agent: Agent, authentication: Authentication | None) -> list[RawHeader]:
    """Check a GetAgentCard.

    Args:
        scope: Its ASGI scope, routed; it is changed as for an invocation.
        agent: The agent that the card is of.
        authentication: Who may read it; ``None`` for everybody.

    Returns:
        Headers for the answer.

    Raises:
        Refusal: It cannot be answered.
    """
    _begin(scope)
    request = agent.headers.read(scope["headers"])
    if authentication is not None:
        await authentication.admit(scope, request)
    check_runtime(target(scope).runtime, scope["query_string"], agent.settings.runtime_arn)
    check_headers(scope["headers"])
    if request.refusal is not None:
        raise request.refusal
    request_id = request.values.request_id or ""
    return [*response_headers(request_id, request.values.session_id), *aws_ids(request_id)]


def exception_handler(agent: Agent) -> Callable[[Request[Any, Any, Any], Exception], Response[bytes]]:
    """Make the exception handler of the data plane's routes, for what Litestar or an application around them raises.

    Args:
        agent: The agent that is served.
    """

    def answer_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        values = agent.headers.read(request.scope["headers"]).values
        token = current_request.set(values)
        status = status_of(error)
        path = request.scope["path"]
        try:
            if status is not None:
                refusal = Refusal(status, str(getattr(error, "detail", "")) or HTTPStatus(status).phrase)
                logger.warning("%s %s was answered with status %d", request.method, path, status)
            else:
                exposed = agent.settings.expose_errors
                refusal = Refusal(500, message_of(error) if exposed else internal_error(None).error)
                logger.error("%s %s failed", request.method, path, exc_info=error)
        finally:
            current_request.reset(token)
        error_form = error_of(refusal, unauthorized=target(request.scope).operation == STOP)
        return error_response(error_form, values, headers_of(error))

    return answer_exception


def aws_response(body: bytes, status: int, values: RequestValues, headers: Sequence[RawHeader] = ()) -> Response[bytes]:
    """Make a response of the data plane.

    Args:
        body: The body, which is JSON.
        status: The HTTP status.
        values: The ids of the request.
        headers: Headers beside those of every answer.
    """
    request_id = values.request_id or ""
    own = [*response_headers(request_id, values.session_id), *aws_ids(request_id), *headers]
    return Response(
        body,
        status_code=status,
        media_type="application/json",
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in own},
    )


def error_response(error: AwsError, values: RequestValues, headers: Sequence[RawHeader] = ()) -> Response[bytes]:
    """Make the response of an error of the data plane.

    Args:
        error: The error.
        values: The ids of the request.
        headers: Headers beside those of every answer.
    """
    return aws_response(error.body, error.status, values, [*headers, error.header])


class SessionStops:
    """Ends sessions, and does nothing for a client token that has ended one already.

    Args:
        sessions: The sessions.
        clock: Tells the time in seconds.
    """

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._tokens: dict[str, tuple[float, str]] = {}
        """By client token, the oldest first: until when it is remembered, and the session that it ended."""

    def __len__(self) -> int:
        return len(self._tokens)

    async def stop(self, session_id: str, token: str | None) -> None:
        """End a session, unless this client token has done so.

        Args:
            session_id: Which session.
            token: The client's token, if it has one.

        Raises:
            Refusal: There is no such session here (status 404), or the token was another session's (400).
        """
        self._forget_old()
        if token is not None and (remembered := self._tokens.get(token)) is not None:
            if remembered[1] != session_id:
                raise InvalidFieldError(
                    "clientToken", "It has ended another session", "IdempotentParameterMismatchException"
                )
            logger.info("The session was stopped with this client token before")
            return
        session = self._sessions.get(session_id)
        if session is None:
            raise Refusal(404, f"No session {session_id} is here", reason="No such session")
        if token is not None:
            self._tokens[token] = (self._clock() + TOKEN_SECONDS, session_id)
        logger.info("Session %s is stopped as its client asks: %s", session_id, _described(session))
        await self._sessions.stop(session_id)

    def _forget_old(self) -> None:
        now = self._clock()
        while self._tokens:
            token, (until, _) = next(iter(self._tokens.items()))
            if until > now and len(self._tokens) < MAX_TOKENS:
                break
            del self._tokens[token]


def _described(session: Session) -> str:
    counts = {
        "invocation": session.invocations,
        "stream": session.streams,
        "WebSocket": session.websockets,
        "task": session.tasks,
    }
    return ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())
