"""One call of a handler: started where its kind must run, and its outcome brought back to the loop that asked."""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from service.protocol.serialization import encode
from service.runtime.handler import Handler, HandlerKind
from service.runtime.streams import AsyncEventStream, EventStream, stream_of
from service.runtime.workers import Workers, post

Response = TypeVar("Response")
Channel = Callable[..., Awaitable[Any]]


class Failure(msgspec.Struct, frozen=True):
    """A handler raised."""

    error: BaseException


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

    def call(
        self, handler: Handler, payload: Any, context: Any
    ) -> "asyncio.Future[bytes | EventStream | Response | Failure]":
        """Call a handler, in a copy of the current context.

        Args:
            handler: The inspected handler.
            payload: Its first argument.
            context: Its second argument, where it takes one.

        Returns:
            The encoded value, the stream of what it yields, the response that it made itself, or its failure. Whoever
            cancels it cancels an async handler, and whoever settles it first lets the handler run on unheard.
        """
        home = asyncio.get_running_loop()
        outcome: asyncio.Future[bytes | EventStream | Response | Failure] = home.create_future()
        bound = handler.bind(payload, context)
        context_copy = contextvars.copy_context()
        if handler.kind is HandlerKind.ASYNC_GENERATOR:
            try:
                worker, capacity = self._workers.loop, self._stream_capacity
                outcome.set_result(AsyncEventStream(bound(), worker, context_copy, home, capacity))
            except Exception as error:  # a callable object may do more than make a generator
                outcome.set_result(Failure(error))
        elif handler.kind is HandlerKind.COROUTINE:
            task = self._workers.loop.spawn(self._await(bound, home, outcome), context_copy)
            outcome.add_done_callback(lambda outcome: task.cancel() if outcome.cancelled() else None)
        else:
            self._workers.pool.submit(partial(context_copy.run, self._call_plain, bound, home, outcome))
        return outcome

    async def converse(self, function: Callable[..., Awaitable[None]], *channels: Channel) -> Failure | None:
        """Run an async function on a worker loop while it talks with this loop.

        Args:
            function: What to run; it is called with the channels.
            *channels: Async functions of this loop. What the function gets in their place can be awaited on its own.

        Returns:
            Its failure, if it raised.
        """
        home = asyncio.get_running_loop()
        outcome: asyncio.Future[Failure | None] = home.create_future()
        bridges = [partial(_cross, home, channel) for channel in channels]

        async def run() -> None:
            failure = None
            try:
                await function(*bridges)
            except BaseException as error:
                failure = Failure(error)
            post(home, _settle, outcome, failure)

        task = self._workers.loop.spawn(run(), contextvars.copy_context())
        try:
            return await outcome
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _await(
        self,
        bound: Callable[[], Awaitable[Any]],
        home: asyncio.AbstractEventLoop,
        outcome: "asyncio.Future[Any]",
    ) -> None:
        result: Any
        try:
            result = self._result(await bound(), home)
        except BaseException as error:
            result = Failure(error)
        post(home, _settle, outcome, result)

    def _call_plain(
        self, bound: Callable[[], Any], home: asyncio.AbstractEventLoop, outcome: "asyncio.Future[Any]"
    ) -> None:
        result: Any
        try:
            value = bound()
            if inspect.isawaitable(value):  # a plain function around an async one
                self._workers.loop.spawn(self._await(lambda: value, home, outcome), contextvars.copy_context())
                return
            result = self._result(value, home)
        except BaseException as error:
            result = Failure(error)
        post(home, _settle, outcome, result)

    def _result(self, value: Any, home: asyncio.AbstractEventLoop) -> bytes | EventStream | Response:
        """Encode what a handler returned, here on the handler's side, where a large value holds nobody up."""
        workers = self._workers
        if (stream := stream_of(value, workers, home, self._stream_capacity)) is not None:
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
