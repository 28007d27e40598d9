"""The agent's event loop: one for an app, in a thread of its own, and open to calls from every other thread."""

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
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreApp
from litestar_agentcore.runtime import agent_loop as module
from litestar_agentcore.runtime.agent_loop import AgentEventLoop, AgentLoop

from tests.unit.blocking import PATIENCE, Block, NewThreads, eventually, here

pytestmark = pytest.mark.serial

STALL = 0.05
"""Seconds after which the loop counts as held here."""

SOON = 1.0
"""Seconds within which a call from another thread is served on a busy machine; by itself it takes a millisecond."""

THREAD = "agentcore-loop"

colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.fixture
def agent() -> Iterator[AgentLoop]:
    agent = AgentLoop(STALL, lambda: None)
    yield agent
    agent.cancel_all()


@pytest.fixture
def block() -> Iterator[Block]:
    block = Block()
    yield block
    block.release()


async def settling(function: Callable[[], Awaitable[Any]], outcome: "Future[Any]") -> None:
    try:
        outcome.set_result(await function())
    except BaseException as error:
        outcome.set_exception(CancelledError() if isinstance(error, asyncio.CancelledError) else error)


def begin(agent: AgentLoop, function: Callable[[], Awaitable[Any]], context: Context | None = None) -> "Future[Any]":
    """Run an async function as a handler is run."""
    outcome: Future[Any] = Future()
    agent.loop.spawn(settling(function, outcome), context or copy_context(), "handler")
    return outcome


def run(agent: AgentLoop, function: Callable[[], Awaitable[Any]]) -> Any:
    return begin(agent, function).result(PATIENCE)


def cancel(spawned: Any) -> None:
    (spawned.cancel if hasattr(spawned, "cancel") else spawned)()


async def where() -> str:
    return here()


async def the_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def hold(agent: AgentLoop, block: Block) -> "Future[Any]":
    """Have a handler block the loop."""

    async def handler() -> str:
        return block()

    outcome = begin(agent, handler)
    block.wait_until_entered()
    return outcome


class TestTheLoop:
    def test_nothing_is_started_before_there_is_something_to_run(self) -> None:
        threads = NewThreads()
        agent = AgentLoop(STALL, lambda: None)
        agent.cancel_all()
        assert asyncio.run(agent.turn(0)) is True
        assert (agent.lag, threads.alive("agentcore")) == (0, [])

    def test_there_is_one_whoever_asks_first(self) -> None:
        for _ in range(20):
            agent, together = AgentLoop(STALL, lambda: None), threading.Barrier(8)

            def ask(agent: AgentLoop = agent, together: threading.Barrier = together) -> int:
                together.wait(PATIENCE)
                return id(agent.loop)

            with ThreadPoolExecutor(8) as askers:
                assert len(set(askers.map(lambda _: ask(), range(8)))) == 1

    def test_two_agents_have_two(self, agent: AgentLoop) -> None:
        assert AgentLoop(STALL, lambda: None).loop is not agent.loop

    def test_it_is_the_running_one_where_handlers_run(self, agent: AgentLoop) -> None:
        assert run(agent, the_loop) is agent.loop

    def test_its_lag_is_nothing_while_it_waits_and_grows_while_it_is_held(self, agent: AgentLoop, block: Block) -> None:
        outcome = begin(agent, lambda: asyncio.sleep(0.2))
        time.sleep(0.1)
        assert agent.lag == 0
        outcome.result(PATIENCE)
        held = hold(agent, block)
        time.sleep(0.2)
        first = agent.lag
        time.sleep(0.1)
        assert 0.2 <= first < agent.lag
        block.release()
        held.result(PATIENCE)
        eventually(lambda: agent.lag == 0)


