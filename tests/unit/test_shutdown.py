"""The end of a service from inside: when the server is told, in which order work is cancelled, what is counted."""

import asyncio
import logging
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from litestar_agentcore import BedrockAgentCoreApp
from starlette.responses import StreamingResponse

from tests.unit.blocking import PATIENCE, Block
from tests.unit.conftest import REQUEST_ID, SESSION_ID, LogLines


@pytest.fixture(autouse=True)
def root_logger_has_a_handler() -> Iterator[None]:
    """The host program has set up logging, so the service leaves it alone."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_grace(seconds: float) -> None:
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", str(seconds))

    return set_grace


@asynccontextmanager
async def living(app: BedrockAgentCoreApp) -> AsyncIterator[list[int]]:
    """An application that lives in a server which takes note of each time that it is told to end, and no more."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        async with app.lifespan():
            yield told
    finally:
        signal.signal(signal.SIGTERM, before)


async def invoke(app: BedrockAgentCoreApp, session: str, payload: object = "wait") -> httpx.Response:
    headers = {SESSION_ID: session, REQUEST_ID: f"of-{session}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
        return await client.post("/invocations", json=payload, headers=headers)


async def begin(app: BedrockAgentCoreApp, session: str, payload: object = "wait") -> "asyncio.Task[httpx.Response]":
    """Invoke, and come back once the invocation is being served."""
    before = len(app.agent.running)
    call = asyncio.create_task(invoke(app, session, payload))
    await eventually(lambda: len(app.agent.running) > before)
    return call


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


SCOPE = {
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"agent"), (SESSION_ID.lower().encode(), b"raw"), (REQUEST_ID.lower().encode(), b"of-raw")],
    "http_version": "1.1",
    "server": ("agent", 80),
    "client": ("client", 1),
}
INVOCATION = SCOPE | {
    "type": "http",
    "method": "POST",
    "scheme": "http",
    "path": "/invocations",
    "raw_path": b"/invocations",
}
WEBSOCKET = SCOPE | {"type": "websocket", "scheme": "ws", "path": "/ws", "raw_path": b"/ws", "subprotocols": []}


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def app_of(handler: Callable[[Any], Any]) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp()
    app.entrypoint(handler)
    return app


async def waits(payload: Any) -> None:
    await asyncio.Event().wait()


async def answers(payload: Any) -> str:
    await asyncio.sleep(0)
    return "an answer"


async def counts(payload: Any) -> AsyncIterator[int]:
    yield 1
    yield 2


