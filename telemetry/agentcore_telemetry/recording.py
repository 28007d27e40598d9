"""One record for each thing that is observed: it opens the span and the gauge, and closes span and metrics at once."""

import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from agentcore_telemetry.instruments import InvocationMetrics, ScrapeCallbacks
from agentcore_telemetry.metrics import AgentMetrics, Mode, Outcome, Protocol, TaskOutcome
from agentcore_telemetry.propagation import experiment_attributes, extract_context
from agentcore_telemetry.tracing import RequestAttributes, Tracing

Scope = Mapping[str, Any]
"""An ASGI connection scope."""

Interruption = Literal["timeout", "cancelled"]
"""The outcomes of what the service itself ends."""

_NO_ATTRIBUTES: dict[str, str] = {}
_SERVER_ERROR = 500
_CLIENT_ERROR = 400
_OK = 200


class Telemetry:
    """The traces and metrics of one service.

    Args:
        version: The service's version.
        callbacks: What each scrape asks; ``spans_dropped`` is filled in here.
        request_attributes: Tells the attributes that every span of the current request is to carry.
    """

    def __init__(self, version: str, callbacks: ScrapeCallbacks, request_attributes: RequestAttributes) -> None:
        self.tracing = Tracing(request_attributes, version)
        callbacks.spans_dropped = lambda: self.tracing.dropped
        self.metrics = AgentMetrics(version, callbacks)
        self.agent_name = "agent"
        """What the agent is called: in its spans, and as the service where the environment names none."""

    def tracer(self) -> trace.Tracer:
        """The tracer; set up on first use."""
        return self.tracing.tracer(self.agent_name)

    @property
    def propagated(self) -> frozenset[str]:
        """The names of the headers that carry trace context and baggage, in lower case."""
        return frozenset(name.lower() for name in self.tracing.propagator.fields)

    def parent_of(self, carrier: Mapping[str, str] | None) -> tuple[Context, dict[str, str]]:
        """Find the context that a request was sent in.

        Args:
            carrier: Those of its headers that are :attr:`propagated`, where there is one.

        Returns:
            The parent of its span, and the attributes that come from its baggage.
        """
        if carrier is None and not (current := otel_context.get_current()):
            return current, _NO_ATTRIBUTES
        parent = extract_context(carrier, self.tracing.propagator)
        return parent, experiment_attributes(parent)

    def invocation(
        self, scope: Scope, parent: Context, host: str | None, user_agent: str | None, route: str = "/invocations"
    ) -> "InvocationRecord":
        """Begin to record an invocation, in the current context.

        Args:
            scope: Its ASGI scope.
            parent: The parent of its span.
            host: Its ``Host`` header.
            user_agent: Its ``User-Agent`` header.
            route: The path's template.
        """
        return InvocationRecord(self, scope, parent, host, user_agent, route)

    def websocket(
        self, scope: Scope, parent: Context, host: str | None, user_agent: str | None, route: str
    ) -> "WebSocketRecord":
        """Begin to record a WebSocket connection, in the current context.

        Args:
            scope: Its ASGI scope.
            parent: The parent of its span.
            host: Its ``Host`` header.
            user_agent: Its ``User-Agent`` header.
            route: The path's template.
        """
        return WebSocketRecord(self, scope, parent, host, user_agent, route)

    def protocol_request(
        self,
        scope: Scope,
        parent: Context,
        host: str | None,
        user_agent: str | None,
        route: str,
        protocol: Protocol,
        path: str | None = None,
    ) -> "ProtocolRecord":
        """Begin to record a request of a protocol that is served beside plain HTTP, in the current context.

        Args:
            scope: Its ASGI scope.
            parent: The parent of its span.
            host: Its ``Host`` header.
            user_agent: Its ``User-Agent`` header.
            route: The path's template.
            protocol: Which protocol.
            path: The protocol's own path, by which the span is named whichever way the request came; by default the
                route.
        """
        return ProtocolRecord(self, scope, parent, host, user_agent, route, protocol, path)

    def attributes_of(
        self, scope: Scope, method: str, route: str, host: str | None, user_agent: str | None, operation: str | None
    ) -> dict[str, AttributeValue]:
        """The attributes that the HTTP and generative AI conventions give the span of a server.

        Args:
            scope: The ASGI scope of the request.
            method: Its method.
            route: The path's template.
            host: Its ``Host`` header.
            user_agent: Its ``User-Agent`` header.
            operation: What it asks of the agent, where that is known already.
        """
        attributes: dict[str, AttributeValue] = {
            "gen_ai.agent.name": self.agent_name,
            "http.request.method": method,
            "http.route": route,
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
        }
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        address, port = _server(scope, host)
        if address:
            attributes["server.address"] = address
        if port is not None:
            attributes["server.port"] = port
        if client := scope.get("client"):
            attributes["client.address"] = client[0]
        if user_agent:
            attributes["user_agent.original"] = user_agent
        return attributes

    def task(self, name: str) -> "TaskRecord":
        """Begin to record a background task, as a child of the current span.

        Args:
            name: What it is called.
        """
        return TaskRecord(self, name)


