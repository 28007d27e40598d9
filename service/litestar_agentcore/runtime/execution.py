"""One call of a handler: run where its kind must run, and its outcome brought back to the loop that asked."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from litestar_agentcore.protocol.serialization import encode
from litestar_agentcore.runtime.agent_loop import AgentLoop, task_begins
from litestar_agentcore.runtime.callbacks import CallbackQueue, call_threadsafe
from litestar_agentcore.runtime.failure import Failure
from litestar_agentcore.runtime.forking import end_stray_child
from litestar_agentcore.runtime.handler import Handler, HandlerKind
from litestar_agentcore.runtime.streams import AsyncEventStream, EventStream, PlainEventStream
from litestar_agentcore.runtime.threads import ThreadPool

logger = logging.getLogger(__name__)

Stream = TypeVar("Stream", bound=EventStream)

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
        if self.inline:
            return asyncio.get_running_loop().create_task(coroutine, name=name, context=context)
        return self.agent_loop.loop.spawn(coroutine, context, name)

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
        name: The handler's name in the log.
        kind: What kind of handler it is.
        start: Calls it.
        callbacks: Reach the loop that accepts requests.
        observer: Is told of what the handler raises.
    """

    __slots__ = (
        "_callbacks", "_cancelled", "_ended", "_execution", "_kind", "_name", "_observer", "_on_end", "_outcome",
        "_start", "_task",
    )  # fmt: skip

    def __init__(
        self,
        execution: Execution,
        name: str,
        kind: HandlerKind,
        start: Callable[[], Any],
        callbacks: CallbackQueue,
        observer: Observer,
    ) -> None:
        self._execution = execution
        self._name = name
        self._kind = kind
        self._start = start
        self._callbacks = callbacks
        self._observer = observer
        self._outcome: asyncio.Future[Any] = callbacks.loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._ended = False
        self._on_end: list[Callable[[], object]] = []

    async def run_here(self) -> Any:
        """Run a coroutine handler in the current task, where handlers run inline.

        Returns:
            What :meth:`run` returns. Of an :class:`AsyncEventStream` this task is to run ``iterate()``.
        """
        try:
            result = self._result_of(await self._start())
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # not the handler's own
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
        kind, context = self._kind, copy_context()
        if kind is HandlerKind.ASYNC_GENERATOR:
            stream = self._stream_of(self._start(), AsyncEventStream)
            self._spawn(context, self._iterate, stream)
            return stream
        if kind is HandlerKind.COROUTINE:
            self._spawn(context, self._run_async)
        else:
            self._execution.pool.submit(partial(context.run, self._run_in_thread))
        try:
            return await self._outcome
        except asyncio.CancelledError:
            self.cancel()
            raise

    # -- On the loop that accepts requests

    def abandon(self, *, cancel: bool) -> None:
        """Drop the handler's outcome: its client has left.

        Args:
            cancel: Whether to cancel the handler where it can be, and not to let it run on.
        """
        if not self._outcome.done():
            self._outcome.set_result(None)
        if cancel:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the handler, where it is an async one or has become one; a plain one runs on."""
        self._cancelled = True  # for a handler that has not begun, since its loop is held
        outcome = self._outcome
        if not outcome.cancel() and not outcome.cancelled() and isinstance(stream := outcome.result(), EventStream):
            stream.close()  # the task that asked was cancelled before it could take it
        if (task := self._task) is not None:
            loop = task.get_loop()
            # A turn later: what was received before, that the client has left above all, reaches the handler first.
            call_threadsafe(loop, loop.call_soon, task.cancel)

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function once the handler's code has ended, on whichever thread that is; at once where it has."""
        self._on_end.append(function)
        if self._ended:
            function()

    def _settle(self, result: object) -> None:
        if not self._outcome.done():
            self._outcome.set_result(result)
        elif isinstance(result, EventStream):
            result.close()  # the task that asked was cancelled

    def _spawn(self, context: Context, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        coroutine = function(*args)
        coroutine.send(None)  # see task_begins()
        self._task = self._execution.spawn(coroutine, context, self._name)

    # -- On the handler's side

    async def _run_async(self, value: Awaitable[Any] | None = None) -> None:
        """Run a coroutine handler, or go on with what plain code returned as it does; its async generator included."""
        result: Any = None
        try:
            await task_begins()
            if not self._cancelled:
                awaitable = self._start() if value is None else value
                result = self._result_of(await awaitable)
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and self._outcome.done()):
                result = self._observer.describe(error)
        if inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()  # or Python warns that it was never awaited
        self._callbacks.call_soon(self._settle, result)
        if isinstance(result, AsyncEventStream):
            await result.iterate()
        elif isinstance(result, PlainEventStream):
            self._iterate_in_thread(result)
            return
        self._end()

    async def _iterate(self, stream: AsyncEventStream) -> None:
        await stream.iterate()
        self._end()

    def _run_in_thread(self) -> None:
        """Run plain code, or the only step of a coroutine, and iterate the plain generator that it returns."""
        one_step = self._kind is HandlerKind.ONE_STEP
        result: Any = None
        # What its value does while it is encoded may ask for the running loop as well.
        asyncio._set_running_loop(self._execution.agent_loop.loop if one_step else None)  # noqa: SLF001
        try:
            if not self._cancelled:  # while it waited for a thread
                value = self._start()
                if one_step:
                    value = _only_step(value)
                if _is_awaitable(value):
                    self._callbacks.call_soon(self._spawn, copy_context(), self._run_async, value)
                    return
                result = self._result_of(value)
        except BaseException as error:
            result = self._observer.describe(error)
        finally:
            end_stray_child()
            asyncio._set_running_loop(None)  # noqa: SLF001
        self._callbacks.call_soon(self._settle, result)
        if isinstance(result, AsyncEventStream):
            self._callbacks.call_soon(self._spawn, copy_context(), self._iterate, result)
            return
        if isinstance(result, PlainEventStream):
            result.iterate(self._execution.pool)
        self._end()

    def _end(self) -> None:
        # Here and not on the loop that asked, which may be closed by now.
        self._ended = True
        for function in self._on_end:
            function()

    def _result_of(self, value: Any) -> Any:
        """Encode what a handler returned, here on its side, where a large value does not hold up the accepting loop."""
        try:
            if type(value) in _PLAIN_VALUES:
                return encode(value)
            if isinstance(value, AsyncGenerator):
                return self._stream_of(value, AsyncEventStream)
            if isinstance(value, Generator):
                return self._stream_of(value, PlainEventStream)
            if (response := self._execution.as_response(value)) is not None:
                return response
        except Exception:  # its class cannot be hashed, or the object does not let itself be asked what it is
            logger.debug("A value of type %s is taken for one that is to be encoded", type(value), exc_info=True)
        return encode(value)

    def _stream_of(self, source: object, kind: type[Stream]) -> Stream:
        return kind(source, self._callbacks, self._execution.stream_capacity, self._observer.note)

    def _iterate_in_thread(self, stream: PlainEventStream) -> None:
        def iterate() -> None:
            stream.iterate(self._execution.pool)
            self._end()

        self._execution.pool.submit(partial(copy_context().run, iterate))


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
