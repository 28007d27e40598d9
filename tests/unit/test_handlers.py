"""Every kind of handler that an author may register, and what holds inside it."""

import asyncio
import functools
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, RequestContext

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, events

Handler = Callable[..., Any]


def plain(payload: Any) -> Any:
    return [payload, None]


def plain_context(payload: Any, context: RequestContext) -> Any:
    return [payload, context.session_id]


def plain_keyword(payload: Any, *, context: RequestContext) -> Any:
    return [payload, context.session_id]


async def coroutine(payload: Any) -> Any:
    return [payload, None]


async def coroutine_context(payload: Any, context: RequestContext) -> Any:
    return [payload, context.session_id]


async def coroutine_keyword(payload: Any, *, context: RequestContext) -> Any:
    return [payload, context.session_id]


def generator(payload: Any) -> Iterator[Any]:
    yield payload
    yield None


def generator_context(payload: Any, context: RequestContext) -> Iterator[Any]:
    yield payload
    yield context.session_id


def generator_keyword(payload: Any, *, context: RequestContext) -> Iterator[Any]:
    yield payload
    yield context.session_id


async def async_generator(payload: Any) -> AsyncIterator[Any]:
    yield payload
    yield None


async def async_generator_context(payload: Any, context: RequestContext) -> AsyncIterator[Any]:
    yield payload
    yield context.session_id


async def async_generator_keyword(payload: Any, *, context: RequestContext) -> AsyncIterator[Any]:
    yield payload
    yield context.session_id


class Methods:
    def plain(self, payload: Any) -> Any:
        return [payload, None]

    def plain_context(self, payload: Any, context: RequestContext) -> Any:
        return [payload, context.session_id]

    def plain_keyword(self, payload: Any, *, context: RequestContext) -> Any:
        return [payload, context.session_id]

    async def coroutine(self, payload: Any) -> Any:
        return [payload, None]

    async def coroutine_context(self, payload: Any, context: RequestContext) -> Any:
        return [payload, context.session_id]

    async def coroutine_keyword(self, payload: Any, *, context: RequestContext) -> Any:
        return [payload, context.session_id]

    def generator(self, payload: Any) -> Iterator[Any]:
        yield payload
        yield None

    def generator_context(self, payload: Any, context: RequestContext) -> Iterator[Any]:
        yield payload
        yield context.session_id

    def generator_keyword(self, payload: Any, *, context: RequestContext) -> Iterator[Any]:
        yield payload
        yield context.session_id

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        yield payload
        yield None

    async def async_generator_context(self, payload: Any, context: RequestContext) -> AsyncIterator[Any]:
        yield payload
        yield context.session_id

    async def async_generator_keyword(self, payload: Any, *, context: RequestContext) -> AsyncIterator[Any]:
        yield payload
        yield context.session_id


async def returns_generator(payload: Any) -> Any:
    return generator(payload)


async def returns_generator_context(payload: Any, context: RequestContext) -> Any:
    return generator_context(payload, context)


async def returns_generator_keyword(payload: Any, *, context: RequestContext) -> Any:
    return generator_context(payload, context)


async def returns_async_generator(payload: Any) -> Any:
    return async_generator(payload)


async def returns_async_generator_context(payload: Any, context: RequestContext) -> Any:
    return async_generator_context(payload, context)


async def returns_async_generator_keyword(payload: Any, *, context: RequestContext) -> Any:
    return async_generator_context(payload, context)


METHODS: dict[str, Handler] = {name: method for name, method in vars(Methods).items() if not name.startswith("_")}

FUNCTIONS: dict[str, Handler] = {name: globals()[name] for name in METHODS}

BOUND_METHODS: dict[str, Handler] = {f"bound method {name}": getattr(Methods(), name) for name in METHODS}

OBJECTS: dict[str, Handler] = {
    f"object {name}": type("Agent", (), {"__call__": method})() for name, method in METHODS.items()
}

PARTIALS: dict[str, Handler] = {
    f"partial {name}": functools.partial(method, Methods()) for name, method in METHODS.items()
}

