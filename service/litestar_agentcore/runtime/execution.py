"""One call of a handler: run where its kind must run, and its outcome brought back to the loop that asked."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol

from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.runtime.agent_loop import AgentLoop, spawn_inline
from litestar_agentcore.runtime.callbacks import CallbackQueue, call_threadsafe
from litestar_agentcore.runtime.failure import Failure
from litestar_agentcore.runtime.forking import end_stray_child
from litestar_agentcore.runtime.handler import Handler, HandlerKind
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream, PlainEventStream
from litestar_agentcore.runtime.threads import ThreadPool

logger = logging.getLogger(__name__)

_PLAIN_VALUES = frozenset({dict, list, tuple, str, int, float, bool, type(None)})
"""Types of which a value is neither a generator nor a response."""

_ON_LOOP = frozenset({HandlerKind.COROUTINE, HandlerKind.ONE_STEP})


class Observer(Protocol):
    """Who is told of what a handler raises, on the handler's side."""

    def describe(self, error: BaseException) -> Failure:
        """Make of it what the client is to be told."""

    def note(self, error: BaseException) -> Any:
        """Record it; the client is told by the stream, with this last event unless it is ``None``."""


class Execution:
    """Runs handlers where the rule says: on the agent's loop, or in a thread of the pool.

    Args:
        agent_loop: Where async handler code runs.
        pool: The threads for what may block.
        inline: Whether the loop that accepts a request is the agent's loop too.
        interruptible: Whether handlers may have to be cancelled while their clients are answered, so that the task that
            serves a request cannot be theirs.
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
        interruptible: bool = False,
        stream_capacity: int,
        as_response: Callable[[Any], Any],
    ) -> None:
        self.agent_loop = agent_loop
        self.pool = pool
        self.inline = inline
        self._in_serving_task = inline and not interruptible
        self.stream_capacity = stream_capacity
        self.as_response = as_response

    def has_room_for(self, handler: Handler) -> bool:
        """Tell whether a handler may be called: a plain generator may hold a thread for as long as its client reads."""
        return handler.kind is not HandlerKind.PLAIN_GENERATOR or not self.pool.is_full

    def runs_here(self, handler: Handler) -> bool:
        """Tell whether a handler is to be run by :meth:`HandlerCall.run_here`."""
        return self._in_serving_task and handler.kind in _ON_LOOP

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context, name: str) -> "asyncio.Task[None]":
        """Run a coroutine where async handler code runs. Called on the loop that accepts requests.

        Args:
            coroutine: What to run; it handles its own errors.
            context: The context to run it in.
            name: Its name in the log.

        Returns:
            Its task. To be cancelled on its loop.
        """
        return (spawn_inline if self.inline else self.agent_loop.loop.spawn)(coroutine, context, name)

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the agent's loop and wait for it, from another loop; a cancellation crosses over.

        Raises:
            TypeError: It is no coroutine.
        """
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(f"agent.run() takes a coroutine, and {coroutine!r} is none")
        if self.inline or asyncio.get_running_loop() is self.agent_loop.loop:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.agent_loop.loop))


