"""What is refused and what is ended: how many at once, how long they may take, and what the caller is told."""

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from litestar.config.compression import CompressionConfig
from litestar.exceptions import LitestarException
from litestar_agentcore import BedrockAgentCoreApp, Settings
from litestar_agentcore import exchange as exchange_module
from litestar_agentcore.errors import BrokenResponseError
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import StreamingResponse

from tests.unit.blocking import PATIENCE
from tests.unit.conftest import REQUEST_ID, SESSION_ID, LogLines
from tests.unit.test_shutdown import INVOCATION, count, eventually, living, terminate

SHORT = 0.1
"""Seconds that a test waits for a limit."""

WHERE = ["isolated", "inline"]


@pytest.fixture(autouse=True)
def root_logger_has_a_handler() -> Iterator[None]:
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


class Call:
    """One invocation, spoken in ASGI: its body comes and its client leaves when a test says so."""

    def __init__(
        self, app: BedrockAgentCoreApp, payload: object = "wait", session: str | None = None, *headers: tuple[str, str]
    ) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self.received = 0
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        raw = [(b"host", b"agent"), (REQUEST_ID.lower().encode(), b"of-" + (session or "nobody").encode())]
        if session is not None:
            raw.append((SESSION_ID.lower().encode(), session.encode()))
        raw += [(name.lower().encode(), value.encode()) for name, value in headers]
        if payload is not ...:
            self.send_body(json.dumps(payload).encode())
        application: Any = app
        scope = INVOCATION | {"headers": raw}
        self.task = asyncio.get_running_loop().create_task(application(scope, self._receive, self._send))

    def send_body(self, body: bytes, *, more: bool = False) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def _receive(self) -> Any:
        message = await self._messages.get()
        self.received += 1
        return message

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    async def done(self) -> "Call":
        await self.task
        return self

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_whole(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    @property
    def frames(self) -> list[str]:
        *frames, rest = self.body.decode().split("\n\n")
        assert rest == ""
        return frames

    @property
    def events(self) -> list[Any]:
        return [json.loads(frame.removeprefix("data: ")) for frame in self.frames if not frame.startswith(":")]


class Handlers:
    """Handlers of every kind that wait until they are released, and tell what became of them."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []

    async def coroutine(self, payload: Any) -> Any:
        self.begun.append(payload)
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            raise
        finally:
            self.ended.append(payload)
        return payload

    async def stubborn(self, payload: Any) -> Any:
        self.begun.append(payload)
        while not self.release.is_set():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.cancelled.append(payload)
        self.ended.append(payload)
        return payload

    def plain(self, payload: Any) -> Any:
        self.begun.append(payload)
        assert self.release.wait(PATIENCE)
        self.ended.append(payload)
        return payload

    async def one_step(self, payload: Any) -> Any:
        return self.plain(payload)

    def plain_that_returns_a_coroutine(self, payload: Any) -> Any:
        return self.coroutine(payload)

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append(payload)
        try:
            yield "first"
            while not self.release.is_set():
                await asyncio.sleep(0.005)
            yield payload
        finally:
            self.ended.append(payload)

    async def coroutine_that_returns_a_generator(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return self.async_generator(payload)

    def plain_generator(self, payload: Any) -> Iterator[Any]:
        self.begun.append(payload)
        try:
            yield "first"
            assert self.release.wait(PATIENCE)
            yield payload
        finally:
            self.ended.append(payload)


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    handlers = Handlers()
    yield handlers
    handlers.release.set()


def app_of(
    patch: pytest.MonkeyPatch, handler: Callable[[Any], Any], where: str = "isolated", **limits: Any
) -> BedrockAgentCoreApp:
    patch.setenv("AGENTCORE_HANDLER_ISOLATION", where)
    for name, value in limits.items():
        if name.isupper():
            patch.setenv(f"AGENTCORE_{name}", str(value))
    app = BedrockAgentCoreApp(**{name: value for name, value in limits.items() if not name.isupper()})
    app.entrypoint(handler)
    return app


def run(app: BedrockAgentCoreApp, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE), app.lifespan():
            await scenario()

    asyncio.run(main())
    admission = app.agent.admission
    deadline = time.monotonic() + PATIENCE
    while admission is not None and (admission.held or admission.waiting):
        assert time.monotonic() < deadline, "a place was lost"
        time.sleep(0.01)
    assert not app.agent.running


def outcomes(app: BedrockAgentCoreApp, mode: str = "unary") -> dict[str, float]:
    names = ["ok", "client_error", "server_error", "disconnected", "rejected", "timeout", "cancelled"]
    counts = {name: count(app, f'agentcore_invocations_total{{mode="{mode}",outcome="{name}"}}') for name in names}
    return {name: counted for name, counted in counts.items() if counted}


KINDS = [
    "coroutine",
    "plain",
    "one_step",
    "plain_that_returns_a_coroutine",
    "async_generator",
    "plain_generator",
    "coroutine_that_returns_a_generator",
]

CASES = [(kind, where) for kind in KINDS for where in WHERE if (kind, where) != ("one_step", "inline")]
"""Inline is for agents that never block, and an ``async def`` without an ``await`` can do nothing else."""

# -- How many at once


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_no_more_than_the_limit_run_and_the_others_follow_in_their_order(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str, where: str
) -> None:
    app = app_of(monkeypatch, getattr(handlers, kind), where, MAX_CONCURRENT_INVOCATIONS=1)

    async def scenario() -> None:
        calls = [Call(app, number) for number in range(3)]
        await eventually(lambda: handlers.begun == [0])
        await asyncio.sleep(SHORT)
        assert handlers.begun == [0]
        assert count(app, "agentcore_invocations_waiting") == 2
        handlers.release.set()
        for call in calls:
            assert (await call.done()).status == 200
        assert handlers.begun == handlers.ended == [0, 1, 2]
        assert count(app, "agentcore_invocations_waiting") == 0

    run(app, scenario)


def test_without_limits_nothing_is_limited(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine)
    assert app.agent.admission is None

    async def scenario() -> None:
        calls = [Call(app, number) for number in range(20)]
        await eventually(lambda: len(handlers.begun) == 20)
        handlers.release.set()
        assert [(await call.done()).status for call in calls] == [200] * 20

    run(app, scenario)


@pytest.mark.parametrize(("size", "after"), [(0, "1"), (1, "10")])
def test_where_the_queue_is_full_the_answer_is_429_before_the_body_is_there(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, log: LogLines, size: int, after: str
) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=size)

    async def scenario() -> None:
        accepted = [Call(app, number) for number in range(1 + size)]
        await eventually(lambda: app.agent.admission and app.agent.admission.is_full(None))
        refused = Call(app, ..., "late")
        await eventually(lambda: len(refused.sent) == 2)  # and not when its body is there
        assert refused.status == 429
        assert refused.json == {"error": "Too many invocations"}
        assert refused.headers["retry-after"] == after
        assert refused.headers["connection"] == "close"
        assert refused.headers[SESSION_ID.lower()] == "late"
        assert int(refused.headers["content-length"]) == len(refused.body)
        refused.send_body(b"[]")  # the rest is taken in, lest the client is cut off before it has read the answer
        assert (await refused.done()).is_whole
        handlers.release.set()
        assert [(await call.done()).status for call in accepted] == [200] * (1 + size)

    run(app, scenario)
    assert outcomes(app) == {"ok": 1 + size, "rejected": 1}
    assert [line["level"] for line in log.of_request("of-late")] == ["WARNING"]


def test_who_is_refused_and_has_sent_its_whole_body_keeps_its_connection(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        Call(app, 0)
        await eventually(lambda: handlers.begun)
        refused = await Call(app, 1).done()
        assert refused.status == 429
        assert "connection" not in refused.headers
        handlers.release.set()

    run(app, scenario)


def test_who_waits_for_a_100_and_is_refused_is_not_told_to_go_on(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        Call(app, 0)
        await eventually(lambda: handlers.begun)
        refused = await Call(app, ..., None, ("Expect", "100-continue"), ("Content-Length", "2")).done()
        assert (refused.status, refused.received) == (429, 0)
        assert refused.headers["connection"] == "close"
        handlers.release.set()

    run(app, scenario)


def test_a_client_that_never_sends_the_rest_of_a_refused_body_is_left(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    monkeypatch.setattr(exchange_module, "_LINGER_SECONDS", SHORT)
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        Call(app, 0)
        await eventually(lambda: handlers.begun)
        refused = Call(app, ...)
        refused.send_body(b"[", more=True)
        assert (await refused.done()).is_whole
        handlers.release.set()

    run(app, scenario)


def test_a_slow_body_holds_no_place(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)
    handlers.release.set()

    async def scenario() -> None:
        slow = Call(app, ...)
        slow.send_body(b"[", more=True)
        await eventually(lambda: slow.received)
        assert (await Call(app, 1).done()).status == 200
        slow.send_body(b"]")
        assert (await slow.done()).status == 200

    run(app, scenario)


def test_an_overload_is_one_line_in_ten_seconds_with_how_many_were_refused(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("litestar_agentcore.exchange.monotonic", lambda: clock.now)
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        first = Call(app, 0)
        await eventually(lambda: handlers.begun)
        for seconds in (0.0, 1.0, 9.0, 0.5):
            clock.now += seconds
            assert (await Call(app, 1).done()).status == 429
        handlers.release.set()
        await first.done()

    run(app, scenario)
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [re.findall(r"\d+ refused", line) for line in lines] == [["1 refused"], ["2 refused"]]


def test_who_has_waited_too_long_is_answered_429(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        first = Call(app, 0)
        await eventually(lambda: handlers.begun)
        refused = await Call(app, 1).done()
        assert (refused.status, refused.json) == (429, {"error": "Too many invocations"})
        assert refused.headers["retry-after"] == "1"
        handlers.release.set()
        assert (await first.done()).status == 200

    run(app, scenario)
    assert outcomes(app) == {"ok": 1, "rejected": 1}
    assert handlers.begun == [0]


def test_a_waiting_client_that_leaves_makes_room(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=1)

    async def scenario() -> None:
        first = Call(app, 0)
        await eventually(lambda: handlers.begun)
        left = Call(app, 1)
        await eventually(lambda: count(app, "agentcore_invocations_waiting") == 1)
        left.leave()
        await left.done()
        stays = Call(app, 2)
        await eventually(lambda: count(app, "agentcore_invocations_waiting") == 1)
        handlers.release.set()
        assert ((await first.done()).status, (await stays.done()).status) == (200, 200)

    run(app, scenario)
    assert outcomes(app) == {"ok": 2, "disconnected": 1}
    assert handlers.begun == [0, 2]


def test_a_session_at_its_limit_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_PER_SESSION=1, QUEUE_SIZE=2)

    async def scenario() -> None:
        calls = [Call(app, "mine 1", "mine")]
        await eventually(lambda: handlers.begun)
        calls.append(Call(app, "mine 2", "mine"))
        await eventually(lambda: count(app, "agentcore_invocations_waiting") == 1)
        assert (await Call(app, "mine 3", "mine").done()).status == 429
        calls += [Call(app, "yours", "yours"), Call(app, "nobody's")]
        await eventually(lambda: len(handlers.begun) == 3)
        assert handlers.begun == ["mine 1", "yours", "nobody's"]
        handlers.release.set()
        assert [(await call.done()).status for call in calls] == [200] * 4

    run(app, scenario)


@pytest.mark.parametrize("kind", ["plain", "one_step", "stubborn", "coroutine"])
def test_the_place_of_a_client_that_has_left_is_held_until_its_handler_has_ended(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, getattr(handlers, kind), MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        left = Call(app, 0)
        await eventually(lambda: handlers.begun)
        left.leave()
        await left.done()
        assert (await Call(app, 1).done()).status == 429
        handlers.release.set()
        await eventually(lambda: handlers.ended == [0])
        await eventually(lambda: not app.agent.running)
        assert (await Call(app, 2).done()).status == 200

    run(app, scenario)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", ["async_generator", "plain_generator", "coroutine_that_returns_a_generator"])
def test_the_place_of_a_stream_is_free_once_its_generator_is_closed(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str, where: str
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, getattr(handlers, kind), where, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        left = Call(app, 0)
        await eventually(lambda: len(left.sent) > 1)
        assert (await Call(app, 1).done()).status == 429
        left.leave()
        await left.done()
        if kind == "plain_generator":  # in its ``wait``, which nobody can end
            assert (await Call(app, 2).done()).status == 429
        handlers.release.set()
        await eventually(lambda: handlers.ended == [0])
        await eventually(lambda: app.agent.admission is not None and not app.agent.admission.held)
        assert (await Call(app, 3).done()).status == 200

    run(app, scenario)


@pytest.mark.parametrize("what", ["not json", "raises", "unencodable"])
def test_a_place_comes_back_whatever_an_invocation_comes_to(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def handler(payload: Any) -> Any:
        if payload == "raises":
            raise SystemExit(1)
        return object() if payload == "unencodable" else payload

    app = app_of(monkeypatch, handler, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        for _ in range(3):
            call = Call(app, ...)
            call.send_body(b"{" if what == "not json" else json.dumps(what).encode())
            assert (await call.done()).status == {"not json": 400, "raises": 500}.get(what, 200)

    run(app, scenario)


def test_a_place_comes_back_where_the_server_cancels_the_invocation(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=1)

    async def scenario() -> None:
        running = Call(app, 0)
        await eventually(lambda: handlers.begun)
        waiting = Call(app, 1)
        await eventually(lambda: count(app, "agentcore_invocations_waiting") == 1)
        for call in (waiting, running):
            call.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.task
        await eventually(lambda: handlers.cancelled == [0])
        handlers.release.set()
        assert (await Call(app, 2).done()).status == 200

    run(app, scenario)
    assert handlers.begun == [0, 2]


def test_debug_actions_and_probes_are_never_refused(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, debug=True, MAX_CONCURRENT_INVOCATIONS=1, QUEUE_SIZE=0)

    async def scenario() -> None:
        Call(app, 0)
        await eventually(lambda: handlers.begun)
        action = await Call(app, {"_agent_core_app_action": "job_status"}).done()
        assert (action.status, action.json["active_count"]) == (200, 0)
        assert (await Call(app, 1).done()).status == 429
        for path in ("/ping", "/ready", "/metrics"):
            assert await get(app, path) == 200
        handlers.release.set()

    run(app, scenario)


async def get(app: BedrockAgentCoreApp, path: str) -> int:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    application: Any = app
    await application(INVOCATION | {"method": "GET", "path": path, "raw_path": path.encode()}, receive, send)
    return int(sent[0]["status"])


def test_who_waits_when_the_service_is_told_to_end_is_served(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1)

    async def main() -> None:
        async with living(app) as told:
            calls = [Call(app, number) for number in range(3)]
            await eventually(lambda: count(app, "agentcore_invocations_waiting") == 2)
            terminate()
            assert (await Call(app, "late").done()).status == 503
            assert told == []
            handlers.release.set()
            assert [(await call.done()).status for call in calls] == [200] * 3
            await eventually(lambda: told)

    asyncio.run(main())
    assert outcomes(app) == {"ok": 3, "rejected": 1}


def test_who_waits_when_the_grace_is_over_is_told_so(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, MAX_CONCURRENT_INVOCATIONS=1, SHUTDOWN_GRACE_SECONDS=SHORT)

    async def main() -> None:
        async with living(app) as told:
            calls = [Call(app, number) for number in range(3)]
            await eventually(lambda: count(app, "agentcore_invocations_waiting") == 2)
            terminate()
            assert [(await call.done()).status for call in calls] == [503] * 3
            await eventually(lambda: told)

    asyncio.run(main())
    assert outcomes(app) == {"cancelled": 3}
    assert handlers.begun == [0]


# -- How long


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *((kind, where) for kind, where in CASES if "generator" not in kind),
        ("stubborn", "isolated"),
        ("stubborn", "inline"),
    ],
)
def test_a_handler_that_takes_too_long_is_answered_504_and_cancelled_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, log: LogLines, kind: str, where: str
) -> None:
    limits: dict[str, Any] = {"INVOCATION_TIMEOUT_SECONDS": SHORT, "MAX_CONCURRENT_INVOCATIONS": 1, "QUEUE_SIZE": 0}
    app = app_of(monkeypatch, getattr(handlers, kind), where, **limits)
    runs_on = kind in {"stubborn", "plain", "one_step"}

    async def scenario() -> None:
        call = await Call(app, 0, "slow").done()
        assert call.status == 504
        assert call.json == {"error": "Invocation timeout", "details": f"The invocation took longer than {SHORT:g} s"}
        assert call.headers[SESSION_ID.lower()] == "slow"
        assert handlers.begun == [0]
        if runs_on:
            assert handlers.ended == []
            assert (await Call(app, 1).done()).status == 429  # it holds its place
            assert len(app.agent.running) == 1  # and is waited for
            handlers.release.set()
        await eventually(lambda: handlers.ended == [0])
        await eventually(lambda: not app.agent.running)
        if kind != "one_step" and kind != "plain":
            assert set(handlers.cancelled) == {0}

    run(app, scenario)
    assert outcomes(app)["timeout"] == 1
    assert [line["level"] for line in log.of_request("of-slow")] == ["WARNING"]


@pytest.mark.parametrize("where", WHERE)
def test_an_answer_in_time_is_not_disturbed(monkeypatch: pytest.MonkeyPatch, handlers: Handlers, where: str) -> None:
    app = app_of(monkeypatch, handlers.coroutine, where, INVOCATION_TIMEOUT_SECONDS=PATIENCE)
    handlers.release.set()

    async def scenario() -> None:
        assert (await Call(app, 0).done()).json == 0

    run(app, scenario)
    assert outcomes(app) == {"ok": 1}


def test_the_time_in_the_queue_counts(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.stubborn, MAX_CONCURRENT_INVOCATIONS=1, INVOCATION_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        assert [(await call.done()).status for call in [Call(app, 0), Call(app, 1)]] == [504, 504]
        handlers.release.set()

    run(app, scenario)
    assert handlers.begun == [0]


@pytest.mark.parametrize("kind", ["async_generator", "plain_generator"])
def test_a_stream_that_has_begun_is_no_unary_invocation_any_more(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str
) -> None:
    app = app_of(monkeypatch, getattr(handlers, kind), INVOCATION_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        call = Call(app, "last")
        await asyncio.sleep(3 * SHORT)
        handlers.release.set()
        assert (await call.done()).events == ["first", "last"]

    run(app, scenario)
    assert outcomes(app, "stream") == {"ok": 1}


def test_a_stream_whose_head_is_not_sent_yet_counts_as_unary(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(payload: Any) -> Any:
        await asyncio.Event().wait()
        return iter(())

    app = app_of(monkeypatch, handler, INVOCATION_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        assert (await Call(app).done()).status == 504

    run(app, scenario)


def test_a_response_of_the_authors_is_its_own_once_its_head_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(3 * SHORT)
        yield b"b"

    async def handler(payload: Any) -> Any:
        return StreamingResponse(slowly())

    app = app_of(monkeypatch, handler, INVOCATION_TIMEOUT_SECONDS=SHORT, MAX_CONCURRENT_INVOCATIONS=1)

    async def scenario() -> None:
        assert (await Call(app).done()).body == b"ab"

    run(app, scenario)


def test_a_response_that_does_not_begin_in_time_is_answered_504_and_holds_its_place_until_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    class Response(StreamingResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await handlers.stubborn("response")

    async def handler(payload: Any) -> Any:
        return Response(iter(()))

    limits: dict[str, Any] = {"INVOCATION_TIMEOUT_SECONDS": SHORT, "MAX_CONCURRENT_INVOCATIONS": 1, "QUEUE_SIZE": 0}
    app = app_of(monkeypatch, handler, **limits)

    async def scenario() -> None:
        assert (await Call(app).done()).status == 504
        await eventually(lambda: handlers.cancelled)
        assert (await Call(app).done()).status == 429
        handlers.release.set()

    run(app, scenario)


def test_the_handler_of_a_client_that_has_left_is_cancelled_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, handlers.coroutine, INVOCATION_TIMEOUT_SECONDS=1)

    async def scenario() -> None:
        call = Call(app, 0)
        await eventually(lambda: handlers.begun)
        call.leave()
        await call.done()
        assert handlers.cancelled == []
        await eventually(lambda: handlers.cancelled == [0])

    run(app, scenario)
    assert outcomes(app) == {"disconnected": 1}


@pytest.mark.parametrize("limit", ["BODY_IDLE_SECONDS", "INVOCATION_TIMEOUT_SECONDS"])
def test_a_body_that_does_not_come_is_answered_408_and_the_connection_closed(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, limit: str
) -> None:
    monkeypatch.setattr(exchange_module, "_LINGER_SECONDS", SHORT)
    limits: dict[str, Any] = {limit: SHORT}
    app = app_of(monkeypatch, handlers.coroutine, **limits)

    async def scenario() -> None:
        for beginning in (None, b"", b"["):
            call = Call(app, ...)
            if beginning is not None:
                call.send_body(beginning, more=True)
            await call.done()
            assert call.status == 408
            assert call.headers["connection"] == "close"
            assert call.json["error"] == "Request timeout"
            assert call.is_whole

    run(app, scenario)
    assert outcomes(app) == {"client_error": 3}
    assert handlers.begun == []


def test_a_body_that_makes_progress_may_take_its_time(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.coroutine, BODY_IDLE_SECONDS=1)
    handlers.release.set()

    async def scenario() -> None:
        call = Call(app, ...)
        began = time.monotonic()
        call.send_body(b"[", more=True)
        while time.monotonic() - began < 1.5:
            await asyncio.sleep(0.02)
            call.send_body(b" ", more=True)
        call.send_body(b"]")
        assert (await call.done()).json == []

    run(app, scenario)


@pytest.mark.parametrize("limit", ["BODY_IDLE_SECONDS", "INVOCATION_TIMEOUT_SECONDS"])
def test_0_switches_a_limit_off(monkeypatch: pytest.MonkeyPatch, handlers: Handlers, limit: str) -> None:
    limits: dict[str, Any] = {limit: 0}
    app = app_of(monkeypatch, handlers.coroutine, **limits)
    handlers.release.set()

    async def scenario() -> None:
        call = Call(app, ...)
        await asyncio.sleep(SHORT)
        assert not call.task.done()
        call.send_body(b"[]")
        assert (await call.done()).json == []

    run(app, scenario)


# -- Streams


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", ["async_generator", "coroutine_that_returns_a_generator"])
def test_a_stream_that_takes_too_long_ends_cleanly_with_an_event_that_says_why(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str, where: str
) -> None:
    app = app_of(monkeypatch, getattr(handlers, kind), where, STREAM_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        call = await Call(app, 0).done()
        first, last = call.events
        assert first == "first"
        assert last["error"] == f"The stream took longer than {SHORT:g} s"
        assert last["error_type"] == "TimeoutError"
        assert call.is_whole
        await eventually(lambda: handlers.ended == [0])

    run(app, scenario)
    assert outcomes(app, "stream") == {"timeout": 1}


def test_a_plain_generator_whose_time_is_over_is_closed_after_its_current_step(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    limits: dict[str, Any] = {"STREAM_IDLE_SECONDS": SHORT, "MAX_CONCURRENT_INVOCATIONS": 1, "QUEUE_SIZE": 0}
    app = app_of(monkeypatch, handlers.plain_generator, **limits)

    async def scenario() -> None:
        call = await Call(app, 0).done()
        assert [event if isinstance(event, str) else event["error_type"] for event in call.events] == [
            "first",
            "TimeoutError",
        ]
        assert (await Call(app, 1).done()).status == 429
        handlers.release.set()
        await eventually(lambda: handlers.ended == [0])

    run(app, scenario)
    assert outcomes(app, "stream") == {"timeout": 1}


@pytest.mark.parametrize("where", WHERE)
def test_a_stream_without_an_event_for_too_long_ends_and_a_lively_one_does_not(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def handler(payload: Any) -> AsyncIterator[int]:
        for number in range(payload):
            await asyncio.sleep(0.02)
            yield number
        if payload == 1:
            await asyncio.Event().wait()

    app = app_of(monkeypatch, handler, where, STREAM_IDLE_SECONDS=1)

    async def scenario() -> None:
        silent, lively = Call(app, 1), Call(app, 75)
        assert (await lively.done()).events == list(range(75))
        _, last = (await silent.done()).events
        assert last["error"] == "The stream had no event for 1 s"

    run(app, scenario)
    assert outcomes(app, "stream") == {"ok": 1, "timeout": 1}


def test_events_that_were_yielded_come_before_the_one_that_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(payload: Any) -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0)

    app = app_of(monkeypatch, handler, STREAM_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        *numbers, last = (await Call(app).done()).events
        assert numbers == list(range(len(numbers)))
        assert last["error_type"] == "TimeoutError"

    run(app, scenario)


@pytest.mark.parametrize("where", WHERE)
def test_a_client_that_does_not_read_the_end_of_its_stream_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, where: str
) -> None:
    monkeypatch.setattr("litestar_agentcore.runtime.timeouts.LAST_EVENT_SECONDS", SHORT)
    app = app_of(
        monkeypatch, handlers.async_generator, where, STREAM_TIMEOUT_SECONDS=SHORT, MAX_CONCURRENT_INVOCATIONS=1
    )

    async def scenario() -> None:
        call = Call(app, 0)
        await eventually(lambda: call.sent)
        call.reads.clear()
        with pytest.raises(LitestarException) as caught:
            await call.done()
        assert isinstance(caught.value.__cause__, BrokenResponseError)  # of which the server need not tell
        assert not call.is_whole
        await eventually(lambda: handlers.ended == [0])

    run(app, scenario)
    assert outcomes(app, "stream") == {"timeout": 1}


COMMENT = ": keep-alive"


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", ["async_generator", "plain_generator", "coroutine_that_returns_a_generator"])
def test_a_silent_stream_has_comments_between_its_events_which_nothing_counts(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str, where: str
) -> None:
    app = app_of(monkeypatch, getattr(handlers, kind), where, SSE_KEEPALIVE_SECONDS=0.02)

    async def scenario() -> None:
        call = Call(app, "last")
        await eventually(lambda: call.body.count(COMMENT.encode()) >= 3)
        handlers.release.set()
        await call.done()
        assert call.events == ["first", "last"]
        assert call.frames[-1] == 'data: "last"'
        assert set(call.frames) == {'data: "first"', COMMENT, 'data: "last"'}
        sent = len(call.sent)
        await asyncio.sleep(SHORT)
        assert len(call.sent) == sent

    run(app, scenario)
    assert count(app, "agentcore_stream_chunks_total") == 2
    assert outcomes(app, "stream") == {"ok": 1}


def test_a_stream_that_has_not_yielded_yet_has_comments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(payload: Any) -> AsyncIterator[str]:
        await asyncio.sleep(1)
        yield "first"

    app = app_of(monkeypatch, handler, SSE_KEEPALIVE_SECONDS=0.05)

    async def scenario() -> None:
        call = Call(app)
        await eventually(lambda: len(call.sent) >= 3)
        assert call.status == 200
        assert call.body.startswith(b": keep-alive\n\n")
        assert (await call.done()).events == ["first"]
        assert call.frames[0] == COMMENT

    run(app, scenario)


def test_a_lively_stream_has_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(payload: Any) -> AsyncIterator[int]:
        for number in range(60):
            await asyncio.sleep(0.01)
            yield number

    app = app_of(monkeypatch, handler, SSE_KEEPALIVE_SECONDS=PATIENCE)

    async def scenario() -> None:
        assert len((await Call(app).done()).frames) == 60

    run(app, scenario)


def test_0_sends_no_comments(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    app = app_of(monkeypatch, handlers.async_generator, SSE_KEEPALIVE_SECONDS=0)

    async def scenario() -> None:
        call = Call(app, "last")
        await asyncio.sleep(SHORT)
        handlers.release.set()
        assert len((await call.done()).frames) == 2

    run(app, scenario)


def test_comments_leave_at_once_where_compression_is_on(monkeypatch: pytest.MonkeyPatch, handlers: Handlers) -> None:
    compression = CompressionConfig(backend="gzip", minimum_size=1)
    app = app_of(monkeypatch, handlers.async_generator, compression_config=compression, SSE_KEEPALIVE_SECONDS=0.02)

    async def scenario() -> None:
        call = Call(app, "last", None, ("Accept-Encoding", "gzip"))
        await eventually(lambda: call.body.count(COMMENT.encode()) >= 2)
        handlers.release.set()
        assert (await call.done()).events == ["first", "last"]

    run(app, scenario)


def test_comments_leave_at_once_where_a_middleware_stands_around(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers
) -> None:
    def middleware(app: Any) -> Any:
        async def around(scope: Any, receive: Any, send: Any) -> None:
            async def passing(message: Any) -> None:
                await send(message)

            await app(scope, receive, passing)

        return around

    app = app_of(monkeypatch, handlers.async_generator, middleware=[middleware], SSE_KEEPALIVE_SECONDS=0.02)

    async def scenario() -> None:
        call = Call(app, "last")
        await eventually(lambda: call.body.count(COMMENT.encode()) >= 2)
        handlers.release.set()
        assert (await call.done()).events == ["first", "last"]

    run(app, scenario)


# -- Clients that leave


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("cancels", [False, True])
def test_a_handler_whose_client_leaves_is_cancelled_only_where_the_setting_says_so(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, cancels: bool, where: str
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, handlers.coroutine, where, CANCEL_ON_DISCONNECT=cancels, MAX_CONCURRENT_INVOCATIONS=1)

    async def scenario() -> None:
        call = Call(app, 0)
        await eventually(lambda: handlers.begun)
        call.leave()
        if cancels:
            await eventually(lambda: handlers.cancelled == [0])
        else:
            await asyncio.sleep(SHORT)
            handlers.release.set()
            await eventually(lambda: handlers.ended == [0])
            assert handlers.cancelled == []
        await call.done()

    run(app, scenario)
    assert outcomes(app) == {"disconnected": 1}


@pytest.mark.parametrize("where", WHERE)
def test_a_plain_handler_whose_client_leaves_runs_to_its_end_all_the_same(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, where: str
) -> None:
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)
    app = app_of(monkeypatch, handlers.plain, where, CANCEL_ON_DISCONNECT="true", MAX_CONCURRENT_INVOCATIONS=1)

    async def scenario() -> None:
        call = Call(app, 0)
        await eventually(lambda: handlers.begun)
        call.leave()
        await call.done()
        assert len(app.agent.running) == 1
        handlers.release.set()
        await eventually(lambda: handlers.ended == [0])

    run(app, scenario)


# -- What telemetry tells


def test_the_span_of_a_stream_tells_why_it_was_ended(
    monkeypatch: pytest.MonkeyPatch, exported: InMemorySpanExporter, handlers: Handlers
) -> None:
    app = app_of(monkeypatch, handlers.async_generator, STREAM_TIMEOUT_SECONDS=SHORT)

    async def scenario() -> None:
        await Call(app, 0).done()

    run(app, scenario)
    app.agent.telemetry.tracing.flush()
    (span,) = [span for span in exported.get_finished_spans() if span.name == "POST /invocations"]
    assert span.attributes is not None
    assert span.attributes["error.type"] == "timeout"
    assert span.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("kind", ["coroutine", "async_generator"])
@pytest.mark.parametrize("where", WHERE)
def test_what_a_shutdown_cancels_is_counted_as_cancelled(
    monkeypatch: pytest.MonkeyPatch, handlers: Handlers, kind: str, where: str
) -> None:
    app = app_of(monkeypatch, getattr(handlers, kind), where, SHUTDOWN_GRACE_SECONDS=SHORT)

    async def main() -> None:
        async with living(app) as told:
            call = Call(app, 0)
            await eventually(lambda: handlers.begun)
            terminate()
            await call.done()
            await eventually(lambda: told)

    asyncio.run(main())
    assert outcomes(app, "unary" if kind == "coroutine" else "stream") == {"cancelled": 1}


# -- WebSockets


@pytest.mark.parametrize("denies", [True, False])
def test_no_more_websockets_than_the_limit_are_open(monkeypatch: pytest.MonkeyPatch, denies: bool) -> None:
    app = app_of(monkeypatch, lambda payload: payload, MAX_WEBSOCKETS=1)

    @app.websocket
    async def talk(websocket: Any, context: Any) -> None:
        await websocket.accept()
        await websocket.receive_text()
        await websocket.close()

    @asynccontextmanager
    async def dialed() -> AsyncIterator[list[Any]]:
        sent: list[Any] = []
        messages: asyncio.Queue[Any] = asyncio.Queue()
        messages.put_nowait({"type": "websocket.connect"})

        async def send(message: Any) -> None:
            sent.append(message)

        scope: dict[str, Any] = INVOCATION | {
            "type": "websocket",
            "scheme": "ws",
            "path": "/ws",
            "raw_path": b"/ws",
            "subprotocols": [],
        }
        del scope["method"]
        if denies:
            scope["extensions"] = {"websocket.http.response": {}}
        application: Any = app
        task = asyncio.get_running_loop().create_task(application(scope, messages.get, send))
        await eventually(lambda: sent)
        yield sent
        messages.put_nowait({"type": "websocket.receive", "text": "bye"})
        await task

    async def scenario() -> None:
        async with dialed() as first:
            assert first[0]["type"] == "websocket.accept"
            async with dialed() as second:
                if denies:
                    assert (second[0]["type"], second[0]["status"]) == ("websocket.http.response.start", 503)
                    assert (b"retry-after", b"1") in second[0]["headers"]
                    assert json.loads(second[1]["body"]) == {"error": "Too many WebSockets"}
                else:
                    await eventually(lambda: second[-1]["type"] == "websocket.close")
                    assert second[-1]["code"] == 1013
        admission = app.agent.websocket_admission
        assert admission is not None
        await eventually(lambda: not admission.held)
        async with dialed() as third:
            assert third[0]["type"] == "websocket.accept"

    run(app, scenario)


def test_without_a_limit_websockets_are_not_counted_twice() -> None:
    assert BedrockAgentCoreApp().agent.websocket_admission is None
    assert Settings().max_websockets is None