class _ServerRecord:
    """What invocations and WebSockets have in common: a SERVER span that is current until the end."""

    __slots__ = ("_ended", "_exception", "_recorded", "_span", "_telemetry", "_token", "error")

    name: str
    """What the span is called, whichever way the request came."""
    method: str
    operation: str | None = "invoke_agent"

    def __init__(
        self,
        telemetry: Telemetry,
        scope: Scope,
        parent: Context,
        host: str | None,
        user_agent: str | None,
        route: str,
    ) -> None:
        self._telemetry = telemetry
        self._token = None
        self._ended = False
        self._exception: dict[str, AttributeValue] | None = None
        self.error: BaseException | None = None
        """What the handler raised, if anything; see :meth:`fail`."""
        tracing = telemetry.tracing
        if tracing.disabled and not parent:
            self._span: trace.Span = trace.INVALID_SPAN
            self._recorded = False
            return
        attributes = {}
        if not tracing.disabled:
            attributes = telemetry.attributes_of(scope, self.method, route, host, user_agent, self.operation)
        self._span = span = tracing.start_server_span(self.name, parent, attributes, telemetry.agent_name)
        self._recorded = span.is_recording()
        # Nothing has to be made current where there is neither a span nor anything that came with the request.
        if parent or span is not trace.INVALID_SPAN:
            self._token = otel_context.attach(trace.set_span_in_context(span, parent))

    def fail(self, error: BaseException) -> None:
        """Record what the handler raised. To be called where that ran: its text is asked for, which is its code.

        Args:
            error: What was raised.
        """
        if self._ended:
            return
        if self._recorded:
            self._exception = _exception_attributes(error)
        self.error = error

    def describe(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add what the protocol's own conventions say of a call to its span. From any thread.

        Args:
            attributes: The attributes; they win over those that the span has.
        """
        if self._recorded and not self._ended:
            for key, value in attributes.items():
                self._note(key, value)

    def _note(self, key: str, value: AttributeValue) -> None:
        span: Any = self._span
        getattr(span, "set_attribute_unchecked", span.set_attribute)(key, value)

    def _close(self, status: int | None, sent_status: int | None = None) -> None:
        span = self._span
        self._ended = True
        if self._token is not None:
            otel_context.detach(self._token)
        if self._recorded:
            if status is not None:
                self._note("http.response.status_code", sent_status or status)
            _set_failure(span, self._exception, status)
        span.end()


class InvocationRecord(_ServerRecord):
    """One invocation, from its request to the last byte of its answer."""

    __slots__ = ("_began", "_chunks", "_metrics", "interrupted", "left", "mode", "rejected", "sent_status", "status")

    name, method = "POST /invocations", "POST"

    def __init__(
        self,
        telemetry: Telemetry,
        scope: Scope,
        parent: Context,
        host: str | None,
        user_agent: str | None,
        route: str = "/invocations",
        metrics: InvocationMetrics | None = None,
    ) -> None:
        self._began = perf_counter()
        self._chunks = 0
        self.mode: Mode = "unary"
        self.status: int | None = None
        """The HTTP status of the answer, by which outcome and failure are told."""
        self.sent_status: int | None = None
        """The HTTP status that was sent, where that is another: AWS's data plane has statuses of its own."""
        self.left = False
        """Whether the client went away before the end."""
        self.rejected = False
        """Whether the service would not take it."""
        self.interrupted: Interruption | None = None
        """Why the service ended it before it had come to its end, where it did."""
        self._metrics = metrics = metrics or telemetry.metrics.invocations
        metrics.begin()
        super().__init__(telemetry, scope, parent, host, user_agent, route)

    def carrier(self) -> dict[str, str]:
        """The headers that carry the context of the invocation, and its baggage, to the client."""
        carrier: dict[str, str] = {}
        self._telemetry.tracing.propagator.inject(carrier)
        return carrier

    def leave(self) -> None:
        """Record that the client went away."""
        self.left = True

    def interrupt(self, reason: "Interruption") -> None:
        """Record that the service ends it, unless the client has left before.

        Args:
            reason: ``timeout`` where its time was over; ``cancelled`` where the service, or its session, ends.
        """
        if not self.left and self.interrupted is None:
            self.interrupted = reason

    def chunks(self, count: int) -> None:
        """Count events that were sent.

        Args:
            count: How many.
        """
        metrics = self._metrics
        if not self._chunks:
            metrics.first_chunk(perf_counter() - self._began, _trace_id_of(self._span))
        self._chunks += count
        metrics.chunks(count)

    def end(self) -> None:
        """Close the span and count the invocation."""
        outcome = self._outcome()
        trace_id = None
        if self._recorded:
            trace_id = _trace_id_of(self._span)
            if self.mode == "stream":
                self._note("agentcore.stream.chunks", self._chunks)
                self._note("agentcore.stream.outcome", _STREAM_OUTCOMES.get(outcome, "error"))
        self._count(outcome, perf_counter() - self._began, trace_id)
        if self._span is trace.INVALID_SPAN:
            return
        reason = self.interrupted
        if self._recorded and reason is not None and self.error is None and self.status == _OK:
            self._note("error.type", reason)  # the status was sent before it was known how this would end
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._close(self.status, self.sent_status)

    def _count(self, outcome: Outcome, seconds: float, trace_id: int | None) -> None:
        self._metrics.end(self.mode, outcome, seconds, trace_id)

    def _outcome(self) -> Outcome:
        if self.interrupted is not None:
            return self.interrupted
        if self.left:
            return "disconnected"
        if self.rejected:
            return "rejected"
        if self.status is None or self.status >= _SERVER_ERROR:
            return "server_error"
        if self.status >= _CLIENT_ERROR:
            return "client_error"
        return "server_error" if self.mode == "stream" and self.error is not None else "ok"


class ProtocolRecord(InvocationRecord):
    """One request of a protocol that is served beside plain HTTP.

    A POST is an invocation and counted as one. Other methods (a stream by which a server may speak first, the end of a
    session) are counted by protocol alone.
    """

    __slots__ = ("_error_code", "_protocol", "answered", "call", "method", "name", "operation")

    def __init__(
        self,
        telemetry: Telemetry,
        scope: Scope,
        parent: Context,
        host: str | None,
        user_agent: str | None,
        route: str,
        protocol: Protocol,
        path: str | None = None,
    ) -> None:
        self._error_code: int | None = None
        self._protocol = protocol
        self.method = scope["method"]
        self.name = f"{self.method} {path or route}"
        self.operation = "invoke_agent" if protocol in _INVOKING else None
        self.call = "other"
        """Which of the protocol's calls it is, as a label: of a set that is bounded."""
        self.answered = False
        """Whether the client has what it asked for: it may leave before the end of the answer."""
        metrics = None if self.method == "POST" else telemetry.metrics.uncounted
        super().__init__(telemetry, scope, parent, host, user_agent, route, metrics)

    def leave(self) -> None:
        """Record that the client went away, unless it has been answered."""
        if not self.answered:
            super().leave()

    def answer_error(self, code: int) -> None:
        """Record that the answer is an error of JSON-RPC, whatever its HTTP status is.

        By the OpenTelemetry conventions for JSON-RPC; as with HTTP, what is the client's fault is no error of ours.

        Args:
            code: The error's code.
        """
        self._error_code = code
        if self._recorded:
            self._note("rpc.response.status_code", str(code))
            if code in _SERVER_ERROR_CODES:
                self._note("error.type", str(code))
                self._span.set_status(Status(StatusCode.ERROR))

    def _outcome(self) -> Outcome:
        outcome = super()._outcome()
        if outcome != "ok":
            return outcome
        if self.error is not None or self._error_code in _SERVER_ERROR_CODES:
            return "server_error"
        return outcome if self._error_code is None else "client_error"

    def _count(self, outcome: Outcome, seconds: float, trace_id: int | None) -> None:
        super()._count(outcome, seconds, trace_id)
        self._telemetry.metrics.protocols.end(self._protocol, self.call, outcome, seconds, trace_id)


_INVOKING = frozenset({"ag-ui", "a2a"})
"""The protocols whose requests ask an agent to do something; with MCP, a tool is called, or something is listed."""

_SERVER_ERROR_CODES = frozenset({-32603, -32006})
"""Internal error (JSON-RPC 2.0 Specification, 5.1); the agent's answer makes no sense (A2A specification, "Error
Handling")."""

_STREAM_OUTCOMES = {"ok": "completed", "disconnected": "disconnected"}


class WebSocketRecord(_ServerRecord):
    """One WebSocket connection."""

    __slots__ = ()

    name, method = "GET /ws", "GET"

    def __init__(
        self,
        telemetry: Telemetry,
        scope: Scope,
        parent: Context,
        host: str | None,
        user_agent: str | None,
        route: str,
    ) -> None:
        telemetry.metrics.websockets.add()
        super().__init__(telemetry, scope, parent, host, user_agent, route)

    def end(self, status: int) -> None:
        """Close the span.

        Args:
            status: The HTTP status of the handshake: 101 where it was accepted.
        """
        self._telemetry.metrics.websockets.add(-1)
        self._close(status)


class TaskRecord:
    """One background task, from its start to its end; it may outlive the request that started it."""

    __slots__ = ("_began", "_name", "_span", "_telemetry")

    def __init__(self, telemetry: Telemetry, name: str) -> None:
        self._began = perf_counter()
        self._telemetry = telemetry
        self._name = name
        self._span = telemetry.tracer().start_span(f"async_task {name}")

    def activate(self) -> Any:
        """Make the span current here; returns what :meth:`deactivate` takes."""
        return otel_context.attach(trace.set_span_in_context(self._span))

    def deactivate(self, token: Any) -> None:
        """Make the span before it current again.

        Args:
            token: What :meth:`activate` returned.
        """
        otel_context.detach(token)

    def end(self, outcome: TaskOutcome, error: BaseException | None = None) -> None:
        """Close the span and count the task.

        Args:
            outcome: How it ended.
            error: What it raised, if anything.
        """
        seconds = perf_counter() - self._began
        self._telemetry.metrics.tasks.end(self._name, outcome, seconds, _trace_id_of(self._span))
        if self._span.is_recording():
            if error is not None:
                _set_failure(self._span, _exception_attributes(error), None)
            elif outcome != "completed":
                self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()


def _trace_id_of(span: trace.Span) -> int | None:
    """What leads from a metric to a trace, where that trace will be found."""
    if not span.is_recording():
        return None
    context = span.get_span_context()
    return context.trace_id if context.trace_flags & TraceFlags.SAMPLED else None


def _exception_attributes(error: BaseException) -> dict[str, AttributeValue]:
    """What the exception event of a span says, by the conventions for exceptions on spans."""
    try:
        message = str(error)
    except Exception:  # its ``__str__`` is the author's code
        message = ""
    return {
        "exception.type": _type_name(error),
        "exception.message": message,
        "exception.stacktrace": "".join(traceback.format_exception(error)),
        "exception.escaped": "False",
    }


def _set_failure(span: trace.Span, exception: dict[str, AttributeValue] | None, status: int | None) -> None:
    """Say what went wrong, as the HTTP conventions have it: a 4xx is the client's fault and no error of ours."""
    if exception is not None and (status is None or status >= _SERVER_ERROR or status < _CLIENT_ERROR):
        kind = str(exception["exception.type"])
        span.add_event("exception", exception)
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, kind))
    elif status is not None and status >= _SERVER_ERROR:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _server(scope: Scope, host: str | None) -> tuple[str | None, int | None]:
    """The address that the client asked for, by its ``Host`` header where there is one."""
    server: Sequence[Any] = scope.get("server") or (None, None)
    if not host:
        return server[0], server[1]
    name, port = _address_of(host) if len(host) <= _LONGEST_REMEMBERED else _parse_address(host)
    return name, server[1] if port is None else port


def _parse_address(host: str) -> tuple[str, int | None]:
    name, separator, port = host.rpartition(":")
    if separator and port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS:
        return name, int(port)
    return host, None


_PORT_DIGITS = 5
_LONGEST_REMEMBERED = 255
_address_of = lru_cache(maxsize=256)(_parse_address)
