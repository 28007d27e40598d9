"""Mutated requests on raw sockets. ``python -m tests.fuzz.raw`` runs the long form and prints its figures."""

import argparse
import os
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tests.e2e.runtimes import OURS, Runtime, free_ports

AGENT = Path(__file__).parent / "agent.py.txt"
CLIENTS = 16
READ_SECONDS = 0.05
"""How long a client waits for the next piece of an answer: what it sent may have none."""

PING_SECONDS = 30.0
SETTLE_SECONDS = 30.0
"""How long the server may take to close what the clients have closed."""

VARIANTS = [(http, loop) for http in ("httptools", "h11") for loop in ("uvloop", "asyncio")]
"""What uvicorn speaks HTTP with, and the event loops that it runs on."""

ERROR_LINE = re.compile(r'"level":\s*"(ERROR|CRITICAL)"|\bERROR\b')


class Figures(msgspec.Struct, frozen=True):
    """What a server did with mutated requests."""

    requests: int
    answers: dict[str, int]
    """How many answers of each status, and how many requests that got none."""
    errors: list[str]
    """The lines that it logged at ERROR or above."""
    tracebacks: int
    slowest_ping: float
    """In seconds, beside the requests. A figure to report: what else runs on the machine counts too."""
    failed_pings: list[str]
    """Why ``/ping`` was not answered with 200 within ``PING_SECONDS``, once for each such request."""
    left_open: int
    """File descriptors that stay open when all clients have left."""
    counted: dict[str, float]
    """Its own invocations in progress, by its metrics; empty where it has none."""


