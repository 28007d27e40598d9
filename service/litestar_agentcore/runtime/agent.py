"""The agent that is served: its handlers, its tasks, its health, and where it runs."""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from agentcore_telemetry.instruments import ScrapeCallbacks
from agentcore_telemetry.recording import Telemetry

from litestar_agentcore.protocol.context import span_attributes
from litestar_agentcore.protocol.headers import HeaderLimits, HeaderReader
from litestar_agentcore.protocol.settings import Settings
from litestar_agentcore.runtime.admission import Admission, admission_of
from litestar_agentcore.runtime.agent_loop import AgentLoop
from litestar_agentcore.runtime.execution import Execution
from litestar_agentcore.runtime.handler import Handler, HandlerFunction, inspect_handler, is_coroutine_function, name_of
from litestar_agentcore.runtime.health import Health
from litestar_agentcore.runtime.sessions import Sessions
from litestar_agentcore.runtime.tasks import ActiveTask, TaskRegistry
from litestar_agentcore.runtime.threads import ThreadPool

if TYPE_CHECKING:
    from litestar_agentcore.runtime.running import Running

logger = logging.getLogger(__name__)

T = TypeVar("T")
WebSocketHandler = Callable[[Any, Any], Any]


class Agent:
    """Everything that belongs to one agent and is not HTTP.

    Args:
        settings: How it behaves.
        as_response: Tells ready-made responses among the values that handlers return; see :class:`Execution`.
        version: The service's version.
    """

    def __init__(self, settings: Settings, as_response: Callable[[Any], Any], version: str) -> None:
        self.settings = settings
        self.health = Health(is_busy=lambda: len(self.tasks) > 0, timeout=settings.ping_timeout_seconds)
        callbacks = ScrapeCallbacks(
            active_tasks=lambda: len(self.tasks),
            ping_status=lambda: self.health.last.value,
            status_changed_at=lambda: self.health.last_change,
            event_loop_lag=lambda: self.loop.lag,
            handler_threads=lambda: (self.pool.running, self.pool.parked),
            sessions=lambda: len(self.sessions),
            sync_queue_length=lambda: self.pool.queue_length,
            invocations_waiting=lambda: self.admission.waiting if self.admission is not None else 0,
        )
        self.telemetry = Telemetry(version, callbacks, span_attributes)
        self.telemetry.agent_name = settings.agent_name or self.telemetry.agent_name
        self.headers = HeaderReader(self.telemetry.propagated, HeaderLimits.of(self.settings))
        self.loop = AgentLoop(settings.stall_seconds, on_stall=self.telemetry.metrics.stalls.add)
        self.pool = ThreadPool(settings.sync_threads, "agentcore-sync", settings.parked_threads)
        self.tasks = TaskRegistry(self.telemetry, on_change=self.health.tasks_changed)
        self.execution = Execution(
            self.loop,
            self.pool,
            inline=settings.handler_isolation == "inline",
            interruptible=settings.invocation_timeout_seconds > 0 or settings.cancel_on_disconnect,
            stream_capacity=settings.stream_buffer_bytes,
            as_response=as_response,
        )
        self.entrypoint: Handler | None = None
        self.websocket_handler: WebSocketHandler | None = None
        self.running: set[Running] = set()
        self.standing: set[Running] = set()
        """Streams by which a server may speak first: they end when the work has, and no shutdown waits for them."""
        self.sessions = Sessions(self.running, self.tasks, self.execution, settings.session_idle_seconds)
        self.admission = admission_of(settings)
        """The places of invocations; ``None`` where any number may run."""
        self.websocket_admission = Admission(settings.max_websockets) if settings.max_websockets is not None else None
        """Likewise of WebSockets."""
        self.protocol_paths: dict[str, tuple[str, ...]] = {}
        """Where each protocol is served, as far as its plugin says: first where calls go, then what else there is."""
        self.shutting_down = False
        """What ``/ready`` tells."""
        self.refuses_work = False
        """Whether new work is refused: a signal has told the process to end, and the server still listens."""

    def register_entrypoint(self, function: HandlerFunction, payload: Any = None) -> Handler:
        """Serve this function's answers at ``/invocations`` from now on.

        Args:
            function: The handler.
            payload: The type of its payload; by default the annotation of its first parameter.

        Returns:
            The inspected handler.

        Raises:
            TypeError: It cannot be called with a payload, or the payload's type cannot be decoded.
        """
        self.entrypoint = inspect_handler(function, payload)
        self.telemetry.agent_name = self.settings.agent_name or self.entrypoint.name
        return self.entrypoint

    def register_websocket(self, function: WebSocketHandler) -> None:
        """Have this function hold the conversations on ``/ws`` from now on.

        Args:
            function: An async function of ``(websocket, context)``.

        Raises:
            TypeError: It cannot be called like that, or is not async.
        """
        name = name_of(function)
        if not is_coroutine_function(function):
            raise TypeError(f"The websocket handler must be an async function, and {name} is none")
        try:
            inspect.signature(function).bind(None, None)
        except (TypeError, ValueError) as error:
            raise TypeError(f"The websocket handler {name} must take (websocket, context): {error}") from None
        self.websocket_handler = function

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the agent's loop and wait for it: from the author's lifespan, routes and middleware.

        What a handler is to use (a client, a lock) is best made there.

        Args:
            coroutine: What to run, in a copy of the current context. Cancelling the call cancels it.

        Returns:
            What it returns; it raises what the coroutine raises.

        Raises:
            TypeError: It is no coroutine.
        """
        result: T = await self.execution.run(coroutine)
        return result

    @property
    def work(self) -> "list[Running | ActiveTask]":
        """What runs now: invocations, streams and WebSockets, and background tasks; the oldest first."""
        return sorted([*self.running, *self.tasks.running()], key=lambda work: work.began)

    def describe_work(self) -> str:
        """What runs now, in the log's words."""
        kinds = Counter([running.kind for running in self.running] + ["task"] * len(self.tasks))
        return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items())

    def start(self) -> None:
        """Be ready for requests, again if need be."""
        self.shutting_down = self.refuses_work = False
        self.telemetry.tracer()
        self.headers = HeaderReader(
            self.telemetry.propagated, HeaderLimits.of(self.settings)
        )  # the host program may have set another propagator
        if (entrypoint := self.entrypoint) is not None:
            inline = self.execution.runs_here(entrypoint)
            runs = "async, on the loop that accepts requests" if inline else entrypoint.kind.value
            logger.info("%s: %s", entrypoint.name, runs)
            if entrypoint.remark is not None:
                logger.warning(entrypoint.remark)

    def stop(self) -> None:
        """Cancel the handlers and tasks that still run, and send the last spans. Blocks for some seconds at most."""
        self.shutting_down = True
        for task in self.tasks.running():
            task.expire()
        self.loop.cancel_all()
        self.pool.trim()
        self.telemetry.tracing.flush()
