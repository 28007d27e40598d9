"""The metrics of a service: which label values and buckets they have, and their exposition to Prometheus."""

import platform
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from agentcore_telemetry.instruments import (
    CallbackMetric,
    Counter,
    Instrument,
    InvocationMetrics,
    Metric,
    ProtocolMetrics,
    ScrapeCallbacks,
    SeriesStore,
    Snapshot,
    TaskMetrics,
    merge,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Mode = Literal["unary", "stream"]
Outcome = Literal["ok", "client_error", "server_error", "disconnected", "rejected", "timeout", "cancelled"]
"""How an invocation ended. ``timeout``: its time was over; ``cancelled``: by a shutdown, or with its session."""

Protocol = Literal["ag-ui", "a2a", "mcp"]
"""What is served beside plain HTTP."""

TaskOutcome = Literal["completed", "failed", "lost"]
AuthFailure = Literal[
    "missing", "malformed", "api_key", "algorithm", "unknown_key", "signature", "issuer", "expired", "not_yet_valid",
    "claims", "audience", "client", "scope", "unavailable",
]  # fmt: skip

MODES: tuple[Mode, ...] = ("unary", "stream")
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TASK_OUTCOMES: tuple[TaskOutcome, ...] = ("completed", "failed", "lost")
AUTH_FAILURES: tuple[AuthFailure, ...] = get_args(AuthFailure)
"""Why a caller was not let in."""

MAX_TASK_NAMES = 100
"""How many names of tasks get series of their own; the rest is counted as ``other``."""

DURATION_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600,
)  # fmt: skip
"""The upper bounds of the histograms' buckets, in seconds: from a millisecond to an hour, since agents are slow."""

_STATUSES = ("Healthy", "HealthyBusy")


