"""Places: who gets one, who waits, in which order, and that none is lost or given twice."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from litestar_agentcore import Settings
from litestar_agentcore.runtime.admission import Admission, Place, admission_of

from tests.unit.blocking import PATIENCE


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await scenario()

    asyncio.run(main())


def enter(admission: Admission, session: str | None = None) -> Place:
    place = admission.enter(session, asyncio.get_running_loop())
    assert place is not None
    return place


def is_refused(admission: Admission, session: str | None = None) -> bool:
    full = admission.is_full(session)
    assert (admission.enter(session, asyncio.get_running_loop()) is None) is full
    return full


def test_without_a_limit_there_is_no_admission() -> None:
    assert admission_of(Settings()) is None
    assert admission_of(Settings(queue_size=0, queue_timeout_seconds=1)) is None


@pytest.mark.parametrize("limited", [{"max_concurrent_invocations": 1}, {"max_concurrent_per_session": 1}])
def test_either_limit_makes_one(limited: dict[str, Any]) -> None:
    async def scenario() -> None:
        admission = admission_of(Settings(queue_size=0, **limited))
        assert admission is not None
        assert enter(admission, "a").held
        assert is_refused(admission, "a")

    run(scenario)


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_as_the_limit_run_and_one_more_is_refused_where_nobody_may_wait(limit: int) -> None:
    async def scenario() -> None:
        admission = Admission(limit)
        places = [enter(admission) for _ in range(limit)]
        assert all([place.held and await place.wait() for place in places])
        assert is_refused(admission)
        places[0].release()
        assert enter(admission).held

    run(scenario)


@pytest.mark.parametrize("size", [1, 2])
def test_as_many_as_the_queue_holds_wait_and_one_more_is_refused(size: int) -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=size)
        first = enter(admission)
        waiting = [enter(admission) for _ in range(size)]
        assert not any(place.held for place in waiting)
        assert admission.waiting == size
        assert is_refused(admission)
        first.release()
        assert await waiting[0].wait()
        assert admission.waiting == size - 1

    run(scenario)


def test_who_came_first_is_served_first() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=3)
        held = enter(admission)
        waiting = [enter(admission) for _ in range(3)]
        for following in waiting:
            held.release()
            assert [place.held for place in waiting].count(True) == 1
            assert await following.wait()
            held = following

    run(scenario)


def test_a_session_at_its_limit_waits_and_lets_others_pass() -> None:
    async def scenario() -> None:
        admission = Admission(3, session_limit=2, queue_size=10)
        mine = [enter(admission, "mine") for _ in range(2)]
        more = enter(admission, "mine")
        assert not more.held
        yours = enter(admission, "yours")
        assert yours.held
        last = enter(admission, "theirs")  # all three places are taken
        yours.release()
        assert await last.wait()
        assert not more.held
        mine[0].release()
        assert await more.wait()

    run(scenario)


def test_a_session_has_no_more_than_half_of_the_queue() -> None:
    async def scenario() -> None:
        admission = Admission(1, session_limit=1, queue_size=4)
        enter(admission, "mine")
        assert [enter(admission, "mine").held for _ in range(2)] == [False, False]
        assert is_refused(admission, "mine")
        assert not enter(admission, "yours").held
        assert not enter(admission).held
        assert is_refused(admission)

    run(scenario)


def test_a_queue_of_one_is_for_every_session() -> None:
    async def scenario() -> None:
        admission = Admission(None, session_limit=1, queue_size=1)
        first = enter(admission, "mine")
        second = enter(admission, "mine")
        assert is_refused(admission, "mine")
        assert enter(admission, "yours").held
        first.release()
        assert await second.wait()

    run(scenario)


def test_what_has_no_session_is_not_limited_by_session() -> None:
    async def scenario() -> None:
        admission = Admission(None, session_limit=1)
        assert all(enter(admission).held for _ in range(5))

    run(scenario)


def test_who_waits_too_long_is_told_so() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=1, queue_seconds=0.01)
        first = enter(admission)
        waiting = enter(admission)
        assert not await waiting.wait()
        assert waiting.timed_out
        assert admission.waiting == 0
        first.release()
        assert admission.held == 0

    run(scenario)


def test_without_a_time_to_wait_one_waits_for_as_long_as_it_takes() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=1)
        first = enter(admission)
        call = asyncio.create_task(enter(admission).wait())
        await asyncio.sleep(0.05)
        assert not call.done()
        first.release()
        assert await call

    run(scenario)


def test_who_leaves_the_queue_makes_room_in_it_and_has_not_timed_out() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=1, queue_seconds=PATIENCE)
        first = enter(admission)
        waiting = enter(admission)
        call = asyncio.create_task(waiting.wait())
        await asyncio.sleep(0)
        waiting.release()
        assert not await call
        assert not waiting.timed_out
        following = enter(admission)
        first.release()
        assert await following.wait()

    run(scenario)


def test_who_is_cancelled_after_the_place_was_given_gives_it_on() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=2)
        first, second, third = enter(admission), enter(admission), enter(admission)
        call = asyncio.create_task(second.wait())
        await asyncio.sleep(0)
        first.release()
        call.cancel()
        assert second.held
        with pytest.raises(asyncio.CancelledError):
            await call
        second.release()
        assert await third.wait()

    run(scenario)


def test_a_place_is_taken_back_once() -> None:
    async def scenario() -> None:
        admission = Admission(1, queue_size=2)
        first, second, third = enter(admission), enter(admission), enter(admission)
        first.release()
        first.release()
        assert (second.held, third.held) == (True, False)
        second.release()
        third.release()
        third.release()
        assert (admission.held, admission.waiting) == (0, 0)

    run(scenario)


def test_who_waits_on_a_loop_that_is_closed_is_passed_over() -> None:
    admission = Admission(1, queue_size=2)
    closed = asyncio.new_event_loop()

    async def scenario() -> None:
        first = enter(admission)
        stranded = admission.enter(None, closed)
        assert stranded is not None
        closed.close()
        second = enter(admission)
        first.release()
        assert await second.wait()
        assert not stranded.held

    run(scenario)


@pytest.mark.parametrize(("size", "seconds", "after"), [(0, 10, 1), (5, 10, 10), (5, 0.2, 1), (5, 1.5, 2), (5, 0, 1)])
def test_who_is_refused_is_told_when_to_try_again_in_whole_seconds(size: int, seconds: float, after: int) -> None:
    assert Admission(1, queue_size=size, queue_seconds=seconds).retry_after == after


def test_loops_of_several_threads_share_the_places() -> None:
    admission = Admission(3, session_limit=2, queue_size=1000)
    lock, running, most, most_of, served = threading.Lock(), Counter[str](), [0], [0], [0]

    async def invoke(session: str) -> None:
        place = enter(admission, session)
        try:
            assert await place.wait()
            with lock:
                running[session] += 1
                most[0] = max(most[0], running.total())
                most_of[0] = max(most_of[0], running[session])
            await asyncio.sleep(0)
            with lock:
                running[session] -= 1
                served[0] += 1
        finally:
            place.release()

    async def many() -> None:
        for _ in range(20):
            await asyncio.gather(*(invoke(session) for session in "aabbcd"))

    threads = [threading.Thread(target=run, args=(many,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    assert served == [4 * 20 * 6]
    assert most[0] <= 3
    assert most_of[0] <= 2
    assert (admission.held, admission.waiting) == (0, 0)


class Places(RuleBasedStateMachine):
    """Whatever comes, waits, leaves, is late and ends: what is held and waits is what it should be."""

    places: Bundle[Place] = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.open: list[Place] = []  # in the order in which they came

    @initialize(
        limit=st.none() | st.integers(1, 3),
        session_limit=st.none() | st.integers(1, 2),
        queue_size=st.integers(0, 4),
    )
    def begin(self, limit: int | None, session_limit: int | None, queue_size: int) -> None:
        self.limit, self.session_limit, self.queue_size = limit, session_limit, queue_size
        self.admission = Admission(limit, session_limit, queue_size)

    def may_run(self, session: str | None) -> bool:
        held = [place.session for place in self.open if place.held]
        if self.limit is not None and len(held) >= self.limit:
            return False
        return session is None or self.session_limit is None or held.count(session) < self.session_limit

    @rule(target=places, session=st.none() | st.sampled_from("abc"))
    def enter(self, session: str | None) -> Any:
        waiting = [place.session for place in self.open if not place.held]
        room = len(waiting) < self.queue_size
        if session is not None and self.session_limit is not None:
            room = room and waiting.count(session) < max(self.queue_size // 2, 1)
        runs = self.may_run(session)
        assert self.admission.is_full(session) is not (runs or room)
        place = self.admission.enter(session, self.loop)
        if place is None:
            assert not runs
            assert not room
            return _NOBODY
        assert place.held is runs
        self.open.append(place)
        return place

    @rule(place=consumes(places), again=st.booleans())
    def release(self, place: Place, again: bool) -> None:
        if place is _NOBODY:
            return
        before = [each for each in self.open if not each.held and each is not place]
        was_held = place.held
        if place in self.open:  # else it was late
            self.open.remove(place)
        eligible = [each for each in before if was_held and self.may_run(each.session)]
        place.release()
        if again:
            place.release()
        assert not place.held
        assert [each for each in before if each.held] == eligible[:1]

    @rule(place=places)
    def be_late(self, place: Place) -> None:
        if place is _NOBODY:
            return
        waits = place in self.open and not place.held
        place._time_out()
        assert place.timed_out is waits
        if waits:
            self.open.remove(place)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "admission"):
            return
        held = [place for place in self.open if place.held]
        assert self.admission.held == len(held)
        assert self.admission.waiting == len(self.open) - len(held)
        assert self.limit is None or len(held) <= self.limit
        if self.session_limit is not None:
            sessions = Counter(place.session for place in held if place.session is not None)
            assert all(count <= self.session_limit for count in sessions.values())
        assert not any(self.may_run(place.session) for place in self.open if not place.held)

    def teardown(self) -> None:
        for place in self.open:
            place.release()
        if hasattr(self, "admission"):
            assert (self.admission.held, self.admission.waiting) == (0, 0)
            assert not self.admission._held_by
            assert not self.admission._waiting_of
        self.loop.close()


_NOBODY: Any = object()
"""Stands for who was refused."""

Places.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=30)
TestPlaces = Places.TestCase