def fuzz(runtime: Runtime, number: int, seed: int, http: str, loop: str) -> Figures:
    """Send mutated requests to a server.

    Args:
        runtime: Where the agent runs.
        number: How many requests.
        seed: What they are made of: the same ones for the same seed.
        http: What uvicorn speaks HTTP with.
        loop: Its event loop.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = runtime.write_agent(AGENT, Path(directory))
        [port] = free_ports(1)
        options = msgspec.json.encode({"http": http, "loop": loop, "host": "127.0.0.1"}).decode()
        environment = {"PYTHONUNBUFFERED": "1", "AGENTCORE_LOG_FORMAT": "json", "OTEL_TRACES_EXPORTER": "none"}
        with runtime.serve(file, str(port), options, ports=[port], **environment):
            pid = _pid_of(port)
            _warm_up(port)
            before = _open_files(pid)
            stop = threading.Event()
            pings: list[float] = []
            failed_pings: list[str] = []
            pinging = threading.Thread(target=_keep_pinging, args=(port, stop, pings, failed_pings))
            pinging.start()
            with ThreadPoolExecutor(CLIENTS) as clients:
                answers = Counter(
                    clients.map(lambda each: _try(port, random.Random(seed * 1_000_000 + each)), range(number))
                )
            stop.set()
            pinging.join()
            left = _settle(lambda: _open_files(pid) - before)
            counted = _in_progress(port)
            lines = file.with_suffix(".log").read_text(errors="replace").splitlines()
    return Figures(
        number,
        dict(sorted(answers.items())),
        [line for line in lines if ERROR_LINE.search(line)],
        sum("Traceback (most recent call last)" in line for line in lines),
        max(pings, default=0),
        failed_pings,
        left,
        counted,
    )


# -- The requests

_JSON = b'{"prompt": "hello", "stream": true}'


def _post(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"POST /invocations HTTP/" + version, b"Host: agent", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]) + body


def _get(path: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: agent", *headers, b"", b""])


def _chunked(*chunks: bytes) -> bytes:
    head = _get(b"/invocations", b"Content-Type: application/json", b"Transfer-Encoding: chunked", method=b"POST")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


_HANDSHAKE = _get(
    b"/ws",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def frame(
    payload: bytes, opcode: int = 1, *, masked: bool = True, final: bool = True, length: int | None = None
) -> bytes:
    """A WebSocket frame (RFC 6455, section 5.2), also one that no client may send."""
    size = len(payload) if length is None else length
    first = (0x80 if final else 0) | opcode
    mask = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, mask | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, mask | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask | 127, size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


_FRAMES = [
    frame(b"hello"),
    frame(b"hello", masked=False),
    frame(b"hello", opcode=3),
    frame(b"hello", opcode=0),
    frame(b"hello", final=False),
    frame(b"\xff\xfe"),
    frame(b"x" * 200, opcode=9),
    frame(b"", opcode=8),
    frame(b"\x03", opcode=8),
    frame(b"\xff\xff", opcode=8),
    frame(b"x", length=2**62),
    frame(b"x", length=2**63),
    frame(b"x" * 70_000),
    b"\xff" * 14,
    b"GET / HTTP/1.1\r\n\r\n",
]

_REQUESTS = [
    _post(_JSON),
    _post(b'{"prompt": "hello"}'),
    _post(b'"text"', b"Expect: 100-continue"),
    _post(_JSON, b"Connection: close"),
    _post(_JSON, version=b"1.0"),
    _post(_JSON, b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id: s"),
    _chunked(_JSON),
    _chunked(b'{"prom', b'pt": 1}'),
    _get(b"/ping"),
    _get(b"/ping", method=b"HEAD"),
    _get(b"/metrics"),
    _get(b"/ready"),
    _get(b"/nowhere"),
    _get(b"/invocations"),
    _get(b"*", method=b"OPTIONS"),
    _get(b"/%2e%2e/%2e%2e/etc/passwd"),
    _HANDSHAKE,
    *(_HANDSHAKE + each for each in _FRAMES),
]

_STRAY_HEADERS = [
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 5, 6",
    b"Content-Length: +5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding : chunked",
    b"TE: trailers",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Connection: Upgrade",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Host: another",
    b" folded",
    b"\tfolded",
    b"Name\0: value",
    b"Name: val\0ue",
    b"Name: val\rue",
    b": empty",
    b"no colon",
    b"X: " + b"a" * 70_000,
    b"X-Amzn-Bedrock-AgentCore-Runtime-Request-Id: \x1b[31m",
    b"traceparent: 00-\xff",
    b"Sec-WebSocket-Key: short",
    b"Sec-WebSocket-Version: 99",
    *(b"X-%d: 1" % number for number in range(3)),
]

_CHUNKS = [
    b"5;ext=1\r\n",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"0x5\r\n",
    b"5\n",
    b"\r\n",
    b"0\r\n\r\n",
    b"0\r\nTrailer: 1\r\n\r\n",
]

Mutation = Callable[[random.Random, bytes], bytes]


def _at(random: random.Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _cut(random: random.Random, data: bytes) -> bytes:
    return data[: _at(random, data)]


def _double(random: random.Random, data: bytes) -> bytes:
    start, end = sorted((_at(random, data), _at(random, data)))
    return data[:end] + data[start:]


def _splice(random: random.Random, data: bytes) -> bytes:
    other = random.choice(_REQUESTS)
    return data[: _at(random, data)] + other[_at(random, other) :]


def _flip(random: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _stray_header(random: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(random.randint(1, max(1, min(len(lines), 6))), random.choice(_STRAY_HEADERS))
    return b"\r\n".join(lines)


def _pipeline(random: random.Random, data: bytes) -> bytes:
    return data + b"".join(random.choices(_REQUESTS, k=random.randint(1, 4)))


def _garbage_after(random: random.Random, data: bytes) -> bytes:
    return data + random.randbytes(random.randint(1, 64))


def _bare_line_feeds(random: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", random.choice([b"\n", b"\r", b"\r\r\n", b"\n\r\n"]), random.choice([-1, 1, 2]))


def _odd_chunk(random: random.Random, data: bytes) -> bytes:
    head = _get(b"/invocations", b"Transfer-Encoding: chunked", method=b"POST")
    return head + b"".join(random.choices(_CHUNKS, k=random.randint(1, 4))) + data


def _old_version(random: random.Random, data: bytes) -> bytes:
    return data.replace(b"HTTP/1.1", random.choice([b"", b"HTTP/0.9", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9"]), 1)


def _many_headers(random: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\r\n" + b"X: y\r\n" * random.choice([50, 300, 5000]), 1)


_MUTATIONS: list[Mutation] = [
    _cut, _double, _splice, _flip, _stray_header, _pipeline, _garbage_after, _bare_line_feeds, _odd_chunk,
    _old_version, _many_headers,
]  # fmt: skip


def mutated(random: random.Random) -> bytes:
    """A request with one to three mutations."""
    data = random.choice(_REQUESTS)
    for _ in range(random.randint(1, 3)):
        data = random.choice(_MUTATIONS)(random, data)
    return data


# -- The clients


def _try(port: int, random: random.Random) -> str:
    """Send one mutated request in one of many manners, and tell the status of the first answer."""
    data = mutated(random)
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PING_SECONDS) as client:
        try:
            cut = _at(random, data) if random.random() < 0.4 else len(data)
            client.sendall(data[:cut])
            if cut < len(data):
                time.sleep(random.choice([0, 0.001, 0.01]))
                client.sendall(data[cut:])
            manner = random.random()
            if manner < 0.1:  # a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "left"
            if manner < 0.4:
                client.shutdown(socket.SHUT_WR)
            if manner < 0.5:
                return "left"
            client.settimeout(READ_SECONDS)
            while chunk := client.recv(65536):
                received += chunk
        except OSError:
            pass
    status = re.match(rb"HTTP/1\.[01] (\d{3})", received)
    return status[1].decode() if status else "none"


def _ping(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PING_SECONDS) as client:
        client.sendall(_get(b"/ping", b"Connection: close"))
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200"), received
    return received


def _warm_up(port: int) -> None:
    """Have the server make what it makes on first use, so that only what the requests leave open is counted."""
    for request in (_post(_JSON, b"Connection: close"), _HANDSHAKE + frame(b"hello") + frame(b"\x03\xe8", opcode=8)):
        with socket.create_connection(("127.0.0.1", port), timeout=PING_SECONDS) as client:
            client.sendall(request)
            assert client.recv(65536)
    _ping(port)
    time.sleep(1)


def _keep_pinging(port: int, stop: threading.Event, took: list[float], failed: list[str]) -> None:
    while not stop.wait(0.02):
        began = time.monotonic()
        try:
            _ping(port)
        except (OSError, AssertionError) as error:
            failed.append(repr(error))
        took.append(time.monotonic() - began)


def _in_progress(port: int) -> dict[str, float]:
    with socket.create_connection(("127.0.0.1", port), timeout=PING_SECONDS) as client:
        client.sendall(_get(b"/metrics", b"Connection: close"))
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    found = re.findall(rb"^(agentcore_\w*in_progress\w*)(?:\{[^}]*\})? (\S+)$", received, re.MULTILINE)
    return {name.decode(): float(value) for name, value in found}


def _settle(left: Callable[[], int]) -> int:
    deadline = time.monotonic() + SETTLE_SECONDS
    while (count := left()) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return max(count, 0)


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - the kernel's own list


def _pid_of(port: int) -> int:
    """The process that listens on a port."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].partition(":")[2], 16) == port:
            inode = fields[9]
    for directory in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if directory.readlink().name == f"socket:[{inode}]":
                return int(directory.parts[2])
        except OSError:
            continue
    raise AssertionError(f"no process listens on port {port}")