class HandlerCall:
    """One call of a handler, made on the loop that accepts requests.

    Args:
        execution: Where handlers run.
        handler: The inspected handler.
        payload: Its first argument.
        context: Its second argument, where it takes one.
        callbacks: Reach the loop that accepts requests.
        observer: Is told of what the handler raises.
    """

    __slots__ = (
        "_callbacks", "_cancelled", "_context", "_ended", "_execution", "_handed_over", "_handler", "_observer",
        "_on_end", "_outcome", "_payload", "_task",
    )  # fmt: skip

    def __init__(
        self,
        execution: Execution,
        handler: Handler,
        payload: Any,
        context: Any,
        callbacks: CallbackQueue,
        observer: Observer,
    ) -> None:
        self._execution = execution
        self._handler = handler
        self._payload = payload
        self._context = context
        self._callbacks = callbacks
        self._observer = observer
        self._outcome: asyncio.Future[Any] = callbacks.loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._handed_over = False
        self._ended = False
        self._on_end: Callable[[], object] | None = None

    async def run_here(self) -> Any:
        """Run a coroutine handler in the current task, where handlers run inline.

        Returns:
            What :meth:`run` returns. Of an :class:`AsyncEventStream` this task is to run ``iterate()``.
        """
        try:
            result = self._result_of(await self._handler.call(self._payload, self._context))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # not the handler's own
            return self._observer.describe(error)
        except BaseException as error:
            return self._observer.describe(error)
        if isinstance(result, PlainEventStream):
            self._iterate_in_thread(result)
        return result

    async def run(self) -> Any:
        """Run the handler where handlers of its kind run, in a copy of the current context.

        Returns:
            The encoded value, the stream of what it yields, the response that it made itself, its failure, or ``None``
            after :meth:`abandon`.
        """
        execution, handler, context = self._execution, self._handler, copy_context()
        if handler.kind is HandlerKind.ASYNC_GENERATOR:
            try:
                stream = self._stream_of(handler.call(self._payload, self._context))
            except Exception as error:  # a callable object may do more than make a generator
                return self._observer.describe(error)
            self._spawn_stream(stream, context)
            return stream
        if handler.kind is HandlerKind.COROUTINE:
            self._spawn(partial(handler.call, self._payload, self._context), context)
        else:
            execution.pool.submit(partial(context.run, self._run_in_thread))
        try:
            return await self._outcome
        except asyncio.CancelledError:
            self.cancel()
            raise

    # -- On the loop that accepts requests

    def abandon(self) -> None:
        """Let the handler run on, and drop its outcome: its client has left."""
        if not self._outcome.done():
            self._outcome.set_result(None)

    def abandon_and_cancel(self) -> None:
        """Cancel the handler where it can be, else let it run on and drop its outcome: its client has left."""
        self.abandon()
        self.cancel()

    def cancel(self) -> None:
        """Cancel the handler, where it is an async one or has become one; a plain one runs on."""
        self._cancelled = True  # for a handler that has not begun, since its loop is held
        outcome = self._outcome
        if not outcome.cancel() and not outcome.cancelled() and isinstance(stream := outcome.result(), EventStream):
            stream.close()  # the task that asked was cancelled before it could take it
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the handler's code has ended, on whichever thread that is; at once where it has."""
        self._on_end = function
        if self._ended:
            function()

    def _settle(self, result: object) -> None:
        if not self._outcome.done():
            self._outcome.set_result(result)
        elif isinstance(result, EventStream):
            result.close()  # the task that asked was cancelled

    def _spawn(self, start: Callable[[], Awaitable[Any]], context: Context) -> "asyncio.Task[None]":
        self._task = task = self._execution.spawn(self._run_async(start), context, self._handler.name)
        task.add_done_callback(self._settle_unbegun, context=context)
        return task

    def _spawn_awaitable(self, value: Awaitable[Any], context: Context) -> None:
        """Go on with what plain code returned as an async handler does."""
        task = self._spawn(lambda: value, context)
        if inspect.iscoroutine(value):
            task.add_done_callback(lambda _: value.close())  # where it was cancelled before it was begun

    def _spawn_stream(self, stream: AsyncEventStream, context: Context) -> None:
        stream.iterated_by(self._execution.spawn(stream.iterate(), context, self._handler.name), context)

    # -- On the handler's side

    def _hand_over(self, result: object) -> None:
        """Hand over what the handler came to, as the last that it does but for its stream."""
        self._handed_over = True
        if isinstance(result, EventStream):
            result.when_ended(self._end)
        self._callbacks.call_soon(self._settle, result)
        if not isinstance(result, EventStream):
            self._end()

    def _settle_unbegun(self, _: "asyncio.Task[None]") -> None:
        """Hand over that the task was cancelled before its first step, of which it ran nothing."""
        if not self._handed_over:
            self._hand_over(self._failure_of(asyncio.CancelledError()))

    def _end(self) -> None:
        # Here and not on the loop that asked, which may be closed by now.
        self._ended = True
        if self._on_end is not None:
            self._on_end()

    async def _run_async(self, start: Callable[[], Awaitable[Any]]) -> None:
        """Run a coroutine, and iterate the async generator that it returns in the same task."""
        if self._cancelled:
            self._hand_over(None)
            return
        try:
            result = self._result_of(await start())
        except BaseException as error:
            result = self._failure_of(error)
        self._hand_over(result)
        if isinstance(result, AsyncEventStream):
            await result.iterate()
        elif isinstance(result, PlainEventStream):
            self._iterate_in_thread(result)

    def _failure_of(self, error: BaseException) -> Failure | None:
        is_dropped = isinstance(error, asyncio.CancelledError) and self._outcome.done()
        return None if is_dropped else self._observer.describe(error)

    def _run_in_thread(self) -> None:
        """Run plain code, or the only step of a coroutine, and iterate the plain generator that it returns."""
        if self._cancelled:  # while it waited for a thread
            self._hand_over(None)
            return
        one_step = self._handler.kind is HandlerKind.ONE_STEP
        # What its value does while it is encoded may ask for the running loop as well.
        asyncio._set_running_loop(self._execution.agent_loop.loop if one_step else None)  # noqa: SLF001
        try:
            value = self._handler.call(self._payload, self._context)
            if one_step:
                value = _only_step(value)
            if _is_awaitable(value):
                self._callbacks.call_soon(self._spawn_awaitable, value, copy_context())
                return
            result = self._result_of(value)
        except BaseException as error:
            result = self._observer.describe(error)
        finally:
            end_stray_child()
            asyncio._set_running_loop(None)  # noqa: SLF001
        if isinstance(result, AsyncEventStream):
            self._callbacks.call_soon(self._spawn_stream, result, copy_context())
        self._hand_over(result)
        if isinstance(result, PlainEventStream):
            result.iterate()

    def _result_of(self, value: Any) -> Any:
        """Encode what a handler returned, here on its side, where a large value does not hold up the accepting loop."""
        try:
            if type(value) in _PLAIN_VALUES:
                return encode(value)
            if isinstance(value, AsyncGenerator):
                return self._stream_of(value)
            if isinstance(value, Generator):
                execution = self._execution
                capacity, note = execution.stream_capacity, self._observer.note
                return PlainEventStream(value, execution.pool, self._callbacks, capacity, note)
            if (response := self._execution.as_response(value)) is not None:
                return response
        except Exception:  # its class cannot be hashed, or the object does not let itself be asked what it is
            logger.debug("A value of type %s is taken for one that is to be encoded", type(value), exc_info=True)
        return encode(value)

    def _stream_of(self, source: AsyncGenerator[Any, Any]) -> AsyncEventStream:
        return AsyncEventStream(source, self._callbacks, self._execution.stream_capacity, self._observer.note)

    def _iterate_in_thread(self, stream: PlainEventStream) -> None:
        self._execution.pool.submit(partial(copy_context().run, stream.iterate))


class TaskWork:
    """What one task does for a request, as what may outlive its client; see :class:`running.HandlerWork`.

    Args:
        task: The task.
    """

    __slots__ = ("_task",)

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the task is done."""
        self._task.add_done_callback(lambda _: function())

    def cancel(self) -> None:
        """Cancel the task; from any thread."""
        call_threadsafe(self._task.get_loop(), self._task.cancel)


def _is_awaitable(value: Any) -> bool:
    try:
        return type(value) not in _PLAIN_VALUES and inspect.isawaitable(value)
    except Exception:  # as in HandlerCall._result_of
        return False


def _only_step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has one step, and return its value."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has no await and waits all the same")
