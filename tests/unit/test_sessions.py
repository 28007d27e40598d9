"""Sessions: what is known of each, how they are stopped, and when the author's hook is called."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from litestar import Litestar
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, BedrockAgentCoreContext
from litestar_agentcore.runtime import sessions as sessions_module

from tests.unit.blocking import PATIENCE
from tests.unit.conftest import LogLines
from tests.unit.test_shutdown import WEBSOCKET, begin, count, eventually, invoke, living, terminate

WHERE = ["isolated", "inline"]


@pytest.fixture(params=WHERE)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_HANDLER_ISOLATION", request.param)


class Ended:
    """What had its ``finally`` run to the end."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def wait(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            self.names.append(name)


def busy_app(ended: Ended) -> BedrockAgentCoreApp:
    app = BedrockAgentCoreApp()

    @app.async_task
    async def research() -> None:
        await ended.wait("task")

    async def stream() -> AsyncIterator[int]:
        yield 0
        await ended.wait("stream")

    @app.entrypoint
    async def handler(payload: str) -> Any:
        if payload == "task":
            asyncio.create_task(research())  # noqa: RUF006 - the service keeps it
            await asyncio.sleep(0.01)
            return None
        if payload == "stream":
            return stream()
        if payload == "now":
            await asyncio.sleep(0)
            return "now"
        await ended.wait("invocation")
        return None

    @app.websocket
    async def converse(websocket: Any, context: Any) -> None:
        await websocket.accept()
        await ended.wait("socket")

    return app