class TestSpawning:
    def test_a_coroutine_runs_on_the_thread_of_the_loop(self, agent: AgentLoop) -> None:
        assert run(agent, where) == THREAD

    def test_coroutines_begin_in_the_order_in_which_they_came(self, agent: AgentLoop) -> None:
        begun: list[int] = []

        async def note(number: int) -> None:
            begun.append(number)
            await asyncio.sleep(0)

        for number in range(1000):
            agent.loop.spawn(note(number), copy_context(), "note")
        eventually(lambda: len(begun) == 1000)
        assert begun == list(range(1000))

    def test_one_runs_in_the_context_that_it_was_given_and_changes_no_other(self, agent: AgentLoop) -> None:
        contexts = [copy_context(), copy_context()]
        seen: list[str] = []

        async def paint() -> None:
            seen.append(colour.get())
            await asyncio.sleep(0.01)
            seen.append(colour.get())
            colour.set("black")

        for context, name in zip(contexts, ("red", "blue"), strict=True):
            context.run(colour.set, name)
            agent.loop.spawn(paint(), context, "paint")
        eventually(lambda: len(seen) == 4)
        assert seen == ["red", "blue", "red", "blue"]
        assert colour.get() == "none"
        assert run(agent, lambda: asyncio.sleep(0, colour.get())) == "none"


class Wakes:
    """How often a loop that waits is woken up."""

    def __init__(self, loop: AgentEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._wake = loop._write_to_self  # type: ignore[attr-defined]
        monkeypatch.setattr(loop, "_write_to_self", self._note)

    def _note(self) -> None:
        self.count += 1
        self._wake()


class TestWakingUp:
    @pytest.fixture
    def wakes(self, agent: AgentLoop, monkeypatch: pytest.MonkeyPatch) -> Wakes:
        run(agent, where)
        eventually(lambda: agent.loop.turns.waiting)
        return Wakes(agent.loop, monkeypatch)

    def test_calls_of_one_turn_of_the_caller_share_one(self, agent: AgentLoop, wakes: Wakes) -> None:
        done: list[None] = []

        async def note() -> None:
            done.append(None)

        async def caller() -> None:
            for _ in range(100):
                agent.loop.spawn(note(), copy_context(), "note")
            assert not done

        asyncio.run(caller())
        eventually(lambda: len(done) == 100)
        assert wakes.count == 1

    def test_the_next_turn_has_one_of_its_own(self, agent: AgentLoop, wakes: Wakes) -> None:
        async def caller() -> None:
            for number in range(1, 4):
                await asyncio.wrap_future(begin(agent, where))
                while not agent.loop.turns.waiting:
                    await asyncio.sleep(0.001)
                assert wakes.count == number

        asyncio.run(caller())

    def test_a_caller_that_runs_no_loop_wakes_it_at_once(self, agent: AgentLoop, wakes: Wakes) -> None:
        assert begin(agent, where).result(SOON) == THREAD
        assert wakes.count == 1

    def test_another_caller_is_not_kept_waiting_by_one_whose_turn_is_long(self, agent: AgentLoop, block: Block) -> None:
        async def slow_caller() -> None:
            begin(agent, where)
            block()

        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(lambda: asyncio.run(slow_caller()))
            block.wait_until_entered()
            assert begin(agent, where).result(SOON) == THREAD
            block.release()
            slow.result(PATIENCE)

    def test_a_loop_that_turns_is_not_woken(self, agent: AgentLoop, wakes: Wakes, block: Block) -> None:
        held = hold(agent, block)
        before = wakes.count
        for _ in range(100):
            begin(agent, where)
        assert wakes.count == before
        block.release()
        held.result(PATIENCE)


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


async def a_thread_sees_the_context() -> bool:
    colour.set("red")
    return await asyncio.to_thread(colour.get) == "red"


async def an_executor_of_ones_own_is_used() -> bool:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "own") as executor:
        return (await loop.run_in_executor(executor, here)).startswith("own")


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


async def timers_fire_in_their_order_and_not_when_cancelled() -> bool:
    loop, last = asyncio.get_running_loop(), asyncio.Event()
    fired: list[object] = []
    for delay in (0.03, 0.01, 0.02):
        loop.call_later(delay, fired.append, delay)
    loop.call_later(0.015, fired.append, "cancelled").cancel()
    loop.call_later(0.04, last.set)
    await last.wait()
    return fired == [0.01, 0.02, 0.03]