def count(app: BedrockAgentCoreApp, sample: str) -> float:
    body, _ = app.agent.telemetry.metrics.expose("")
    found = re.search(rf"^{re.escape(sample)} (\S+)$", body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_server_in_which_nothing_runs_is_told_at_once() -> None:
    async def main() -> None:
        async with living(app_of(waits)) as told:
            terminate()
            await asyncio.sleep(0.02)
            assert told == [signal.SIGTERM]

    asyncio.run(main())


def test_the_server_is_told_when_the_last_work_is_done() -> None:
    release, app = threading.Event(), BedrockAgentCoreApp()

    @app.entrypoint
    def handler(payload: Any) -> str:
        release.wait(PATIENCE)
        return "done"

    async def main() -> None:
        async with living(app) as told:
            call = await begin(app, "one")
            task_id = app.add_async_task("by hand")
            terminate()
            await asyncio.sleep(0.2)
            assert told == []
            release.set()
            assert (await call).json() == "done"
            await asyncio.sleep(0.2)
            assert told == []
            app.complete_async_task(task_id)
            await eventually(lambda: told == [signal.SIGTERM])

    asyncio.run(main())


def test_work_that_running_work_begins_is_waited_for_as_well() -> None:
    app, proceed = BedrockAgentCoreApp(), threading.Event()
    done = False

    @app.async_task
    async def research() -> None:
        nonlocal done
        await asyncio.sleep(0.3)
        done = True

    @app.entrypoint
    async def handler(payload: Any) -> None:
        await asyncio.to_thread(proceed.wait, PATIENCE)
        asyncio.create_task(research())  # noqa: RUF006 - the service keeps it

    async def main() -> None:
        async with living(app) as told:
            call = await begin(app, "one")
            terminate()
            proceed.set()
            assert (await call).status_code == 200
            assert told == []
            await eventually(lambda: told)
            assert done

    asyncio.run(main())


def test_what_is_cancelled_lost_and_refused_is_counted(grace: Callable[[float], None]) -> None:
    grace(0.3)
    app = BedrockAgentCoreApp()

    @app.async_task
    async def research() -> None:
        await asyncio.Event().wait()

    async def stream() -> AsyncIterator[int]:
        yield 0
        await asyncio.Event().wait()

    @app.entrypoint
    async def handler(payload: str) -> Any:
        if payload == "stream":
            return stream()
        if payload == "research":
            asyncio.create_task(research())  # noqa: RUF006 - the service keeps it
            await asyncio.sleep(0)
            return None
        return await waits(payload)

    async def main() -> None:
        async with living(app) as told:
            calls = [await begin(app, "unary", "wait"), await begin(app, "stream", "stream")]
            await invoke(app, "task", "research")
            app.add_async_task("by hand")
            terminate()
            refused = await invoke(app, "late", "wait")
            assert refused.status_code == 503
            assert [(await call).status_code for call in calls] == [503, 200]
            await eventually(lambda: told)

    asyncio.run(main())
    assert count(app, 'agentcore_invocations_total{mode="unary",outcome="cancelled"}') == 1
    assert count(app, 'agentcore_invocations_total{mode="stream",outcome="cancelled"}') == 1
    assert count(app, 'agentcore_invocations_total{mode="unary",outcome="rejected"}') == 1
    assert count(app, 'agentcore_async_tasks_total{name="research",outcome="lost"}') == 1
    assert count(app, 'agentcore_async_tasks_total{name="by hand",outcome="lost"}') == 1
    assert count(app, 'agentcore_async_tasks_total{name="research",outcome="failed"}') == 0
    assert count(app, "agentcore_invocations_in_progress") == count(app, "agentcore_active_tasks") == 0


def test_what_a_plain_function_leaves_to_an_async_one_is_cancelled_with_it(grace: Callable[[float], None]) -> None:
    grace(0.1)
    begun, ended = threading.Event(), threading.Event()

    async def tells() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        async with living(app):
            call = await begin(app, "one")
            await eventually(begun.is_set)
            terminate()
            assert (await call).status_code == 503
            await eventually(ended.is_set)  # and not only when the workers are stopped

    app = app_of(lambda _: tells())
    asyncio.run(main())


def test_what_a_plain_function_leaves_to_an_async_one_too_late_is_cancelled_as_well(
    grace: Callable[[float], None],
) -> None:
    grace(0)
    returns, went_on = threading.Event(), threading.Event()

    async def tells() -> None:
        await asyncio.sleep(0.2)
        went_on.set()

    def plain(_: Any) -> Any:
        returns.wait(PATIENCE)
        return tells()

    async def main() -> None:
        async with living(app):
            call = await begin(app, "one")
            terminate()
            assert (await call).status_code == 503
            returns.set()
            await asyncio.sleep(0.5)

    app = app_of(plain)
    asyncio.run(main())
    assert not went_on.is_set()


def test_the_oldest_work_is_cancelled_first(grace: Callable[[float], None], log: LogLines) -> None:
    grace(0)
    app = app_of(waits)

    async def main() -> None:
        async with living(app) as told:
            for number in range(3):
                await begin(app, f"{number}")
                app.add_async_task(f"task {number}")
            terminate()
            await eventually(lambda: told)

    asyncio.run(main())
    found = re.findall(r"The (.+) was still running", "\n".join(line["message"] for line in log.lines))
    assert found == [
        name
        for number in range(3)
        for name in (f"invocation of session {number}", f"task task {number} of session None")
    ]


def test_each_has_said_its_last_word_before_the_next_is_cancelled(
    grace: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else is to be waited for, as on the loop that accepts requests."""
    grace(0)
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", "inline")
    order: list[str] = []

    async def handler(payload: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(f"{payload} has heard")

    app = app_of(handler)

    class Order(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(r"The invocation of session (\w+) was still running", record.getMessage()):
                order.append(f"{found[1]} is told")

    async def main() -> None:
        async with living(app) as told:
            for session in ("one", "two", "three"):
                await begin(app, session, session)
            terminate()
            await eventually(lambda: told)

    logger, watching = logging.getLogger("litestar_agentcore"), Order()
    logger.addHandler(watching)
    asyncio.run(main())
    logger.removeHandler(watching)
    assert order == [f"{session} {what}" for session in ("one", "two", "three") for what in ("is told", "has heard")]


def test_a_second_signal_ends_the_grace() -> None:
    app = app_of(waits)

    async def main() -> None:
        async with living(app) as told:
            call = await begin(app, "one")
            terminate()
            await asyncio.sleep(0.2)
            assert told == []
            terminate()
            assert (await call).status_code == 503
            await eventually(lambda: told == [signal.SIGTERM])

    asyncio.run(main())


class TestADelay:
    """New work is taken for a while, and clients are told to connect anew, so that the next one leads elsewhere."""

    def test_new_work_is_taken_and_its_answer_closes_the_connection_until_the_delay_is_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_DELAY_SECONDS", "0.5")
        app = app_of(answers)

        async def main() -> None:
            async with living(app) as told:
                before = await invoke(app, "before")
                terminate()
                during = await invoke(app, "during")
                assert told == []
                await eventually(lambda: told == [signal.SIGTERM])
                after = await invoke(app, "after")
            assert (before.status_code, before.headers.get("connection")) == (200, None)
            assert (during.status_code, during.headers["connection"]) == (200, "close")
            assert (after.status_code, after.headers["connection"]) == (503, "close")

        asyncio.run(main())

    def test_the_grace_begins_when_it_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_DELAY_SECONDS", "0.5")
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", "0.5")
        app = app_of(waits)

        async def main() -> None:
            async with living(app) as told:
                call = await begin(app, "one")
                began = time.monotonic()
                terminate()
                cut = await call
                assert time.monotonic() - began >= 1
                await eventually(lambda: told == [signal.SIGTERM])
            assert cut.status_code == 503
            assert cut.headers.get_list("connection") == ["close"]

        asyncio.run(main())

    def test_a_second_signal_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_DELAY_SECONDS", "3600")
        app = app_of(answers)

        async def main() -> None:
            async with living(app) as told:
                terminate()
                assert (await invoke(app, "one")).status_code == 200
                terminate()
                assert (await invoke(app, "two")).status_code == 503
                await eventually(lambda: told == [signal.SIGTERM])

        asyncio.run(main())

    def test_a_stream_that_begins_in_it_is_whole_and_closes_the_connection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTCORE_SHUTDOWN_DELAY_SECONDS", "3600")
        app = app_of(counts)

        async def main() -> None:
            async with living(app):
                terminate()
                during = await invoke(app, "during")
                assert during.text == "data: 1\n\ndata: 2\n\n"
                assert during.headers["connection"] == "close"
                terminate()

        asyncio.run(main())


def test_the_server_hears_of_every_signal_that_comes_after_the_grace() -> None:
    async def main() -> None:
        async with living(app_of(waits)) as told:
            for times in (1, 2, 3):
                terminate()
                await eventually(lambda times=times: len(told) == times)  # type: ignore[misc]

    asyncio.run(main())


def test_ready_says_no_from_the_signal_on_and_yes_when_the_service_begins_anew() -> None:
    app = app_of(waits)

    async def ready() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
            return (await client.get("/ready")).status_code

    async def main() -> list[int]:
        async with living(app):
            found = [await ready()]
            terminate()
            found.append(await ready())
        async with living(app):
            found.append(await ready())
        return found

    assert asyncio.run(main()) == [200, 503, 200]


def test_the_servers_handlers_are_as_before_when_the_service_has_ended() -> None:
    def handler(number: int, frame: object) -> None: ...

    async def main() -> None:
        async with app_of(waits).lifespan():
            assert signal.getsignal(signal.SIGTERM) is not handler

    before = signal.signal(signal.SIGTERM, handler)
    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("disposition", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_that_no_server_has_asked_for_is_left_alone(disposition: signal.Handlers) -> None:
    async def main() -> None:
        async with app_of(waits).lifespan():
            assert signal.getsignal(signal.SIGTERM) is disposition

    before = signal.signal(signal.SIGTERM, disposition)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("configured", "in_force"), [(None, 5), (60, 60), (1, 1)])
def test_uvicorn_waits_five_seconds_for_its_clients_unless_told_otherwise(
    grace: Callable[[float], None], configured: int | None, in_force: int
) -> None:
    grace(0)
    app = app_of(waits)
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=configured, log_config=None))

    async def main() -> None:
        async with app.lifespan():
            terminate()
            await eventually(lambda: server.should_exit)

    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert server.config.timeout_graceful_shutdown == in_force


def test_a_task_that_is_left_when_the_service_ends_without_a_signal_is_lost_and_named(log: LogLines) -> None:
    app = app_of(waits)

    async def main() -> None:
        async with app.lifespan():
            app.add_async_task("by hand", {"ticket": 7})

    asyncio.run(main())
    (line,) = [line for line in log.lines if "was still running at shutdown" in line["message"]]
    assert line["message"].startswith("The task by hand of session None")
    assert line["message"].endswith("{'ticket': 7}")
    assert count(app, 'agentcore_async_tasks_total{name="by hand",outcome="lost"}') == 1


def test_a_task_that_was_lost_cannot_be_completed_any_more(log: LogLines) -> None:
    app = app_of(waits)

    async def main() -> int:
        async with app.lifespan():
            return app.add_async_task("by hand")

    assert app.complete_async_task(asyncio.run(main())) is False
    assert count(app, 'agentcore_async_tasks_total{name="by hand",outcome="completed"}') == 0


@pytest.mark.parametrize("seconds", ["-1", "soon", "nan"])
def test_a_grace_that_makes_no_sense_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", seconds)
    with pytest.raises(ValueError, match="AGENTCORE_SHUTDOWN_GRACE_SECONDS"):
        BedrockAgentCoreApp()


def test_a_response_of_the_authors_own_is_cut_off_and_not_made_to_look_complete(grace: Callable[[float], None]) -> None:
    grace(0.2)

    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.Event().wait()

    async def handler(payload: Any) -> Any:
        return StreamingResponse(body())

    app = app_of(handler)
    serve: Any = app
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        async with living(app):
            body = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

            async def receive() -> Any:
                if (message := next(body, None)) is None:
                    await asyncio.Event().wait()
                return message

            call = asyncio.create_task(serve(dict(INVOCATION), receive, send))
            await eventually(lambda: len(sent) == 2)
            terminate()
            await call

    asyncio.run(main())
    assert [message.get("more_body") for message in sent] == [None, True]
    assert count(app, 'agentcore_invocations_total{mode="unary",outcome="cancelled"}') == 1


class Leaving:
    """A client that leaves when it is told to."""

    def __init__(self, app: BedrockAgentCoreApp) -> None:
        self._app = app
        self._body: list[Any] = [{"type": "http.request", "body": b"{}", "more_body": False}]
        self._left = asyncio.Event()

    async def _receive(self) -> Any:
        if self._body:
            return self._body.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None: ...

    async def invoke(self) -> "asyncio.Task[None]":
        """Invoke, and come back once the invocation is being served."""
        before = len(self._app.agent.running)
        app: Any = self._app
        call = asyncio.create_task(app(dict(INVOCATION), self._receive, self._send))
        await eventually(lambda: len(self._app.agent.running) > before)
        return call

    def leave(self) -> None:
        self._left.set()


class GoesOn:
    """Handlers that go on when their clients have left, until they are let go."""

    def __init__(self) -> None:
        self.called, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def _wait(self) -> None:
        self.called.set()
        self.go_on.wait(PATIENCE)
        self.ended.set()

    async def _wait_async(self) -> None:
        self.called.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        self.ended.set()

    def plain(self, payload: Any) -> str:
        self._wait()
        return "unheard"

    async def one_step(self, payload: Any) -> str:
        return self.plain(payload)

    async def coroutine(self, payload: Any) -> str:
        await self._wait_async()
        return "unheard"

    def plain_around_a_coroutine(self, payload: Any) -> Any:
        return self.coroutine(payload)

    def generator(self, payload: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
                time.sleep(0.005)
        finally:
            self._wait()

    async def async_generator(self, payload: Any) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.005)
        finally:
            await self._wait_async()

    def returned_generator(self, payload: Any) -> Any:
        return self.generator(payload)

    async def returned_async_generator(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return self.async_generator(payload)

    async def generator_that_is_returned_late(self, payload: Any) -> Any:
        generator = self.async_generator(payload)
        await anext(generator)
        await asyncio.sleep(0.3)
        return generator

    def plain_generator_that_is_returned_late(self, payload: Any) -> Any:
        generator = self.generator(payload)
        next(generator)
        time.sleep(0.3)
        return generator


GOING_ON = [
    (name, isolation)
    for name in vars(GoesOn)
    if not name.startswith("_")
    for isolation in ("isolated", "inline")
    if (name, isolation) != ("one_step", "inline")  # which blocks the loop that all of this runs on
]


@pytest.fixture
def watched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are looked after from the beginning, and not after a second."""
    monkeypatch.setattr("litestar_agentcore.disconnects.WATCH_AFTER_SECONDS", 0.01)


@pytest.mark.parametrize(("name", "isolation"), GOING_ON)
@pytest.mark.usefixtures("watched_at_once")
class TestAHandlerWhoseClientHasLeft:
    @pytest.fixture
    def handlers(self) -> Iterator[GoesOn]:
        handlers = GoesOn()
        yield handlers
        handlers.go_on.set()

    @pytest.fixture
    def app(self, monkeypatch: pytest.MonkeyPatch, isolation: str, handlers: GoesOn, name: str) -> BedrockAgentCoreApp:
        monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", isolation)
        return app_of(getattr(handlers, name))

    @staticmethod
    async def left_by_its_client(app: BedrockAgentCoreApp, handlers: GoesOn) -> "asyncio.Task[None]":
        client = Leaving(app)
        call = await client.invoke()
        await asyncio.sleep(0.05)
        client.leave()
        await eventually(handlers.called.is_set)
        await asyncio.sleep(0.05)
        return call

    def test_it_is_work_until_its_code_has_ended(self, app: BedrockAgentCoreApp, handlers: GoesOn) -> None:
        async def main() -> None:
            async with app.lifespan():
                call = await self.left_by_its_client(app, handlers)
                for _ in range(10):
                    await asyncio.sleep(0.02)
                    (work,) = app.agent.work
                    assert work.values.session_id == "raw"
                handlers.go_on.set()
                await eventually(lambda: not app.agent.work)
                assert handlers.ended.is_set()
                await call

        asyncio.run(main())

    def test_a_shutdown_waits_for_it(self, app: BedrockAgentCoreApp, handlers: GoesOn, log: LogLines) -> None:
        async def main() -> None:
            async with living(app) as told:
                call = await self.left_by_its_client(app, handlers)
                terminate()
                await asyncio.sleep(0.3)
                assert told == []
                handlers.go_on.set()
                await eventually(lambda: told)
                assert handlers.ended.is_set()
                await call

        asyncio.run(main())
        assert [line for line in log.lines if "was still running" in line["message"]] == []

    def test_one_that_takes_longer_than_the_grace_is_named(
        self, app: BedrockAgentCoreApp, handlers: GoesOn, grace: Callable[[float], None], log: LogLines, name: str
    ) -> None:
        grace(0.2)
        app = app_of(getattr(handlers, name))

        async def main() -> None:
            async with living(app) as told:
                await self.left_by_its_client(app, handlers)
                terminate()
                await eventually(lambda: told)
                handlers.go_on.set()

        asyncio.run(main())
        (line,) = [line for line in log.lines if "was still running at shutdown" in line["message"]]
        assert (line["sessionId"], line["requestId"]) == ("raw", "of-raw")


@pytest.mark.usefixtures("watched_at_once")
def test_a_handler_that_outlives_its_loop_is_work_until_it_ends() -> None:
    handlers = GoesOn()
    app = app_of(handlers.plain)

    async def main() -> None:
        async with app.lifespan():
            client = Leaving(app)
            await client.invoke()
            client.leave()
            await asyncio.sleep(0.1)

    asyncio.run(main())
    assert len(app.agent.work) == 1
    handlers.go_on.set()
    deadline = time.monotonic() + PATIENCE
    while app.agent.work:
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestTheEndOfALifespanWithoutASignal:
    """A server may end by itself, as uvicorn does after so many requests."""

    def test_what_runs_has_its_grace(self, log: LogLines) -> None:
        app = BedrockAgentCoreApp()
        done: list[str] = []

        @app.async_task
        async def research() -> None:
            await asyncio.sleep(0.3)
            done.append("research")

        @app.entrypoint
        async def handler(payload: Any) -> None:
            if payload == "research":
                asyncio.create_task(research())  # noqa: RUF006
            else:
                await asyncio.sleep(0.3)
                done.append("invocation")

        async def main() -> "asyncio.Task[httpx.Response]":
            async with living(app):
                await invoke(app, "one", "research")
                call = await begin(app, "two")
            assert sorted(done) == ["invocation", "research"]
            return call

        asyncio.run(main())
        assert [line for line in log.lines if "was still running" in line["message"]] == []

    def test_what_takes_longer_is_cancelled_and_named(self, grace: Callable[[float], None], log: LogLines) -> None:
        grace(0.3)
        app = app_of(waits)

        async def main() -> float:
            async with living(app):
                await begin(app, "one")
                app.add_async_task("by hand")
                began = time.monotonic()
            return time.monotonic() - began

        assert 0.3 <= asyncio.run(main()) < PATIENCE / 2
        found = re.findall(r"The (.+) was still running", "\n".join(line["message"] for line in log.lines))
        assert found == ["invocation of session one", "task by hand of session None"]

    def test_where_no_server_waits_it_is_cancelled_at_once(self, log: LogLines) -> None:
        app = app_of(waits)

        async def main() -> float:
            async with app.lifespan():
                await begin(app, "one")
                began = time.monotonic()
            return time.monotonic() - began

        assert asyncio.run(main()) < PATIENCE / 2
        assert [line["sessionId"] for line in log.lines if "was still running" in line["message"]] == ["one"]


@pytest.mark.parametrize("waits", [False, True], ids=["without an await", "with an await"])
def test_a_task_whose_first_step_has_not_run_when_the_signal_comes_has_its_grace(waits: bool) -> None:
    app, block = BedrockAgentCoreApp(), Block()
    done = threading.Event()

    @app.async_task
    async def research() -> None:
        await asyncio.sleep(0.1)
        done.set()

    async def one_step(payload: Any) -> str:
        asyncio.create_task(research())  # noqa: RUF006
        asyncio.get_running_loop().call_soon_threadsafe(block)
        return "begun"

    async def several_steps(payload: Any) -> str:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon_threadsafe(block)  # before the first step of the task
        asyncio.create_task(research())  # noqa: RUF006
        return "begun"

    app.entrypoint(several_steps if waits else one_step)

    async def main() -> None:
        async with living(app) as told:
            assert (await invoke(app, "one")).json() == "begun"
            terminate()
            await asyncio.sleep(0.3)
            assert told == []
            block.release()
            await eventually(lambda: told)
            assert done.is_set()

    asyncio.run(main())


def test_a_drain_looks_for_work_after_the_loop_has_turned() -> None:
    """What was scheduled by then, and makes a task when it runs, is waited for as well."""
    app, block, done = BedrockAgentCoreApp(), Block(), threading.Event()

    @app.async_task
    async def research() -> None:
        await asyncio.sleep(0.1)
        done.set()

    async def main() -> None:
        async with living(app) as told:
            loop = app.agent.loop.loop
            loop.call_soon_threadsafe(block)
            await asyncio.to_thread(block.wait_until_entered)
            loop.call_soon_threadsafe(lambda: loop.create_task(research()))
            terminate()
            await asyncio.sleep(0.2)
            assert told == []
            block.release()
            await eventually(lambda: told)
            assert done.is_set()

    asyncio.run(main())


class NotToBegin:
    """Handlers that are called while something holds the loop, and are cancelled before they begin."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    async def coroutine(self, payload: Any) -> None:
        self.begun.set()
        await asyncio.sleep(0)

    def plain_around_a_coroutine(self, payload: Any) -> Any:
        return self.coroutine(payload)

    async def async_generator(self, payload: Any) -> AsyncIterator[int]:
        self.begun.set()
        yield 1

    def plain_around_an_async_generator(self, payload: Any) -> Any:
        return self.async_generator(payload)


@pytest.mark.parametrize("name", [name for name in vars(NotToBegin) if not name.startswith("_")])
def test_what_is_cancelled_before_the_held_loop_has_begun_it_never_begins(
    grace: Callable[[float], None], name: str
) -> None:
    grace(0.2)
    handlers, block = NotToBegin(), Block()
    app = app_of(getattr(handlers, name))

    async def main() -> None:
        async with living(app) as told:
            app.agent.loop.loop.call_soon_threadsafe(block)
            await asyncio.to_thread(block.wait_until_entered)
            call = await begin(app, "one")
            terminate()
            assert (await call).status_code in {503, 200}  # 200: a stream whose only event says so
            await eventually(lambda: told)
            block.release()
            assert await app.agent.loop.turn(PATIENCE)
            await eventually(lambda: not app.agent.work)

    asyncio.run(main())
    assert not handlers.begun.is_set()


def test_a_websocket_handler_that_is_cancelled_before_the_held_loop_has_begun_it_never_begins(
    grace: Callable[[float], None],
) -> None:
    grace(0.2)
    app, block, begun = BedrockAgentCoreApp(), Block(), threading.Event()
    sent: list[Any] = []

    @app.websocket
    async def handler(websocket: Any, context: Any) -> None:
        begun.set()
        await websocket.accept()

    async def receive() -> Any:
        await asyncio.sleep(PATIENCE)

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        serve: Any = app
        async with living(app) as told:
            app.agent.loop.loop.call_soon_threadsafe(block)
            await asyncio.to_thread(block.wait_until_entered)
            connection = asyncio.create_task(serve(dict(WEBSOCKET), receive, send))
            await eventually(lambda: app.agent.running)
            terminate()
            await connection
            await eventually(lambda: told)
            block.release()
            assert await app.agent.loop.turn(PATIENCE)

    asyncio.run(main())
    assert not begun.is_set()
    assert [message.get("code") for message in sent] == [None, 1001]


FORKING = """
    import asyncio, multiprocessing, os, signal, sys, time
    from litestar_agentcore import BedrockAgentCoreApp

    def own(number, frame): pass

    def dispositions():
        return [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]

    def in_a_child(expected):
        child = os.fork()
        if not child:
            os._exit(0 if dispositions() == expected else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def ended_by_terminate():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
        child.terminate()
        child.join(10)
        return child.exitcode == -signal.SIGTERM

    async def main():
        async with BedrockAgentCoreApp().lifespan():
            ours = dispositions()
            assert own not in ours
            defaults = [signal.SIG_DFL, signal.default_int_handler]
            assert in_a_child(defaults), "a child has our handlers"
            assert await asyncio.to_thread(in_a_child, defaults), "a child of a thread has our handlers"
            for _ in range(10):  # each at once: a signal that comes while the child is being made counts too
                assert ended_by_terminate(), "a child outlived its signal"
                assert await asyncio.to_thread(ended_by_terminate), "a child of a thread outlived its signal"
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
            assert dispositions() == ours, "the parent lost its handlers"
            signal.signal(signal.SIGTERM, own)
            assert in_a_child([own, signal.default_int_handler]), "a child lost a handler of the author's"
        signal.signal(signal.SIGTERM, own)
        signal.signal(signal.SIGINT, own)
        assert in_a_child([own, own]), "a child lost the handlers of a server that has ended"

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGINT, own)
    asyncio.run(main())
    print("as it should be")
"""


def test_a_forked_child_is_ended_by_its_signals_as_any_other_program() -> None:
    script = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", textwrap.dedent(FORKING)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=6 * PATIENCE, check=False)
    assert ended.stdout.strip() == "as it should be", ended.stderr
