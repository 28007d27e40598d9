"""Callbacks from other threads: in order, none lost, and with one wake-up of the loop for many."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from litestar_agentcore.runtime.callbacks import CallbackQueue, call_threadsafe, callbacks_of

from tests.unit.blocking import PATIENCE, Block, eventually


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often other threads wake it."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0

    def _write_to_self(self) -> None:
        self.wakes += 1
        super()._write_to_self()  # type: ignore[misc]  # typeshed knows public names alone


@pytest.fixture
def loop() -> Iterator[CountingLoop]:
    """A loop that turns in a thread of its own."""
    loop = CountingLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


@pytest.fixture
def block() -> Iterator[Block]:
    block = Block()
    yield block
    block.release()


def hold(loop: asyncio.AbstractEventLoop, block: Block) -> None:
    loop.call_soon_threadsafe(block)
    block.wait_until_entered()


def test_callbacks_that_come_while_the_loop_is_busy_are_one_batch_and_one_wake_up(
    loop: CountingLoop, block: Block
) -> None:
    callbacks = CallbackQueue(loop)
    seen: list[int] = []
    hold(loop, block)
    wakes = loop.wakes
    for number in range(100):
        callbacks.call_soon(seen.append, number)
    assert loop.wakes == wakes + 1
    block.release()
    eventually(lambda: len(seen) == 100)
    assert seen == list(range(100))
    callbacks.call_soon(seen.append, 100)
    eventually(lambda: seen[-1] == 100)
    assert loop.wakes == wakes + 2


def test_they_are_called_with_their_arguments_on_the_thread_of_the_loop(loop: CountingLoop) -> None:
    called: list[object] = []
    CallbackQueue(loop).call_soon(lambda *arguments: called.append((asyncio.get_running_loop(), *arguments)), 1, "two")
    eventually(lambda: called == [(loop, 1, "two")])


def test_those_of_each_thread_are_called_in_their_order_and_none_is_lost(loop: CountingLoop) -> None:
    callbacks = CallbackQueue(loop)
    seen: list[tuple[int, int]] = []

    def call(caller: int) -> None:
        for number in range(5000):
            callbacks.call_soon(seen.append, (caller, number))

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(PATIENCE)
    eventually(lambda: len(seen) == 20_000)
    for caller in range(4):
        assert [number for who, number in seen if who == caller] == list(range(5000))


def test_those_that_come_one_by_one_while_the_loop_is_idle_are_not_lost(loop: CountingLoop) -> None:
    callbacks, called = CallbackQueue(loop), threading.Semaphore(0)
    for _ in range(2000):
        callbacks.call_soon(called.release)
        assert called.acquire(timeout=PATIENCE)


def test_callbacks_that_callbacks_cause_leave_the_loop_time_for_others(loop: CountingLoop) -> None:
    callbacks, done = CallbackQueue(loop), threading.Event()

    def again() -> None:
        if not done.is_set():
            callbacks.call_soon(again)

    callbacks.call_soon(again)
    loop.call_soon_threadsafe(loop.call_later, 0.01, done.set)
    assert done.wait(PATIENCE)


def test_one_that_raises_costs_those_behind_it_nothing(loop: CountingLoop, block: Block) -> None:
    callbacks = CallbackQueue(loop)
    seen: list[str] = []
    errors: list[type[BaseException]] = []

    def fail() -> None:
        raise LookupError

    loop.set_exception_handler(lambda _, context: errors.append(type(context["exception"])))
    hold(loop, block)
    functions: list[Callable[[], object]] = [fail, fail, lambda: seen.append("last")]
    for function in functions:
        callbacks.call_soon(function)
    block.release()
    eventually(lambda: seen == ["last"])
    assert errors == [LookupError, LookupError]


def test_a_loop_that_is_closed_calls_none_and_nobody_minds() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    CallbackQueue(loop).call_soon(pytest.fail, "nobody is there")
    assert call_threadsafe(loop, pytest.fail) is False


def test_another_error_of_the_call_is_raised(loop: CountingLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", refuse)
        with pytest.raises(RuntimeError, match="not today"):
            call_threadsafe(loop, print)
    assert call_threadsafe(loop, print) is True


def test_a_loop_has_one_queue(loop: CountingLoop) -> None:
    assert callbacks_of(loop) is callbacks_of(loop)
    assert callbacks_of(loop).loop is loop


def test_a_loop_that_is_closed_and_forgotten_takes_its_queue_along(loop: CountingLoop) -> None:
    closed = asyncio.SelectorEventLoop()
    callbacks = weakref.ref(callbacks_of(closed))
    closed.close()
    del closed
    callbacks_of(loop)
    gc.collect()
    assert callbacks() is None
