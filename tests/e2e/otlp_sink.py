"""A backend that fits into a test: it takes OTLP over HTTP, and keeps the spans and the log records."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class OtlpSink(ThreadingHTTPServer):
    """Listens on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _OtlpService)
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._log_records: list[LogRecord] = []

    @property
    def endpoint(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    @property
    def log_records(self) -> list[LogRecord]:
        with self._lock:
            return list(self._log_records)

    @property
    def trace_ids(self) -> set[str]:
        return {span.trace_id.hex() for span in self.spans}

    def take_spans(self, request: ExportTraceServiceRequest) -> None:
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans += scope.spans

    def take_log_records(self, request: ExportLogsServiceRequest) -> None:
        with self._lock:
            for resource in request.resource_logs:
                for scope in resource.scope_logs:
                    self._log_records += scope.log_records


class _OtlpService(BaseHTTPRequestHandler):
    server: OtlpSink
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        known = self.headers["Content-Type"] == "application/x-protobuf"
        match self.path:
            case "/v1/traces" if known:
                self.server.take_spans(ExportTraceServiceRequest.FromString(body))
            case "/v1/logs" if known:
                self.server.take_log_records(ExportLogsServiceRequest.FromString(body))
            case "/v1/metrics":
                pass
            case _:
                known = False
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")  # what the message of full success encodes to
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextmanager
def otlp_sink() -> Iterator[OtlpSink]:
    """Take spans until the test is through."""
    with OtlpSink() as sink:
        thread = threading.Thread(target=sink.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield sink
        finally:
            sink.shutdown()
            thread.join()
