"""The loops and threads that handlers run on, and the watchdog that looks after them."""

import asyncio
import gc
import inspect
import logging
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreContext
from litestar_agentcore.runtime import loops as loops_module
from litestar_agentcore.runtime import workers as workers_module
from litestar_agentcore.runtime.loops import LoopCall, WorkerLoop
from litestar_agentcore.runtime.mailbox import Mailbox, mailbox_of, post
from litestar_agentcore.runtime.threads import ThreadPool
from litestar_agentcore.runtime.watchdog import Watchdog
from litestar_agentcore.runtime.workers import Workers

from tests.unit.conftest import LogLines

STALL = 0.05
"""Seconds after which a loop counts as held here."""

PATIENCE = 10.0
"""Seconds after which what should have happened long ago counts as not happening."""

colour: ContextVar[str] = ContextVar("colour", default="none")


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def here() -> str:
    return threading.current_thread().name


class Threads:
    """The threads that were started since this was made."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def alive(self) -> list[str]:
        """The names of those that are alive."""
        return sorted(thread.name for thread in set(threading.enumerate()) - self._before)

    def loops(self) -> list[str]:
        """The names of those that are worker loops."""
        return [name for name in self.alive() if name.startswith("agentcore-worker")]


class Hold:
    """A call that blocks its thread, until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._released = threading.Event()

    def block(self) -> str:
        self.entered.set()
        assert self._released.wait(PATIENCE)
        return here()

    async def handler(self) -> str:
        return self.block()

    def release(self) -> None:
        self._released.set()


class Place:
    """Workers whose loops count as held soon, and what is to be known of them."""

    def __init__(self, **options: Any) -> None:
        self.stalls = 0
        self.threads = Threads()
        self.home = Mailbox(asyncio.new_event_loop())
        given: dict[str, Any] = {"sync_threads": 2, "stall_seconds": STALL, "max_loops": 8, "inline": False}
        self.workers = Workers(**(given | options), on_stall=self._count)
        self.holds: list[Hold] = []

    def _count(self) -> None:
        self.stalls += 1

    def spawn(
        self, coroutine: Coroutine[Any, Any, None], context: Context | None = None, name: str = "handler"
    ) -> LoopCall:
        return self.workers.spawn(self.home, coroutine, context or copy_context(), name)

    def begin(
        self, function: Callable[[], Awaitable[Any]], context: Context | None = None, name: str = "handler"
    ) -> "Future[Any]":
        """Run an async function as a handler is run."""
        outcome: Future[Any] = Future()
        self.spawn(settling(function, outcome), context, name)
        return outcome

    def hold(self, name: str = "holder") -> tuple[Hold, "Future[Any]"]:
        """Have a handler block the loop that is next to get work, and the watchdog see it."""
        hold, stalls = Hold(), self.stalls
        self.holds.append(hold)
        outcome = self.begin(hold.handler, name=name)
        assert hold.entered.wait(PATIENCE)
        eventually(lambda: self.stalls > stalls)
        return hold, outcome

    def close(self) -> None:
        for hold in self.holds:
            hold.release()
        self.workers.stop()
        self.home.loop.close()


async def settling(function: Callable[[], Awaitable[Any]], outcome: "Future[Any]") -> None:
    try:
        outcome.set_result(await function())
    except BaseException as error:
        outcome.set_exception(CancelledError() if isinstance(error, asyncio.CancelledError) else error)


async def where() -> str:
    return here()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.fixture
def place_with_two_loops() -> Iterator[Place]:
    place = Place(max_loops=2)
    yield place
    place.close()


@pytest.fixture
def hold() -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.release()


@pytest.fixture
def loop() -> Iterator[WorkerLoop]:
    loop = WorkerLoop("a-worker")
    yield loop
    loop.stop()


def spawn(loop: WorkerLoop, coroutine: Coroutine[Any, Any, None]) -> LoopCall:
    return loop.spawn(coroutine, copy_context(), "handler")


def begin(loop: WorkerLoop, function: Callable[[], Awaitable[Any]]) -> "Future[Any]":
    outcome: Future[Any] = Future()
    spawn(loop, settling(function, outcome))
    return outcome


