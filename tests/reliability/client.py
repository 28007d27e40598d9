"""Clients that tell a whole answer from one that was cut off, and one that was refused from one that was lost."""

import asyncio
import json
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

EVENTS = 20
"""Of a stream, where its client does not say how many: as the agent has it."""

SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
PATIENCE = 30.0
KEPT_SECONDS = 2.0
"""For how long a connection is kept without a request: the server closes it after five seconds (uvicorn's default)."""


@dataclass
class Answer:
    """What came of one request."""

    status: int | None = None
    """``None`` where no head of an answer came."""
    headers: dict[str, str] = field(default_factory=dict)
    """By their names in small letters."""
    body: bytes = b""
    whole: bool = False
    """Whether the answer came to the end that its head promised."""
    problem: str = ""
    connected: bool = False
    seconds: float = 0.0

    def json(self) -> Any:
        return json.loads(self.body)


def head(method: str, path: str, length: int | None = None, session: str = "", *, kept: bool = False) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: agent"]
    if not kept:
        lines.append("Connection: close")
    if length is not None:
        lines += [f"Content-Length: {length}", "Content-Type: application/json"]
    if session:
        lines.append(f"{SESSION_ID}: {session}")
    return "\r\n".join([*lines, "", ""]).encode()


def invocation(session: str = "a-session", *, kept: bool = False, **payload: Any) -> bytes:
    """An invocation; the server is to close the connection after it, unless that is to be kept."""
    body = json.dumps(payload).encode()
    return head("POST", "/invocations", len(body), session, kept=kept) + body


NETWORK_ERRORS = (OSError, EOFError, ValueError)
"""What a client's end of a broken connection or a broken answer raises; a ``TimeoutError`` is an ``OSError``."""


async def ask(port: int, request: bytes, patience: float = PATIENCE) -> Answer:
    """Send a request on a connection of its own, and say what came of it. Raises nothing of the network's."""
    answer, began = Answer(), time.perf_counter()
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer.connected = True
            try:
                await converse(reader, writer, request, answer)
            finally:
                writer.close()
    except NETWORK_ERRORS as error:
        answer.problem = problem_of(error)
    answer.seconds = time.perf_counter() - began
    return answer


