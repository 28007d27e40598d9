"""The metrics of a service: which label values and buckets they have, and their exposition to Prometheus."""

from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from agentcore_telemetry.instruments import Counter, InvocationMetrics, ScrapeCallbacks, TaskMetrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Mode = Literal["unary", "stream"]
Outcome = Literal["ok", "client_error", "server_error", "disconnected", "rejected", "timeout", "cancelled"]
"""How an invocation ended. ``timeout``: its time was over; ``cancelled``: by a shutdown, or with its session."""

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


class AgentMetrics:
    """The metrics of one service, on a registry of its own, so that two in one process do not collide.

    Args:
        version: The service's version.
        callbacks: What each scrape asks.
    """

    def __init__(self, version: str, callbacks: ScrapeCallbacks) -> None:
        self.version = version
        self.callbacks = callbacks
        self.invocations = InvocationMetrics(MODES, OUTCOMES, DURATION_BUCKETS)
        self.tasks = TaskMetrics(MAX_TASK_NAMES, DURATION_BUCKETS)
        self.websockets = Counter()
        self.stalls = Counter()
        self.auth_failures: dict[str, Counter] = {reason: Counter() for reason in AUTH_FAILURES}

    @cached_property
    def registry(self) -> "CollectorRegistry":
        """The registry of ``prometheus_client``, made at the first scrape: importing that package slows a start."""
        from agentcore_telemetry.exposition import AgentCollector, make_registry

        return make_registry(
            AgentCollector(
                version=self.version,
                callbacks=self.callbacks,
                invocations=self.invocations,
                tasks=self.tasks,
                websockets=self.websockets,
                stalls=self.stalls,
                auth_failures=self.auth_failures,
            )
        )

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that a scraper accepts.

        Args:
            accept: Its ``Accept`` header.

        Returns:
            The body, and its content type: Prometheus text, or OpenMetrics (with exemplars) where that is preferred.
        """
        from agentcore_telemetry.exposition import encode

        return encode(self.registry, accept)
