"""Who holds the agent's loop is named, with the stack and the ways out, and counted; and nobody else is."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreContext
from litestar_agentcore.runtime import watchdog as module
from litestar_agentcore.runtime.agent_loop import AgentLoop
from litestar_agentcore.runtime.watchdog import Runner, Watchdog

from tests.unit.blocking import PATIENCE, Block, NewThreads, eventually
from tests.unit.conftest import LogLines

pytestmark = pytest.mark.serial

STALL = 0.05
"""Seconds after which the loop counts as held here."""


class Watched:
    """An agent's loop, and how often it was held."""

    def __init__(self, stall: float = STALL) -> None:
        self.stalls = 0
        self.agent = AgentLoop(stall, self.on_stall)

    def on_stall(self) -> None:
        self.stalls += 1

    def begin(
        self, function: Callable[[], Awaitable[Any]], context: Context | None = None, name: str = "chat"
    ) -> threading.Event:
        """Run an async function as a handler is run; gives what is set once it has ended."""
        ended = threading.Event()

        async def handler() -> None:
            try:
                await function()
            finally:
                ended.set()

        self.agent.loop.spawn(handler(), context or copy_context(), name)
        return ended

    def run(self, function: Callable[[], Awaitable[Any]], name: str = "chat") -> None:
        assert self.begin(function, name=name).wait(PATIENCE)

    @property
    def watchdog(self) -> Watchdog:
        watchdog = self.agent.loop.turns.watchdog
        assert watchdog is not None
        return watchdog


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.agent.cancel_all()
    watched.watchdog.stop()
    time.sleep(STALL)  # or its last line would be the next test's


@pytest.fixture
def block() -> Iterator[Block]:
    block = Block()
    yield block
    block.release()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def sleeping(seconds: float) -> Callable[[], Awaitable[None]]:
    async def handler() -> None:
        await asyncio.sleep(0)
        time.sleep(seconds)

    return handler


def held_at_once(block: Block) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        block()

    return handler


def held_after_an_await(block: Block) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        await asyncio.sleep(0.02)
        block()

    return handler


def held_in_a_generator(block: Block) -> Callable[[], Awaitable[Any]]:
    async def events() -> AsyncIterator[int]:
        yield 1
        block()
        yield 2

    async def handler() -> list[int]:
        return [event async for event in events()]

    return handler


def held_in_a_child_task(block: Block) -> Callable[[], Awaitable[Any]]:
    async def child() -> None:
        await asyncio.sleep(0.01)
        block()

    async def handler() -> None:
        await asyncio.create_task(child())

    return handler


def held_in_a_task_that_outlives_the_handler(block: Block) -> Callable[[], Awaitable[Any]]:
    async def child() -> None:
        await asyncio.sleep(0.1)
        block()

    async def handler() -> None:
        asyncio.create_task(child())  # noqa: RUF006

    return handler


def held_in_a_callback(block: Block) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        asyncio.get_running_loop().call_later(0.05, block)
        while not block.entered.is_set():
            await asyncio.sleep(0.01)

    return handler


