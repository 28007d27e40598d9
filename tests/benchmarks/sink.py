"""A tracing backend that costs little: it takes spans by OTLP over HTTP, and counts them when it is asked.

``python -m tests.benchmarks.sink PORT``. ``GET /count?service=NAME`` says how many spans of a service came since the
last time, and forgets them. Decoding waits until then, so that no round pays for it.
"""

import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Sink(ThreadingHTTPServer):
    """Listens on a port of the loopback interface."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Service)
        self._lock = threading.Lock()
        self._bodies: list[bytes] = []
        self._spans: Counter[str] = Counter()

    def take(self, body: bytes) -> None:
        with self._lock:
            self._bodies.append(body)

    def count(self, service: str) -> int:
        with self._lock:
            for body in self._bodies:
                self._decode(body)
            self._bodies.clear()
            return self._spans.pop(service, 0)

    def _decode(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            self._spans[names[0]] += sum(len(scope.spans) for scope in resource.scope_spans)


class _Service(BaseHTTPRequestHandler):
    server: Sink
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/ping":
            self._answer(b"{}")
        else:
            self._answer(json.dumps(self.server.count(parse_qs(url.query)["service"][0])).encode())

    def do_POST(self) -> None:
        self.server.take(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


if __name__ == "__main__":
    Sink(int(sys.argv[1])).serve_forever()
