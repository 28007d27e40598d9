"""Time limits against a clock that the tests move: what is due when, and that one timer is enough."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest
from litestar_agentcore import Settings
from litestar_agentcore.runtime.timeouts import LAST_EVENT_SECONDS, StreamLimits, StreamTimer, TimeoutQueue


class Handle:
    def __init__(self, due: float, function: Callable[[], object]) -> None:
        self.due = due
        self.function = function
        self.cancelled = False

    def __lt__(self, other: "Handle") -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Stands in for a loop: time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[Handle] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, function: Callable[[], object]) -> Handle:
        self.made += 1
        handle = Handle(due, function)
        heapq.heappush(self.handles, handle)
        return handle

    def call_later(self, seconds: float, function: Callable[[], object]) -> Handle:
        return self.call_at(self.now + seconds, function)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.handles and self.handles[0].due <= end:
            handle = heapq.heappop(self.handles)
            if not handle.cancelled:
                self.now = max(self.now, handle.due)
                handle.function()
        self.now = end

    @property
    def pending(self) -> int:
        return sum(not handle.cancelled for handle in self.handles)


class Limited:
    def __init__(self) -> None:
        self.timed_out = 0

    def time_out(self) -> None:
        self.timed_out += 1


def queue(clock: Any, seconds: float = 10.0) -> TimeoutQueue:
    return TimeoutQueue(clock, seconds)


def test_what_is_started_is_timed_out_once_when_its_time_is_over() -> None:
    clock, limited = Clock(), Limited()
    queue(clock).start(limited)
    clock.pass_time(9.9)
    assert limited.timed_out == 0
    clock.pass_time(0.1)
    assert limited.timed_out == 1
    clock.pass_time(100)
    assert limited.timed_out == 1


def test_what_is_stopped_is_not_timed_out_and_may_be_stopped_again() -> None:
    clock, limited = Clock(), Limited()
    timeouts = queue(clock)
    timeouts.start(limited)
    timeouts.stop(limited)
    timeouts.stop(limited)
    clock.pass_time(100)
    assert limited.timed_out == 0


def test_what_is_started_anew_has_its_whole_time_again() -> None:
    clock, limited, other = Clock(), Limited(), Limited()
    timeouts = queue(clock)
    timeouts.start(limited)
    timeouts.start(other)
    clock.pass_time(9)
    timeouts.restart(limited)
    clock.pass_time(9)
    assert (limited.timed_out, other.timed_out) == (0, 1)
    clock.pass_time(1)
    assert limited.timed_out == 1


def test_what_was_stopped_does_not_start_anew() -> None:
    clock, limited = Clock(), Limited()
    timeouts = queue(clock)
    timeouts.start(limited)
    timeouts.stop(limited)
    timeouts.restart(limited)
    clock.pass_time(100)
    assert limited.timed_out == 0


def test_a_thousand_have_one_timer_and_each_its_own_time() -> None:
    clock, limited = Clock(), [Limited() for _ in range(1000)]
    timeouts = queue(clock)
    for each in limited:
        timeouts.start(each)
        assert clock.pending == 1
        clock.pass_time(0.001)
    assert clock.made == 1
    clock.pass_time(8.9999)
    assert not any(each.timed_out for each in limited)
    clock.pass_time(0.5)
    assert sum(each.timed_out for each in limited) == pytest.approx(500, abs=5)
    clock.pass_time(0.6)
    assert [each.timed_out for each in limited] == [1] * 1000
    assert clock.pending == 0


def test_nothing_is_looked_at_while_nothing_is_limited() -> None:
    clock = Clock()
    timeouts = queue(clock)
    for _ in range(1000):
        limited = Limited()
        timeouts.start(limited)
        timeouts.stop(limited)
    clock.pass_time(20)
    assert (clock.made, clock.pending) == (1, 0)


# -- Streams


class Stream:
    """A stream with a timer, and what its sender is told."""

    def __init__(self, clock: Clock, limits: StreamLimits, age: float = 0.0) -> None:
        self.woken: list[float] = []
        self.cut: list[float] = []
        loop: Any = clock
        self._clock = clock
        self.timer = StreamTimer(
            limits, loop, age, lambda: self.woken.append(clock.now - 1000), lambda: self.cut.append(clock.now - 1000)
        )

    def send_event(self) -> None:
        self.timer.active_at = self.timer.time()

    def end(self) -> tuple[str, str] | None:
        """The type and the text of its last event, once it is to end."""
        error = self.timer.end
        return None if error is None else (error.error_type, error.error)

    def is_cut(self) -> bool:
        return self.timer.is_cut


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(keepalive: float = 0, idle: float = 0, whole: float = 0) -> StreamLimits:
    return StreamLimits(keepalive, idle, whole)


def about(*times: float) -> Any:
    return pytest.approx(list(times), abs=0.01)


def test_a_silent_stream_is_to_have_a_comment_again_and_again(clock: Clock) -> None:
    stream = Stream(clock, limits(keepalive=15))
    clock.pass_time(46)
    assert stream.woken == about(15, 30, 45)
    assert stream.end() is None


def test_the_silence_is_counted_from_the_last_event(clock: Clock) -> None:
    stream = Stream(clock, limits(keepalive=15))
    clock.pass_time(10)
    stream.send_event()
    clock.pass_time(10)
    assert stream.woken == []
    clock.pass_time(6)
    assert stream.woken == about(25)


def test_a_busy_stream_costs_a_timer_for_each_silence_that_could_have_been_and_none_for_its_events(
    clock: Clock,
) -> None:
    stream = Stream(clock, limits(keepalive=15))
    for _ in range(10_000):
        stream.send_event()
        clock.pass_time(0.01)
    assert stream.woken == []
    assert clock.made <= 100 / 15 + 2


def test_many_silent_streams_have_one_timer_each(clock: Clock) -> None:
    streams = [Stream(clock, limits(keepalive=15, idle=100, whole=1000)) for _ in range(100)]
    clock.pass_time(50)
    assert clock.pending == 100
    assert all(len(stream.woken) == 3 for stream in streams)


@pytest.mark.parametrize("age", [0.0, 4.0])
def test_a_stream_that_takes_too_long_ends_with_an_event_that_says_so(clock: Clock, age: float) -> None:
    stream = Stream(clock, limits(whole=10), age)
    clock.pass_time(9.9 - age)
    assert stream.end() is None
    clock.pass_time(0.2)
    assert stream.end() == ("TimeoutError", "The stream took longer than 10 s")
    assert stream.woken == about(10 - age)


def test_a_stream_without_an_event_ends_with_an_event_that_says_so(clock: Clock) -> None:
    stream = Stream(clock, limits(keepalive=4, idle=10))
    clock.pass_time(5)
    stream.send_event()
    clock.pass_time(9.9)
    assert stream.end() is None
    clock.pass_time(0.2)
    assert stream.end() == ("TimeoutError", "The stream had no event for 10 s")
    assert stream.woken == about(4, 9, 13, 15)  # a comment is no event


def test_who_does_not_read_the_last_event_is_cut_off(clock: Clock) -> None:
    stream = Stream(clock, limits(keepalive=1, whole=10))
    clock.pass_time(10 + LAST_EVENT_SECONDS - 0.1)
    assert stream.cut == []
    clock.pass_time(0.2)
    assert stream.is_cut()
    assert stream.cut == about(10 + LAST_EVENT_SECONDS)
    clock.pass_time(100)
    assert len(stream.cut) == 1


@pytest.mark.parametrize("after", [0, 7, 12])
def test_a_stream_that_has_ended_is_told_nothing_more(clock: Clock, after: float) -> None:
    stream = Stream(clock, limits(keepalive=5, idle=11, whole=10))
    clock.pass_time(after)
    stream.timer.stop()
    woken = list(stream.woken)
    clock.pass_time(100)
    assert stream.woken == woken
    assert clock.pending == 0
    stream.timer.stop()


def test_a_timer_that_comes_a_little_too_early_is_no_reason_to_look_again_and_again(clock: Clock) -> None:
    stream = Stream(clock, limits(keepalive=15))
    clock.now += 14.9995  # uvloop's timers count whole milliseconds
    (handle,) = clock.handles
    clock.handles.clear()
    handle.function()
    assert len(stream.woken) == 1
    assert clock.pending == 1


def test_without_limits_a_stream_needs_no_timer() -> None:
    off = Settings(sse_keepalive_seconds=0)
    assert StreamLimits.of(off) is None
    assert StreamLimits.of(Settings()) == StreamLimits(15, 0, 0)
    assert StreamLimits.of(Settings(sse_keepalive_seconds=0, stream_idle_seconds=1)) == StreamLimits(0, 1, 0)
    assert StreamLimits.of(Settings(sse_keepalive_seconds=0, stream_timeout_seconds=1)) == StreamLimits(0, 0, 1)


def test_a_real_loop_has_what_this_clock_has() -> None:
    async def main() -> None:
        timeouts = TimeoutQueue(asyncio.get_running_loop(), 0.01)
        limited, stopped = Limited(), Limited()
        timeouts.start(stopped)
        timeouts.start(limited)
        timeouts.stop(stopped)
        async with asyncio.timeout(10):
            while not limited.timed_out:
                await asyncio.sleep(0.005)
        assert stopped.timed_out == 0

    asyncio.run(main())