async def a_task_factory_of_two_arguments_is_used() -> bool:
    loop, made = asyncio.get_running_loop(), []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any) -> "asyncio.Task[Any]":
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop)

    loop.set_task_factory(factory)
    try:
        return await asyncio.create_task(asyncio.sleep(0, "done")) == "done" and len(made) == 1
    finally:
        loop.set_task_factory(None)


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
        a_thread_sees_the_context,
        an_executor_of_ones_own_is_used,
        a_connection_is_served,
        timers_fire_in_their_order_and_not_when_cancelled,
        a_task_factory_of_two_arguments_is_used,
    ],
)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_asyncio_works_in_handlers_as_anywhere(
    agent: AgentLoop, handler: Callable[[], Awaitable[bool]], debug: bool
) -> None:
    agent.loop.set_debug(debug)
    assert run(agent, handler) is True


class TestTasksThatHandlersStart:
    def test_they_are_kept_alive_though_nobody_else_knows_them(self, agent: AgentLoop) -> None:
        waits: list[weakref.ref[asyncio.Future[None]]] = []
        done = threading.Event()

        async def child() -> None:
            wait = asyncio.get_running_loop().create_future()
            waits.append(weakref.ref(wait))
            await wait
            done.set()

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006 - just that is the test

        run(agent, handler)
        eventually(lambda: waits)
        gc.collect()
        wait = waits[0]()
        assert wait is not None
        wait.set_result(None)
        assert done.wait(PATIENCE)

    def test_nobody_keeps_them_once_they_have_ended(self, agent: AgentLoop) -> None:
        tasks: list[weakref.ref[asyncio.Task[None]]] = []

        async def handler() -> None:
            tasks.extend(weakref.ref(asyncio.create_task(asyncio.sleep(0.01))) for _ in range(10))
            await asyncio.sleep(0.05)

        run(agent, handler)
        gc.collect()
        eventually(lambda: not any(task() for task in tasks))

    def test_they_keep_the_context_of_the_handler_and_change_it_for_nobody(self, agent: AgentLoop) -> None:
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

        assert run(agent, handler) == ["red", "blue"]
        assert run(agent, lambda: asyncio.sleep(0, colour.get())) == "none"

    def test_they_run_in_the_context_and_under_the_name_that_the_handler_gives_them(self, agent: AgentLoop) -> None:
        async def child() -> tuple[str, str]:
            task = asyncio.current_task()
            assert task is not None
            return colour.get(), task.get_name()

        async def handler() -> tuple[str, str]:
            context = copy_context()
            context.run(colour.set, "green")
            return await asyncio.create_task(child(), name="a child", context=context)

        assert run(agent, handler) == ("green", "a child")

    def test_they_go_on_after_the_handler_has_returned(self, agent: AgentLoop) -> None:
        steps: list[str] = []

        async def child() -> None:
            for _ in range(5):
                await asyncio.sleep(0.01)
                steps.append(here())

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006

        run(agent, handler)
        eventually(lambda: steps == [THREAD] * 5)


class TestCancelling:
    def test_what_is_cancelled_after_it_began_may_clean_up(self, agent: AgentLoop) -> None:
        begun, seen = threading.Event(), []

        async def handler() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                seen.append(here())
                raise

        spawned = agent.loop.spawn(handler(), copy_context(), "handler")
        assert begun.wait(PATIENCE)
        cancel(spawned)
        eventually(lambda: seen == [THREAD])

    def test_to_cancel_what_has_ended_does_nothing(self, agent: AgentLoop) -> None:
        ended = threading.Event()

        async def handler() -> None:
            ended.set()

        spawned = agent.loop.spawn(handler(), copy_context(), "handler")
        assert ended.wait(PATIENCE)
        cancel(spawned)
        cancel(spawned)
        assert run(agent, where) == THREAD