class TestWorkerLoop:
    def test_a_call_runs_on_the_thread_of_the_loop(self, loop: WorkerLoop) -> None:
        assert begin(loop, where).result(PATIENCE) == "a-worker"

    def test_calls_begin_in_the_order_in_which_they_came(self, loop: WorkerLoop) -> None:
        begun: list[int] = []

        async def note(number: int) -> None:
            begun.append(number)
            await asyncio.sleep(0)

        for number in range(1000):
            spawn(loop, note(number))
        eventually(lambda: len(begun) == 1000)
        assert begun == list(range(1000))

    def test_the_first_step_is_taken_at_once_and_not_behind_what_the_loop_has_to_do_besides(
        self, loop: WorkerLoop, hold: Hold
    ) -> None:
        seen: list[str] = []

        async def note() -> None:
            seen.append("call")

        begin(loop, hold.handler)
        assert hold.entered.wait(PATIENCE)
        loop.call(lambda: asyncio.get_running_loop().call_soon(seen.append, "callback"))
        spawn(loop, note())
        hold.release()
        eventually(lambda: len(seen) == 2)
        assert seen == ["call", "callback"]

    def test_calls_that_come_in_one_turn_of_the_caller_cost_one_wake_up(
        self, loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        eventually(lambda: loop._selector.waiting)
        wakes: list[asyncio.AbstractEventLoop] = []
        done: list[None] = []

        def counting_post(target: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> bool:
            wakes.append(target)
            return post(target, function, *args)

        async def note() -> None:
            done.append(None)

        async def caller() -> None:
            for _ in range(100):
                spawn(loop, note())

        monkeypatch.setattr(loops_module, "post", counting_post)
        asyncio.run(caller())
        eventually(lambda: len(done) == 100)
        assert wakes == [loop._loop]

    def test_a_loop_that_begins_many_calls_looks_after_its_timers_between_them(self, loop: WorkerLoop) -> None:
        left = 100
        left_at_the_timer: list[int] = []

        async def work() -> None:
            nonlocal left
            if left == 100:
                asyncio.get_running_loop().call_later(0.02, lambda: left_at_the_timer.append(left))
            time.sleep(0.002)
            left -= 1

        for _ in range(100):
            spawn(loop, work())
        eventually(lambda: not left)
        assert 50 < left_at_the_timer[0] < 100

    def test_a_call_runs_in_the_context_that_it_was_given_and_changes_no_other(self, loop: WorkerLoop) -> None:
        contexts = [copy_context(), copy_context()]
        seen: list[str] = []

        async def paint() -> None:
            seen.append(colour.get())
            await asyncio.sleep(0.01)
            seen.append(colour.get())
            colour.set("black")

        for context, name in zip(contexts, ("red", "blue"), strict=True):
            context.run(colour.set, name)
            loop.spawn(paint(), context, "paint")
        eventually(lambda: len(seen) == 4)
        assert seen == ["red", "blue", "red", "blue"]
        assert colour.get() == "none"
        assert begin(loop, lambda: asyncio.sleep(0, colour.get())).result(PATIENCE) == "none"

    def test_a_function_that_is_called_on_the_loop_runs_there(self, loop: WorkerLoop) -> None:
        names: list[str] = []
        loop.call(lambda: names.append(here()))
        eventually(lambda: names == ["a-worker"])

    def test_a_loop_with_nothing_to_do_neither_works_nor_bears_a_load(self, loop: WorkerLoop) -> None:
        assert begin(loop, lambda: asyncio.sleep(0.01)).result(PATIENCE) is None
        eventually(lambda: not loop.load)
        eventually(lambda: not loop.working_since)
        assert loop.waiting_calls == 0


async def current_task_stays_the_same() -> bool:
    first = asyncio.current_task()
    await asyncio.sleep(0)
    return first is not None and first is asyncio.current_task()


async def a_timeout_ends_the_wait() -> bool:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(PATIENCE)
    except TimeoutError:
        return True
    return False


async def wait_for_ends_the_wait() -> bool:
    try:
        await asyncio.wait_for(asyncio.sleep(PATIENCE), 0.01)
    except TimeoutError:
        return True
    return False


async def a_task_group_gathers() -> bool:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0.01, number)) for number in range(3)]
    return [task.result() for task in tasks] == [0, 1, 2]


async def a_task_group_cancels_the_others_when_one_fails() -> bool:
    async def fail() -> None:
        raise LookupError

    async with asyncio.timeout(PATIENCE / 2):
        try:
            async with asyncio.TaskGroup() as group:
                sleeper = group.create_task(asyncio.sleep(PATIENCE))
                group.create_task(fail())
        except ExceptionGroup as group_error:
            return sleeper.cancelled() and [type(error) for error in group_error.exceptions] == [LookupError]
    return False


async def a_task_can_cancel_itself() -> bool:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        return task.uncancel() == 0
    return False


async def a_subprocess_is_waited_for() -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('hello')", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output == b"hello\n" and process.returncode == 0


async def a_thread_is_waited_for() -> bool:
    return await asyncio.to_thread(here) != here()


async def a_connection_is_served() -> bool:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        greeting = await reader.read()
        writer.close()
        await writer.wait_closed()
    return greeting == b"hello"


@pytest.mark.parametrize(
    "handler",
    [
        current_task_stays_the_same,
        a_timeout_ends_the_wait,
        wait_for_ends_the_wait,
        a_task_group_gathers,
        a_task_group_cancels_the_others_when_one_fails,
        a_task_can_cancel_itself,
        a_subprocess_is_waited_for,
        a_thread_is_waited_for,
        a_connection_is_served,
    ],
)
@pytest.mark.parametrize("begins", ["in its first step", "after an await"])
def test_asyncio_works_in_handlers_as_anywhere(
    place: Place, handler: Callable[[], Awaitable[bool]], begins: str
) -> None:
    async def later() -> bool:
        await asyncio.sleep(0)
        return await handler()

    assert place.begin(handler if begins == "in its first step" else later).result(PATIENCE) is True


