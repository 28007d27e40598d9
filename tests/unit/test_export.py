"""The queue of ended spans: nothing that the backend does is felt by who records them, and what is lost is counted."""

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.export import REPORT_SECONDS, SHUTDOWN_SECONDS, SUPPRESS_INSTRUMENTATION, SpanExportQueue
from agentcore_telemetry.otlp import EncodedSpan, encode_span, encode_spans
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tests.e2e.otlp_sink import otlp_sink
from tests.integration.server import eventually

PATIENCE = 10.0
NEVER = "3600000"
"""Milliseconds after which a span is sent for its age alone, where a test is not to see that."""


class Backend(SpanExporter):
    """An exporter that remembers what it was given, and does what a test wants of it."""

    def __init__(self, behave: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS) -> None:
        self.behave = behave
        self.batches: list[list[str]] = []
        self.suppressed: list[object] = []
        self.called = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches.append([span.name for span in spans])
        self.suppressed.append(otel_context.get_value(SUPPRESS_INSTRUMENTATION))
        self.called.set()
        return self.behave()

    @property
    def names(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


class Hanging(Backend):
    """An exporter that does not return before it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        super().__init__(self._hang)

    def _hang(self) -> SpanExportResult:
        self.released.wait()
        return SpanExportResult.SUCCESS


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    backend = Hanging()
    yield backend
    backend.released.set()


def queue_to(backend: SpanExporter, **variables: str) -> SpanExportQueue:
    environment = {"OTEL_BSP_SCHEDULE_DELAY": NEVER, **{f"OTEL_BSP_{name}": value for name, value in variables.items()}}
    return SpanExportQueue(lambda: backend, TraceSettings.from_environment(environment))


def record(queue: SpanExportQueue, *names: str) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    for name in names:
        provider.get_tracer("test").start_span(name).end()


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def refuse() -> SpanExportResult:
    return SpanExportResult.FAILURE


def explode() -> SpanExportResult:
    raise ConnectionError("the backend is on fire")


def test_spans_are_sent_in_batches_and_in_order() -> None:
    backend = Backend()
    queue = queue_to(backend, MAX_QUEUE_SIZE="10", MAX_EXPORT_BATCH_SIZE="4")

    record(queue, *numbered(10))

    assert queue.force_flush()
    assert backend.names == numbered(10)
    assert max(len(batch) for batch in backend.batches) <= 4
    assert queue.dropped == 0


def test_a_full_batch_is_sent_at_once() -> None:
    backend = Backend()
    queue = queue_to(backend, MAX_EXPORT_BATCH_SIZE="2")

    record(queue, "first")
    assert not backend.called.wait(0.1)
    record(queue, "second")

    assert backend.called.wait(PATIENCE)
    assert backend.batches == [["first", "second"]]


def test_what_fills_no_batch_waits_while_full_ones_are_sent(hanging: Hanging) -> None:
    queue = queue_to(hanging, MAX_EXPORT_BATCH_SIZE="4")
    record(queue, *numbered(4))
    assert hanging.called.wait(PATIENCE)

    record(queue, *numbered(6))
    hanging.released.set()

    eventually(lambda: len(hanging.batches) == 2)
    time.sleep(0.1)
    assert [len(batch) for batch in hanging.batches] == [4, 4]
    assert queue.force_flush()
    assert [len(batch) for batch in hanging.batches] == [4, 4, 2]


def test_a_lonely_span_is_sent_after_the_schedule_delay() -> None:
    backend = Backend()

    record(queue_to(backend, SCHEDULE_DELAY="50"), "lonely")

    assert backend.called.wait(PATIENCE)
    assert backend.batches == [["lonely"]]


def test_a_span_that_is_not_sampled_is_not_sent_and_not_lost() -> None:
    backend = Backend()
    queue = queue_to(backend)
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(queue)

    provider.get_tracer("test").start_span("unsampled").end()

    assert queue.force_flush()
    assert backend.batches == []
    assert queue.dropped == 0


def test_the_exporters_own_requests_are_not_recorded() -> None:
    backend = Backend()
    queue = queue_to(backend)

    record(queue, "span")

    assert queue.force_flush()
    assert backend.suppressed == [True]
    assert otel_context.get_value(SUPPRESS_INSTRUMENTATION) is None


def test_spans_that_find_no_room_are_dropped_and_counted(hanging: Hanging) -> None:
    queue = queue_to(hanging, MAX_QUEUE_SIZE="4", MAX_EXPORT_BATCH_SIZE="1")
    record(queue, "under way")
    assert hanging.called.wait(PATIENCE)

    record(queue, *numbered(10))

    assert queue.dropped == 6
    hanging.released.set()
    assert queue.force_flush()
    assert hanging.names == ["under way", *numbered(4)]


def test_who_records_never_waits_for_the_backend(hanging: Hanging) -> None:
    queue = queue_to(hanging, MAX_QUEUE_SIZE="4", MAX_EXPORT_BATCH_SIZE="1")
    recorded = threading.Thread(target=record, args=(queue, *numbered(100)))

    recorded.start()
    recorded.join(PATIENCE)

    assert not recorded.is_alive()


@pytest.mark.parametrize("behave", [refuse, explode])
def test_spans_that_the_backend_does_not_take_are_counted_as_dropped(behave: Callable[[], SpanExportResult]) -> None:
    queue = queue_to(Backend(behave))

    record(queue, *numbered(3))

    assert queue.force_flush()
    assert queue.dropped == 3


@pytest.mark.parametrize("behave", [refuse, explode])
def test_after_a_failure_the_next_spans_are_sent(behave: Callable[[], SpanExportResult]) -> None:
    backend = Backend(behave)
    queue = queue_to(backend)
    record(queue, "lost")
    assert queue.force_flush()

    backend.behave = lambda: SpanExportResult.SUCCESS
    record(queue, "sent")

    assert queue.force_flush()
    assert backend.names == ["lost", "sent"]
    assert queue.dropped == 1


def test_the_log_tells_of_lost_spans_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("agentcore_telemetry.export.time.monotonic", lambda: now)
    queue = queue_to(Backend(refuse))

    for _ in range(3):
        record(queue, "span")
        assert queue.force_flush()
    assert [line.getMessage().split(" ", 1)[0] for line in caplog.records] == ["1"]

    now += REPORT_SECONDS
    record(queue, "span")
    assert queue.force_flush()
    assert [line.getMessage().split(" ", 1)[0] for line in caplog.records] == ["1", "3"]
    assert {line.levelno for line in caplog.records} == {logging.WARNING}


def test_the_log_tells_of_lost_spans_while_there_are_always_more_to_send(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    def refuse_and_find_more() -> SpanExportResult:
        told.append(len(caplog.records))
        if len(told) < 3:
            record(queue, "more")
        return SpanExportResult.FAILURE

    queue = queue_to(Backend(refuse_and_find_more), MAX_EXPORT_BATCH_SIZE="1")
    record(queue, "span")

    assert queue.force_flush()
    assert told == [0, 1, 1]


def test_an_abandoned_flush_does_not_keep_later_spans_from_being_sent(hanging: Hanging) -> None:
    queue = queue_to(hanging)
    record(queue, "abandoned")
    assert not queue.force_flush(50)
    queue.abandon()

    hanging.released.set()
    record(queue, "later")

    assert queue.force_flush()
    assert hanging.names == ["abandoned", "later"]


def test_a_queue_that_is_abandoned_while_a_batch_is_taken_goes_on(hanging: Hanging) -> None:
    class Abandoned(deque[ReadableSpan]):
        def popleft(self) -> ReadableSpan:
            span = super().popleft()
            self.clear()
            return span

    hanging.released.set()
    queue = queue_to(hanging)
    queue._spans = Abandoned()
    record(queue, *numbered(3))
    assert queue.force_flush()
    record(queue, "later")

    assert queue.force_flush()
    assert hanging.names == ["0", "later"]


def test_a_backend_that_takes_everything_is_not_mentioned_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    queue = queue_to(Backend())

    record(queue, *numbered(3))

    assert queue.force_flush()
    queue.shutdown()
    assert caplog.records == []


def test_a_flush_gives_up_after_its_timeout(hanging: Hanging) -> None:
    queue = queue_to(hanging)
    record(queue, "span")

    assert not queue.force_flush(50)


def test_a_shutdown_sends_what_is_queued_and_closes_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    closed = threading.Event()
    monkeypatch.setattr(backend, "shutdown", closed.set)
    queue = queue_to(backend)
    record(queue, *numbered(3))

    queue.shutdown()

    assert backend.names == numbered(3)
    assert closed.wait(PATIENCE)
    assert queue.dropped == 0


def test_spans_after_the_shutdown_are_counted_as_dropped() -> None:
    backend = Backend()
    queue = queue_to(backend)
    queue.shutdown()

    record(queue, "late")

    assert backend.batches == []
    assert queue.dropped == 1


def test_a_shutdown_gives_a_hanging_backend_up_after_five_seconds_and_counts_its_spans(hanging: Hanging) -> None:
    queue = queue_to(hanging, MAX_EXPORT_BATCH_SIZE="2")
    record(queue, *numbered(5))
    assert hanging.called.wait(PATIENCE)

    began = time.monotonic()
    queue.shutdown()

    assert time.monotonic() - began < SHUTDOWN_SECONDS + 2
    assert queue.dropped == 5


PROGRAM = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.export import SpanExportQueue

provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: span.name)
provider.add_span_processor(SpanExportQueue(lambda: exporter, TraceSettings.from_environment({})))
provider.get_tracer("test").start_span("the last span").end()
"""


def test_a_program_that_ends_sends_its_last_spans_and_says_nothing_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.stdout, done.stderr) == ("the last span", "")


