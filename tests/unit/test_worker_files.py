"""What worker processes share in files: counts that survive, and nothing that a foreign file could upset."""

import json
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentcore_telemetry.instruments import LABEL_BYTES, Counter, Metric, SeriesKey, Snapshot, merge
from agentcore_telemetry.mapped_series import REGION_BYTES, MappedSeries, dump_snapshot, load_snapshot, read_series
from agentcore_telemetry.metrics import MAX_TASK_NAMES, AgentMetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar_agentcore.protocol.models import PingStatus
from litestar_agentcore.runtime import worker_files
from litestar_agentcore.runtime.worker_files import (
    TASK_NAME_BYTES,
    TASK_PLACES,
    SharingError,
    WorkerDirectory,
    find_base,
    server_name,
    sweep,
)
from litestar_agentcore.runtime.workers import CommonStatus

from tests.unit.test_instruments import TRACE_IDS, agent, exposed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers share nothing on this platform")

COUNTER = Metric("things", "counter", "Things.")
COUNT = SeriesKey("things", (), "total", 1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"


class Worker:
    """A worker, without a process of its own."""

    def __init__(self, base: Path, server: str = "1.0") -> None:
        self.directory = WorkerDirectory(base, server)
        self.file = self.directory.join()
        self.things = Counter(COUNTER)
        self.things.move(self.file.series)
        self._ended = False

    def die(self) -> None:
        """As after kill -9: the lock is gone, and nothing else has happened."""
        if not self._ended:
            self._ended = True
            self.file.close()

    def leave(self, *, last: bool) -> None:
        self._ended = True
        self.directory.leave(self.file, last=last)

    def seen(self) -> float:
        """What this worker knows the others to have counted."""
        value = self.directory.snapshot().get(COUNT)
        return value.numbers[0] if value is not None else 0


@pytest.fixture
def pair(base: Path) -> Iterator[tuple[Worker, Worker]]:
    first, second = Worker(base), Worker(base)
    yield first, second
    for each in (first, second):
        each.die()


# Instruments over a mapping


def observe(of: AgentMetrics) -> None:
    of.invocations.begin()
    of.invocations.begin()
    of.invocations.end("unary", "ok", 0.2, TRACE_IDS[1])
    of.invocations.first_chunk(1.5, TRACE_IDS[0])
    of.invocations.chunks(7)
    of.tasks.end("größe", "completed", 3.0, None)
    of.websockets.add()


def test_what_is_mapped_is_exposed_as_what_is_not() -> None:
    plain, mapped = agent(), agent()
    observe(mapped)
    mapped.share(MappedSeries(memoryview(bytearray(REGION_BYTES))), dict)
    observe(mapped)
    observe(plain)
    observe(plain)
    plain_lines, mapped_lines = (exposed(each.registry, "Prometheus") for each in (plain, mapped))
    assert mapped_lines == plain_lines

    mapped.unshare()
    observe(mapped)
    observe(plain)
    assert exposed(mapped.registry, "Prometheus") == exposed(plain.registry, "Prometheus")


def test_another_process_reads_all_of_it_exemplars_included() -> None:
    region = memoryview(bytearray(REGION_BYTES))
    mapped = agent()
    mapped.share(MappedSeries(region), dict)
    observe(mapped)
    read = read_series(bytes(region))
    assert {key: value for each in mapped.instruments for key, value in each.snapshot().items()} == read
    assert {exemplar[0] for value in read.values() for exemplar in value.exemplars if exemplar} == set(TRACE_IDS)
    assert load_snapshot(json.loads(json.dumps(dump_snapshot(read)))) == read


def test_counters_are_added_and_gauges_are_those_of_the_living() -> None:
    ours, theirs = agent(), agent()
    for each in (ours, theirs):
        observe(each)
    theirs.callbacks.event_loop_lag = lambda: 99.0

    def snapshot(of: AgentMetrics) -> Snapshot:
        of.refresh()
        return {key: value for each in of.instruments for key, value in each.snapshot().items()}

    for alive, in_progress, lag in ((True, 2, 99.0), (False, 1, 12.5)):
        result = snapshot(ours)
        merge(result, snapshot(theirs), alive=alive)
        by_name = {(key.metric, key.labels): value.numbers for key, value in result.items()}
        assert by_name["agentcore_invocations", ("unary", "ok")] == [2]
        assert by_name["agentcore_invocations_in_progress", ()] == [in_progress]
        assert by_name["agentcore_event_loop_lag_seconds", ()] == [lag]
        assert by_name["agentcore_ping_status", ("Healthy",)] == [1], "which is common to all"


def test_a_metric_that_is_added_is_exposed_and_summed_without_further_code() -> None:
    region = memoryview(bytearray(REGION_BYTES))
    first, second = agent(), agent()
    refused = Metric("agentcore_refused", "counter", "Refused.", ("reason",))
    for each in (first, second):
        reasons = {reason: Counter(refused, (reason,)) for reason in ("late", "full")}
        each.instruments += reasons.values()
        reasons["late"].add(3)
    second.share(MappedSeries(region), dict)
    first.share(MappedSeries(memoryview(bytearray(REGION_BYTES))), lambda: read_series(bytes(region)))
    assert exposed(first.registry, "Prometheus")["agentcore_refused_total"][2:] == [
        'agentcore_refused_total{reason="late"} 6.0',
        'agentcore_refused_total{reason="full"} 0.0',
    ]


def test_a_full_region_costs_the_others_sight_and_no_count() -> None:
    counters = [Counter(COUNTER, (str(number),)) for number in range(100)]
    store = MappedSeries(memoryview(bytearray(1024)))
    for counter in counters:
        counter.move(store)
        counter.add(2)
    assert [counter.value for counter in counters] == [2] * 100


def test_there_is_room_for_all_names_of_tasks_however_long() -> None:
    region = memoryview(bytearray(REGION_BYTES))
    mapped = agent()
    mapped.share(MappedSeries(region), dict)
    for number in range(2 * MAX_TASK_NAMES):
        for outcome in ("completed", "failed", "lost"):
            mapped.tasks.end(f"{number:03}" + "名" * 1000, outcome, 1.0, None)
    read = {
        key: value.numbers for key, value in read_series(bytes(region)).items() if key.metric == "agentcore_async_tasks"
    }
    assert len(read) == 3 * (MAX_TASK_NAMES + 1)
    assert sum(sum(numbers) for numbers in read.values()) == 3 * 2 * MAX_TASK_NAMES
    assert all(len(key.labels[0].encode()) <= LABEL_BYTES for key in read)


def test_the_names_of_tasks_are_a_hundred_in_all_workers_together() -> None:
    region = memoryview(bytearray(REGION_BYTES))
    first, second = agent(), agent()
    second.share(MappedSeries(region), dict)
    first.share(MappedSeries(memoryview(bytearray(REGION_BYTES))), lambda: read_series(bytes(region)))
    for number in range(MAX_TASK_NAMES):
        second.tasks.end(f"task {number}", "completed", 1.0, None)
    for name in ("task 7", "another"):
        first.tasks.end(name, "completed", 1.0, None)
    assert first.tasks.finished == {("task 7", "completed"): 1, ("other", "completed"): 1}


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_no_series(data: bytes) -> None:
    assert isinstance(read_series(data), dict)
    assert isinstance(read_series(struct.pack("<Q", len(data) + 8) + data), dict)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_a_changed_or_cut_region_upsets_nobody(at: int, byte: int) -> None:
    region = bytearray(REGION_BYTES)
    mapped = agent()
    mapped.share(MappedSeries(memoryview(region)), dict)
    mapped.unshare()
    whole = read_series(bytes(region))
    assert len(read_series(bytes(region[:at]))) <= len(whole)
    region[at] = byte
    assert len(read_series(bytes(region))) <= len(whole)


# Living and dead


def test_each_sees_what_the_other_counts_at_once(pair: tuple[Worker, Worker]) -> None:
    first, second = pair
    first.things.add(3)
    second.things.add(4)
    assert (first.seen(), second.seen()) == (4, 3)


def test_what_the_dead_have_counted_stays_however_many_there_are(base: Path) -> None:
    survivor = Worker(base)
    for number in range(20):
        worker = Worker(base)
        worker.things.add(number)
        worker.die()
        assert survivor.seen() == sum(range(number + 1)), "before it is folded"
        survivor.directory.fold()
        assert survivor.seen() == sum(range(number + 1)), "and after"
        assert len(list(survivor.directory.path.glob("worker-*"))) == 1
    late = Worker(base)
    assert late.seen() == sum(range(20))
    for each in (survivor, late):
        each.die()


def test_a_fold_that_is_killed_half_way_counts_nothing_twice(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    second.things.add(5)
    second.die()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # it never came to that
        first.directory.fold()
    assert second.file.path.exists()
    assert first.seen() == 5
    first.directory.fold()
    assert first.seen() == 5
    assert not second.file.path.exists()


def test_no_scrape_sees_a_count_go_back_while_workers_die(base: Path) -> None:
    reader, folder = Worker(base), Worker(base)
    ended = threading.Event()
    seen = [0.0]

    def read() -> None:
        while not ended.is_set():
            seen.append(reader.seen())

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(50):
        worker = Worker(base)
        worker.things.add(1)
        worker.die()
        folder.directory.fold()
    ended.set()
    thread.join(30)
    assert seen == sorted(seen)
    assert reader.seen() == 50
    for each in (reader, folder):
        each.die()


def test_the_last_to_leave_removes_everything(pair: tuple[Worker, Worker], base: Path) -> None:
    first, second = pair
    first.things.add(2)
    first.leave(last=True)
    assert second.seen() == 2
    second.leave(last=True)
    assert not base.exists()


def test_a_server_that_goes_on_keeps_its_counts_when_no_worker_is_left(base: Path) -> None:
    first = Worker(base)
    first.things.add(2)
    first.leave(last=False)
    second = Worker(base)
    assert second.seen() == 2
    second.die()


def test_tasks_are_listed_and_counted(pair: tuple[Worker, Worker]) -> None:
    first, second = pair
    first.file.add_task(1, "a" * TASK_NAME_BYTES + "more", 1.5)
    first.file.add_task(2, "ö" * TASK_NAME_BYTES, 2.5)
    for task_id in range(3, TASK_PLACES + 10):
        first.file.add_task(task_id, "", 3.5)
    (state,) = second.directory.siblings()
    assert state.task_count == TASK_PLACES + 9
    assert len(state.jobs) == TASK_PLACES
    assert state.jobs[:2] == [("a" * TASK_NAME_BYTES, 1.5), ("ö" * (TASK_NAME_BYTES // 2), 2.5)]
    for task_id in range(1, TASK_PLACES + 10):
        first.file.remove_task(task_id)
    (state,) = second.directory.siblings()
    assert (state.task_count, state.jobs) == (0, [])
    first.die()
    assert second.directory.siblings() == []


def test_the_status_is_busy_where_any_is_and_changes_once(pair: tuple[Worker, Worker]) -> None:
    first, second = (CommonStatus(each.directory, each.file) for each in pair)
    healthy, busy = PingStatus.HEALTHY, PingStatus.HEALTHY_BUSY
    assert first.observe(busy) is second.observe(healthy) is busy
    since = first.last_change
    assert second.observe(busy) is busy
    assert first.observe(healthy) is busy
    assert second.last_change == first.last_change == since
    first.force(healthy)
    assert second.observe(busy) is healthy
    second.force(None)
    assert first.observe(healthy) is busy
    pair[1].die()
    assert first.observe(healthy) is healthy, "what was busy has died"
    for each in (first, second):
        each.close()


def test_a_lock_that_is_never_released_blocks_nobody(pair: tuple[Worker, Worker]) -> None:
    first, second = pair
    status = CommonStatus(first.directory, first.file)
    with second.directory.locked(1) as locked:
        assert locked
        assert status.observe(PingStatus.HEALTHY_BUSY) is PingStatus.HEALTHY_BUSY
        first.directory.fold()
        assert first.seen() == 0
    status.close()


# Foreign things


def test_foreign_files_are_no_workers_and_no_harm(pair: tuple[Worker, Worker]) -> None:
    first, second = pair
    second.things.add(1)
    path = first.directory.path
    (path / "worker-short").write_bytes(b"agent")
    (path / "worker-garbage").write_bytes(os.urandom(5000))
    (path / "worker-cut").write_bytes(second.file.path.read_bytes()[:200_000])
    (path / "worker-link").symlink_to(second.file.path)
    os.mkfifo(path / "worker-fifo")
    (path / "worker-directory").mkdir()
    (path / "retired").write_text('{"series": [[1]], "folded": 3}')
    (path / "notes.txt").write_text("not ours")
    assert len(first.directory.siblings()) == 1
    assert first.seen() >= 1
    first.directory.fold()
    assert (path / "notes.txt").exists()
    assert not (path / "worker-garbage").exists(), "what is dead is cleared away"
    assert len(first.directory.siblings()) == 1


def test_files_of_another_user_are_not_read(pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    second.things.add(1)
    assert first.seen() == 1
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert first.seen() == 0


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to find the directory of all servers: a temporary one, and no shared memory."""
    monkeypatch.setattr(worker_files, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path / f"litestar-agentcore-{os.geteuid()}"


def test_the_directory_is_the_users_own(places: Path) -> None:
    assert find_base() == places
    assert stat.S_IMODE(places.stat().st_mode) == 0o700


@pytest.mark.parametrize("plant", ["a link", "a file", "open to all"])
def test_a_directory_that_somebody_else_could_have_planted_is_refused(places: Path, plant: str) -> None:
    match plant:
        case "a link":
            (places.parent / "elsewhere").mkdir(0o700)
            places.symlink_to(places.parent / "elsewhere")
        case "a file":
            places.touch()
        case _:
            places.mkdir()
            places.chmod(0o777)
    with pytest.raises(SharingError, match=r"litestar-agentcore-\d+"):
        find_base()


def test_a_place_that_is_missing_is_named(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(places / "also missing"))
    with pytest.raises(SharingError, match="No such file"):
        find_base()


# Leftovers


def test_what_dead_servers_left_is_swept_and_the_living_stay(base: Path) -> None:
    orphan, left = Worker(base, "999999999.1.x.1.0"), Worker(base, "999999998.1.x.1.0")
    left.die()
    (base / "foreign").mkdir()
    ours = server_name([7], 0)
    living_parent = Worker(base, ours)
    living_parent.die()
    sweep(base, "another")
    assert sorted(path.name for path in base.iterdir()) == sorted(["foreign", orphan.directory.path.name, ours])
    orphan.die()


def test_servers_are_told_apart_by_their_sockets_and_their_agents() -> None:
    with socket.socket() as first, socket.socket() as second:
        inodes = [os.fstat(each.fileno()).st_ino for each in (first, second)]
    assert len({server_name([inodes[0]], 0), server_name([inodes[1]], 0), server_name([inodes[0]], 1)}) == 3


def test_a_file_that_cannot_be_allocated_whole_is_an_error_and_leaves_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    directory = WorkerDirectory(base, "1.0")
    with pytest.raises(SharingError, match="No space left"):
        directory.join()
    assert list(directory.path.iterdir()) == []