class TestWhatWouldEndAnotherLoop:
    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    def test_a_task_that_exits_ends_neither_the_loop_nor_the_other_handlers(
        self, agent: AgentLoop, caplog: pytest.LogCaptureFixture, error: type[BaseException]
    ) -> None:
        go_on = asyncio.Event()

        async def other() -> str:
            await go_on.wait()
            return here()

        async def leave() -> None:
            raise error

        async def handler() -> str:
            task = asyncio.create_task(leave())
            await asyncio.sleep(0.01)
            assert isinstance(task.exception(), error)
            go_on.set()
            return here()

        loop, waiting = agent.loop, begin(agent, other)
        assert run(agent, handler) == waiting.result(PATIENCE) == THREAD
        assert run(agent, the_loop) is loop
        (record,) = caplog.get_records("call")
        assert record.levelname == "ERROR"
        assert record.message == "A task tried to end the thread of the agent's event loop, which goes on"
        assert record.exc_info is not None
        assert record.exc_info[0] is error

    def test_what_stands_behind_such_a_task_in_the_same_turn_runs_all_the_same(
        self, agent: AgentLoop, block: Block
    ) -> None:
        async def leave() -> None:
            sys.exit(3)

        hold(agent, block)
        agent.loop.spawn(leave(), copy_context(), "leave")
        behind = [begin(agent, where) for _ in range(100)]
        block.release()
        assert [outcome.result(PATIENCE) for outcome in behind] == [THREAD] * 100

    def test_a_handler_that_stops_the_loop_leaves_nobody_hanging(
        self, agent: AgentLoop, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def stop() -> str:
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.01)
            return here()

        loop, others = agent.loop, [begin(agent, lambda: asyncio.sleep(0.1, "slept")) for _ in range(10)]
        assert run(agent, stop) == THREAD
        assert [outcome.result(PATIENCE) for outcome in others] == ["slept"] * 10
        assert run(agent, the_loop) is loop
        assert [record.message for record in caplog.get_records("call")] == [
            "A handler stopped the agent's event loop, which goes on"
        ]

    def test_a_handler_cannot_close_the_loop_not_even_while_it_is_stopped(self, agent: AgentLoop) -> None:
        async def stop() -> str:
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.01)
            return here()

        loop, refused = agent.loop, []

        class Closing(logging.Handler):
            """Closes the loop in the moment in which it says that it was stopped, and does not run."""

            def emit(self, record: logging.LogRecord) -> None:
                assert not loop.is_running()
                try:
                    loop.close()
                except RuntimeError as error:
                    refused.append(str(error))

        closing = Closing()
        module.logger.addHandler(closing)
        try:
            assert run(agent, stop) == THREAD
        finally:
            module.logger.removeHandler(closing)
        assert refused == ["The agent's event loop runs every async handler, and cannot be closed by one of them"]
        assert run(agent, the_loop) is loop


