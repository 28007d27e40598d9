"""ASGI receive and send of the accepting loop, for code that runs on the agent's loop."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias

from litestar_agentcore.runtime.callbacks import CallbackQueue, callbacks_of
from litestar_agentcore.runtime.execution import Execution

_Sent: TypeAlias = "asyncio.Future[Exception | None]"
"""Settled with what sending a message raised, if anything."""

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

QUEUE_MESSAGES = 32
"""How many messages may wait in each direction."""

QUEUE_BYTES = 1024 * 1024
"""How many bytes of received messages may wait; one message may be larger."""

_DISCONNECTS = frozenset({"websocket.disconnect", "http.disconnect"})

_CLOSED = {"http": {"type": "http.disconnect"}, "websocket": {"type": "websocket.disconnect", "code": 1005}}
"""What is received once a connection was closed; 1005 stands for a close without a code (RFC 6455, section 7.4.1)."""


class AsgiBridge:
    """Carries the messages of one connection between the loop that accepted it and the agent's loop.

    Received messages wait in a bounded queue: who is cancelled while waiting for one loses none, and the client is not
    read while the queue is full. Messages are sent one by one in their order, and whole: who is cancelled while one is
    sent merely waits for it no longer.

    Args:
        callbacks: Reach the accepting loop, on which this is made.
        agent_loop: The agent's loop, on which :meth:`receive` and :meth:`send` are called.
        receive: The ASGI receive function of the accepting loop.
        send: The ASGI send function of the accepting loop.
    """

    def __init__(
        self, callbacks: CallbackQueue, agent_loop: asyncio.AbstractEventLoop, receive: Receive, send: Send
    ) -> None:
        self._callbacks = callbacks
        self._agent_loop = agent_loop
        self._protocol = "http"  # a WebSocket begins with a message of its own
        self._receive = receive
        self._send = send
        self._received: deque[Any] = deque()
        self._received_bytes = 0
        self._taken_bytes = 0
        self._receiving_error: BaseException | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None
        self._outgoing: deque[tuple[Any, _Sent]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._cut_off = False
        self._sending = asyncio.Semaphore(QUEUE_MESSAGES)
        self._reader = callbacks.loop.create_task(self._read())

    # -- On the agent's loop

    async def receive(self) -> Any:
        """Wait for the next message. A disconnect stays the last one, however often it is asked for."""
        while not self._received:
            if self._receiving_error is not None:
                raise self._receiving_error
            waiter = self._agent_loop.create_future()
            self._waiting.add(waiter)
            try:
                if not self._received and self._receiving_error is None:  # none came between question and answer
                    await waiter
            finally:
                self._waiting.discard(waiter)
        if self._received[0]["type"] in _DISCONNECTS:
            return self._received[0]
        message = self._received.popleft()
        self._taken_bytes += _size_of(message)
        if self._room is not None:
            self._callbacks.call_soon(self._make_room)
        return message

    async def send(self, message: Any) -> None:
        """Send a message, and wait until the server has taken it.

        Args:
            message: An ASGI message.
        """
        await self._sending.acquire()
        sent: _Sent = self._agent_loop.create_future()
        self._callbacks.call_soon(self._enqueue, message, sent)
        if (error := await sent) is not None:
            raise error

    def _wake_receivers(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _settle(self, sent: _Sent, error: Exception | None) -> None:
        self._sending.release()
        if not sent.done():  # else the sender was cancelled
            sent.set_result(error)

    # -- On the accepting loop

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                self._protocol = message["type"].partition(".")[0]
                self._received.append(message)
                self._received_bytes += _size_of(message)
                if self._waiting:
                    self._agent_loop.call_soon_threadsafe(self._wake_receivers)
                if message["type"] in _DISCONNECTS:
                    return
                await self._wait_for_room()
        except Exception as error:
            self._receiving_error = error
            self._agent_loop.call_soon_threadsafe(self._wake_receivers)

    async def _wait_for_room(self) -> None:
        while self._is_full():
            self._room = room = self._callbacks.loop.create_future()
            try:
                if self._is_full():  # the last was not taken between question and answer
                    await room
            finally:
                self._room = None

    def _is_full(self) -> bool:
        return len(self._received) >= QUEUE_MESSAGES or self._received_bytes - self._taken_bytes >= QUEUE_BYTES

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _enqueue(self, message: Any, sent: _Sent) -> None:
        self._outgoing.append((message, sent))
        if self._cut_off:
            self._fail_unsent()
        elif self._sender is None:
            self._sender = self._callbacks.loop.create_task(self._send_queued())
            self._sender.add_done_callback(self._sender_ended)

    async def _send_queued(self) -> None:
        while self._outgoing:
            message, sent = self._outgoing[0]
            error: Exception | None = None
            try:
                await self._send(message)
            except Exception as raised:
                error = raised
            self._outgoing.popleft()
            self._agent_loop.call_soon_threadsafe(self._settle, sent, error)
        self._sender = None

    def _sender_ended(self, sender: "asyncio.Task[None]") -> None:
        if self._sender is sender:  # it was cancelled, perhaps before its first step
            self._sender = None
            self._fail_unsent()

    def _fail_unsent(self) -> None:
        while self._outgoing:
            _, sent = self._outgoing.popleft()
            self._agent_loop.call_soon_threadsafe(self._settle, sent, ConnectionError("the connection was closed"))

    async def close(self, *, wait: bool) -> None:
        """Stop receiving: a task that outlives its handler learns that the connection is closed. On the accepting loop.

        Args:
            wait: Whether to wait until what was sent has left. Else that is cut off, and what is sent from now on
                raises ``ConnectionError``.
        """
        self._cut_off = not wait
        self._reader.cancel()
        self._received.append(_CLOSED[self._protocol])
        if self._waiting:
            self._agent_loop.call_soon_threadsafe(self._wake_receivers)
        if (sender := self._sender) is not None:
            if wait:
                await asyncio.wait({sender})
            else:
                sender.cancel()


def _size_of(message: Any) -> int:
    body = message.get("bytes") or message.get("text") or message.get("body")
    return len(body) if body else 0


_serving: set[asyncio.Task[None]] = set()
"""Kept until their end, also where who waited for them was cancelled: asyncio itself has but weak references."""


async def serve_on_agent_loop(
    execution: Execution,
    name: str,
    function: Callable[[Receive, Send], Coroutine[Any, Any, None]],
    receive: Receive,
    send: Send,
    on_task: Callable[["asyncio.Task[None]"], object] | None = None,
) -> BaseException | None:
    """Run an async function where async handler code runs, while it receives and sends here.

    Args:
        execution: Where handlers run.
        name: The function's name in the log.
        function: What to run. It is called with the ASGI functions that it is to use.
        receive: The ASGI receive function of this loop.
        send: The ASGI send function of this loop.
        on_task: Called with the task that runs it, which may outlive a cancelled call.

    Returns:
        What it raised, if anything.
    """
    callbacks = callbacks_of(asyncio.get_running_loop())
    outcome: asyncio.Future[BaseException | None] = callbacks.loop.create_future()
    bridge = None if execution.inline else AsgiBridge(callbacks, execution.agent_loop.loop, receive, send)

    async def run() -> None:
        error = None
        try:
            if outcome.cancelled():  # while the loop was held
                return
            await (function(receive, send) if bridge is None else function(bridge.receive, bridge.send))
        except BaseException as raised:
            error = raised
        callbacks.call_soon(_settle, outcome, error)

    def end(task: "asyncio.Task[None]") -> None:
        _serving.discard(task)
        if task.cancelled():  # before its first step: after it, it is settled already
            callbacks.call_soon(_settle, outcome, asyncio.CancelledError())

    task = execution.spawn(run(), copy_context(), name)
    _serving.add(task)
    task.add_done_callback(end)
    if on_task is not None:
        on_task(task)
    try:
        error = await outcome
    except asyncio.CancelledError:
        loop = task.get_loop()
        # A turn later: what was received before, that the client has left above all, reaches the function first.
        loop.call_soon_threadsafe(partial(loop.call_soon, task.cancel))
        if bridge is not None:
            await bridge.close(wait=False)
        raise
    if bridge is not None:
        await bridge.close(wait=True)
    return error


def _settle(outcome: "asyncio.Future[Any]", result: object) -> None:
    if not outcome.done():
        outcome.set_result(result)
