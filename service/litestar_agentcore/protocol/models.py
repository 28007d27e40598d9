"""The answers that leave the service and are not the handler's own, and the status a platform reads."""

from collections.abc import Sequence
from enum import Enum

import msgspec


class PingStatus(str, Enum):  # noqa: UP042 - as the reference has it, down to its ``str()``
    """What ``GET /ping`` says of the agent, as the AgentCore Runtime contract has it."""

    HEALTHY = "Healthy"
    """Ready for work, and none is going on in the background."""

    HEALTHY_BUSY = "HealthyBusy"
    """Ready for work, while background tasks run: a platform must not reclaim the instance."""


class PingAnswer(msgspec.Struct, frozen=True):
    """The answer of ``GET /ping``."""

    status: PingStatus
    """``Healthy``, or ``HealthyBusy`` while background tasks run."""

    time_of_last_update: int
    """When the status last changed, in whole seconds since the epoch."""


class ReadyAnswer(msgspec.Struct, frozen=True):
    """The answer of ``GET /ready``."""

    ready: bool
    """False once the service is shutting down."""


class RunningJob(msgspec.Struct, frozen=True):
    """A background task that is active."""

    name: str
    duration: float
    """Seconds since it began."""


class TaskInfo(msgspec.Struct, frozen=True):
    """The background tasks, as ``app.get_async_task_info()`` tells them; of all worker processes."""

    active_count: int
    running_jobs: list[RunningJob]


class SessionState(msgspec.Struct, frozen=True):
    """What runs for a session, in the answer of ``GET /playground/state``."""

    session_id: str
    age: float
    """Seconds since it began."""
    idle: float
    """Seconds since it was last active; 0 where anything runs for it."""
    invocations: int
    streams: int
    websockets: int
    tasks: int


class ErrorAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that says what went wrong."""

    error: str
    """What went wrong, in a few words."""

    details: str | None = None
    """Where it went wrong, or how, when there is more to say."""

    request_id: str | None = None
    """By which the log tells more, where ``AGENTCORE_EXPOSE_ERRORS`` is false."""


class StreamError(msgspec.Struct, frozen=True):
    """The last event of a stream whose generator raised, or whose time was over (``error_type`` ``TimeoutError``)."""

    error: str
    error_type: str
    message: str = "An error occurred during streaming"
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    """As in :class:`ErrorAnswer`."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault of ours
    """A request that is answered with an error before, or instead of, the handler.

    Args:
        status: The HTTP status, 400 to 599.
        error: What was wrong, as the contract names it.
        details: Where or how, if there is more to say. May quote the request, so it goes to the caller alone.
        reason: What the log may say of it; ``error`` by default.
        headers: Headers of the answer, beside those of every answer.
    """

    def __init__(
        self,
        status: int,
        error: str,
        details: str | None = None,
        reason: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(error if details is None else f"{error}: {details}")
        self.status = status
        self.error = error
        self.details = details
        self.reason = reason or error
        self.headers = headers

    @property
    def answer(self) -> ErrorAnswer:
        """The body to answer with."""
        return ErrorAnswer(self.error, self.details)


def internal_error(request_id: str | None) -> ErrorAnswer:
    """The body of a 500 whose cause is for the log alone."""
    return ErrorAnswer(_INTERNAL_ERROR, request_id=request_id)


def internal_stream_error(request_id: str | None) -> StreamError:
    """The last event of a stream that failed, where the cause is for the log alone."""
    return StreamError(_INTERNAL_ERROR, "InternalError", request_id=request_id or msgspec.UNSET)


_INTERNAL_ERROR = "Internal error"


def shutting_down() -> Refusal:
    """The refusal of work that comes, or is not done, when the service ends."""
    return Refusal(503, "The service is shutting down")


def session_stopped() -> Refusal:
    """The answer of an invocation that was cancelled with its session: a conflict with its state (RFC 9110, 15.5.10).

    Not 503, which has clients and proxies send it again, and so begin the session anew.
    """
    return Refusal(409, "The session was stopped")


def too_many_invocations(retry_after: int) -> Refusal:
    """The refusal of an invocation for which there is no place.

    Args:
        retry_after: After how many seconds it had better be tried again.
    """
    return Refusal(429, "Too many invocations", headers=[(b"retry-after", b"%d" % retry_after)])


def too_slow_body() -> Refusal:
    """The refusal of a request whose body does not come."""
    return Refusal(408, "Request timeout", "The body of the request was not there in time")


def timed_out(seconds: float) -> Refusal:
    """The answer of an invocation whose time was over.

    Args:
        seconds: How long it might take.
    """
    return Refusal(504, "Invocation timeout", f"The invocation took longer than {seconds:g} s")