class TestTasksThatHandlersStart:
    def test_they_are_kept_alive_though_nobody_else_knows_them(self, place: Place) -> None:
        waits: list[weakref.ref[asyncio.Future[None]]] = []
        done = threading.Event()

        async def child() -> None:
            wait = asyncio.get_running_loop().create_future()
            waits.append(weakref.ref(wait))
            await wait
            done.set()

        async def handler() -> asyncio.AbstractEventLoop:
            asyncio.create_task(child())  # noqa: RUF006 - just that is the test
            return asyncio.get_running_loop()

        loop = place.begin(handler).result(PATIENCE)
        eventually(lambda: waits)
        gc.collect()
        wait = waits[0]()
        assert wait is not None
        loop.call_soon_threadsafe(wait.set_result, None)
        assert done.wait(PATIENCE)

    def test_they_keep_the_context_of_the_handler_and_change_it_for_nobody(self, place: Place) -> None:
        async def child() -> str:
            seen = colour.get()
            colour.set("black")
            await asyncio.sleep(0.01)
            return seen

        async def handler() -> list[str]:
            colour.set("red")
            task = asyncio.create_task(child())
            colour.set("blue")
            return [await task, colour.get()]

        assert place.begin(handler).result(PATIENCE) == ["red", "blue"]
        assert place.begin(lambda: asyncio.sleep(0, colour.get())).result(PATIENCE) == "none"

    def test_they_run_in_the_context_and_under_the_name_that_the_handler_gives_them(self, place: Place) -> None:
        async def child() -> tuple[str, str]:
            task = asyncio.current_task()
            assert task is not None
            return colour.get(), task.get_name()

        async def handler() -> tuple[str, str]:
            context = copy_context()
            context.run(colour.set, "green")
            return await asyncio.create_task(child(), name="a child", context=context)

        assert place.begin(handler).result(PATIENCE) == ("green", "a child")

    def test_they_go_on_after_the_handler_has_returned_and_while_others_hold_the_next_loop(self, place: Place) -> None:
        place.hold()
        steps: list[str] = []

        async def child() -> None:
            for _ in range(5):
                await asyncio.sleep(0.01)
                steps.append(here())

        async def handler() -> str:
            asyncio.create_task(child())  # noqa: RUF006
            return here()

        name = place.begin(handler).result(PATIENCE)
        eventually(lambda: steps == [name] * 5)


class TestCancelling:
    def test_a_call_that_is_cancelled_before_it_begins_never_does(self, place_with_two_loops: Place) -> None:
        place = place_with_two_loops
        holds = [place.hold()[0], place.hold()[0]]
        begun = threading.Event()

        async def handler() -> None:
            begun.set()

        coroutine = handler()
        call = place.spawn(coroutine)
        call.cancel()
        for hold in holds:
            hold.release()
        eventually(lambda: inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED)
        assert not begun.is_set()

    def test_a_call_that_is_cancelled_after_it_began_may_clean_up(self, place: Place) -> None:
        begun, seen = threading.Event(), []

        async def handler() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                seen.append(here())
                raise

        call = place.spawn(handler())
        assert begun.wait(PATIENCE)
        call.cancel()
        eventually(lambda: seen == ["agentcore-worker"])

    @pytest.mark.parametrize("cancelled", ["before it begins", "after it began"])
    def test_a_call_that_was_moved_is_cancelled_where_it_is_now(self, place: Place, cancelled: str) -> None:
        hold, first = Hold(), place.begin(where).result(PATIENCE)
        place.holds.append(hold)
        begun, ended = threading.Event(), []

        async def handler() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(here())

        place.begin(hold.handler)
        assert hold.entered.wait(PATIENCE)
        coroutine = handler()
        call = place.spawn(coroutine)
        if cancelled == "before it begins":
            call.cancel()
            eventually(lambda: inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED)
            assert not begun.is_set()
        else:
            assert begun.wait(PATIENCE)
            call.cancel()
            eventually(lambda: ended)
            assert ended != [first]

    def test_to_cancel_what_has_ended_does_nothing(self, place: Place) -> None:
        ended = threading.Event()

        async def handler() -> None:
            ended.set()

        call = place.spawn(handler())
        assert ended.wait(PATIENCE)
        call.cancel()
        call.cancel()
        assert place.begin(where).result(PATIENCE) == "agentcore-worker"


