"""One call of a handler: started where its kind must run, and its outcome brought back to the loop that asked."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.runtime.handler import Handler, HandlerKind
from litestar_agentcore.runtime.mailbox import Mailbox
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream, stream_of
from litestar_agentcore.runtime.workers import Workers

if TYPE_CHECKING:
    from litestar_agentcore.runtime.loops import LoopCall

Response = TypeVar("Response")
Channel = Callable[..., Awaitable[Any]]

_PLAIN_VALUES = frozenset({dict, list, tuple, str, int, float, bool, type(None)})
"""Types of which a value is neither a generator nor a response."""


class Failure(msgspec.Struct, frozen=True):
    """A handler raised."""

    error: BaseException


class Pending:
    """A handler that was called and has not answered yet."""

    __slots__ = ("call", "outcome")

    def __init__(self, outcome: "asyncio.Future[Any]") -> None:
        self.outcome = outcome
        """The encoded value, the stream of what it yields, the response that it made itself, or its failure. Whoever
        settles it first lets the handler run on unheard."""
        self.call: LoopCall | None = None

    def abandon(self) -> None:
        """Settle the outcome with ``None``: nobody waits for it any more."""
        if not self.outcome.done():
            self.outcome.set_result(None)

    def cancel(self) -> None:
        """Cancel the handler, where it is an async one or has become one; a plain one runs on unheard."""
        self.outcome.cancel()
        if self.call is not None:
            self.call.cancel()


class Execution(Generic[Response]):
    """Runs handlers on the workers.

    Args:
        workers: Where handlers run.
        stream_capacity: How many bytes of a stream may wait for its client.
        as_response: Tells a ready-made response among the values that handlers return, and gives what to do with it;
            ``None`` for a value that is to be encoded.
    """

    def __init__(self, workers: Workers, stream_capacity: int, as_response: Callable[[Any], Response | None]) -> None:
        self._workers = workers
        self._stream_capacity = stream_capacity
        self._as_response = as_response

    def runs_here(self, handler: Handler) -> bool:
        """Tell whether a handler is to be called with :meth:`call_here`."""
        return self._workers.inline and handler.kind is HandlerKind.COROUTINE

    async def call_here(
        self, handler: Handler, payload: Any, context: Any, home: Mailbox
    ) -> bytes | EventStream | Response | Failure:
        """Call an async handler on this loop, in this task.

        Args:
            handler: The inspected handler.
            payload: Its first argument.
            context: Its second argument, where it takes one.
            home: Reaches this loop.

        Returns:
            What :class:`Pending` promises.
        """
        try:
            return self._result(await handler.call(payload, context), home)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # not the handler's own
            return Failure(error)
        except BaseException as error:
            return Failure(error)

    def call(self, handler: Handler, payload: Any, context: Any, home: Mailbox) -> Pending | EventStream | Failure:
        """Call a handler where handlers of its kind run, in a copy of the current context.

        Args:
            handler: The inspected handler.
            payload: Its first argument.
            context: Its second argument, where it takes one.
            home: Reaches this loop.

        Returns:
            The stream of an async generator, or what is to be awaited.
        """
        if handler.kind is HandlerKind.ASYNC_GENERATOR:
            try:
                source, loop = handler.call(payload, context), self._workers.loop_for(home)
                return AsyncEventStream(source, loop, copy_context(), home, self._stream_capacity, handler.name)
            except Exception as error:  # a callable object may do more than make a generator
                return Failure(error)
        pending = Pending(home.loop.create_future())
        if handler.kind is HandlerKind.COROUTINE:
            run = self._await(partial(handler.call, payload, context), home, pending.outcome)
            pending.call = self._workers.spawn(home, run, copy_context(), handler.name)
        else:
            run_plain = self._call_plain
            self._workers.pool.submit(partial(copy_context().run, run_plain, handler, payload, context, home, pending))
        return pending

    async def converse(
        self, name: str, home: Mailbox, function: Callable[..., Awaitable[None]], *channels: Channel
    ) -> Failure | None:
        """Run an async function where async handlers run, while it talks with this loop.

        Args:
            name: What people know it by.
            home: Reaches this loop.
            function: What to run; it is called with the channels.
            *channels: Async functions of this loop. What the function gets in their place can be awaited on its own.

        Returns:
            Its failure, if it raised.
        """
        outcome: asyncio.Future[Failure | None] = home.loop.create_future()
        bridges = (
            channels if self._workers.inline else tuple(partial(_cross, home.loop, channel) for channel in channels)
        )

        async def run() -> None:
            failure = None
            try:
                await function(*bridges)
            except BaseException as error:
                failure = Failure(error)
            home.post(_settle, outcome, failure)

        call = self._workers.spawn(home, run(), copy_context(), name)
        try:
            return await outcome
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def _await(self, start: Callable[[], Awaitable[Any]], home: Mailbox, outcome: "asyncio.Future[Any]") -> None:
        result: Any
        try:
            result = self._result(await start(), home)
        except BaseException as error:
            result = Failure(error)
        home.post(_settle, outcome, result)

    def _call_plain(self, handler: Handler, payload: Any, context: Any, home: Mailbox, pending: Pending) -> None:
        outcome = pending.outcome
        result: Any
        try:
            value = handler.call(payload, context)
            if inspect.isawaitable(value):  # a plain function around an async one
                if outcome.cancelled():
                    if inspect.iscoroutine(value):
                        value.close()
                    return
                run = self._await(lambda: value, home, outcome)
                pending.call = call = self._workers.spawn(home, run, copy_context(), handler.name)
                if outcome.cancelled():  # in between, when there was no call to cancel yet
                    call.cancel()
                return
            result = self._result(value, home)
        except BaseException as error:
            result = Failure(error)
        home.post(_settle, outcome, result)

    def _result(self, value: Any, home: Mailbox) -> bytes | EventStream | Response:
        """Encode what a handler returned, here on the handler's side, where a large value holds nobody up."""
        if type(value) in _PLAIN_VALUES:
            return encode(value)
        if (stream := stream_of(value, self._workers, home, self._stream_capacity)) is not None:
            return stream
        if (response := self._as_response(value)) is not None:
            return response
        return encode(value)


async def _cross(home: asyncio.AbstractEventLoop, channel: Channel, *args: Any) -> Any:
    async def call() -> Any:
        return await channel(*args)

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), home))


def _settle(outcome: "asyncio.Future[Any]", result: object) -> None:
    if not outcome.done():
        outcome.set_result(result)
    elif isinstance(result, EventStream):
        result.close()  # whoever asked is gone
