"""What an agent is doing for its clients now, so that it can be asked to end it."""

import asyncio
import logging
from time import monotonic

from litestar_agentcore.protocol.context import RequestValues, current_request

logger = logging.getLogger(__name__)


class Running:
    """An invocation, a stream or a WebSocket conversation that is being served.

    Args:
        kind: What it is, in the log's words.
        values: What is known of its request.
        loop: The loop that serves it, in a task of which this is called.
    """

    __slots__ = ("began", "expired", "kind", "task", "values")

    def __init__(self, kind: str, values: RequestValues, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.values = values
        self.began = monotonic()
        self.task = asyncio.current_task(loop)
        self.expired = False
        """Whether it was ended because the service's time to shut down was over."""

    def expire(self) -> None:
        """End it: the service's time to shut down is over. Call it on the loop that serves it."""
        self.expired = True
        token = current_request.set(self.values)
        logger.warning(
            "The %s of session %s was still running at shutdown, %.1f s old, and is cancelled",
            self.kind,
            self.values.session_id,
            monotonic() - self.began,
        )
        current_request.reset(token)
        if self.task is not None:
            self.task.cancel()

    def resume(self) -> None:
        """Go on after the cancellation, to say a last word."""
        if self.task is not None:
            self.task.uncancel()