class TestSystemExit:
    def test_in_a_task_it_ends_neither_the_loop_nor_the_other_handlers(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        go_on = asyncio.Event()

        async def other() -> str:
            await go_on.wait()
            return here()

        async def leave() -> None:
            sys.exit(3)

        async def handler() -> str:
            task = asyncio.create_task(leave())
            await asyncio.sleep(0.01)
            assert isinstance(task.exception(), SystemExit)
            go_on.set()
            return here()

        waiting = place.begin(other)
        assert place.begin(handler).result(PATIENCE) == waiting.result(PATIENCE)
        assert place.begin(where).result(PATIENCE) == "agentcore-worker"
        (record,) = caplog.get_records("call")
        assert (record.levelname, record.message) == ("ERROR", "A task on agentcore-worker tried to end its thread")
        assert record.exc_info is not None
        assert record.exc_info[0] is SystemExit

    def test_in_the_first_step_of_a_call_it_costs_the_calls_behind_it_nothing(
        self, loop: WorkerLoop, hold: Hold
    ) -> None:
        async def leave() -> None:
            sys.exit(3)

        begin(loop, hold.handler)
        assert hold.entered.wait(PATIENCE)
        spawn(loop, leave())
        behind = begin(loop, where)
        hold.release()
        assert behind.result(PATIENCE) == "a-worker"


class TestStopping:
    def test_what_runs_is_cancelled_and_may_clean_up_before_the_thread_ends(self) -> None:
        place = Place()
        seen: list[str] = []

        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                seen.append("child")

        async def events() -> Any:
            try:
                while True:
                    yield
            finally:
                seen.append("generator")

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006
            generator = events()
            await anext(generator)
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                seen.append("handler")
                kept.append(generator)

        begun: threading.Event = threading.Event()
        kept: list[Any] = []
        outcome = place.begin(handler)
        assert begun.wait(PATIENCE)
        place.close()
        with pytest.raises(CancelledError):
            outcome.result(0)
        assert sorted(seen) == ["child", "generator", "handler"]
        assert place.threads.loops() == []

    def test_a_loop_that_is_held_is_left_behind_and_named(self, caplog: pytest.LogCaptureFixture) -> None:
        place = Place()
        hold, _ = place.hold()
        began = time.monotonic()
        place.workers.stop()
        assert time.monotonic() - began < 1
        assert "agentcore-worker is still held by a handler that blocks it, and is left behind" in caplog.messages
        hold.release()
        eventually(lambda: place.threads.loops() == [])
        place.close()

    def test_a_task_that_does_not_end_when_it_is_cancelled_is_named(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(loops_module, "STOP_SECONDS", 0.1)
        place, begun, given_up = Place(), threading.Event(), asyncio.Event()

        async def stubborn() -> None:
            while not given_up.is_set():
                try:
                    begun.set()
                    await given_up.wait()
                except asyncio.CancelledError:
                    asyncio.get_running_loop().call_later(0.2, given_up.set)

        place.begin(stubborn)
        assert begun.wait(PATIENCE)
        place.close()
        (message,) = [message for message in caplog.messages if "did not end when it was cancelled" in message]
        assert "settling" in message

    def test_a_stopped_loop_refuses_calls_and_closes_them(self) -> None:
        loop, coroutine = WorkerLoop("a-worker"), where()
        loop.stop()
        loop.stop()
        with pytest.raises(RuntimeError, match="has been stopped"):
            loop.spawn(coroutine, copy_context(), "where")  # type: ignore[arg-type]
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

    def test_workers_that_were_stopped_begin_anew(self) -> None:
        place = Place()
        for _ in range(2):
            assert place.begin(where).result(PATIENCE) == "agentcore-worker"
            assert place.workers.loops == 1
            place.workers.stop()
            assert place.workers.loops == 0
        eventually(lambda: place.threads.alive() == [])
        place.close()

    def test_loops_that_are_about_to_be_ended_as_idle_are_stopped_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.3)
        place = Place(stall_seconds=0.3)
        hold, held = place.hold()
        second = place.begin(where).result(PATIENCE)
        hold.release()
        held.result(PATIENCE)
        eventually(lambda: place.workers._retiring)
        place.close()
        assert second not in place.threads.loops()

    def test_nothing_is_started_before_there_is_something_to_run(self) -> None:
        place = Place()
        assert (place.workers.loops, place.workers.queue_length, place.threads.alive()) == (0, 0, [])
        place.close()


class TestALoopThatIsHeld:
    def test_calls_that_it_has_not_begun_move_to_another_while_it_is_held(self, place: Place) -> None:
        hold, seen = Hold(), []
        place.holds.append(hold)

        async def note(number: int) -> None:
            seen.append((number, here()))

        held = place.begin(hold.handler)
        assert hold.entered.wait(PATIENCE)
        for number in range(100):
            place.spawn(note(number))
        eventually(lambda: len(seen) == 100)
        assert not held.done()
        assert seen == [(number, "agentcore-worker-2") for number in range(100)]
        assert place.workers.loops == 2

    def test_calls_that_block_move_on_from_loop_to_loop(self, place: Place) -> None:
        holds = [Hold() for _ in range(4)]
        place.holds += holds
        held = [place.begin(hold.handler) for hold in holds]
        for hold in holds:
            assert hold.entered.wait(PATIENCE)
        assert place.workers.loops == 4
        eventually(lambda: place.stalls == 4)
        place.close()
        assert len({outcome.result(PATIENCE) for outcome in held}) == 4

    def test_it_gets_nothing_new_and_is_the_first_choice_again_when_it_turns(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        first = place.begin(where).result(PATIENCE)
        hold, held = place.hold()
        assert {place.begin(where).result(PATIENCE) for _ in range(20)} == {"agentcore-worker-2"}
        hold.release()
        assert held.result(PATIENCE) == first
        eventually(lambda: "turns again" in caplog.text)
        assert {place.begin(where).result(PATIENCE) for _ in range(20)} == {first}
        (recovery,) = [record for record in caplog.records if "turns again" in record.message]
        assert recovery.levelname == "INFO"
        assert recovery.message.startswith(f"{first} turns again, after 0.")

    def test_while_several_are_held_the_next_one_has_the_work(self, place: Place) -> None:
        for _ in range(3):
            place.hold()
        assert place.begin(where).result(PATIENCE) == "agentcore-worker-4"
        assert (place.stalls, place.workers.loops) == (3, 4)

    @pytest.mark.parametrize("recovers", [0, 1])
    def test_with_no_loop_left_work_waits_for_the_one_that_recovers_first(
        self, place_with_two_loops: Place, recovers: int
    ) -> None:
        place = place_with_two_loops
        held = [place.hold(), place.hold()]
        waiting = [place.begin(where) for _ in range(10)]
        time.sleep(4 * STALL)
        assert not any(outcome.done() for outcome in waiting)
        assert place.workers.loops == 2

        hold, outcome = held[recovers]
        hold.release()

        name = outcome.result(PATIENCE)
        assert [each.result(PATIENCE) for each in waiting] == [name] * 10
        assert not held[1 - recovers][1].done()

    def test_a_call_in_the_pool_of_threads_reaches_a_loop_that_turns(self, place: Place) -> None:
        place.hold()
        outcome: Future[Any] = Future()
        place.workers.pool.submit(lambda: place.spawn(settling(where, outcome)))
        assert outcome.result(PATIENCE) == "agentcore-worker-2"

    def test_it_may_be_one_that_got_the_work_before_the_watchdog_looked(self, place: Place) -> None:
        hold = Hold()
        place.holds.append(hold)
        place.begin(hold.handler)
        assert hold.entered.wait(PATIENCE)
        began = time.monotonic()
        assert place.begin(where).result(PATIENCE) == "agentcore-worker-2"
        assert time.monotonic() - began < 1


class TestLoopsThatAreIdle:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.2)

    def test_the_extra_ones_end_and_the_first_one_stays(self, place: Place) -> None:
        held = [place.hold() for _ in range(3)]
        assert place.begin(where).result(PATIENCE) == "agentcore-worker-4"
        for hold, outcome in held:
            hold.release()
            outcome.result(PATIENCE)
        eventually(lambda: place.workers.loops == 1)
        eventually(lambda: place.threads.loops() == ["agentcore-worker"])
        assert place.begin(where).result(PATIENCE) == "agentcore-worker"

    def test_one_that_is_held_stays_and_so_does_one_that_stands_in_for_it(self, place: Place) -> None:
        place.hold()
        assert place.begin(where).result(PATIENCE) == "agentcore-worker-2"
        time.sleep(0.5)
        assert place.threads.loops() == ["agentcore-worker", "agentcore-worker-2"]
        assert place.begin(where).result(PATIENCE) == "agentcore-worker-2"

    def test_one_on_which_a_task_goes_on_stays_until_that_is_done(self, place: Place) -> None:
        hold, held = place.hold()
        go_on = asyncio.Event()

        async def handler() -> asyncio.AbstractEventLoop:
            asyncio.create_task(go_on.wait())  # noqa: RUF006
            return asyncio.get_running_loop()

        loop = place.begin(handler).result(PATIENCE)
        hold.release()
        held.result(PATIENCE)
        time.sleep(0.5)
        assert place.workers.loops == 2
        loop.call_soon_threadsafe(go_on.set)
        eventually(lambda: place.threads.loops() == ["agentcore-worker"])

    def test_one_that_is_to_call_something_later_stays_until_it_did(self, place: Place) -> None:
        hold, held = place.hold()
        called = threading.Event()

        async def handler() -> None:
            asyncio.get_running_loop().call_later(1, called.set)

        place.begin(handler).result(PATIENCE)
        hold.release()
        held.result(PATIENCE)
        assert called.wait(PATIENCE)
        eventually(lambda: place.threads.loops() == ["agentcore-worker"])


def test_no_call_is_lost_or_run_twice_while_loops_are_held_recover_and_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.05)
    place = Place(stall_seconds=0.02, max_loops=4)
    began: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    cancelled: set[int] = set()

    async def work(number: int, chance: random.Random) -> None:
        began[number] += 1
        try:
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
            if chance.random() < 0.02:
                time.sleep(chance.uniform(0.01, 0.06))
            await asyncio.sleep(0)
        finally:
            ended[number] += 1

    def send(sender: int) -> None:
        chance = random.Random(sender)
        for number in range(sender * 1000, sender * 1000 + 1000):
            call = place.spawn(work(number, chance))
            if chance.random() < 0.1:
                call.cancel()
                cancelled.add(number)
            if chance.random() < 0.05:
                time.sleep(chance.uniform(0, 0.05))

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join(PATIENCE)
    wanted = set(range(4000)) - cancelled
    eventually(lambda: wanted <= ended.keys())
    eventually(lambda: place.workers.loops == 1)
    place.close()
    assert place.stalls > 5
    assert began == ended
    assert set(began.values()) == {1}