class TestTheEndOfALifespan:
    def test_what_runs_is_cancelled_and_may_clean_up(self, agent: AgentLoop) -> None:
        seen: list[str] = []
        begun = threading.Event()

        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                seen.append("child")

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                seen.append("handler")

        outcome = begin(agent, handler)
        assert begun.wait(PATIENCE)
        agent.cancel_all()
        with pytest.raises(CancelledError):
            outcome.result(0)
        assert seen == ["handler", "child"]

    def test_the_loop_lives_on(self, agent: AgentLoop) -> None:
        loop = agent.loop
        for _ in range(3):
            assert run(agent, the_loop) is loop
            agent.cancel_all()
        assert not loop.is_closed()

    def test_what_tidies_up_already_is_not_cancelled_twice(self, agent: AgentLoop) -> None:
        began, tidied = threading.Event(), threading.Event()

        async def handler() -> None:
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.2)
                tidied.set()

        spawned = agent.loop.spawn(handler(), copy_context(), "handler")
        assert began.wait(PATIENCE)
        cancel(spawned)
        time.sleep(0.05)
        agent.cancel_all()
        assert tidied.is_set()

    def test_what_a_handler_cancels_on_its_own_way_out_is_waited_for_all_the_same(self, agent: AgentLoop) -> None:
        begun, tidied = threading.Event(), threading.Event()

        async def handler() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                others = asyncio.all_tasks()
                others.discard(asyncio.current_task())
                for other in others:
                    other.cancel()
                await asyncio.sleep(0.2)
                tidied.set()

        begin(agent, handler)
        assert begun.wait(PATIENCE)
        agent.cancel_all()
        assert tidied.is_set()

    def test_a_loop_that_is_held_is_left_alone_and_named(
        self, agent: AgentLoop, block: Block, caplog: pytest.LogCaptureFixture
    ) -> None:
        hold(agent, block)
        time.sleep(2 * STALL)
        began = time.monotonic()
        agent.cancel_all()
        assert time.monotonic() - began < 1
        assert "The agent's event loop is still held by a handler that blocks it" in caplog.messages

    def test_what_begins_while_it_is_still_held_is_not_cancelled_with_the_rest(
        self, agent: AgentLoop, block: Block
    ) -> None:
        ended: list[str] = []

        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("the old")

        begin(agent, waits)
        held = hold(agent, block)
        time.sleep(2 * STALL)
        agent.cancel_all()
        new = begin(agent, lambda: asyncio.sleep(0.2, "the new"))
        block.release()
        assert held.result(PATIENCE) == THREAD
        assert new.result(PATIENCE) == "the new"
        assert ended == ["the old"]

    def test_a_task_that_does_not_end_when_it_is_cancelled_is_named(
        self, agent: AgentLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "CANCEL_SECONDS", 0.1)
        begun, given_up = threading.Event(), asyncio.Event()

        async def stubborn() -> None:
            while not given_up.is_set():
                try:
                    begun.set()
                    await given_up.wait()
                except asyncio.CancelledError:
                    asyncio.get_running_loop().call_later(0.2, given_up.set)

        outcome = begin(agent, stubborn)
        assert begun.wait(PATIENCE)
        agent.cancel_all()
        (message,) = [message for message in caplog.messages if "did not end when it was cancelled" in message]
        assert "settling" in message
        outcome.result(PATIENCE)


class TestATurn:
    def test_it_is_over_when_tasks_that_were_made_before_have_taken_their_first_step(
        self, agent: AgentLoop, block: Block
    ) -> None:
        held, begun = hold(agent, block), []

        async def child() -> None:
            begun.append("child")

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006
            begun.append("handler")

        async def caller() -> bool:
            begin(agent, handler)
            asyncio.get_running_loop().call_later(0.1, block.release)
            return await agent.turn(PATIENCE)

        assert asyncio.run(caller()) is True
        assert begun == ["handler", "child"]
        held.result(PATIENCE)

    def test_one_that_takes_too_long_is_none(self, agent: AgentLoop, block: Block) -> None:
        hold(agent, block)
        began = time.monotonic()
        assert asyncio.run(agent.turn(0.1)) is False
        assert time.monotonic() - began < SOON


class TestAnAgentThatNobodyUsesAnyMore:
    """Collected objects take their threads along; a task that runs keeps its loop until it has ended."""

    def test_it_takes_its_threads_along(self) -> None:
        threads = NewThreads()
        agent = AgentLoop(STALL, lambda: None)
        loop = weakref.ref(agent.loop)
        assert run(agent, a_thread_is_waited_for) is True
        assert {THREAD, "agentcore-watchdog"} < set(threads.alive("agentcore"))
        del agent
        eventually(lambda: threads.alive("agentcore") == [])
        gc.collect()
        assert loop() is None

    def test_its_loop_is_held_by_nothing_while_it_closes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original, seen = AgentEventLoop.close, []

        def close(loop: AgentEventLoop) -> None:
            seen.append(loop.turns.turn_began)
            original(loop)

        monkeypatch.setattr(AgentEventLoop, "close", close)
        agent = AgentLoop(STALL, lambda: None)
        run(agent, a_thread_is_waited_for)
        del agent
        eventually(lambda: seen)
        assert seen == [0.0]

    def test_one_whose_task_still_runs_takes_them_along_when_that_has_ended(self) -> None:
        threads = NewThreads()
        agent = AgentLoop(STALL, lambda: None)
        go_on, ended = asyncio.Event(), threading.Event()

        async def child() -> None:
            await go_on.wait()
            await asyncio.sleep(0.1)
            ended.set()

        async def handler() -> None:
            asyncio.create_task(child())  # noqa: RUF006

        loop = agent.loop
        run(agent, handler)
        del agent
        gc.collect()
        time.sleep(0.2)
        assert threads.alive(THREAD) == [THREAD]
        loop.call_soon_threadsafe(go_on.set)
        assert ended.wait(PATIENCE)
        eventually(lambda: threads.alive("agentcore") == [])
        assert loop.is_closed()

    def test_an_app_takes_its_threads_along(self) -> None:
        gc.collect()
        threads = NewThreads()
        app = BedrockAgentCoreApp()
        asyncio.run(app.agent.run(where()))
        assert threads.alive(THREAD) == [THREAD]
        known = weakref.ref(app)
        del app
        gc.collect()
        assert known() is None
        eventually(lambda: threads.alive("agentcore-loop") == threads.alive("agentcore-watchdog") == [])


