"""What clients send that is not HTTP is no error of the service: nothing breaks, nothing is logged as an error."""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.integration.raw_requests import mutated
from tests.integration.server import ServerProcess, eventually, free_port, run

REQUESTS = 500
CONNECTIONS = 8
ANSWER_SECONDS = 0.2
"""How long what a connection brings is read: many of the requests are never answered, since they never end."""

IMPLEMENTATIONS = [("httptools", "uvloop"), ("httptools", "asyncio"), ("h11", "uvloop"), ("h11", "asyncio")]


def attack(port: int, requests: Sequence[bytes], seed: int) -> Counter[str]:
    """Send raw requests, each on a connection of its own. Returns how many connections brought what."""

    async def send(data: bytes, random_: random.Random) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            middle = random_.randrange(len(data) + 1)
            writer.write(data[:middle])
            if random_.random() < 0.3:
                await asyncio.sleep(0.002)
            writer.write(data[middle:])
            if random_.random() < 0.3:
                writer.write_eof()
            if random_.random() < 0.2:
                return "left"
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await reader.read(100_000)
            return answer[9:12].decode("latin-1") if answer else "closed"
        except TimeoutError:
            return "silent"
        except OSError:
            return "reset"
        finally:
            writer.transport.abort()

    async def main() -> Counter[str]:
        random_ = random.Random(seed)
        outcomes: Counter[str] = Counter()
        left = list(requests)

        async def client() -> None:
            while left:
                outcomes[await send(left.pop(), random_)] += 1

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
        return outcomes

    return asyncio.run(main())


UVICORNS_OWN = ("in handle_parser_exception", "in send_400_response")
"""Where uvicorn's protocols raise by themselves, where no application is asked: on a broken handshake of a WebSocket
(an assertion), and on what follows an answer that has begun (h11)."""


def complaints(server: ServerProcess) -> list[str]:
    """Lines at ERROR and above, and lines that are not of the log's form."""
    lines = []
    for line in server.stderr():
        try:
            entry = json.loads(line)
            level = entry["level"]
            if entry["logger"] == "asyncio" and any(where in line for where in UVICORNS_OWN):
                continue
        except (ValueError, KeyError, TypeError):
            level = "no JSON"
        if level not in {"DEBUG", "INFO", "WARNING"}:
            lines.append(line)
    return lines


@pytest.mark.parametrize(("http", "loop"), IMPLEMENTATIONS)
def test_garbage_breaks_nothing_and_is_logged_as_no_error(http: str, loop: str) -> None:
    port = free_port()
    module = "tests.integration.agents.attacked"
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), "--http", http, "--loop", loop]
    with run(command, port) as server:
        outcomes = attack(port, list(mutated(2026, REQUESTS)), 2026)
        print(http, loop, outcomes)
        with server.client() as client:
            assert client.post("/invocations", json={"prompt": "hi"}).json() == {"echo": "hi"}
            assert client.get("/ping").json()["status"] == "Healthy"
            metrics = "agentcore_invocations_in_progress 0.0", "agentcore_websocket_connections 0.0"
            eventually(lambda: all(line in client.get("/metrics").text for line in metrics))
        assert complaints(server) == []
        assert sum(outcomes.values()) == REQUESTS
