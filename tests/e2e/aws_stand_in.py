"""A server in the place of AWS's, for what an agent asks of AWS through the official SDK's clients."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class AwsStandIn(BaseHTTPRequestHandler):
    """Answers in JSON; the methods are the subclass's."""

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(encoded)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: Any) -> None: ...

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[str]:
        """Serve until the test is through with it; gives the endpoint's URL."""
        with ThreadingHTTPServer(("127.0.0.1", 0), cls) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
