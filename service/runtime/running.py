"""What an agent is doing for its clients now, so that it can be asked to end it."""

import asyncio
from time import monotonic

from service.protocol.context import RequestValues


class Running:
    """An invocation or a WebSocket conversation that is being served.

    Args:
        kind: What it is, in the log's words.
        values: What is known of its request.
    """

    __slots__ = ("began", "expired", "kind", "task", "values")

    def __init__(self, kind: str, values: RequestValues) -> None:
        self.kind = kind
        self.values = values
        self.began = monotonic()
        self.task = asyncio.current_task()
        self.expired = False
        """Whether it was ended because the service's time to shut down was over."""

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return monotonic() - self.began

    def expire(self) -> None:
        """End it: the service's time to shut down is over. Call it on the loop that serves it."""
        self.expired = True
        if self.task is not None:
            self.task.cancel()