def held_in_a_first_step(hold: Hold) -> Callable[[], Awaitable[Any]]:
    return hold.handler


def held_after_an_await(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        await asyncio.sleep(0.02)
        hold.block()

    return handler


def held_in_a_generator(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def events() -> Any:
        yield 1
        hold.block()
        yield 2

    async def handler() -> list[int]:
        return [event async for event in events()]

    return handler


def held_in_a_child_task(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def child() -> None:
        await asyncio.sleep(0.01)
        hold.block()

    async def handler() -> None:
        await asyncio.create_task(child())

    return handler


def held_in_a_task_that_outlives_the_handler(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def child() -> None:
        await asyncio.sleep(0.1)
        hold.block()

    async def handler() -> None:
        asyncio.create_task(child())  # noqa: RUF006

    return handler


def held_in_a_callback(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        asyncio.get_running_loop().call_later(0.05, hold.block)
        while not hold.entered.is_set():
            await asyncio.sleep(0.01)

    return handler


def held_in_a_callback_after_the_handler_returned(hold: Hold) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        asyncio.get_running_loop().call_later(6 * STALL, hold.block)

    return handler


class TestTheWarning:
    @pytest.fixture
    def context(self) -> Context:
        context = copy_context()
        context.run(BedrockAgentCoreContext.set_request_context, "request-1", "session-1")
        return context

    @pytest.mark.parametrize(
        ("holding", "name"),
        [
            (held_in_a_first_step, "The handler chat "),
            (held_after_an_await, "The handler chat "),
            (held_in_a_generator, "The handler chat "),
            (held_in_a_child_task, "child"),
            (held_in_a_task_that_outlives_the_handler, "child"),
            (held_in_a_callback, "callback"),
            (held_in_a_callback_after_the_handler_returned, "callback"),
        ],
    )
    def test_one_names_the_handler_the_session_and_the_stack(
        self,
        place: Place,
        hold: Hold,
        context: Context,
        log: LogLines,
        holding: Callable[[Hold], Callable[[], Awaitable[Any]]],
        name: str,
    ) -> None:
        place.begin(holding(hold), context, "chat")
        assert hold.entered.wait(PATIENCE)
        time.sleep(8 * STALL)
        warnings = [line for line in log.lines if line["level"] == "WARNING"]
        assert (place.stalls, len(warnings)) == (1, 1)
        first, *stack = warnings[0]["message"].splitlines()
        assert name in first
        assert stack[-2:-1] == [line for line in stack[-2:-1] if "in wait" in line]
        assert [line for line in stack if "in block" in line]
        assert not [line for line in stack if "/asyncio/" in line or "service/litestar_agentcore/runtime" in line]
        assert "(session session-1)" in first
        assert (warnings[0].get("requestId"), warnings[0].get("sessionId")) == ("request-1", "session-1")

    def test_the_stack_begins_with_the_author_s_module_whatever_that_is_called(
        self, place: Place, hold: Hold, caplog: pytest.LogCaptureFixture
    ) -> None:
        module: dict[str, Any] = {"__name__": "asyncio_agent", "hold": hold}
        exec(compile("async def chat():\n    hold.block()\n", "asyncio_agent.py", "exec"), module)
        place.spawn(module["chat"](), name="chat")
        assert hold.entered.wait(PATIENCE)
        eventually(lambda: "held its event loop" in caplog.text)
        assert 'File "asyncio_agent.py", line 2, in chat' in caplog.text

    def test_each_stall_has_one(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        async def handler() -> None:
            for _ in range(3):
                time.sleep(4 * STALL)
                await asyncio.sleep(2 * STALL)

        place.begin(handler).result(PATIENCE)
        assert place.stalls == 3
        assert caplog.text.count("has held its event loop") == 3

    def test_calls_that_come_one_after_another_and_hold_it_each_have_one_with_their_own_names(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        place = Place(max_loops=1)

        async def handler() -> None:
            time.sleep(4 * STALL)

        outcomes = [place.begin(handler, name=name) for name in ("one", "two", "three")]
        for outcome in outcomes:
            outcome.result(PATIENCE)
        place.close()
        assert place.stalls == 3
        for name in ("one", "two", "three"):
            assert caplog.text.count(f"The handler {name} (session None) has held") == 1

    def test_without_a_stall_there_is_none(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)

        async def handler() -> None:
            for _ in range(10):
                time.sleep(0.001)
                await asyncio.sleep(0.01)

        outcomes = [place.begin(handler) for _ in range(5)]
        for outcome in outcomes:
            outcome.result(PATIENCE)
        place.begin(lambda: asyncio.sleep(4 * STALL)).result(PATIENCE)
        assert (place.stalls, caplog.messages) == (0, [])


class TestTheWatchdog:
    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """When it has looked at the loops."""
        looks: list[float] = []
        look = Watchdog._look

        def counting_look(self: Watchdog) -> None:
            looks.append(time.monotonic())
            look(self)

        monkeypatch.setattr(Watchdog, "_look", counting_look)
        return looks

    def test_it_sleeps_while_nothing_runs(self, place: Place, looks: list[float]) -> None:
        place.begin(lambda: asyncio.sleep(4 * STALL)).result(PATIENCE)
        time.sleep(2 * STALL)
        seen = len(looks)
        assert seen > 4
        time.sleep(20 * STALL)
        assert len(looks) == seen

    def test_it_wakes_up_for_new_work(self, place: Place, looks: list[float]) -> None:
        for stalls in (1, 2):
            hold, held = place.hold()
            hold.release()
            held.result(PATIENCE)
            assert place.stalls == stalls
            time.sleep(4 * STALL)
            seen = len(looks)
            time.sleep(4 * STALL)
            assert len(looks) == seen

    def test_it_sees_the_work_of_a_loop_that_was_chosen_before_it_fell_asleep(self, place: Place, hold: Hold) -> None:
        place.begin(where).result(PATIENCE)
        watchdog = place.workers._watchdog
        assert watchdog is not None
        eventually(lambda: watchdog.asleep)
        loop = place.workers.loop_for(place.home)
        eventually(lambda: watchdog.asleep)
        loop.spawn(settling(hold.handler, Future()), copy_context(), "handler")
        assert hold.entered.wait(PATIENCE)
        eventually(lambda: place.stalls == 1)

    def test_it_outlives_an_error_of_what_it_calls(self, caplog: pytest.LogCaptureFixture) -> None:
        place = Place()
        counted = place._count

        def failing() -> None:
            counted()
            if place.stalls == 1:
                raise LookupError("no counter")

        place.workers._on_stall = failing
        for _ in range(2):
            hold, held = place.hold()
            hold.release()
            held.result(PATIENCE)
        place.close()
        assert place.stalls == 2
        assert "The watchdog stumbled" in caplog.text


class TestInline:
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        place = Place(inline=True)
        yield place
        place.close()

    def test_calls_run_on_the_loop_that_accepts_requests_in_the_context_that_they_were_given(
        self, place: Place
    ) -> None:
        async def serve() -> None:
            place.home.loop.close()
            place.home = mailbox_of(asyncio.get_running_loop())
            context = copy_context()
            context.run(colour.set, "red")

            async def handler() -> tuple[str, str]:
                before = colour.get()
                await asyncio.sleep(0)
                colour.set("black")
                return before, here()

            outcome = asyncio.wrap_future(place.begin(handler, context))
            assert await outcome == ("red", here())
            assert colour.get() == "none"

        asyncio.run(serve())
        assert place.workers.loops == 0

    @pytest.mark.parametrize("begun", [False, True])
    def test_calls_are_cancelled(self, place: Place, begun: bool) -> None:
        seen: list[str] = []

        async def handler() -> None:
            seen.append("begun")
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("ended")

        async def serve() -> None:
            place.home.loop.close()
            place.home = mailbox_of(asyncio.get_running_loop())
            call = place.spawn(handler())
            if begun:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.sleep(0.01)

        asyncio.run(serve())
        assert seen == (["begun", "ended"] if begun else [])


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often other threads wake it."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = 0

    def _write_to_self(self) -> None:
        self.wakes += 1
        super()._write_to_self()  # type: ignore[misc]  # typeshed knows public names alone


@pytest.fixture
def home() -> Iterator[CountingLoop]:
    """A loop that turns in a thread of its own."""
    loop = CountingLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


class TestMailbox:
    def test_letters_that_come_while_the_loop_is_busy_are_one_batch_and_one_wake_up(
        self, home: CountingLoop, hold: Hold
    ) -> None:
        mailbox = Mailbox(home)
        seen: list[int] = []
        home.call_soon_threadsafe(hold.block)
        assert hold.entered.wait(PATIENCE)
        wakes = home.wakes
        for number in range(100):
            mailbox.post(seen.append, number)
        assert home.wakes == wakes + 1
        hold.release()
        eventually(lambda: len(seen) == 100)
        assert seen == list(range(100))
        mailbox.post(seen.append, 100)
        eventually(lambda: seen[-1] == 100)
        assert home.wakes == wakes + 2

    def test_the_letters_of_each_thread_arrive_in_their_order_and_none_is_lost(self, home: CountingLoop) -> None:
        mailbox = Mailbox(home)
        seen: list[tuple[int, int]] = []

        def write(sender: int) -> None:
            for number in range(5000):
                mailbox.post(seen.append, (sender, number))

        senders = [threading.Thread(target=write, args=(sender,)) for sender in range(4)]
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join(PATIENCE)
        eventually(lambda: len(seen) == 20_000)
        for sender in range(4):
            assert [number for who, number in seen if who == sender] == list(range(5000))

    def test_letters_that_letters_cause_leave_the_loop_time_for_others(self, home: CountingLoop) -> None:
        mailbox, done = Mailbox(home), threading.Event()

        def again() -> None:
            if not done.is_set():
                mailbox.post(again)

        mailbox.post(again)
        home.call_soon_threadsafe(home.call_later, 0.01, done.set)
        assert done.wait(PATIENCE)

    def test_a_letter_that_raises_costs_those_behind_it_nothing(self, home: CountingLoop, hold: Hold) -> None:
        mailbox, seen, errors = Mailbox(home), [], []

        def fail() -> None:
            raise LookupError

        home.set_exception_handler(lambda _, context: errors.append(type(context["exception"])))
        home.call_soon_threadsafe(hold.block)
        assert hold.entered.wait(PATIENCE)
        for letter in (fail, fail, lambda: seen.append("last")):
            mailbox.post(letter)
        hold.release()
        eventually(lambda: seen == ["last"])
        assert errors == [LookupError, LookupError]

    def test_a_loop_that_is_closed_gets_none_and_nobody_minds(self) -> None:
        loop = asyncio.new_event_loop()
        loop.close()
        Mailbox(loop).post(pytest.fail, "nobody is there")
        assert post(loop, pytest.fail) is False

    def test_a_loop_has_one(self, home: CountingLoop) -> None:
        assert mailbox_of(home) is mailbox_of(home)

    def test_a_loop_that_is_closed_and_forgotten_takes_it_along(self, home: CountingLoop) -> None:
        loop = asyncio.SelectorEventLoop()
        mailbox = weakref.ref(mailbox_of(loop))
        loop.close()
        del loop
        mailbox_of(home)
        gc.collect()
        assert mailbox() is None


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(3, "a-pool")
    yield pool
    pool.stop()


class TestThreadPool:
    def test_as_many_calls_run_at_once_as_there_are_threads_and_the_others_wait_in_order(
        self, pool: ThreadPool
    ) -> None:
        holds, seen = [Hold() for _ in range(3)], []
        for hold in holds:
            pool.submit(hold.block)
        for hold in holds:
            assert hold.entered.wait(PATIENCE)
        for number in range(20):
            pool.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
        assert pool.queue_length == 20
        assert seen == []
        holds[1].release()
        eventually(lambda: len(seen) == 20)
        assert seen == list(range(20))
        assert pool.queue_length == 0
        for hold in holds:
            hold.release()

    def test_a_thread_that_is_free_is_used_before_another_is_made(self, pool: ThreadPool) -> None:
        threads = Threads()
        for _ in range(20):
            outcome: Future[str] = Future()
            pool.submit(lambda outcome=outcome: outcome.set_result(here()))  # type: ignore[misc]
            assert outcome.result(PATIENCE) == "a-pool-1"
            eventually(lambda: pool._idle == 1)
        assert threads.alive() == ["a-pool-1"]

    def test_calls_that_come_together_have_a_thread_each(self, pool: ThreadPool) -> None:
        pool.submit(lambda: None)
        eventually(lambda: pool._idle == 1)
        together = threading.Barrier(3)
        for _ in range(3):
            pool.submit(lambda: together.wait(PATIENCE))
        eventually(lambda: pool._idle == 3)
        assert not together.broken

    def test_a_call_that_raises_costs_no_thread(self, pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(5):
            pool.submit(sys.exit)
        outcome: Future[str] = Future()
        pool.submit(lambda: outcome.set_result(here()))
        assert outcome.result(PATIENCE).startswith("a-pool-")
        eventually(lambda: sum("raised" in message for message in caplog.messages) == 5)

    def test_when_it_is_stopped_what_waits_still_runs_and_then_the_threads_end(self) -> None:
        threads, pool, hold, done = Threads(), ThreadPool(1, "a-pool"), Hold(), threading.Event()
        pool.submit(hold.block)
        pool.submit(done.set)
        pool.stop()
        with pytest.raises(RuntimeError, match="has been stopped"):
            pool.submit(done.clear)
        hold.release()
        assert done.wait(PATIENCE)
        eventually(lambda: threads.alive() == [])

    def test_its_threads_do_not_keep_the_process_from_ending(self, pool: ThreadPool) -> None:
        outcome: Future[bool] = Future()
        pool.submit(lambda: outcome.set_result(threading.current_thread().daemon))
        assert outcome.result(PATIENCE) is True