def test_a_second_shutdown_is_no_error() -> None:
    queue = queue_to(Backend())

    queue.shutdown()
    queue.shutdown()


# Encoding


class Encoding(Backend):
    """Takes encoded spans alone, as the OTLP exporters do here."""

    encode_span = staticmethod(encode_span)

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        assert all(isinstance(span, EncodedSpan) for span in spans)
        self.batches.append([encode_spans([span]).decode(errors="replace") for span in spans])
        return self.behave()


def test_a_span_is_encoded_when_it_ends_and_not_kept() -> None:
    queue = queue_to(Encoding())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(queue)
    event = Event("event")
    span = provider.get_tracer("test").start_span("span")
    span._events.append(event)  # type: ignore[attr-defined]
    span.end()
    gone = weakref.ref(event)

    del span, event

    gc.collect()
    assert gone() is None
    assert queue.force_flush()


def test_a_span_that_cannot_be_encoded_is_dropped_alone_and_counted() -> None:
    backend = Encoding()
    queue = queue_to(backend)

    record(queue, "before", "\ud800", "after")

    assert queue.force_flush()
    assert queue.dropped == 1
    assert ["before" in name or "after" in name for name in backend.names] == [True, True]


def test_a_span_for_which_there_is_no_room_is_not_encoded(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(Hanging, "encode_span", lambda self, span: encoded.append(span.name), raising=False)
    queue = queue_to(hanging, MAX_QUEUE_SIZE="2")

    record(queue, *numbered(5))

    assert encoded == numbered(2)
    assert queue.dropped == 3
    queue.abandon()


# A forked process

FORKING = """
import multiprocessing, os, time
from agentcore_telemetry.environment import TraceSettings
from agentcore_telemetry.provider import make_provider, server_tracer

provider = make_provider(TraceSettings.from_environment(os.environ), dict, "agent")
own, sdk = server_tracer(provider, "litestar_agentcore", "1"), provider.get_tracer("a library")

def record(name):
    own.start(name, {}, {}).end()
    sdk.start_span(name).end()

def fork(work):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == 0, child.exitcode
"""

FLUSHING = """
def work():
    record("in the child")
    assert provider.force_flush(10_000)

record("before the fork")
fork(work)
fork(work)
record("after the forks")
provider.shutdown()
"""

SCHEDULED = """
def work():
    record("in the child")
    time.sleep(1)

record("before the fork")
assert provider.force_flush()
fork(work)
"""

HELD = """
import threading
from agentcore_telemetry import export, spans
processors = provider._active_span_processor._span_processors
(queue,) = [processor for processor in processors if isinstance(processor, export.SpanExportQueue)]

def work():
    record("in the child")
    queue._drop(0)
    assert provider.force_flush(10_000)

held, forked = threading.Event(), threading.Event()

def hold():
    with queue._export_lock, queue._count_lock, spans._lock:
        held.set()
        forked.wait()

record("before the fork")
thread = threading.Thread(target=hold)
thread.start()
held.wait()
fork(work)
forked.set()
thread.join()
provider.shutdown()
"""

SHUT_DOWN = """
def work():
    record("in the child")

record("before the fork")
provider.shutdown()
fork(work)
"""


def sent(code: str, **variables: str) -> list[str]:
    """The names of the spans that a program sends, in the order of the alphabet."""
    with otlp_sink() as sink:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": NEVER, **variables}
        done = subprocess.run(
            [sys.executable, "-c", FORKING + code],
            env={"PYTHONPATH": ":".join(sys.path), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return sorted(span.name for span in sink.spans)


def test_a_forked_process_sends_its_own_spans_and_its_parent_those_from_before_the_fork() -> None:
    names = ["after the forks"] * 2 + ["before the fork"] * 2 + ["in the child"] * 4
    assert sent(FLUSHING) == names


def test_in_a_forked_process_a_span_is_sent_after_the_schedule_delay() -> None:
    assert sent(SCHEDULED, OTEL_BSP_SCHEDULE_DELAY="50") == ["before the fork"] * 2 + ["in the child"] * 2


def test_a_process_can_be_forked_while_other_threads_hold_every_lock() -> None:
    assert sent(HELD) == ["before the fork"] * 2 + ["in the child"] * 2


def test_a_queue_that_was_shut_down_before_the_fork_stays_so() -> None:
    assert sent(SHUT_DOWN) == ["before the fork"] * 2


def test_a_forked_process_does_not_write_to_the_connections_of_its_parent() -> None:
    made: list[Backend] = []

    def make() -> Backend:
        made.append(Backend())
        return made[-1]

    queue = SpanExportQueue(make, TraceSettings.from_environment({"OTEL_BSP_SCHEDULE_DELAY": NEVER}))
    record(queue, "before")
    assert queue.force_flush()
    queue._drop(3)

    queue._restart_in_child()
    assert queue.dropped == 0
    record(queue, "after")
    assert queue.force_flush()

    assert [backend.names for backend in made] == [["before"], ["after"]]


def test_a_queue_that_nobody_uses_any_more_is_not_kept_for_a_fork() -> None:
    queue = queue_to(Backend())
    queue.shutdown()
    queue._thread.join(PATIENCE)
    gone = weakref.ref(queue)

    del queue
    gc.collect()

    assert gone() is None
