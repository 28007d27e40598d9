"""What an agent is doing for its clients now, so that it can be asked to end it."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from litestar_agentcore.protocol.context import RequestValues, current_request
from litestar_agentcore.runtime.callbacks import call_threadsafe

logger = logging.getLogger(__name__)


class HandlerWork(Protocol):
    """The code of a handler that was called for a request."""

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the handler's code has ended; at once where it has."""

    def cancel(self) -> None:
        """Cancel it, where it can be cancelled; from any thread."""


class Running:
    """An invocation, a stream or a WebSocket that is being served, or whose handler still runs though its client left.

    Args:
        kind: What it is called in the log.
        values: The ids and headers of its request.
        loop: The loop that serves it, in a task of which this is called.
    """

    __slots__ = ("__weakref__", "_work", "began", "expired", "kind", "stopped", "task", "values")

    def __init__(self, kind: str, values: RequestValues, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.values = values
        self.began = monotonic()
        self.task = asyncio.current_task(loop)
        self.expired = False
        """Whether it was ended because the service's time to shut down was over, or with its session."""
        self.stopped = False
        """Whether it was ended with its session."""
        self._work: HandlerWork | None = None

    def outlive_client(self, work: HandlerWork, on_end: Callable[[], object]) -> None:
        """Go on as what a handler still does once its client has left.

        Args:
            work: The handler's code.
            on_end: Called once that has ended, on any thread.
        """
        self._work = work
        work.when_ended(on_end)

    @property
    def outlives_client(self) -> bool:
        """Whether it is only there for what its handler still does."""
        return self._work is not None

    def close_connection(self) -> None:
        """Have its client use the connection for nothing else, where it could. On the loop that serves it."""

    def expire(self, *, stopped: bool = False) -> None:
        """End it: the service's time to shut down is over. From any thread.

        Args:
            stopped: Whether its session is stopped instead.
        """
        self.announce_expiry(stopped=stopped)
        if self._work is not None:
            self._work.cancel()
        elif self.task is not None:
            loop = self.task.get_loop()
            if asyncio._get_running_loop() is loop:  # noqa: SLF001 - which does not raise, unlike its public twin
                self.task.cancel()
            else:
                call_threadsafe(loop, self.task.cancel)

    def announce_expiry(self, *, stopped: bool) -> None:
        """Say in the log that it is ended."""
        self.expired = True
        self.stopped = stopped
        token = current_request.set(self.values)
        logger.warning(
            "The %s of session %s was still running %s, %.1f s old, and is cancelled",
            self.kind,
            self.values.session_id,
            "when that was stopped" if stopped else "at shutdown",
            monotonic() - self.began,
        )
        current_request.reset(token)

    def resume(self) -> None:
        """Go on after the cancellation, to end the answer cleanly."""
        if self.task is not None:
            self.task.uncancel()
