"""The queue of ended spans: a backend that is slow, down or wrong delays no request."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakMethod

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentcore_telemetry.environment import TraceSettings

logger = logging.getLogger(__name__)

SUPPRESS_INSTRUMENTATION = otel_context._SUPPRESS_INSTRUMENTATION_KEY  # noqa: SLF001 - it has no public name

REPORT_SECONDS = 60.0
"""How often, at the most, the log says that spans are lost."""

SHUTDOWN_SECONDS = 5.0
"""How long the last spans may take to reach the backend once the service ends."""


class SpanExportQueue(SpanProcessor):
    """Exports spans in batches, from a thread of its own, and counts those that are lost.

    Does what the SDK's ``BatchSpanProcessor`` does, by the same variables, and counts besides how many spans were
    dropped, for want of room or because the backend did not take them. In a forked process it starts anew, empty:
    what was queued before the fork is sent by the parent.

    Args:
        make_exporter: Makes what sends a batch; called again in a forked process, which must not write to the
            connections of its parent.
        settings: The size of the queue and of a batch, and how long a span waits.
    """

    def __init__(self, make_exporter: Callable[[], SpanExporter], settings: TraceSettings) -> None:
        self._make_exporter = make_exporter
        self._capacity = settings.max_queue_size
        self._batch_size = settings.max_export_batch_size
        self._delay = settings.schedule_delay
        self._ending = False
        exporter = make_exporter()
        self._encode: Callable[[ReadableSpan], Any] | None = getattr(exporter, "encode_span", None)
        self._start(exporter)
        if hasattr(os, "register_at_fork"):
            restart = WeakMethod(self._restart_in_child)
            os.register_at_fork(after_in_child=lambda: (method := restart()) and method())

    def _start(self, exporter: SpanExporter | None) -> None:
        self._exporter = exporter
        self._spans: deque[Any] = deque()
        """Spans, encoded where the exporter takes them so."""
        self._wake = threading.Event()
        self._export_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._in_flight = 0
        self._abandoned = False
        self._deadline: float | None = None
        self.dropped = 0
        """How many spans never reached the backend."""
        self._reported = 0
        self._reported_at = -REPORT_SECONDS
        if not self._ending:
            self._thread = threading.Thread(target=self._run, name="agentcore-span-export", daemon=True)
            self._thread.start()

    def _restart_in_child(self) -> None:
        self._start(None)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: spans are exported once they have ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span. Never waits."""
        if not span.context.trace_flags.sampled:
            return
        if self._ending or len(self._spans) >= self._capacity:
            self._drop(1)
            return
        self._abandoned = False
        try:
            # Here it takes microseconds. The export's thread, encoding a whole batch, would keep the interpreter's lock
            # from all others for sys.getswitchinterval(), 5 ms, each time that it gets it.
            self._spans.append(span if self._encode is None else self._encode(span))
        except Exception as error:
            logger.debug("A span cannot be encoded: %s", error)
            self._drop(1)
        if len(self._spans) >= self._batch_size and not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while not self._ending:
            is_batch_full = self._wake.wait(self._delay)
            self._wake.clear()
            self._export_queued(only_full=is_batch_full)
        self._export_queued()
        if self._exporter is not None:
            self._exporter.shutdown()

    def _export_queued(self, only_full: bool = False) -> None:
        """Export what is queued now, or of that only full batches, and full batches that come meanwhile."""
        with self._export_lock:
            left = 0 if only_full else len(self._spans)
            while (left > 0 or len(self._spans) >= self._batch_size) and not self._is_too_late():
                if not (batch := self._take_batch()):
                    break
                left -= len(batch)
                self._in_flight = len(batch)
                if not self._export(batch):
                    self._drop(self._in_flight)
                self._in_flight = 0
                self._report()
        self._report()

    def _take_batch(self) -> list[Any]:
        batch: list[Any] = []
        with suppress(IndexError):  # another thread may abandon the queue meanwhile
            while len(batch) < self._batch_size:
                batch.append(self._spans.popleft())
        return batch

    def _export(self, batch: list[Any]) -> bool:
        # The exporter's own HTTP client may be instrumented: its spans must not be exported in their turn.
        token = otel_context.attach(otel_context.set_value(SUPPRESS_INSTRUMENTATION, True))
        try:
            if self._exporter is None:
                self._exporter = self._make_exporter()
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:  # whatever an exporter raises, the next batch may fare better
            logger.debug("Exporting spans raised", exc_info=True)
            return False
        finally:
            otel_context.detach(token)

    def _drop(self, count: int) -> None:
        with self._count_lock:  # spans end on any thread
            self.dropped += count

    def _is_too_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _report(self) -> None:
        lost = self.dropped - self._reported
        if lost and time.monotonic() - self._reported_at >= REPORT_SECONDS:
            logger.warning(
                "%d spans were dropped: the tracing backend did not take them, or not in time"
                "; `litestar-agent doctor` sends one and says why",
                lost,
            )
            self._reported, self._reported_at = self.dropped, time.monotonic()

    def start_flush(self) -> threading.Event:
        """Begin to export what is queued.

        Returns:
            An event that is set once all of it was sent or dropped.
        """
        flushed = threading.Event()

        def flush() -> None:
            self._export_queued()
            flushed.set()

        threading.Thread(target=flush, name="agentcore-span-flush", daemon=True).start()
        return flushed

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is queued.

        Args:
            timeout_millis: How long to wait for it.

        Returns:
            Whether all of it was sent or dropped in time.
        """
        return self.start_flush().wait(timeout_millis / 1000)

    def abandon(self) -> None:
        """Drop what is queued: the process ends, and the backend takes too long."""
        self._abandoned = True
        self._drop(len(self._spans) + self._in_flight)
        self._in_flight = 0
        self._spans.clear()
        self._reported_at = -REPORT_SECONDS
        self._report()

    def shutdown(self) -> None:
        """Export what is queued, within five seconds, and take no more."""
        if self._ending:
            return
        deadline = self._deadline = time.monotonic() + (0.0 if self._abandoned else SHUTDOWN_SECONDS)
        self._ending = True
        self._wake.set()
        # The thread that is there already: an interpreter that is on its way down starts no other.
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self.abandon()