def held_in_a_callback_after_the_handler_returned(block: Block) -> Callable[[], Awaitable[Any]]:
    async def handler() -> None:
        asyncio.get_running_loop().call_later(6 * STALL, block)

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
            (held_at_once, "The handler chat "),
            (held_after_an_await, "The handler chat "),
            (held_in_a_generator, "The handler chat "),
            (held_in_a_child_task, ".child "),
            (held_in_a_task_that_outlives_the_handler, ".child "),
            (held_in_a_callback, "a callback "),
            (held_in_a_callback_after_the_handler_returned, "a callback "),
        ],
    )
    def test_it_names_the_handler_the_session_the_stack_and_the_two_ways_out(
        self,
        watched: Watched,
        block: Block,
        context: Context,
        log: LogLines,
        holding: Callable[[Block], Callable[[], Awaitable[Any]]],
        name: str,
    ) -> None:
        watched.begin(holding(block), context)
        block.wait_until_entered()
        eventually(lambda: any(line["level"] == "WARNING" for line in log.lines))
        time.sleep(8 * STALL)
        (line,) = [line for line in log.lines if line["level"] == "WARNING"]
        assert watched.stalls == 1
        first, *stack = line["message"].splitlines()
        assert name in first
        assert "(session session-1) has held the agent's event loop for " in first
        assert "make it a plain function (def), or await asyncio.to_thread() for what blocks" in first
        assert (line["logger"], line.get("requestId"), line.get("sessionId")) == (
            module.__name__,
            "request-1",
            "session-1",
        )
        calls = [entry.rpartition(", in ")[2] for entry in stack if entry.startswith("  File ")]
        assert calls[-2:] == ["__call__", "wait"] or calls[-3:] == ["__call__", "wait", "wait"]
        assert not [entry for entry in stack if "/asyncio/" in entry or "/litestar_agentcore/runtime/" in entry]

    def test_the_stack_begins_with_the_authors_module_whatever_that_is_called(
        self, watched: Watched, block: Block, caplog: pytest.LogCaptureFixture
    ) -> None:
        author: dict[str, Any] = {"__name__": "asyncio_agent", "block": block}
        exec(compile("async def chat():\n    block()\n", "asyncio_agent.py", "exec"), author)
        watched.agent.loop.spawn(author["chat"](), copy_context(), "chat")
        block.wait_until_entered()
        eventually(lambda: "has held the agent's event loop" in caplog.text)
        (_, first, *_) = warnings(caplog)[0].splitlines()
        assert first == '  File "asyncio_agent.py", line 2, in chat'

    def test_of_a_deep_stack_the_innermost_twenty_calls_are_told(
        self, watched: Watched, block: Block, caplog: pytest.LogCaptureFixture
    ) -> None:
        def left(depth: int) -> None:
            right(depth - 1)

        def right(depth: int) -> None:
            left(depth - 1) if depth else block()

        async def handler() -> None:
            left(99)

        watched.begin(handler)
        block.wait_until_entered()
        eventually(lambda: warnings(caplog))
        stack = [line for line in warnings(caplog)[0].splitlines() if line.startswith("  File ")]
        assert len(stack) == 20
        assert stack[-1].endswith("in wait")

    def test_the_end_of_the_stall_is_told_too(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        watched.run(sleeping(4 * STALL))
        eventually(lambda: "turns again" in caplog.text)
        (recovery,) = [record for record in caplog.records if "turns again" in record.message]
        assert (recovery.levelname, recovery.name) == ("INFO", module.__name__)
        assert recovery.message.startswith("The agent's event loop turns again, after ")

    def test_one_handler_is_named_once_in_ten_seconds_and_each_of_its_stalls_is_counted(
        self, watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert module.REPORT_SECONDS == 10
        monkeypatch.setattr(module, "REPORT_SECONDS", 1)
        for stalls in range(1, 4):
            watched.run(sleeping(3 * STALL))
            assert watched.stalls == stalls
        assert len(warnings(caplog)) == 1
        time.sleep(1)
        watched.run(sleeping(3 * STALL))
        assert (watched.stalls, len(warnings(caplog))) == (4, 2)

    def test_another_handler_is_named_meanwhile(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("one", "two", "one", "three", "two"):
            watched.run(sleeping(3 * STALL), name=name)
        assert watched.stalls == 5
        assert [message.split()[2] for message in warnings(caplog)] == ["one", "two", "three"]

    def test_handlers_that_hold_it_in_one_turn_are_each_named_and_counted(
        self, watched: Watched, block: Block, caplog: pytest.LogCaptureFixture
    ) -> None:
        watched.begin(held_at_once(block), name="first")
        block.wait_until_entered()

        async def handler() -> None:
            time.sleep(4 * STALL)

        ended = [watched.begin(handler, name=name) for name in ("one", "two", "three")]
        eventually(lambda: watched.stalls == 1)
        block.release()
        assert all(event.wait(PATIENCE) for event in ended)
        assert watched.stalls == 4
        assert [message.split()[2] for message in warnings(caplog)] == ["first", "one", "two", "three"]


class TestWhatIsNoStall:
    @pytest.fixture
    def watched(self) -> Iterator[Watched]:
        watched = Watched(stall=0.3)
        yield watched
        watched.agent.cancel_all()

    def test_short_steps_turn_after_turn(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
        async def handler() -> None:
            for _ in range(30):
                time.sleep(0.003)
                await asyncio.sleep(0)

        ended = [watched.begin(handler) for _ in range(5)]
        assert all(event.wait(PATIENCE) for event in ended)
        assert (watched.stalls, caplog.messages) == (0, [])

    def test_a_wait(self, watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
        watched.run(lambda: asyncio.sleep(1))
        assert (watched.stalls, caplog.messages) == (0, [])

    @pytest.mark.parametrize("steps", ["tasks", "callbacks"])
    def test_many_short_steps_in_one_turn(
        self, watched: Watched, caplog: pytest.LogCaptureFixture, block: Block, steps: str
    ) -> None:
        async def handler() -> None:
            time.sleep(0.01)

        watched.begin(held_at_once(block))  # so that the others come together
        block.wait_until_entered()
        if steps == "tasks":
            for _ in range(100):
                watched.begin(handler)
        else:
            for _ in range(100):
                watched.agent.loop.call_soon(time.sleep, 0.01)
        block.release()
        watched.run(handler)
        assert (watched.stalls, caplog.messages) == (0, [])


class SimulatedLoop:
    """A loop whose turns and steps are told, on a clock that is told too."""

    def __init__(self) -> None:
        self.turn_began = 0.0
        self.step: object = None
        self.frame: FrameType | None = sys._getframe()

    def runner(self) -> Runner:
        return Runner(self.step, "chat", None, self.frame)


def test_a_loop_whose_thread_has_ended_in_the_middle_of_a_turn_is_held_by_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    loop = SimulatedLoop()
    loop.turn_began, loop.frame = 100.0, None
    counted: list[float] = []
    watchdog = Watchdog(loop, loop.runner, 1.0, lambda: counted.append(clock.now))
    watchdog.stop()
    for _ in range(100):
        clock.now += 0.1
        watchdog._look()
    assert (counted, caplog.messages) == ([], [])


def test_one_that_was_stopped_looks_no_more() -> None:
    threads = NewThreads()
    loop = SimulatedLoop()
    loop.turn_began = time.monotonic() - 10
    counted: list[bool] = []
    Watchdog(loop, loop.runner, STALL, lambda: counted.append(True)).stop()
    eventually(lambda: threads.alive("agentcore-watchdog") == [])
    assert counted == []


@pytest.mark.parametrize("phase", range(8))
@pytest.mark.parametrize("before", [0.0, 0.01, 0.3, 0.5, 0.99], ids="{} of the limit before it in its turn".format)
def test_a_stall_is_counted_a_quarter_of_the_limit_after_it_at_the_latest_and_never_too_soon(
    monkeypatch: pytest.MonkeyPatch, phase: int, before: float
) -> None:
    limit, looks = 1.0, 8
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    loop = SimulatedLoop()
    counted: list[float] = []
    watchdog = Watchdog(loop, loop.runner, limit, lambda: counted.append(clock.now))
    watchdog.stop()
    interval = watchdog._interval
    assert interval <= limit / looks
    turn = clock.now + phase * interval / 8 + 0.001
    began = turn + before * limit
    for number in range(4 * looks):
        clock.now = 100 + number * interval
        loop.turn_began = turn if clock.now >= turn else 0.0
        loop.step = "before" if clock.now < began else "the one that holds it"
        watchdog._look()
    (when,) = counted
    assert began + limit < when <= began + 1.25 * limit + 1e-9


@pytest.mark.parametrize("stall", [0.1, 0.4])
def test_a_stall_is_named_while_it_lasts(stall: float, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(stall)
    for count, handler in enumerate((held_at_once, held_after_an_await), 1):
        block = Block()
        ended = watched.begin(handler(block), name=handler.__name__)
        block.wait_until_entered()
        eventually(lambda count=count: len(warnings(caplog)) == count)  # type: ignore[misc]
        assert watched.stalls == count
        assert time.monotonic() - block.since > stall
        assert not ended.is_set()
        block.release()
        assert ended.wait(PATIENCE)
    assert len(warnings(caplog)) == 2


class TestItsSleep:
    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """When it has looked at the loop."""
        looks: list[float] = []
        look = Watchdog._look

        def counting_look(self: Watchdog) -> None:
            looks.append(time.monotonic())
            look(self)

        monkeypatch.setattr(Watchdog, "_look", counting_look)
        return looks

    def test_it_looks_while_something_runs_and_sleeps_while_the_loop_waits(
        self, looks: list[float], watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert module.AWAKE_SECONDS <= 1
        monkeypatch.setattr(module, "AWAKE_SECONDS", 0.2)

        async def handler() -> None:
            for _ in range(100):
                time.sleep(0.004)
                await asyncio.sleep(0)

        watched.run(handler)
        assert len(looks) > 20
        eventually(lambda: watched.watchdog.asleep)
        seen = len(looks)
        time.sleep(20 * STALL)
        assert len(looks) == seen

    def test_what_waits_for_a_message_does_not_keep_it_awake(
        self, looks: list[float], watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "AWAKE_SECONDS", 0.2)
        message = asyncio.Event()
        ended = [watched.begin(message.wait) for _ in range(50)]
        watched.run(sleeping(STALL / 2))
        assert looks
        time.sleep(0.5)
        eventually(lambda: watched.watchdog.asleep)
        seen = len(looks)
        time.sleep(20 * STALL)
        assert len(looks) == seen
        watched.agent.loop.call_soon_threadsafe(message.set)
        assert all(event.wait(PATIENCE) for event in ended)
        eventually(lambda: len(looks) > seen)

    def test_it_wakes_up_for_what_holds_the_loop(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "AWAKE_SECONDS", 0.05)
        for stalls in range(1, 6):
            eventually(lambda: watched.watchdog.asleep)
            watched.run(sleeping(4 * STALL))
            assert watched.stalls == stalls

    def test_a_turn_that_is_over_when_it_looks_keeps_it_awake_too(self, looks: list[float], watched: Watched) -> None:
        eventually(lambda: watched.watchdog.asleep)
        seen = len(looks)
        watched.watchdog.wake()
        eventually(lambda: len(looks) >= seen + 10)

    def test_it_outlives_an_error_of_what_it_calls(self, caplog: pytest.LogCaptureFixture) -> None:
        stalls: list[None] = []

        def on_stall() -> None:
            stalls.append(None)
            if len(stalls) == 1:
                raise LookupError("no counter")

        watched = Watched()
        watched.watchdog._on_stall = on_stall
        for _ in range(2):
            watched.run(sleeping(3 * STALL))
        assert len(stalls) == 2
        assert "The watchdog of the agent's event loop failed, and goes on" in caplog.text