def problem_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, answer: Answer) -> None:
    """Send a request, and read its answer to the end."""
    writer.write(request)
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(start.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer.headers = headers
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer.body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        answer.body = await reader.readexactly(int(headers["content-length"]))
    answer.whole = True


class KeptConnections:
    """Connections that carry one request after the other, for clients to whom each own one would cost too much.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def ask(self, request: bytes, patience: float = PATIENCE) -> Answer:
        """Send a request on a connection that is free, or on a new one; as :func:`ask` does."""
        answer, began = Answer(), time.perf_counter()
        try:
            async with asyncio.timeout(patience):
                self._close_before(time.monotonic() - KEPT_SECONDS)
                if self._free:
                    _, reader, writer = self._free.pop()
                else:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                answer.connected = True
                await converse(reader, writer, request, answer)
                if answer.headers.get("connection", "").lower() == "close":
                    writer.close()
                else:
                    self._free.append((time.monotonic(), reader, writer))
        except NETWORK_ERRORS as error:
            answer.problem = problem_of(error)
        answer.seconds = time.perf_counter() - began
        return answer

    def close(self) -> None:
        """Close those that are free."""
        self._close_before(math.inf)

    def _close_before(self, time_of_last_use: float) -> None:
        while self._free and self._free[0][0] < time_of_last_use:
            self._free.popleft()[2].close()


def whole_stream(events: int = EVENTS) -> bytes:
    """What a stream that was not cut off has brought; the official SDK has a space where we have none."""
    return b"".join(b'data:{"number":%d}' % number for number in range(events))


def bare(body: bytes) -> bytes:
    return b"".join(body.split())


@dataclass
class Talk:
    """What came of one WebSocket conversation."""

    echoes: int = 0
    code: int | None = None
    """The close code; 1006 where the connection was lost without one."""
    status: int | None = None
    """Of a handshake that was refused."""
    problem: str = ""
    connected: bool = False


async def talk(port: int, messages: int, pause: float, patience: float = PATIENCE) -> Talk:
    """Have some messages echoed, and end the conversation."""
    result = Talk()
    try:
        async with asyncio.timeout(patience):
            async with connect(f"ws://127.0.0.1:{port}/ws", proxy=None, open_timeout=patience) as socket:
                result.connected = True
                for number in range(messages):
                    await socket.send(str(number))
                    if await socket.recv() != str(number):
                        raise ValueError("another message came back")
                    result.echoes += 1
                    await asyncio.sleep(pause)
                await socket.send("end")
                await socket.wait_closed()
                result.code = socket.close_code
    except ConnectionClosed as closed:
        result.code = closed.rcvd.code if closed.rcvd is not None else 1006
    except InvalidHandshake as refused:
        response = getattr(refused, "response", None)
        result.status = response.status_code if response is not None else None
        result.problem = f"{type(refused).__name__}: {refused}"
    except NETWORK_ERRORS as error:
        result.problem = problem_of(error)
    return result


@dataclass
class Neighbours:
    """Well-behaved clients beside something that is not: each checks what it gets.

    Args:
        port: Whom they ask.
        patience: After how many seconds without an answer a client counts it as not coming.
    """

    port: int
    patience: float = 10.0
    asked: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    pings: list[float] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _clients: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def number(self) -> int:
        """How many clients there are, each with one request at a time."""
        return len(self._clients)

    def start(self) -> None:
        kinds: dict[str, tuple[int, Callable[[], Awaitable[str]]]] = {
            "unary": (3, self._unary),
            "stream": (2, self._stream),
            "socket": (1, self._socket),
            "ping": (1, self._ping),
        }
        for kind, (number, once) in kinds.items():
            self._clients += [asyncio.create_task(self._again_and_again(kind, once)) for _ in range(number)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._clients)

    async def _again_and_again(self, kind: str, once: Callable[[], Awaitable[str]]) -> None:
        while not self._stop.is_set():
            began = time.perf_counter()
            problem = await once()
            seconds = time.perf_counter() - began
            self.asked[kind] += 1
            self.longest = max(self.longest, seconds)
            if problem:
                self.failures.append(f"{kind} after {seconds:.2f} s: {problem}")
            if kind == "ping":
                self.pings.append(seconds)
            await asyncio.sleep(0.02)

    async def _unary(self) -> str:
        identity = str(uuid.uuid4())
        answer = await ask(self.port, invocation(identity, id=identity, seconds=0.02), self.patience)
        right = answer.whole and answer.status == 200 and answer.json() == {"answer": identity}
        return "" if right else described(answer)

    async def _stream(self) -> str:
        answer = await ask(self.port, invocation(do="stream", seconds=0.1), self.patience)
        right = answer.whole and answer.status == 200 and bare(answer.body) == whole_stream()
        return "" if right else described(answer)

    async def _socket(self) -> str:
        result = await talk(self.port, 3, 0.02, self.patience)
        return "" if result.echoes == 3 and result.code == 1000 else str(result)

    async def _ping(self) -> str:
        answer = await ask(self.port, head("GET", "/ping"), self.patience)
        return "" if answer.whole and answer.status == 200 else described(answer)


def described(answer: Answer) -> str:
    """An answer in a few words."""
    what = answer.problem or "cut off" if not answer.whole else answer.body[:80].decode(errors="replace")
    return f"{answer.status or 'no answer'}: {what}"


async def state(port: int) -> dict[str, Any]:
    """What the agent says of itself."""
    answer = await ask(port, invocation(do="state"))
    found: dict[str, Any] = answer.json()
    return found