RETURNERS: dict[str, Handler] = {
    "async function that returns a generator": returns_generator,
    "async function that returns a generator, context": returns_generator_context,
    "async function that returns a generator, keyword": returns_generator_keyword,
    "async function that returns an async generator": returns_async_generator,
    "async function that returns an async generator, context": returns_async_generator_context,
    "async function that returns an async generator, keyword": returns_async_generator_keyword,
    "function that returns a generator": lambda payload: generator(payload),
    "function that returns a generator, context": lambda payload, context: generator_context(payload, context),
    "function that returns a generator, keyword": lambda payload, *, context: generator_context(payload, context),
    "function that returns an async generator": lambda payload: async_generator(payload),
    "function that returns an async generator, context": lambda payload, context: async_generator_context(
        payload, context
    ),
    "function that returns an async generator, keyword": lambda payload, *, context: async_generator_context(
        payload, context
    ),
    "function that returns a coroutine": lambda payload: coroutine(payload),
    "function that returns a coroutine, context": lambda payload, context: coroutine_context(payload, context),
    "function that returns a coroutine, keyword": lambda payload, *, context: coroutine_context(payload, context),
    "function that returns a coroutine of a generator": lambda payload: returns_generator(payload),
    "function that returns a coroutine of an async generator": lambda payload: returns_async_generator(payload),
}

EVERY_KIND = FUNCTIONS | BOUND_METHODS | OBJECTS | PARTIALS | RETURNERS