class AgentMetrics:
    """The metrics of one service, on a registry of its own, so that two in one process do not collide.

    A metric is added by adding an :class:`Instrument` to :attr:`instruments`. It is exposed then and, where several
    worker processes serve the agent, aggregated over them as its :class:`Metric` says.

    Args:
        version: The service's version.
        callbacks: What each scrape asks.
    """

    def __init__(self, version: str, callbacks: ScrapeCallbacks) -> None:
        self.callbacks = callbacks
        self.invocations = InvocationMetrics(MODES, OUTCOMES, DURATION_BUCKETS)
        self.protocols = ProtocolMetrics(DURATION_BUCKETS)
        self.uncounted = InvocationMetrics(MODES, OUTCOMES, DURATION_BUCKETS)
        """Takes what is recorded like an invocation and is none; exposed nowhere."""
        self.tasks = TaskMetrics(MAX_TASK_NAMES, DURATION_BUCKETS)
        self.websockets = Counter(
            Metric("agentcore_websocket_connections", "gauge", "Open WebSockets.", aggregation="sum")
        )
        self.stalls = Counter(
            Metric(
                "agentcore_handler_stalls",
                "counter",
                "Times a handler held the agent's event loop longer than the limit.",
            )
        )
        failures = Metric("agentcore_auth_failures", "counter", "Callers who were not let in.", ("reason",))
        self.auth_failures = {reason: Counter(failures, (reason,)) for reason in AUTH_FAILURES}
        build = Metric(
            "agentcore_build_info", "gauge", "What is running.", ("version", "python_version"), aggregation="own"
        )
        self.instruments: list[Instrument] = [
            self.invocations,
            self.websockets,
            self.stalls,
            *self.auth_failures.values(),
            self.tasks,
            CallbackMetric(build, lambda: {(version, platform.python_version()): 1}),
            *self._callback_metrics(),
        ]
        self._siblings: Callable[[], Snapshot] | None = None
        self._of_the_process: Instrument | None = None

    def expose_protocols(self) -> None:
        """Expose what is counted by protocol too: more than plain HTTP is served. Before the first scrape."""
        if self.protocols not in self.instruments:
            self.instruments.append(self.protocols)

    def _callback_metrics(self) -> list[Instrument]:
        callbacks = self.callbacks

        def ping_status() -> dict[tuple[str, ...], float]:
            now = callbacks.ping_status()
            return {(name,): float(name == now) for name in _STATUSES}

        def handler_threads() -> dict[tuple[str, ...], float]:
            running, parked = callbacks.handler_threads()
            return {("running",): running, ("parked",): parked}

        return [
            CallbackMetric(
                Metric("agentcore_active_tasks", "gauge", "Async tasks that run now.", aggregation="sum"),
                lambda: callbacks.active_tasks(),
            ),
            CallbackMetric(
                Metric(
                    "agentcore_ping_status",
                    "gauge",
                    "1 for the status that /ping gives, 0 for the other.",
                    ("status",),
                    aggregation="own",  # it is the same in all
                ),
                ping_status,
            ),
            CallbackMetric(
                Metric(
                    "agentcore_ping_status_last_change_timestamp_seconds",
                    "gauge",
                    "When the status that /ping gives last changed.",
                    aggregation="own",
                ),
                lambda: callbacks.status_changed_at(),
            ),
            CallbackMetric(
                Metric(
                    "agentcore_event_loop_lag_seconds",
                    "gauge",
                    "For how long the agent's event loop has not turned; 0 where it waits for something to do.",
                    aggregation="max",
                ),
                lambda: callbacks.event_loop_lag(),
            ),
            CallbackMetric(
                Metric(
                    "agentcore_handler_threads",
                    "gauge",
                    "Threads of plain and await-less handlers; parked ones are held by a generator whose client reads"
                    " slowly.",
                    ("state",),
                    aggregation="sum",
                ),
                handler_threads,
            ),
            CallbackMetric(
                Metric(
                    "agentcore_sync_queue_length",
                    "gauge",
                    "Sync invocations that wait for a thread.",
                    aggregation="sum",
                ),
                lambda: callbacks.sync_queue_length(),
            ),
            CallbackMetric(
                Metric(
                    "agentcore_invocations_waiting", "gauge", "Invocations that wait for a place.", aggregation="sum"
                ),
                lambda: callbacks.invocations_waiting(),
            ),
            CallbackMetric(
                Metric(
                    "agentcore_sessions",
                    "gauge",
                    "Sessions for which something runs, or which are kept.",
                    aggregation="sum",
                ),
                lambda: callbacks.sessions(),
            ),
            CallbackMetric(
                Metric("agentcore_spans_dropped", "counter", "Spans that never reached the backend."),
                lambda: callbacks.spans_dropped(),
            ),
        ]

    @cached_property
    def registry(self) -> "CollectorRegistry":
        """The registry of ``prometheus_client``, made at the first scrape: importing that package slows a start."""
        from agentcore_telemetry.exposition import AgentCollector, make_registry

        return make_registry(
            AgentCollector(self.snapshot, lambda: self.instruments, DURATION_BUCKETS),
            with_process=self._of_the_process is None,
        )

    def share(self, store: SeriesStore, siblings: Callable[[], Snapshot]) -> None:
        """Keep all numbers where the other processes that serve the agent can read them, and expose theirs as well.

        What the processes use (CPU, memory, files, garbage collections) is aggregated then too.

        Args:
            store: Where to keep them.
            siblings: Tells what the other processes have counted, the ended ones included.
        """
        from agentcore_telemetry.exposition import ProcessMetrics

        self._of_the_process = ProcessMetrics()
        self.instruments.append(self._of_the_process)
        self.__dict__.pop("registry", None)
        self.refresh()
        for instrument in self.instruments:
            instrument.move(store)
        self._siblings = siblings
        self.tasks.foreign_names = lambda: {
            key.labels[0] for key in siblings() if key.metric == self.tasks.metrics[0].name
        }

    def unshare(self, *, forked: bool = False) -> None:
        """Keep the numbers in this process again, and expose those alone.

        Args:
            forked: Whether this process was just forked, so that locks cannot be relied upon.
        """
        for instrument in self.instruments:
            (instrument.move_unlocked if forked else instrument.move)(None)
        if self._of_the_process is not None:
            self.instruments.remove(self._of_the_process)
            self._of_the_process = None
        self.__dict__.pop("registry", None)
        self._siblings = None
        self.tasks.foreign_names = tuple

    def refresh(self) -> None:
        """Ask for the values that are not counted."""
        for instrument in self.instruments:
            instrument.refresh()

    def snapshot(self) -> Snapshot:
        """All series now, those of the sibling processes included."""
        self.refresh()  # before the siblings are read: what one scrape has shown, the next sees, in any process
        snapshot: Snapshot = {}
        for instrument in self.instruments:
            snapshot.update(instrument.snapshot())
        if self._siblings is not None:
            merge(snapshot, self._siblings())
        return snapshot

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that a scraper accepts.

        Args:
            accept: Its ``Accept`` header.

        Returns:
            The body, and its content type: Prometheus text, or OpenMetrics (with exemplars) where that is preferred.
        """
        from agentcore_telemetry.exposition import encode

        return encode(self.registry, accept)
