"""The pool of threads for handlers that may block: bounded, in order, and with places for those that are parked."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar_agentcore.runtime import threads as module
from litestar_agentcore.runtime.threads import ThreadPool

from tests.unit.blocking import PATIENCE, Block, NewThreads, eventually, here

NAME = "a-pool"


class Call:
    """A call that does what it is told, when it is told."""

    def __init__(self, pool: ThreadPool, number: int = 0) -> None:
        self._pool = pool
        self.number = number
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.state = "waiting for a thread"
        self.urgent = False
        self.threads: list[int] = []
        self._orders: list[str] = []
        self._order = threading.Semaphore(0)
        self._resumed = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        while True:
            self.threads.append(threading.get_ident())
            self.state = "running"
            self._order.acquire()
            if self._orders.pop(0) == "end":
                break
            self._pool.park(self._wait, lambda: self.urgent)
        self.state = "ended"
        self.ended.set()

    def _wait(self) -> None:
        self.state = "parked"
        assert self._resumed.wait(PATIENCE)
        self._resumed.clear()
        self.state = "returning"

    def _tell(self, order: str) -> None:
        self._orders.append(order)
        self._order.release()

    def end(self) -> None:
        self._tell("end")

    def park(self) -> None:
        self._tell("park")
        eventually(lambda: self.state == "parked")

    def resume(self, *, urgent: bool = False) -> None:
        self.urgent = urgent
        self._resumed.set()
        eventually(lambda: self.state != "parked")

    def let_go(self) -> None:
        """End it, whatever it is doing."""
        self.urgent = True
        self._resumed.set()
        self._tell("end")


class Calls:
    """A pool, and the calls that a test submits to it."""

    def __init__(self, size: int, park_limit: int = 0) -> None:
        self.pool = ThreadPool(size, NAME, park_limit)
        self.all: list[Call] = []

    def submit(self) -> Call:
        call = Call(self.pool, len(self.all))
        self.all.append(call)
        self.pool.submit(call)
        return call

    def begin(self) -> Call:
        call = self.submit()
        eventually(lambda: call.state == "running")
        return call

    def let_go(self) -> None:
        for call in self.all:
            if not call.ended.is_set():
                call.let_go()
        for call in self.all:
            assert call.ended.wait(PATIENCE)
        eventually(lambda: self.pool.running == 0)
        self.pool.trim()


@pytest.fixture
def make() -> Iterator[Callable[..., Calls]]:
    made: list[Calls] = []

    def make(size: int, park_limit: int = 0) -> Calls:
        made.append(Calls(size, park_limit))
        return made[-1]

    yield make
    for calls in made:
        calls.let_go()


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(3, NAME)
    yield pool
    eventually(lambda: pool.running == 0)
    pool.trim()


def outcome_of(pool: ThreadPool, function: Callable[[], Any]) -> "Future[Any]":
    outcome: Future[Any] = Future()
    pool.submit(lambda: outcome.set_result(function()))
    return outcome


class TestTheThreads:
    def test_as_many_calls_run_at_once_as_it_is_large_and_the_others_begin_in_order(self, pool: ThreadPool) -> None:
        blocks, seen = [Block() for _ in range(3)], []
        for block in blocks:
            pool.submit(block)
        for block in blocks:
            block.wait_until_entered()
        for number in range(20):
            pool.submit(lambda number=number: seen.append(number))  # type: ignore[misc]
        assert (pool.running, pool.queue_length, seen) == (3, 20, [])
        blocks[1].release()
        eventually(lambda: len(seen) == 20)
        assert seen == list(range(20))
        assert pool.queue_length == 0
        for block in blocks:
            block.release()

    def test_a_thread_that_is_free_is_used_before_another_is_made(self, pool: ThreadPool) -> None:
        threads = NewThreads()
        for _ in range(20):
            assert outcome_of(pool, here).result(PATIENCE) == f"{NAME}-1"
            eventually(lambda: pool.running == 0)
        assert threads.alive(NAME) == [f"{NAME}-1"]

    def test_calls_that_come_together_have_a_thread_each(self, pool: ThreadPool) -> None:
        outcome_of(pool, here).result(PATIENCE)
        together = threading.Barrier(3)
        outcomes = [outcome_of(pool, lambda: together.wait(PATIENCE)) for _ in range(3)]
        assert sorted(outcome.result(PATIENCE) for outcome in outcomes) == [0, 1, 2]

    def test_a_call_that_raises_costs_no_thread(self, pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(5):
            pool.submit(sys.exit)
        assert outcome_of(pool, here).result(PATIENCE).startswith(NAME)
        eventually(lambda: sum("raised" in message for message in caplog.messages) == 5)
        eventually(lambda: (pool.running, pool.queue_length) == (0, 0))

    def test_they_do_not_keep_the_process_from_ending(self, pool: ThreadPool) -> None:
        assert outcome_of(pool, lambda: threading.current_thread().daemon).result(PATIENCE) is True

    def test_a_pool_without_calls_has_none(self) -> None:
        threads = NewThreads()
        pool = ThreadPool(3, NAME)
        assert (pool.running, pool.parked, pool.queue_length, threads.alive(NAME)) == (0, 0, 0, [])

    def test_they_end_when_told_to_once_they_have_nothing_to_do(self, pool: ThreadPool) -> None:
        threads, block = NewThreads(), Block()
        pool.submit(block)
        block.wait_until_entered()
        together = threading.Barrier(2)
        for _ in range(2):
            pool.submit(lambda: together.wait(PATIENCE))
        eventually(lambda: pool.running == 1)
        pool.trim()
        eventually(lambda: threads.alive(NAME) == [f"{NAME}-1"])
        block.release()
        eventually(lambda: pool.running == 0)
        assert outcome_of(pool, here).result(PATIENCE) == f"{NAME}-1"
        eventually(lambda: pool.running == 0)
        pool.trim()
        eventually(lambda: threads.alive(NAME) == [])

    def test_those_of_a_pool_that_was_closed_end_with_their_calls(self, pool: ThreadPool) -> None:
        threads, block = NewThreads(), Block()
        pool.submit(block)
        block.wait_until_entered()
        pool.close()
        assert threads.alive(NAME) == [f"{NAME}-1"]
        block.release()
        eventually(lambda: threads.alive(NAME) == [])

    def test_they_end_after_they_have_had_nothing_to_do_for_a_minute(
        self, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert module.IDLE_SECONDS == 60
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)
        threads, together = NewThreads(), threading.Barrier(3)
        for _ in range(3):
            pool.submit(lambda: together.wait(PATIENCE))
        eventually(lambda: len(threads.alive(NAME)) == 3)
        for _ in range(10):
            time.sleep(0.05)
            assert outcome_of(pool, here).result(PATIENCE)
        eventually(lambda: len(threads.alive(NAME)) <= 1)
        eventually(lambda: threads.alive(NAME) == [])
        assert outcome_of(pool, here).result(PATIENCE).startswith(NAME)

    def test_no_call_is_lost_to_a_thread_that_is_about_to_end(
        self, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.0005)
        for number in range(2000):
            outcome = outcome_of(pool, lambda number=number: number)  # type: ignore[misc]
            assert outcome.result(PATIENCE) == number
            if number % 3:
                time.sleep(0.0005)


class TestParking:
    def test_another_call_runs_in_the_place_of_one_that_is_parked(self, make: Callable[..., Calls]) -> None:
        calls = make(1, park_limit=2)
        first = calls.begin()
        second = calls.submit()
        assert not second.begun.wait(0.05)
        first.park()
        assert second.begun.wait(PATIENCE)
        second.park()
        calls.begin()
        assert (calls.pool.running, calls.pool.parked) == (1, 2)

    def test_a_parked_call_goes_on_in_its_own_thread(self, make: Callable[..., Calls]) -> None:
        calls = make(1, park_limit=1)
        first = calls.begin()
        for _ in range(3):
            first.park()
            other = calls.begin()
            first.resume()
            other.end()
            eventually(lambda: first.state == "running")
        assert len(set(first.threads)) == 1
        assert first.threads[0] not in calls.all[1].threads

    def test_beyond_the_limit_a_call_keeps_its_place_while_it_waits(self, make: Callable[..., Calls]) -> None:
        calls = make(2, park_limit=1)
        first, second = calls.begin(), calls.begin()
        first.park()
        second.park()
        third, fourth = calls.begin(), calls.submit()
        assert not fourth.begun.wait(0.05)
        assert (calls.pool.running, calls.pool.parked, calls.pool.queue_length) == (2, 1, 1)
        second.resume()
        eventually(lambda: second.state == "running")
        second.end()
        assert fourth.begun.wait(PATIENCE)
        assert third.state == "running"

    def test_one_that_returns_waits_for_a_place_and_has_it_before_calls_that_are_new(
        self, make: Callable[..., Calls]
    ) -> None:
        calls = make(1, park_limit=2)
        first = calls.begin()
        first.park()
        second = calls.begin()
        second.park()
        third, fourth = calls.begin(), calls.submit()
        second.resume()
        first.resume()
        time.sleep(0.05)
        assert [call.state for call in (first, second, fourth)] == ["returning", "returning", "waiting for a thread"]
        assert (calls.pool.running, calls.pool.parked) == (1, 0)
        for ends, goes_on in ((third, second), (second, first), (first, fourth)):
            ends.end()
            eventually(lambda goes_on=goes_on: goes_on.state == "running")  # type: ignore[misc]
            assert calls.pool.running == 1

    def test_one_that_returns_goes_on_at_once_where_there_is_a_place(self, make: Callable[..., Calls]) -> None:
        calls = make(2, park_limit=1)
        first = calls.begin()
        first.park()
        calls.begin()
        first.resume()
        eventually(lambda: first.state == "running")
        assert (calls.pool.running, calls.pool.parked) == (2, 0)

    def test_an_urgent_one_goes_on_at_once_and_its_place_is_given_to_nobody_when_it_ends(
        self, make: Callable[..., Calls]
    ) -> None:
        calls = make(1, park_limit=2)
        first = calls.begin()
        first.park()
        second, third = calls.begin(), calls.submit()
        first.resume(urgent=True)
        eventually(lambda: first.state == "running")
        assert calls.pool.running == 2
        first.end()
        assert first.ended.wait(PATIENCE)
        assert not third.begun.wait(0.05)
        eventually(lambda: calls.pool.running == 1)
        second.end()
        assert third.begun.wait(PATIENCE)

    def test_it_is_full_when_every_place_is_taken_those_for_parked_calls_included(
        self, make: Callable[..., Calls]
    ) -> None:
        calls = make(1, park_limit=1)
        full = [calls.pool.is_full]
        first = calls.begin()  # if it parks there is room
        full.append(calls.pool.is_full)
        first.park()
        full.append(calls.pool.is_full)
        assert full == [False] * 3
        second = calls.begin()
        full.append(calls.pool.is_full)
        second.park()
        full.append(calls.pool.is_full)
        assert full[3:] == [True] * 2
        first.resume(urgent=True)
        first.end()
        eventually(lambda: not calls.pool.is_full)

    def test_a_pool_without_places_for_parked_calls_is_full_when_its_threads_are_busy(
        self, make: Callable[..., Calls]
    ) -> None:
        calls = make(1)
        before = calls.pool.is_full
        calls.begin()
        assert (before, calls.pool.is_full) == (False, True)


class Model:
    """What a pool should be doing: calls by their numbers, in the order in which they came."""

    def __init__(self, size: int, park_limit: int) -> None:
        self.size = size
        self.park_limit = park_limit
        self.running: set[int] = set()
        self.waiting_in_place: set[int] = set()
        self.parked: set[int] = set()
        self.returning: list[int] = []
        self.queue: list[int] = []

    @property
    def taken(self) -> int:
        return len(self.running) + len(self.waiting_in_place)

    def submit(self, number: int) -> None:
        self.queue.append(number)
        self._fill()

    def end(self, number: int) -> None:
        self.running.remove(number)
        self._fill()

    def park(self, number: int) -> None:
        self.running.remove(number)
        (self.parked if len(self.parked) < self.park_limit else self.waiting_in_place).add(number)
        self._fill()

    def resume(self, number: int, urgent: bool) -> None:
        if number in self.waiting_in_place:
            self.waiting_in_place.remove(number)
            self.running.add(number)
            return
        self.parked.remove(number)
        if urgent:
            self.running.add(number)
        else:
            self.returning.append(number)
            self._fill()

    def _fill(self) -> None:
        while self.taken < self.size and (self.returning or self.queue):
            self.running.add((self.returning or self.queue).pop(0))

    def states(self) -> dict[int, str]:
        groups = {
            "running": self.running,
            "parked": self.parked | self.waiting_in_place,
            "returning": self.returning,
            "waiting for a thread": self.queue,
        }
        return {number: state for state, numbers in groups.items() for number in numbers}


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3), park_limit=st.integers(0, 2), data=st.data())
def test_whatever_calls_do_each_runs_when_its_turn_comes_and_the_counts_are_right(
    size: int, park_limit: int, data: st.DataObject
) -> None:
    calls, model = Calls(size, park_limit), Model(size, park_limit)
    try:
        for _ in range(data.draw(st.integers(1, 25))):
            waiting = sorted(model.parked | model.waiting_in_place)
            actions = ["submit"] + ["end", "park"] * bool(model.running) + ["resume", "resume urgently"] * bool(waiting)
            action = data.draw(st.sampled_from(actions))
            if action == "submit":
                model.submit(calls.submit().number)
            elif action in {"end", "park"}:
                number = data.draw(st.sampled_from(sorted(model.running)))
                getattr(calls.all[number], action)()
                getattr(model, action)(number)
            else:
                number, urgent = data.draw(st.sampled_from(waiting)), action == "resume urgently"
                calls.all[number].resume(urgent=urgent)
                model.resume(number, urgent)

            expected = model.states()

            def as_expected(expected: dict[int, str] = expected) -> bool:
                return expected == {call.number: call.state for call in calls.all if call.state != "ended"}

            eventually(as_expected)
            pool = calls.pool
            eventually(lambda pool=pool: pool.running == model.taken)  # type: ignore[misc]
            assert (pool.parked, pool.queue_length) == (len(model.parked), len(model.queue))
            assert pool.is_full == (model.taken >= size and len(model.parked) + len(model.returning) >= park_limit)
    finally:
        calls.let_go()
    assert (calls.pool.running, calls.pool.parked, calls.pool.queue_length) == (0, 0, 0)
