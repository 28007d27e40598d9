"""What runs in the client's pod: it keeps what tasks report, and calls agents through their Service.

It has nothing but the image's own packages.
"""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from websockets.asyncio.client import connect

PORT = 8080
EVENTS = 20
PAUSE = 0.05
"""Seconds between a client's answer and its next request."""

SESSION_ID = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


# -- What tasks report -------------------------------------------------------------------------------------------------


class Reports(BaseHTTPRequestHandler):
    """Keeps the body of each POST, a line each, and gives them back on GET."""

    kept: list[str] = []  # noqa: RUF012 - of the whole process, on purpose

    def do_POST(self) -> None:
        """Keep one."""
        self.kept.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._answer(b"")

    def do_GET(self) -> None:
        """Tell all."""
        self._answer("\n".join(self.kept).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of what goes well."""


def keep_reports() -> None:
    """Serve until the pod ends."""
    ThreadingHTTPServer(("", PORT), Reports).serve_forever()


# -- One request -------------------------------------------------------------------------------------------------------


def call(url: str, method: str, path: str, body: str | None, seconds: float) -> None:
    """Print the status and the body of one answer as JSON."""
    answer = httpx.request(method, url + path, content=body, timeout=seconds, trust_env=False)
    print(json.dumps({"status": answer.status_code, "body": answer.text, "headers": dict(answer.headers)}))


def call_until_answered(url: str, body: str, seconds: float) -> None:
    """Ask until there is an answer, and print how often that was in vain, and the answer."""
    deadline, refused = time.monotonic() + seconds, 0
    while True:
        try:
            answer = httpx.post(f"{url}/invocations", content=body, timeout=5, trust_env=False)
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"{url} gave no answer within {seconds:g} s"
            refused += 1
            time.sleep(0.02)
        else:
            print(json.dumps({"refused": refused, "status": answer.status_code, "body": answer.text}))
            return


async def _converse(url: str, messages: list[str]) -> None:
    async with connect(url.replace("http", "ws", 1) + "/ws", proxy=None) as socket:
        for message in messages:
            await socket.send(message)
            print(await socket.recv())


# -- Load --------------------------------------------------------------------------------------------------------------


class Load:
    """Clients that ask for one thing after the other, and check what they get.

    Args:
        url: The Service's.
        report: Where tasks say that they are done.
    """

    def __init__(self, url: str, report: str) -> None:
        self._url = url
        self._report = report
        self._stop = asyncio.Event()
        self.done: list[tuple[str, float, float, str, int]] = []
        """Of each request: what it was, when it began, how many seconds it took, the pod, and the agent's version."""
        self.failures: list[tuple[str, float, float, str]] = []
        """Of each that failed: what it was, when it began, how many seconds it took, and why it failed."""
        self.tasks: list[str] = []

    async def run(self) -> None:
        """Go on until there is a line on standard input, or its end."""
        kinds: dict[str, Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = {
            "answer": lambda: self._answer(0.02, new=True),
            "answer, connection kept": lambda: self._answer(0.02, new=False),
            "long answer": lambda: self._answer(3.0, new=True),
            "long answer, connection kept": lambda: self._answer(3.0, new=False),
            "stream": lambda: self._stream(4.0),
            "WebSocket": lambda: self._socket(4.0),
            "task": lambda: self._task(6.0),
        }
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as self._kept:
            loops = [asyncio.create_task(self._again_and_again(kind, do)) for kind, do in kinds.items()]
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            self._stop.set()
            await asyncio.gather(*loops)

    async def _again_and_again(self, kind: str, do: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        while not self._stop.is_set():
            began, clock = time.time(), time.monotonic()
            try:
                answer = await do()
            except Exception as error:
                self.failures.append((kind, began, time.monotonic() - clock, repr(error)))
            else:
                self.done.append((kind, began, time.monotonic() - clock, answer["pod"], answer["version"]))
            await asyncio.sleep(PAUSE)

    @asynccontextmanager
    async def _client(self, new: bool) -> AsyncIterator[httpx.AsyncClient]:
        if not new:
            yield self._kept
            return
        async with httpx.AsyncClient(timeout=60, trust_env=False, headers={"Connection": "close"}) as client:
            yield client

    async def _invoke(self, client: httpx.AsyncClient, **ask: object) -> httpx.Response:
        answer = await client.post(f"{self._url}/invocations", json=ask, headers={SESSION_ID: str(uuid.uuid4())})
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer

    async def _answer(self, seconds: float, new: bool) -> dict[str, Any]:
        async with self._client(new) as client:
            answer: dict[str, Any] = (await self._invoke(client, do="answer", seconds=seconds)).json()
            return answer

    async def _stream(self, seconds: float) -> dict[str, Any]:
        async with self._client(new=True) as client:
            text = (await self._invoke(client, do="stream", seconds=seconds)).text
        events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]
        assert [event["number"] for event in events] == list(range(EVENTS)), f"truncated: {text}"
        last: dict[str, Any] = events[-1]
        return last

    async def _socket(self, seconds: float) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        async with connect(self._url.replace("http", "ws", 1) + "/ws", proxy=None) as socket:
            for number in range(EVENTS):
                await socket.send(str(number))
                answer = json.loads(await socket.recv())
                assert answer["echo"] == str(number)
                await asyncio.sleep(seconds / EVENTS)
        return answer

    async def _task(self, seconds: float) -> dict[str, Any]:
        task = str(uuid.uuid4())
        async with self._client(new=True) as client:
            ask = {"do": "research", "seconds": seconds, "task": task, "report": self._report}
            answer: dict[str, Any] = (await self._invoke(client, **ask)).json()
        self.tasks.append(task)
        return answer


async def _load(url: str, report: str) -> None:
    load = Load(url, report)
    print("loaded", flush=True)
    await load.run()
    print(json.dumps({"done": load.done, "failures": load.failures, "tasks": load.tasks}))


# -- The commands ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keep-reports")
    one = commands.add_parser("call")
    one.add_argument("url")
    one.add_argument("method")
    one.add_argument("path")
    one.add_argument("--body")
    one.add_argument("--seconds", type=float, default=60)
    first = commands.add_parser("call-until-answered")
    first.add_argument("url")
    first.add_argument("body")
    first.add_argument("--seconds", type=float, default=120)
    conversation = commands.add_parser("converse")
    conversation.add_argument("url")
    conversation.add_argument("messages", nargs="+")
    load = commands.add_parser("load")
    load.add_argument("url")
    load.add_argument("report")
    arguments = parser.parse_args()
    match arguments.command:
        case "keep-reports":
            keep_reports()
        case "call":
            call(arguments.url, arguments.method, arguments.path, arguments.body, arguments.seconds)
        case "call-until-answered":
            call_until_answered(arguments.url, arguments.body, arguments.seconds)
        case "converse":
            asyncio.run(_converse(arguments.url, arguments.messages))
        case "load":
            asyncio.run(_load(arguments.url, arguments.report))


if __name__ == "__main__":
    main()