def forever() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


FromOutside = Callable[[AgentEventLoop, Callable[[], object]], None]
"""Has a function called on the loop, in one of the ways in which other threads do that."""


def with_call_soon(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    loop.call_soon(done)


def with_call_soon_threadsafe(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    loop.call_soon_threadsafe(done)


def with_create_task(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    async def child() -> None:
        done()

    loop.create_task(child())


def with_run_coroutine_threadsafe(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    async def child() -> None:
        done()

    asyncio.run_coroutine_threadsafe(child(), loop)


def with_set_result(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    async def waiting(future: "asyncio.Future[None]") -> None:
        await future
        done()

    future = loop.create_future()
    asyncio.run_coroutine_threadsafe(waiting(future), loop)
    eventually(lambda: future._callbacks)
    future.set_result(None)


def with_cancel(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def waiting() -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await forever()
        finally:
            done()

    asyncio.run_coroutine_threadsafe(waiting(), loop)
    eventually(lambda: tasks and tasks[0]._fut_waiter is not None)  # type: ignore[attr-defined]
    tasks[0].cancel()


def with_call_later(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    loop.call_later(0.001, done)


def with_call_at(loop: AgentEventLoop, done: Callable[[], object]) -> None:
    loop.call_at(loop.time(), done)


WAYS = [
    with_call_soon,
    with_call_soon_threadsafe,
    with_create_task,
    with_run_coroutine_threadsafe,
    with_set_result,
    with_cancel,
    with_call_later,
    with_call_at,
]


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
class TestOtherThreads:
    @pytest.fixture(autouse=True)
    def next_timer_is_far_away(self, agent: AgentLoop, debug: bool) -> None:
        agent.loop.set_debug(debug)
        agent.loop.slow_callback_duration = PATIENCE
        begin(agent, lambda: asyncio.sleep(3600))
        eventually(lambda: agent.loop.turns.waiting)

    @pytest.mark.parametrize("way", WAYS)
    def test_what_they_ask_of_a_loop_that_waits_is_done_at_once(self, agent: AgentLoop, way: FromOutside) -> None:
        for _ in range(20):
            done = threading.Event()
            eventually(lambda: agent.loop.turns.waiting)
            way(agent.loop, done.set)
            assert done.wait(SOON)

    @pytest.mark.parametrize("way", WAYS)
    def test_nothing_that_many_of_them_ask_of_a_busy_loop_is_lost(self, agent: AgentLoop, way: FromOutside) -> None:
        done: list[int] = []
        stop = threading.Event()

        async def busy() -> None:
            while not stop.is_set():
                await asyncio.sleep(random.choice((0, 0, 0.0001, 0.001)))

        def ask(number: int) -> None:
            for one in range(number * 100, number * 100 + 100):
                way(agent.loop, lambda one=one: done.append(one))  # type: ignore[misc]

        others = [begin(agent, busy) for _ in range(3)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        eventually(lambda: len(done) >= 800)
        stop.set()
        for outcome in others:
            outcome.result(PATIENCE)
        assert Counter(done) == dict.fromkeys(range(800), 1)

    def test_a_timer_that_they_cancel_never_fires(self, agent: AgentLoop) -> None:
        fired: list[int] = []
        for number in range(300):
            agent.loop.call_later(0.1, fired.append, number).cancel()
        cancelled = [agent.loop.call_later(0.3, fired.append, number) for number in range(300)]
        time.sleep(0.1)
        for timer in cancelled:
            timer.cancel()
        agent.loop.call_later(0.3, fired.append, -1)
        eventually(lambda: fired)
        time.sleep(0.05)
        assert fired == [-1]

    def test_their_timers_fire_also_after_the_loop_has_thrown_away_many_that_were_cancelled(
        self, agent: AgentLoop
    ) -> None:
        async def handler() -> None:
            loop = asyncio.get_running_loop()
            for timer in [loop.call_later(3600, print) for _ in range(300)]:
                timer.cancel()
            await asyncio.sleep(0.01)

        run(agent, handler)
        done = threading.Event()
        agent.loop.call_later(0.001, done.set)
        assert done.wait(SOON)

    def test_their_timers_fire_in_the_order_of_their_times(self, agent: AgentLoop) -> None:
        fired: list[float] = []
        begin = agent.loop.time() + 0.1
        times = [begin + number / 1000 for number in range(20)]
        for when in random.Random(1).sample(times, len(times)):
            agent.loop.call_at(when, fired.append, when)
        eventually(lambda: len(fired) == len(times))
        assert fired == times

    def test_a_task_that_they_make_is_kept_in_their_context(self, agent: AgentLoop) -> None:
        seen: list[str] = []

        async def child() -> None:
            await asyncio.sleep(0.01)
            seen.append(colour.get())

        context = copy_context()
        context.run(colour.set, "red")
        context.run(agent.loop.create_task, child())
        gc.collect()
        eventually(lambda: seen == ["red"])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
class TestAnEagerTaskFactory:
    @pytest.fixture(autouse=True)
    def eager(self, agent: AgentLoop) -> None:
        agent.loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]

    def test_a_task_begins_where_its_handler_makes_it(self, agent: AgentLoop) -> None:
        seen: list[str] = []

        async def child() -> None:
            seen.append(here())
            await asyncio.sleep(0)

        async def handler() -> list[str]:
            task = asyncio.create_task(child())
            before = list(seen)
            await task
            return before

        assert run(agent, handler) == [THREAD]

    def test_a_task_that_another_thread_makes_begins_on_the_loop_and_troubles_no_other(self, agent: AgentLoop) -> None:
        seen: list[str] = []
        errors: list[object] = []
        stop = threading.Event()

        async def child() -> None:
            seen.append(here())
            await asyncio.sleep(0)

        async def busy() -> None:
            while not stop.is_set():
                await asyncio.sleep(0)

        agent.loop.set_exception_handler(lambda _, context: errors.append(context))
        others = [begin(agent, busy) for _ in range(5)]
        for _ in range(2000):
            agent.loop.create_task(child())
        eventually(lambda: len(seen) == 2000)
        stop.set()
        for outcome in others:
            outcome.result(PATIENCE)
        assert (set(seen), errors) == ({THREAD}, [])


def run_nested(loop: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end within a task of the same loop, as nest_asyncio does."""
    task, around = loop.create_task(coroutine), asyncio.current_task()
    assert around is not None
    asyncio.tasks._leave_task(loop, around)
    try:
        while not task.done():
            loop._run_once()
    finally:
        asyncio.tasks._enter_task(loop, around)
    return task.result()


class TestRunsWithinRuns:
    def test_one_from_another_thread_is_refused_with_the_reason(self, agent: AgentLoop) -> None:
        coroutine = where()
        with pytest.raises(RuntimeError, match="runs in another thread and cannot be run from this one"):
            agent.loop.run_until_complete(coroutine)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        assert run(agent, where) == THREAD

    def test_one_from_another_thread_is_refused_though_the_method_of_the_class_was_replaced(
        self, agent: AgentLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AgentEventLoop, "run_until_complete", lambda *_: pytest.fail("it was run"), raising=False)
        future = agent.loop.create_future()
        with pytest.raises(RuntimeError, match="cannot be run from this one"):
            agent.loop.run_until_complete(future)

    def test_one_within_the_loops_own_thread_is_refused_as_anywhere(self, agent: AgentLoop) -> None:
        async def handler() -> None:
            coroutine = where()
            try:
                asyncio.get_running_loop().run_until_complete(coroutine)
            finally:
                coroutine.close()

        with pytest.raises(RuntimeError, match="already running"):
            run(agent, handler)

    def test_one_that_nests_in_the_loops_own_thread_harms_nobody_and_is_not_complained_of(
        self, agent: AgentLoop, block: Block, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def inner() -> str:
            await asyncio.sleep(0.05)
            return "inner"

        async def handler() -> str:
            return str(run_nested(asyncio.get_running_loop(), inner()))

        others = [begin(agent, lambda: asyncio.sleep(0.1, "slept")) for _ in range(3)]
        hold(agent, block)
        nested = begin(agent, handler)
        behind = [begin(agent, where) for _ in range(20)]
        block.release()
        assert nested.result(PATIENCE) == "inner"
        assert [outcome.result(PATIENCE) for outcome in behind] == [THREAD] * 20
        assert [outcome.result(PATIENCE) for outcome in others] == ["slept"] * 3
        assert [record for record in caplog.records if record.name == module.__name__] == []


class TestRunningFromElsewhere:
    """``await app.agent.run(coroutine)``"""

    @pytest.fixture
    def app(self) -> BedrockAgentCoreApp:
        return BedrockAgentCoreApp()

    def test_a_coroutine_runs_on_the_agents_loop_in_the_callers_context(self, app: BedrockAgentCoreApp) -> None:
        async def inner() -> tuple[object, str]:
            await asyncio.sleep(0)
            seen = colour.get()
            colour.set("black")
            return asyncio.get_running_loop(), seen

        async def caller() -> tuple[object, str, str]:
            colour.set("red")
            return *await app.agent.run(inner()), colour.get()

        assert asyncio.run(caller()) == (app.agent.loop.loop, "red", "red")

    def test_what_it_raises_is_raised(self, app: BedrockAgentCoreApp) -> None:
        async def fails() -> None:
            await asyncio.sleep(0)
            raise LookupError("nothing there")

        with pytest.raises(LookupError, match="nothing there"):
            asyncio.run(app.agent.run(fails()))

    def test_a_cancellation_crosses_over(self, app: BedrockAgentCoreApp) -> None:
        begun, ended = threading.Event(), threading.Event()

        async def waits() -> None:
            try:
                begun.set()
                await forever()
            finally:
                ended.set()

        async def caller() -> None:
            task = asyncio.create_task(app.agent.run(waits()))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            await task

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(caller())
        assert ended.wait(PATIENCE)

    def test_on_the_agents_loop_it_runs_right_here(self, app: BedrockAgentCoreApp) -> None:
        async def current() -> object:
            return asyncio.current_task()

        async def inner() -> bool:
            return await app.agent.run(current()) is asyncio.current_task()

        assert asyncio.run(app.agent.run(inner())) is True

    @pytest.mark.parametrize("value", [where, None, "where", Future()])
    def test_what_is_no_coroutine_is_a_type_error(self, app: BedrockAgentCoreApp, value: Any) -> None:
        with pytest.raises(TypeError, match=r"agent.run\(\) takes a coroutine"):
            asyncio.run(app.agent.run(value))


def test_an_event_that_a_handler_in_a_thread_sets_is_not_found_in_the_middle(agent: AgentLoop) -> None:
    """asyncio's primitives are not thread-safe; but waking the loop must not hand it the lock while one is at work."""
    for _ in range(50):
        event, waiting = asyncio.Event(), threading.Semaphore(0)

        async def wait(event: asyncio.Event = event, waiting: threading.Semaphore = waiting) -> None:
            waiting.release()
            await event.wait()

        tasks = [asyncio.run_coroutine_threadsafe(wait(), agent.loop) for _ in range(3)]
        for _ in tasks:
            assert waiting.acquire(timeout=PATIENCE)
        eventually(lambda: agent.loop.turns.waiting)
        event.set()
        for task in tasks:
            task.result(PATIENCE)