def main() -> int:
    """Run the long form, and print a row of figures for each variant.

    Returns:
        1 where ours logged an error, left ``/ping`` unanswered or something open.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=6000, help="for each variant")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--python", type=Path, help="of an environment that has the official SDK, to try that")
    parser.add_argument("--errors", action="store_true", help="print the lines at ERROR too")
    options = parser.parse_args()
    runtime = OURS if options.python is None else Runtime("reference", options.python)
    faults = 0
    for http, loop in VARIANTS:
        figures = fuzz(runtime, options.requests, options.seed, http, loop)
        print(
            f"{runtime.name} {http} {loop}: {figures.requests} requests, {len(figures.errors)} errors, "
            f"{figures.tracebacks} tracebacks, {len(figures.failed_pings)} failed /ping, "
            f"slowest {figures.slowest_ping * 1000:.0f} ms, {figures.left_open} left open, "
            f"in progress {figures.counted}, answers {figures.answers}",
            flush=True,
        )
        if options.errors:
            print(*figures.errors, *figures.failed_pings, sep="\n", flush=True)
        faults += len(figures.errors) + figures.tracebacks + len(figures.failed_pings) + figures.left_open
        faults += any(figures.counted.values())
    return 1 if faults and runtime is OURS else 0


if __name__ == "__main__":
    sys.exit(main())