def answers(response: httpx.Response) -> Any:
    return response.json() if response.headers["content-type"] == "application/json" else events(response)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_of_handler_is_returned_unchanged_and_answers(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    assert app.entrypoint(EVERY_KIND[name]) is EVERY_KIND[name]

    response = client.post("/invocations", json={"prompt": "hi"}, headers={SESSION_ID: "session"})

    assert response.status_code == 200
    assert response.headers["content-type"] == ("text/event-stream" if "generator" in name else "application/json")
    takes_context = name.endswith(("context", "keyword"))
    assert answers(response) == [{"prompt": "hi"}, "session" if takes_context else None]


def test_a_partial_of_a_bound_method_answers(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(functools.partial(Methods().coroutine_context))
    assert client.post("/invocations", json=1, headers={SESSION_ID: "session"}).json() == [1, "session"]


def test_a_partial_may_fix_further_arguments(app: BedrockAgentCoreApp, client: Client) -> None:
    def handler(payload: Any, context: RequestContext, model: str) -> Any:
        return [payload, context.session_id, model]

    app.entrypoint(functools.partial(handler, model="small"))
    assert client.post("/invocations", json=1, headers={SESSION_ID: "session"}).json() == [1, "session", "small"]


def test_a_decorated_handler_is_asked_for_context_by_its_own_signature(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    @functools.wraps(coroutine_context)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return coroutine_context(*args, **kwargs)

    app.entrypoint(wrapper)
    assert client.post("/invocations", json=1, headers={SESSION_ID: "session"}).json() == [1, "session"]


@pytest.mark.parametrize(
    "handler",
    [
        lambda payload, ctx=None: [payload, ctx],
        lambda payload, verbose=None, context=None: [payload, context],
        lambda payload, *, verbose=None: [payload, verbose],
    ],
)
def test_a_handler_whose_second_parameter_is_not_named_context_gets_the_payload_alone(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)
    assert client.post("/invocations", json=1).json() == [1, None]


def test_a_handler_gets_the_context_even_where_that_has_a_default(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: Any, context: RequestContext | None = None) -> Any:
        return context is not None

    assert client.post("/invocations", json=1).json() is True


@pytest.mark.parametrize(
    "handler",
    [lambda payload: payload, functools.partial(plain), type("Agent", (), {"__call__": METHODS["plain"]})()],
    ids=["function", "partial", "object"],
)
def test_entrypoint_gives_the_handler_a_run_that_serves_the_app(
    app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    served: list[tuple[Any, Any, Any]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, host, port, **_: served.append((app, host, port)))

    app.entrypoint(handler).run(port=9000, host="127.0.0.2")

    assert served == [(app, "127.0.0.2", 9000)]


def test_the_run_of_a_handler_has_the_defaults_of_the_app(
    app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[Any, Any]] = []
    monkeypatch.setattr("uvicorn.run", lambda _, **options: served.append((options["host"], options["port"])))
    handler: Any = app.entrypoint(lambda payload: payload)

    handler.run()
    app.run()

    assert served[0] == served[1]
    assert served[0][1] == 8080


class Slotted:
    __slots__ = ()

    def __call__(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize("handler", [Methods().plain, Slotted(), str.upper], ids=["bound method", "slots", "builtin"])
def test_a_handler_that_takes_no_attributes_gets_no_run_and_that_is_no_error(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    assert not hasattr(app.entrypoint(handler), "run")
    assert client.post("/invocations", json="hi").status_code == 200


class HasRunMethod:
    def run(self) -> str:
        return "own"

    def __call__(self, payload: Any) -> Any:
        return payload


class HasRunAttribute:
    def __init__(self) -> None:
        self.run = lambda: "own"

    def __call__(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize("kind", [HasRunMethod, HasRunAttribute])
def test_an_object_keeps_a_run_of_its_own(
    app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch, kind: type[HasRunMethod | HasRunAttribute]
) -> None:
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    assert app.entrypoint(kind()).run() == "own"


@pytest.mark.parametrize(
    "handler",
    [
        lambda: None,
        lambda *, payload: None,
        lambda payload, other: None,
        lambda payload, context, other: None,
        lambda payload, *, other: None,
        functools.partial(plain, 1),
        object(),
        "handler",
        None,
    ],
)
def test_what_cannot_be_called_with_a_payload_is_a_type_error_at_registration(
    app: BedrockAgentCoreApp, handler: Any
) -> None:
    with pytest.raises(TypeError):
        app.entrypoint(handler)


own: ContextVar[str | None] = ContextVar("own", default=None)


def seen() -> list[str | None]:
    return [
        BedrockAgentCoreContext.get_request_id(),
        BedrockAgentCoreContext.get_session_id(),
        BedrockAgentCoreContext.get_workload_access_token(),
        BedrockAgentCoreContext.get_oauth2_callback_url(),
        (BedrockAgentCoreContext.get_request_headers() or {}).get("x-topic"),
        own.get(),
    ]


async def see() -> list[str | None]:
    return seen()


class Seeing:
    """Handlers that set a context variable of their own, and tell what they see before and after the others did."""

    def __init__(self, others: int) -> None:
        self.threads = threading.Barrier(others, timeout=60)
        self.tasks = asyncio.Barrier(others)

    async def meet(self) -> None:
        async with asyncio.timeout(60):
            await self.tasks.wait()

    def plain(self, payload: str) -> Any:
        own.set(payload)
        self.threads.wait()
        return [seen()]

    async def coroutine(self, payload: str) -> Any:
        own.set(payload)
        await self.meet()
        return [seen()]

    def generator(self, payload: str) -> Iterator[Any]:
        own.set(payload)
        yield seen()
        self.threads.wait()
        yield seen()

    async def async_generator(self, payload: str) -> AsyncIterator[Any]:
        own.set(payload)
        yield seen()
        await self.meet()
        yield seen()

    def returned_generator(self, payload: str) -> Any:
        own.set(payload)

        def generate() -> Iterator[Any]:
            yield seen()
            self.threads.wait()
            yield seen()

        return generate()

    async def returned_async_generator(self, payload: str) -> Any:
        own.set(payload)

        async def generate() -> AsyncIterator[Any]:
            yield seen()
            await self.meet()
            yield seen()

        return generate()

    def returned_coroutine(self, payload: str) -> Any:
        own.set(payload)

        async def answer() -> Any:
            await self.meet()
            return [seen()]

        return answer()

    async def tasks_and_threads(self, payload: str) -> Any:
        own.set(payload)
        task = asyncio.create_task(see())
        await self.meet()
        return [await task, await asyncio.create_task(see()), await asyncio.to_thread(seen)]

    async def tasks_and_threads_of_a_generator(self, payload: str) -> AsyncIterator[Any]:
        own.set(payload)
        yield await asyncio.create_task(see())
        await self.meet()
        yield await asyncio.create_task(see())
        yield await asyncio.to_thread(seen)


SEEING = [
    name for name, value in vars(Seeing).items() if callable(value) and name != "meet" and not name.startswith("_")
]


def ask(client: Client, name: str) -> httpx.Response:
    headers = {
        REQUEST_ID: name,
        SESSION_ID: name,
        "WorkloadAccessToken": name,
        "OAuth2CallbackUrl": name,
        "X-Topic": name,
    }
    return client.post("/invocations", json=name, headers=headers)


@pytest.mark.parametrize("name", SEEING)
def test_context_variables_hold_in_a_handler_and_leak_into_no_other_request(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    names = [f"request-{number}" for number in range(20)]
    app.entrypoint(getattr(Seeing(len(names)), name))

    with ThreadPoolExecutor(len(names)) as clients:
        responses = list(clients.map(lambda name: ask(client, name), names))

    for name, response in zip(names, responses, strict=True):
        told = answers(response)
        assert told
        assert all(values == [name] * 6 for values in told)


class Setting:
    """Handlers that set everything, and tell what they saw before they did."""

    def change(self) -> Any:
        before = [BedrockAgentCoreContext.get_session_id(), *seen()[2:]]
        BedrockAgentCoreContext.set_request_context("changed", "changed")
        BedrockAgentCoreContext.set_workload_access_token("changed")
        BedrockAgentCoreContext.set_oauth2_callback_url("changed")
        BedrockAgentCoreContext.set_request_headers({"x-topic": "changed"})
        own.set("changed")
        return before

    def plain(self, payload: Any) -> Any:
        return [self.change(), seen()]

    async def coroutine(self, payload: Any) -> Any:
        return [self.change(), await asyncio.create_task(see())]

    def generator(self, payload: Any) -> Iterator[Any]:
        yield self.change()
        yield seen()

    async def async_generator(self, payload: Any) -> AsyncIterator[Any]:
        yield self.change()
        yield seen()


@pytest.mark.parametrize("name", ["plain", "coroutine", "generator", "async_generator"])
def test_what_a_handler_sets_holds_for_its_own_request_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "1")
    app = BedrockAgentCoreApp()
    app.entrypoint(getattr(Setting(), name))

    with TestClient(app=app) as client:
        for _ in range(2):
            assert answers(client.post("/invocations", json=1)) == [[None] * 5, ["changed"] * 6]


def test_a_task_of_a_handler_outlives_its_return_and_keeps_its_context(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    waiting: list[weakref.ref[asyncio.Future[None]]] = []
    began, ended = asyncio.Event(), threading.Event()
    late: list[Any] = []

    async def work() -> None:
        proceed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(proceed))
        began.set()
        await proceed
        late.append(seen())
        ended.set()

    @app.entrypoint
    async def handler(payload: str) -> str:
        if payload == "begin":
            own.set(payload)
            asyncio.create_task(work())  # noqa: RUF006
            await began.wait()
        else:
            proceed = waiting[0]()
            assert proceed is not None, "the task was forgotten"
            proceed.set_result(None)
        return "answered"

    assert ask(client, "begin").json() == "answered"
    gc.collect()
    assert not ended.is_set()
    assert ask(client, "proceed").json() == "answered"
    assert ended.wait(60)
    assert late == [["begin"] * 6]


class Exiting:
    """Handlers that try to end the process when they are told to."""

    def plain(self, payload: Any) -> Any:
        return sys.exit("enough") if payload == "exit" else payload

    async def coroutine(self, payload: Any) -> Any:
        return sys.exit("enough") if payload == "exit" else payload

    async def thread(self, payload: Any) -> Any:
        return await asyncio.to_thread(self.plain, payload)


@pytest.mark.parametrize("name", ["plain", "coroutine", "thread"])
def test_sys_exit_in_a_handler_is_answered_500_and_does_not_end_the_service(
    app: BedrockAgentCoreApp, client: Client, name: str
) -> None:
    app.entrypoint(getattr(Exiting(), name))

    response = client.post("/invocations", json="exit")

    assert response.status_code == 500
    assert response.json() == {"error": "enough"}
    assert client.post("/invocations", json="go on").json() == "go on"


def exiting_generator(payload: Any) -> Iterator[Any]:
    yield "first"
    if payload == "exit":
        sys.exit("enough")


async def exiting_async_generator(payload: Any) -> AsyncIterator[Any]:
    yield "first"
    if payload == "exit":
        sys.exit("enough")


@pytest.mark.parametrize("handler", [exiting_generator, exiting_async_generator])
def test_sys_exit_in_a_generator_is_its_last_event_and_does_not_end_the_service(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)

    first, last = events(client.post("/invocations", json="exit"))

    assert first == "first"
    assert (last["error"], last["error_type"]) == ("enough", "SystemExit")
    assert events(client.post("/invocations", json="go on")) == ["first"]


def test_sys_exit_in_a_task_of_a_handler_ends_neither_the_service_nor_other_handlers(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    waiting, proceed, exits = threading.Event(), asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        exits.set()
        sys.exit("enough")

    @app.entrypoint
    async def handler(payload: str) -> str:
        if payload == "wait":
            waiting.set()
            await proceed.wait()
        elif payload == "exit":
            asyncio.create_task(leave()).add_done_callback(asyncio.Task.exception)
            await exits.wait()
        else:
            proceed.set()
        return payload

    with ThreadPoolExecutor(1) as clients:
        other = clients.submit(client.post, "/invocations", json="wait")
        assert waiting.wait(60)
        assert client.post("/invocations", json="exit").json() == "exit"
        assert client.post("/invocations", json="proceed").json() == "proceed"
        assert other.result(60).json() == "wait"
