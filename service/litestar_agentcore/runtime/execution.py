"""One call of a handler: started where its kind must run, and its outcome brought back to the loop that asked."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.runtime.agent_loop import AgentLoop, HandlerLoop, InlineLoop, Spawned
from litestar_agentcore.runtime.asgi_bridge import AsgiBridge, Receive, Send
from litestar_agentcore.runtime.callbacks import CallbackQueue
from litestar_agentcore.runtime.failure import Failure
from litestar_agentcore.runtime.handler import Handler, HandlerKind
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream, PlainEventStream
from litestar_agentcore.runtime.threads import ThreadPool

Response = TypeVar("Response")

_PLAIN_VALUES = frozenset({dict, list, tuple, str, int, float, bool, type(None)})
"""Types of which a value is neither a generator nor a response."""

_ON_LOOP = frozenset({HandlerKind.COROUTINE, HandlerKind.ONE_STEP})


class Observer(Protocol):
    """Who is told, on the handler's side, of what a handler raised."""

    def describe(self, error: BaseException) -> Failure:
        """Make of it what its client is to be told."""

    def note(self, error: BaseException) -> None:
        """Record it; a stream has told its client."""


class HandlerCall:
    """A handler that was called and has not answered yet.

    Args:
        callbacks: Reach the loop that asked.
    """

    __slots__ = ("_callbacks", "_ended", "_on_end", "cancelled", "outcome", "spawned")

    def __init__(self, callbacks: CallbackQueue) -> None:
        self._callbacks = callbacks
        self.outcome: asyncio.Future[Any] = callbacks.loop.create_future()
        """The encoded value, the stream of what it yields, the response that it made itself, or its failure. Whoever
        settles it first lets the handler run on unheard."""
        self.spawned: Spawned | None = None
        self.cancelled = False
        """Whether a handler that has not begun is not to begin any more."""
        self._ended = False
        self._on_end: Callable[[], object] | None = None

    def abandon(self) -> None:
        """Settle the outcome with ``None``: nobody waits for it any more."""
        if not self.outcome.done():
            self.outcome.set_result(None)

    def cancel(self) -> None:
        """Cancel the handler, where it is an async one or has become one; a plain one runs on unheard."""
        self.cancelled = True
        self.outcome.cancel()
        if self.spawned is not None:
            self.spawned.cancel()

    def go_on_as(self, spawned: Spawned) -> None:
        """Take note of what a plain handler has become.

        Args:
            spawned: What is to be cancelled with it.
        """
        self.spawned = spawned
        if self.cancelled:  # in between, when there was nothing to cancel yet
            spawned.cancel()

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the handler's code has ended, on whichever thread that is; at once where it has.

        Args:
            function: What to call.
        """
        self._on_end = function
        if self._ended:
            function()

    def give(self, result: object) -> None:
        """Hand over what the handler came to, on the handler's side, as the last that it does but for its stream.

        Args:
            result: What :attr:`outcome` promises.
        """
        if isinstance(result, EventStream):
            result.when_ended(self._end)
        self._callbacks.call_soon(self._settle, result)
        if not isinstance(result, EventStream):
            self._end()

    def _end(self) -> None:
        # Here and not on the loop that asked, which may be closed by now.
        self._ended = True
        if self._on_end is not None:
            self._on_end()

    def _settle(self, result: object) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)
        elif isinstance(result, EventStream):
            result.close()  # whoever asked is gone


class Execution(Generic[Response]):
    """Runs handlers where the rule says: on the agent's loop, or in a thread of the pool.

    Args:
        agent_loop: Where async handler code runs.
        pool: The threads for what may block.
        inline: Whether the loop that accepts a request stands in for the agent's.
        stream_capacity: How many bytes of a stream may wait for its client.
        as_response: Tells a ready-made response among the values that handlers return, and gives what to do with it;
            ``None`` for a value that is to be encoded.
    """

    def __init__(
        self,
        agent_loop: AgentLoop,
        pool: ThreadPool,
        *,
        inline: bool,
        stream_capacity: int,
        as_response: Callable[[Any], Response | None],
    ) -> None:
        self._agent_loop = agent_loop
        self._pool = pool
        self._inline = inline
        self._stream_capacity = stream_capacity
        self._as_response = as_response

    def has_room_for(self, handler: Handler) -> bool:
        """Tell whether a handler may be called: a plain generator may hold a thread for as long as its client reads.

        Args:
            handler: The inspected handler.
        """
        return handler.kind is not HandlerKind.PLAIN_GENERATOR or not self._pool.is_full

    def runs_here(self, handler: Handler) -> bool:
        """Tell whether a handler is to be called with :meth:`call_here`."""
        return self._inline and handler.kind in _ON_LOOP

    async def call_here(
        self, handler: Handler, payload: Any, context: Any, callbacks: CallbackQueue, observer: Observer
    ) -> bytes | EventStream | Response | Failure:
        """Call an async handler on this loop, in this task.

        Args:
            handler: The inspected handler.
            payload: Its first argument.
            context: Its second argument, where it takes one.
            callbacks: Reach this loop.
            observer: Is told of what it raises.

        Returns:
            What :class:`HandlerCall` promises. Of an :class:`AsyncEventStream` this task is to run ``iterate()``.
        """
        try:
            value = await handler.call(payload, context)
            if isinstance(value, Generator):
                stream = self._plain_stream(value, callbacks, observer)
                self._pool.submit(partial(copy_context().run, stream.iterate))
                return stream
            if isinstance(value, AsyncGenerator):
                return AsyncEventStream(value, callbacks, self._stream_capacity, observer.note)
            return self._result(value)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # not the handler's own
            return observer.describe(error)
        except BaseException as error:
            return observer.describe(error)

    def call(
        self, handler: Handler, payload: Any, context: Any, callbacks: CallbackQueue, observer: Observer
    ) -> HandlerCall | EventStream | Failure:
        """Call a handler where handlers of its kind run, in a copy of the current context.

        Args:
            handler: The inspected handler.
            payload: Its first argument.
            context: Its second argument, where it takes one.
            callbacks: Reach this loop.
            observer: Is told of what it raises.

        Returns:
            The stream of an async generator, or what is to be awaited.
        """
        if handler.kind is HandlerKind.ASYNC_GENERATOR:
            try:
                source = handler.call(payload, context)
            except Exception as error:  # a callable object may do more than make a generator
                return observer.describe(error)
            stream = AsyncEventStream(source, callbacks, self._stream_capacity, observer.note)
            self._loop_for(callbacks).spawn(stream.iterate(), copy_context(), handler.name)
            return stream
        call = HandlerCall(callbacks)
        if handler.kind is HandlerKind.COROUTINE:
            run = self._run(partial(handler.call, payload, context), call, callbacks, observer)
            call.spawned = self._loop_for(callbacks).spawn(run, copy_context(), handler.name)
        else:
            arguments = handler, payload, context, call, callbacks, observer
            self._pool.submit(partial(copy_context().run, self._run_in_thread, *arguments))
        return call

    def _loop_for(self, callbacks: CallbackQueue) -> HandlerLoop:
        return InlineLoop(callbacks) if self._inline else self._agent_loop

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the agent's loop and wait for it, from another loop; a cancellation crosses over.

        Args:
            coroutine: What to run, in a copy of the current context.

        Returns:
            What it returns.

        Raises:
            TypeError: It is no coroutine.
        """
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(f"agent.run() takes a coroutine, and {coroutine!r} is none")
        if self._inline or asyncio.get_running_loop() is self._agent_loop.loop:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._agent_loop.loop))

    async def serve_asgi(
        self,
        name: str,
        callbacks: CallbackQueue,
        function: Callable[[Receive, Send], Coroutine[Any, Any, None]],
        receive: Receive,
        send: Send,
    ) -> BaseException | None:
        """Run an async function on the agent's loop while it receives and sends on this one.

        Args:
            name: What people know it by.
            callbacks: Reach this loop.
            function: What to run. It is called with the ASGI functions that it is to use.
            receive: The ASGI receive function of this loop.
            send: The ASGI send function of this loop.

        Returns:
            What it raised, if anything.
        """
        outcome: asyncio.Future[BaseException | None] = callbacks.loop.create_future()
        bridge = None if self._inline else AsgiBridge(callbacks, self._agent_loop.loop, receive, send)

        async def run() -> None:
            error = None
            try:
                if outcome.cancelled():  # while the loop was held
                    return
                await (function(receive, send) if bridge is None else function(bridge.receive, bridge.send))
            except BaseException as raised:
                error = raised
            callbacks.call_soon(_settle, outcome, error)

        spawned = self._loop_for(callbacks).spawn(run(), copy_context(), name)
        try:
            error = await outcome
        except asyncio.CancelledError:
            spawned.cancel()
            if bridge is not None:
                await bridge.close(wait=False)
            raise
        if bridge is not None:
            await bridge.close(wait=True)
        return error

    async def _run(
        self, start: Callable[[], Awaitable[Any]], call: HandlerCall, callbacks: CallbackQueue, observer: Observer
    ) -> None:
        """Run a coroutine handler, and iterate the async generator that it returns in the same task."""
        if call.cancelled:  # while the loop was held
            call.give(None)
            return
        stream: AsyncEventStream | None = None
        try:
            value = await start()
            result: Any
            if type(value) in _PLAIN_VALUES:
                result = encode(value)
            elif isinstance(value, AsyncGenerator):
                result = stream = AsyncEventStream(value, callbacks, self._stream_capacity, observer.note)
            elif isinstance(value, Generator):
                result = plain = self._plain_stream(value, callbacks, observer)
                self._pool.submit(partial(copy_context().run, plain.iterate))
            else:
                result = self._result(value)
        except BaseException as error:
            unheard = isinstance(error, asyncio.CancelledError) and call.outcome.done()
            result = None if unheard else observer.describe(error)
        call.give(result)
        if stream is not None:
            await stream.iterate()

    async def _run_returned(
        self, awaitable: Awaitable[Any], call: HandlerCall, callbacks: CallbackQueue, observer: Observer
    ) -> None:
        """Run what a plain function around an async one returned."""
        if call.cancelled and inspect.iscoroutine(awaitable):
            awaitable.close()
        await self._run(lambda: awaitable, call, callbacks, observer)

    def _run_in_thread(
        self,
        handler: Handler,
        payload: Any,
        context: Any,
        call: HandlerCall,
        callbacks: CallbackQueue,
        observer: Observer,
    ) -> None:
        if call.cancelled:  # while it waited for a thread
            call.give(None)
            return
        stream: PlainEventStream | None = None
        result: Any
        # Both what a coroutine without an await does and what its value does when it is encoded may ask for the loop.
        running = self._agent_loop.loop if handler.kind is HandlerKind.ONE_STEP else None
        asyncio._set_running_loop(running)  # noqa: SLF001 - documented for those who implement loops
        try:
            value = handler.call(payload, context)
            if running is not None:
                value = _only_step(value)
            if type(value) in _PLAIN_VALUES:
                result = encode(value)
            elif isinstance(value, Generator):
                result = stream = self._plain_stream(value, callbacks, observer)
            elif isinstance(value, AsyncGenerator):
                result = AsyncEventStream(value, callbacks, self._stream_capacity, observer.note)
                self._loop_for(callbacks).spawn(result.iterate(), copy_context(), handler.name)
            elif inspect.isawaitable(value):  # a plain function around an async one
                run = self._run_returned(value, call, callbacks, observer)
                call.go_on_as(self._loop_for(callbacks).spawn(run, copy_context(), handler.name))
                return
            else:
                result = self._result(value)
        except BaseException as error:
            result = observer.describe(error)
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001
        call.give(result)
        if stream is not None:
            stream.iterate()

    def _plain_stream(
        self, source: Generator[Any, Any, Any], callbacks: CallbackQueue, observer: Observer
    ) -> PlainEventStream:
        return PlainEventStream(source, self._pool, callbacks, self._stream_capacity, observer.note)

    def _result(self, value: Any) -> bytes | Response:
        """Encode what a handler returned, here on the handler's side, where a large value holds nobody up."""
        if type(value) in _PLAIN_VALUES:
            return encode(value)
        if (response := self._as_response(value)) is not None:
            return response
        return encode(value)


def _only_step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has one step, and return its value."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has no await and waits all the same")


def _settle(outcome: "asyncio.Future[Any]", result: object) -> None:
    if not outcome.done():
        outcome.set_result(result)
