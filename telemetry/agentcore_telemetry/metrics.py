"""What Prometheus may know of an agent: counted where it happens, or computed when it is asked for."""

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from agentcore_telemetry.tallies import InvocationTallies, Tally, TaskTallies

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Mode = Literal["unary", "stream"]
Outcome = Literal["ok", "client_error", "server_error", "disconnected", "rejected", "timeout"]
TaskOutcome = Literal["completed", "failed", "lost"]

MODES: tuple[Mode, ...] = ("unary", "stream")
OUTCOMES: tuple[Outcome, ...] = ("ok", "client_error", "server_error", "disconnected", "rejected", "timeout")
TASK_OUTCOMES: tuple[TaskOutcome, ...] = ("completed", "failed", "lost")

MAX_TASK_NAMES = 100
"""How many names of tasks get series of their own; the rest is counted under ``other``."""

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900,
)  # fmt: skip
"""Buckets from one millisecond to a quarter of an hour: agents are slow, and what they wait for is not."""


class Probes:
    """What is true of a service now, asked at each scrape.

    Args:
        active_tasks: How many background tasks are active.
        ping_status: The status that ``/ping`` gives, by its string.
        status_changed_at: When it last changed, in seconds since the epoch.
        worker_loops: How many worker loops are alive.
        sync_queue_length: How many plain invocations wait for a thread.
        spans_dropped: How many spans never reached the backend.
    """

    def __init__(
        self,
        *,
        active_tasks: Callable[[], int],
        ping_status: Callable[[], str],
        status_changed_at: Callable[[], float],
        worker_loops: Callable[[], int],
        sync_queue_length: Callable[[], int],
        spans_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.active_tasks = active_tasks
        self.ping_status = ping_status
        self.status_changed_at = status_changed_at
        self.worker_loops = worker_loops
        self.sync_queue_length = sync_queue_length
        self.spans_dropped = spans_dropped


class AgentMetrics:
    """The metrics of one service, on a registry of its own, so that two in one process do not collide.

    Args:
        version: The service's version.
        probes: What is true of it at each scrape.
    """

    def __init__(self, version: str, probes: Probes) -> None:
        self.version = version
        self.probes = probes
        self.invocations = InvocationTallies(MODES, OUTCOMES, SECONDS)
        self.tasks = TaskTallies(MAX_TASK_NAMES, SECONDS)
        self.websockets = Tally()
        self.stalls = Tally()

    @cached_property
    def registry(self) -> "CollectorRegistry":
        """The registry of ``prometheus_client``. Made at the first scrape: that package takes its time to load."""
        registry: CollectorRegistry = _exposition().make_registry(self)
        return registry

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that a scraper asks for.

        Args:
            accept: Its ``Accept`` header.

        Returns:
            The body, and its content type: Prometheus text, or OpenMetrics (with exemplars) where that is accepted.
        """
        exposed: tuple[bytes, str] = _exposition().expose(self.registry, accept)
        return exposed


def _exposition() -> Any:
    return import_module("agentcore_telemetry.exposition")