class Socket:
    """A WebSocket of the session ``raw``, spoken in ASGI."""

    def __init__(self, app: Any) -> None:
        self.sent: list[Any] = []
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._messages.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.get_running_loop().create_task(app(dict(WEBSOCKET), self._messages.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.usefixtures("where")
def test_all_that_runs_for_a_session_is_listed_and_stopped(log: LogLines) -> None:
    ended = Ended()
    app = busy_app(ended)
    sessions = app.agent.sessions

    async def main() -> None:
        async with living(app):
            unary = await begin(app, "raw", "wait")
            stream = await begin(app, "raw", "stream")
            socket = Socket(app)
            await eventually(lambda: socket.sent)
            await invoke(app, "raw", "task")
            other = await begin(app, "other", "wait")
            await eventually(lambda: (known := sessions.get("raw")) is not None and known.streams == 1)
            known = sessions.get("raw")
            assert known is not None
            assert (known.invocations, known.streams, known.websockets, known.tasks) == (1, 1, 1, 1)
            assert [session.id for session in sessions.list()] == list(sessions) == ["raw", "other"]
            assert len(sessions) == count(app, "agentcore_sessions") == 2
            assert "raw" in sessions
            assert await sessions.stop("raw") is True
            assert sorted(ended.names) == ["invocation", "socket", "stream", "task"]
            answer = await unary
            assert (answer.status_code, answer.json()) == (409, {"error": "The session was stopped"})
            last = (await stream).text.split("\n\n")[-2]
            assert json.loads(last.removeprefix("data: "))["error_type"] == "SessionStopped"
            await socket.task
            assert socket.sent[-1]["code"] == 1001
            assert await sessions.stop("raw") is False
            assert sessions.get("raw") is None
            assert not other.done()
            assert await sessions.stop("other") is True
            await other

    asyncio.run(main())
    for mode in ("unary", "stream"):
        expected = 2 if mode == "unary" else 1
        assert count(app, f'agentcore_invocations_total{{mode="{mode}",outcome="cancelled"}}') == expected
    assert count(app, 'agentcore_async_tasks_total{name="research",outcome="lost"}') == 1
    said = [
        line["message"]
        for line in log.lines
        if "session raw was still running when that was stopped" in line["message"]
    ]
    assert len(said) == 4


def test_a_session_that_is_not_here_cannot_be_stopped() -> None:
    assert asyncio.run(BedrockAgentCoreApp().agent.sessions.stop("nobody")) is False


def test_a_session_is_stopped_from_a_thread() -> None:
    ended = Ended()
    app = busy_app(ended)

    async def main() -> None:
        async with living(app):
            call = await begin(app, "one")
            assert await asyncio.to_thread(lambda: asyncio.run(app.agent.sessions.stop("one"))) is True
            assert ended.names == ["invocation"]
            assert (await call).status_code == 409

    asyncio.run(main())


def test_two_stops_at_once_and_a_new_request_do_not_disturb_one_another() -> None:
    ended = Ended()
    app = busy_app(ended)
    called: list[str] = []
    app.session_end(called.append)

    async def main() -> None:
        async with living(app):
            call = await begin(app, "one")
            stops = [asyncio.create_task(app.agent.sessions.stop("one")) for _ in range(2)]
            await asyncio.sleep(0)
            assert (await invoke(app, "one", "now")).json() == "now"
            await asyncio.gather(*stops)
            assert (await call).status_code == 409
            assert called == ["one"]
            assert "one" in app.agent.sessions

    asyncio.run(main())
    assert called == ["one", "one"]


def test_a_handler_may_stop_its_own_session() -> None:
    app = BedrockAgentCoreApp()
    called: list[str] = []
    app.session_end(called.append)

    @app.entrypoint
    async def handler(payload: Any) -> None:
        await app.agent.sessions.stop("one")

    async def main() -> None:
        async with living(app):
            assert (await invoke(app, "one")).status_code == 409
            await eventually(lambda: called == ["one"])

    asyncio.run(main())


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_idle_session_is_ended_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SESSION_IDLE_SECONDS", "1000")
    app = busy_app(Ended())
    called: list[tuple[str, str | None]] = []

    def plain(session_id: str) -> None:
        called.append((session_id, BedrockAgentCoreContext.get_session_id()))

    async def asynchronous(session_id: str) -> None:
        await asyncio.sleep(0)
        plain(session_id)

    app.session_end(plain if kind == "plain" else asynchronous)
    now = 0.0
    sessions = app.agent.sessions
    sessions._clock = lambda: now

    async def main() -> None:
        nonlocal now
        async with living(app):
            await invoke(app, "one", "now")
            running = await begin(app, "busy")
            now = 999.0
            sessions.end_idle()
            assert "one" in sessions
            now = 1000.0
            sessions.end_idle()
            assert list(sessions) == ["busy"]
            await eventually(lambda: called)
            now = 5000.0
            sessions.end_idle()
            assert list(sessions) == ["busy"]
            assert called == [("one", "one")]
            await sessions.stop("busy")
            await running
            assert called == [("one", "one"), ("busy", "busy")]

    asyncio.run(main())
    assert len(called) == 2


@pytest.mark.usefixtures("where")
def test_the_hook_of_an_idle_session_is_kept_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SESSION_IDLE_SECONDS", "1000")
    app = busy_app(Ended())
    waiting: list[weakref.ref[asyncio.Future[None]]] = []
    ended: list[str] = []

    @app.session_end
    async def hook(session_id: str) -> None:
        proceed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(proceed))
        await proceed
        ended.append(session_id)

    sessions = app.agent.sessions
    now = 0.0
    sessions._clock = lambda: now

    async def main() -> None:
        nonlocal now
        async with living(app):
            await invoke(app, "one", "now")
            now = 1000.0
            sessions.end_idle()
            await eventually(lambda: waiting)
            await asyncio.sleep(0.05)  # the step that told of it is over
            gc.collect()
            proceed = waiting[0]()
            assert proceed is not None, "the task was forgotten"
            proceed.get_loop().call_soon_threadsafe(proceed.set_result, None)
            await eventually(lambda: ended == ["one"])

    asyncio.run(main())


def test_idle_sessions_are_looked_for_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_SESSION_IDLE_SECONDS", "0.1")
    app = busy_app(Ended())
    called: list[str] = []
    app.session_end(called.append)

    async def main() -> None:
        async with living(app):
            await invoke(app, "one", "now")
            await eventually(lambda: called == ["one"])

    asyncio.run(main())
    asyncio.run(main_again(app, called))


async def main_again(app: BedrockAgentCoreApp, called: list[str]) -> None:
    """The same in a second lifespan, on another loop."""
    async with living(app):
        await invoke(app, "two", "now")
        await eventually(lambda: called == ["one", "two"])


@pytest.mark.usefixtures("where")
def test_at_shutdown_every_kept_session_is_ended_before_the_server_is_told(log: LogLines) -> None:
    app = busy_app(Ended())
    called: list[str] = []

    @app.session_end
    async def hook(session_id: str) -> None:
        called.append(session_id)
        await asyncio.sleep(0)
        raise ValueError("spoilt")

    async def main() -> None:
        async with living(app) as told:
            await invoke(app, "one", "now")
            await invoke(app, "two", "now")
            terminate()
            assert (await invoke(app, "late", "now")).status_code == 503
            await eventually(lambda: told)
            assert sorted(called) == ["one", "two"]

    asyncio.run(main())
    failed = [line for line in log.lines if line["message"].startswith("The session end hook raised")]
    assert sorted(line["sessionId"] for line in failed) == ["one", "two"]
    assert len(app.agent.sessions) == 0


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_hook_that_hangs_is_named_and_not_waited_for(
    kind: str, log: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "SHUTDOWN_SECONDS", 0.2)
    monkeypatch.setenv("AGENTCORE_SHUTDOWN_GRACE_SECONDS", "0")
    app = busy_app(Ended())
    release = threading.Event()

    async def hangs(session_id: str) -> None:
        await asyncio.Event().wait()

    app.session_end((lambda _: release.wait(PATIENCE)) if kind == "plain" else hangs)

    async def main() -> None:
        async with living(app):
            await invoke(app, "one", "now")

    asyncio.run(main())
    release.set()
    assert [line for line in log.lines if "hook for session one did not end" in line["message"]]


def test_without_idle_seconds_and_a_hook_nothing_is_kept() -> None:
    app = busy_app(Ended())

    async def main() -> None:
        async with living(app):
            for number in range(50):
                await invoke(app, f"s{number}", "now")
            sessions = app.agent.sessions
            for number in range(10_000):
                assert sessions.begin(f"s{number}") is None
            assert sessions._kept == {}
            await eventually(lambda: len(sessions) == 0)

    asyncio.run(main())


def test_sessions_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    app = busy_app(Ended())
    called: list[str] = []
    app.session_end(called.append)

    async def main() -> None:
        sessions = app.agent.sessions
        for number in range(sessions_module.MAX_KEPT + 1):
            kept = sessions.begin(f"s{number:05}")
            assert kept is not None
            sessions.end(kept)
        assert len(sessions) == sessions_module.MAX_KEPT * 9 // 10 + 1
        await eventually(lambda: len(called) == sessions_module.MAX_KEPT // 10)
        assert "s00000" not in sessions

    asyncio.run(main())


def no_argument() -> None: ...


def generator(session_id: str) -> Any:
    yield


async def async_generator(session_id: str) -> Any:
    yield


@pytest.mark.parametrize("function", [no_argument, generator, async_generator, 1])
@pytest.mark.parametrize("make", [BedrockAgentCoreApp, AgentCorePlugin])
def test_a_hook_that_cannot_be_called_is_refused(make: Callable[[], Any], function: Any) -> None:
    with pytest.raises(TypeError, match="session_end"):
        make().session_end(function)


def test_a_session_inside_a_host_application_counts_as_well() -> None:
    plugin = AgentCorePlugin(lambda payload: payload)
    called: list[str] = []
    assert plugin.session_end(called.append) is not None
    host: Any = Litestar(plugins=[plugin])

    async def main() -> None:
        async with host.lifespan():
            await invoke(host, "one", "now")
            assert list(plugin.agent.sessions) == ["one"]

    asyncio.run(main())
    assert called == ["one"]
