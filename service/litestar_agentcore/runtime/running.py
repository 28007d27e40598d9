"""What an agent is doing for its clients now, so that it can be asked to end it."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from litestar_agentcore.protocol.context import RequestValues, current_request
from litestar_agentcore.runtime.callbacks import call_threadsafe

if TYPE_CHECKING:
    from litestar_agentcore.runtime.execution import HandlerCall

logger = logging.getLogger(__name__)


class Running:
    """An invocation, a stream or a WebSocket that is being served, or whose handler still runs though its client left.

    Args:
        kind: What it is called in the log.
        values: The ids and headers of its request.
        loop: The loop that serves it, in a task of which this is called.
    """

    __slots__ = (
        "__weakref__", "began", "expired", "kind", "outlives_client", "stopped", "task", "values", "work",
    )  # fmt: skip

    def __init__(self, kind: str, values: RequestValues, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.values = values
        self.began = monotonic()
        self.task = asyncio.current_task(loop)
        self.expired = False
        """Whether it was ended because the service's time to shut down was over, or with its session."""
        self.stopped = False
        """Whether it was ended with its session."""
        self.work: HandlerCall | None = None
        """The call of its handler, once there is one."""
        self.outlives_client = False
        """Whether it is only there for what its handler still does."""

    def outlive_client(self, on_end: Callable[[], object]) -> None:
        """Go on as what its handler, if it was called, still does once the client has left.

        Args:
            on_end: Called once that has ended, on any thread.
        """
        if self.work is not None:
            self.outlives_client = True
            self.work.when_ended(on_end)

    def cancel_work(self) -> None:
        """Cancel what the handler still does, if anything. From any thread."""
        if (work := self.work) is not None:
            work.cancel()

    def expire(self, *, stopped: bool = False) -> None:
        """End it: the service's time to shut down is over. From any thread.

        Args:
            stopped: Whether its session is stopped instead.
        """
        self.announce_expiry(stopped=stopped)
        if self.outlives_client:
            self.cancel_work()
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
