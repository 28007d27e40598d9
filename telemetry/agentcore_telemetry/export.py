"""Ended spans on their way to the backend, which may be slow, down or wrong without any request noticing."""

import logging
import threading
import time
from collections import deque

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

    Does what the SDK's ``BatchSpanProcessor`` does, by the same variables, and knows besides how many spans were
    dropped, for want of room or because the backend did not take them.

    Args:
        exporter: Sends a batch.
        settings: The size of the queue and of a batch, and how long a span waits.
    """

    def __init__(self, exporter: SpanExporter, settings: TraceSettings) -> None:
        self._exporter = exporter
        self._capacity = settings.max_queue_size
        self._batch = settings.max_export_batch_size
        self._delay = settings.schedule_delay
        self._spans: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._exporting = threading.Lock()
        self._counting = threading.Lock()
        self._in_flight = 0
        self._gave_up = False
        self._ending = False
        self._deadline: float | None = None
        self.dropped = 0
        """How many spans never reached the backend."""
        self._reported = 0
        self._reported_at = -REPORT_SECONDS
        self._thread = threading.Thread(target=self._run, name="agentcore-span-export", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is to be done before a span has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span. Never waits."""
        if not span.context.trace_flags.sampled:
            return
        if self._ending or len(self._spans) >= self._capacity:
            self._drop(1)
            return
        self._gave_up = False
        self._spans.append(span)
        if len(self._spans) >= self._batch and not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait(self._delay)
            self._wake.clear()
            self._export_queued()
        self._export_queued()
        self._exporter.shutdown()

    def _export_queued(self) -> None:
        # One batch after another until the queue is empty; what comes meanwhile goes along.
        with self._exporting:
            while self._spans and not self._too_late():
                batch = [self._spans.popleft() for _ in range(min(self._batch, len(self._spans)))]
                self._in_flight = len(batch)
                if not self._export(batch):
                    self._drop(self._in_flight)
                self._in_flight = 0
                self._report()
        self._report()

    def _export(self, batch: list[ReadableSpan]) -> bool:
        # The exporter's own HTTP client may be instrumented: its spans must not be exported in their turn.
        token = otel_context.attach(otel_context.set_value(SUPPRESS_INSTRUMENTATION, True))
        try:
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:  # whatever an exporter raises, the next batch may fare better
            logger.debug("Exporting spans raised", exc_info=True)
            return False
        finally:
            otel_context.detach(token)

    def _drop(self, count: int) -> None:
        with self._counting:  # spans end on any thread
            self.dropped += count

    def _too_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _report(self) -> None:
        lost = self.dropped - self._reported
        if lost and time.monotonic() - self._reported_at >= REPORT_SECONDS:
            logger.warning("%d spans were dropped: the tracing backend did not take them in time", lost)
            self._reported, self._reported_at = self.dropped, time.monotonic()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what is queued now.

        Args:
            timeout_millis: How long to wait for it.

        Returns:
            Whether all of it was sent or given up in time.
        """
        ended = threading.Event()

        def flush() -> None:
            self._export_queued()
            ended.set()

        threading.Thread(target=flush, name="agentcore-span-flush", daemon=True).start()
        return ended.wait(timeout_millis / 1000)

    def give_up(self) -> None:
        """Drop what is queued: the process ends, and the backend takes too long."""
        self._gave_up = True
        self._drop(len(self._spans) + self._in_flight)
        self._in_flight = 0
        self._spans.clear()
        self._reported_at = -REPORT_SECONDS
        self._report()

    def shutdown(self) -> None:
        """Export what is queued, within five seconds, and take no more."""
        if self._ending:
            return
        deadline = self._deadline = time.monotonic() + (0.0 if self._gave_up else SHUTDOWN_SECONDS)
        self._ending = True
        self._wake.set()
        # The thread that is there already: an interpreter that is on its way down starts no other.
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self.give_up()
