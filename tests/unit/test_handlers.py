"""Every kind of handler that an author may register, and what holds inside it."""

import asyncio
import functools
import gc
import inspect
import json
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from litestar import Response
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, RequestContext
from litestar_agentcore.runtime.handler import HandlerKind, inspect_handler, name_of

from tests.deadline import deadline
from tests.unit.blocking import PATIENCE, cancel_all_before_their_first_step, eventually
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


async def awaits(payload: Any) -> Any:
    await asyncio.sleep(0)
    return payload


async def iterates(payload: Any) -> Any:
    async for value in async_generator(payload):
        return value
    return None


async def enters(payload: Any) -> Any:
    async with asyncio.timeout(1):
        return payload


async def awaits_on_one_path(payload: Any) -> Any:
    if payload == "wait":
        await asyncio.sleep(0)
    return payload


async def awaits_in_a_comprehension(payload: Any) -> Any:
    return [await coroutine(number) for number in range(3)]


async def iterates_in_a_list(payload: Any) -> Any:
    return [value async for value in async_generator(payload)]


async def iterates_in_a_set(payload: Any) -> Any:
    return {str(value) async for value in async_generator(payload)}


async def iterates_in_a_dict(payload: Any) -> Any:
    return {str(value): value async for value in async_generator(payload)}


async def awaits_within_a_generator_expression_that_it_consumes(payload: Any) -> Any:
    return [value async for value in (await coroutine(number) for number in range(3))]


async def awaits_what_has_an_await_method(payload: Any) -> Any:
    return await asyncio.ensure_future(coroutine(payload))


async def leaves_the_await_to_a_nested_function(payload: Any) -> Any:
    async def nested() -> Any:
        await asyncio.sleep(0)
        return [payload, None]

    return asyncio.create_task(nested())


async def returns_a_generator_expression(payload: Any) -> Any:
    return (value async for value in async_generator(payload))


async def comprehends_plainly(payload: Any) -> Any:
    return [number for number in range(3)]


async def yields_nothing_and_waits_for_nobody(payload: Any) -> Any:
    with memoryview(b"x"):
        for _ in range(3):
            pass
    return (lambda value: value)(payload)


class Objects:
    """Callable objects, which have no code of their own but that of their class."""

    class Awaits:
        async def __call__(self, payload: Any) -> Any:
            await asyncio.sleep(0)
            return payload

    class OneStep:
        async def __call__(self, payload: Any) -> Any:
            return payload

    class Plain:
        def __call__(self, payload: Any) -> Any:
            return payload


def traced(function: Handler) -> Handler:
    """A decorator that awaits what it decorates."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def handed_on(function: Handler) -> Handler:
    """A decorator whose own code waits for nothing: it hands the coroutine on."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def plainly_decorated(function: Handler) -> Handler:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Ask(msgspec.Struct):
    prompt: str


async def typed(payload: Ask) -> str:
    return payload.prompt


async def typed_that_awaits(payload: Ask) -> str:
    await asyncio.sleep(0)
    return payload.prompt


async def typed_generator(payload: Ask) -> AsyncIterator[str]:
    yield payload.prompt


KINDS: list[tuple[Handler, HandlerKind]] = [
    (plain, HandlerKind.PLAIN),
    (generator, HandlerKind.PLAIN_GENERATOR),
    (async_generator, HandlerKind.ASYNC_GENERATOR),
    (awaits, HandlerKind.COROUTINE),
    (iterates, HandlerKind.COROUTINE),
    (enters, HandlerKind.COROUTINE),
    (awaits_on_one_path, HandlerKind.COROUTINE),
    (awaits_in_a_comprehension, HandlerKind.COROUTINE),
    (iterates_in_a_list, HandlerKind.COROUTINE),
    (iterates_in_a_set, HandlerKind.COROUTINE),
    (iterates_in_a_dict, HandlerKind.COROUTINE),
    (awaits_within_a_generator_expression_that_it_consumes, HandlerKind.COROUTINE),
    (awaits_what_has_an_await_method, HandlerKind.COROUTINE),
    (coroutine, HandlerKind.ONE_STEP),
    (leaves_the_await_to_a_nested_function, HandlerKind.ONE_STEP),
    (returns_a_generator_expression, HandlerKind.ONE_STEP),
    (returns_generator, HandlerKind.ONE_STEP),
    (returns_async_generator, HandlerKind.ONE_STEP),
    (comprehends_plainly, HandlerKind.ONE_STEP),
    (yields_nothing_and_waits_for_nobody, HandlerKind.ONE_STEP),
    (functools.partial(awaits), HandlerKind.COROUTINE),
    (functools.partial(functools.partial(coroutine)), HandlerKind.ONE_STEP),
    (functools.partial(Methods().generator), HandlerKind.PLAIN_GENERATOR),
    (Methods().plain, HandlerKind.PLAIN),
    (Methods().coroutine, HandlerKind.ONE_STEP),
    (Methods().generator, HandlerKind.PLAIN_GENERATOR),
    (Methods().async_generator, HandlerKind.ASYNC_GENERATOR),
    (Objects.Awaits().__call__, HandlerKind.COROUTINE),
    (Objects.Awaits(), HandlerKind.COROUTINE),
    (Objects.OneStep(), HandlerKind.ONE_STEP),
    (Objects.Plain(), HandlerKind.PLAIN),
    (functools.partial(Objects.OneStep()), HandlerKind.ONE_STEP),
    (traced(awaits), HandlerKind.COROUTINE),
    (traced(coroutine), HandlerKind.COROUTINE),
    (handed_on(awaits), HandlerKind.ONE_STEP),
    (plainly_decorated(awaits), HandlerKind.PLAIN),
    (plainly_decorated(generator), HandlerKind.PLAIN),
    (typed, HandlerKind.ONE_STEP),
    (typed_that_awaits, HandlerKind.COROUTINE),
    (str.upper, HandlerKind.PLAIN),
    (Ask, HandlerKind.PLAIN),
]


@pytest.mark.parametrize(("handler", "kind"), KINDS, ids=[name_of(handler) for handler, _ in KINDS])
def test_where_a_handler_must_run_is_told_by_its_own_code(handler: Handler, kind: HandlerKind) -> None:
    assert inspect_handler(handler).kind is kind


def test_a_generator_of_a_typed_payload_is_made_on_the_agents_loop_where_the_payload_is_decoded() -> None:
    assert inspect_handler(typed_generator).kind is HandlerKind.COROUTINE


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction came with Python 3.12")
def test_a_plain_function_that_is_marked_as_a_coroutine_function_runs_on_the_agents_loop(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    def marked(payload: Any) -> Any:
        return awaits(payload)

    mark: Any = inspect.markcoroutinefunction  # type: ignore[attr-defined,unused-ignore]
    app.entrypoint(mark(marked))
    assert app.agent.entrypoint is not None
    assert app.agent.entrypoint.kind is HandlerKind.COROUTINE
    assert client.post("/invocations", json="hi").json() == "hi"


@pytest.mark.parametrize(
    "handler",
    [
        handler
        for handler, kind in KINDS
        if kind in {HandlerKind.ONE_STEP, HandlerKind.COROUTINE} and handler not in {typed, typed_that_awaits}
    ],
    ids=name_of,
)
def test_async_handlers_answer_alike_wherever_they_run(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)
    response = client.post("/invocations", json="hi")
    assert response.status_code == 200
    body = json.dumps(answers(response))
    assert "hi" in body or body in {"[0, 1, 2]", "[[0, null], [1, null], [2, null]]"}


async def where(payload: Any) -> list[Any]:
    return [threading.current_thread().name, id(asyncio.get_running_loop())]


async def where_after_an_await(payload: Any) -> list[Any]:
    await asyncio.sleep(0)
    return [threading.current_thread().name, id(asyncio.get_running_loop())]


class TestAHandlerWithoutAnAwait:
    def test_it_runs_in_a_thread_of_the_pool_with_the_agents_loop_as_the_running_one(
        self, app: BedrockAgentCoreApp, client: Client
    ) -> None:
        app.entrypoint(where)
        thread, loop = client.post("/invocations", json={}).json()
        assert thread.startswith("agentcore-sync")
        app.entrypoint(where_after_an_await)
        assert client.post("/invocations", json={}).json() == ["agentcore-loop", loop]
        assert loop == id(app.agent.loop.loop)

    def test_the_thread_has_no_running_loop_afterwards(
        self, app: BedrockAgentCoreApp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def running(payload: Any) -> bool:
            return asyncio._get_running_loop() is not None

        async def fails(payload: Any) -> None:
            raise LookupError

        monkeypatch.setenv("AGENTCORE_SYNC_THREADS", "1")
        app = BedrockAgentCoreApp()
        with TestClient(app=app) as client:
            for handler in (where, fails):
                app.entrypoint(handler)
                client.post("/invocations", json={})
                app.entrypoint(running)
                assert client.post("/invocations", json={}).json() is False

    def test_many_that_block_do_not_wait_for_one_another(self, app: BedrockAgentCoreApp, client: Client) -> None:
        together = threading.Barrier(8)

        @app.entrypoint
        async def handler(payload: Any) -> int:
            return together.wait(PATIENCE)

        with ThreadPoolExecutor(8) as clients:
            answered = [clients.submit(client.post, "/invocations", json={}) for _ in range(8)]
            assert sorted(answer.result(PATIENCE).json() for answer in answered) == list(range(8))

    def test_what_it_makes_belongs_to_the_agents_loop(self, app: BedrockAgentCoreApp, client: Client) -> None:
        seen: list[Any] = []
        done = threading.Event()

        async def work() -> None:
            await asyncio.sleep(0)
            seen.append(await where_after_an_await(None))
            done.set()

        @app.entrypoint
        async def handler(payload: Any) -> int:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, seen.append, "timer")
            asyncio.create_task(work())  # noqa: RUF006 - the loop keeps it
            return id(loop)

        loop = client.post("/invocations", json={}).json()
        assert done.wait(PATIENCE)
        eventually(lambda: len(seen) == 2)
        assert ["agentcore-loop", loop] in seen
        assert loop == id(app.agent.loop.loop)

    def test_what_its_value_does_while_it_is_encoded_may_ask_for_the_running_loop(
        self, app: BedrockAgentCoreApp, client: Client
    ) -> None:
        class Value:
            def model_dump(self) -> Any:
                return id(asyncio.get_running_loop())

        @app.entrypoint
        async def handler(payload: Any) -> Any:
            return Value()

        assert client.post("/invocations", json={}).json() == id(app.agent.loop.loop)

    @pytest.mark.parametrize("payload", [{}, {"prompt": 1}, []])
    def test_a_payload_that_does_not_fit_is_refused(
        self, app: BedrockAgentCoreApp, client: Client, payload: Any
    ) -> None:
        app.entrypoint(typed)
        response = client.post("/invocations", json=payload)
        assert (response.status_code, response.json()["error"]) == (400, "Invalid payload")
        assert client.post("/invocations", json={"prompt": "hi"}).json() == "hi"

    def test_one_that_waits_all_the_same_is_answered_500_that_says_so(
        self, app: BedrockAgentCoreApp, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("litestar_agentcore.runtime.handler._has_one_step", lambda _: True)
        app.entrypoint(awaits)
        response = client.post("/invocations", json={})
        assert response.status_code == 500
        assert "has no await and waits all the same" in response.json()["error"]


def exclaims(function: Handler) -> Handler:
    """A decorator that changes the payload."""

    @functools.wraps(function)
    async def wrapper(payload: Any, *args: Any, **kwargs: Any) -> Any:
        return await function({"prompt": f"{payload['prompt']}!"}, *args, **kwargs)

    return wrapper


def adds_an_argument(function: Handler) -> Handler:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, token="secret", **kwargs)

    return wrapper


class TestDecorators:
    def test_behind_one_the_payload_is_plain_json_and_the_author_is_told_at_the_start(
        self, app: BedrockAgentCoreApp, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.entrypoint
        @traced
        async def handler(payload: Ask) -> str:
            return type(payload).__name__

        with TestClient(app=app) as client:
            assert client.post("/invocations", json={"prompt": 1}).json() == "dict"
        (warning,) = [message for message in caplog.messages if "The payload of handler" in message]
        assert "plain JSON" in warning
        assert "@app.entrypoint(payload=...)" in warning

    def test_its_type_may_be_said_and_is_then_decoded_before_the_decorator(
        self, app: BedrockAgentCoreApp, caplog: pytest.LogCaptureFixture
    ) -> None:
        @app.entrypoint(payload=Ask)
        @traced
        async def handler(payload: Ask) -> str:
            return payload.prompt

        with TestClient(app=app) as client:
            assert client.post("/invocations", json={"prompt": "hi"}).json() == "hi"
            assert client.post("/invocations", json={"prompt": 1}).status_code == 400
        assert [message for message in caplog.messages if "The payload of" in message] == []

    def test_a_type_that_is_said_wins_over_the_annotation(self, app: BedrockAgentCoreApp, client: Client) -> None:
        @app.entrypoint(payload=list[int])
        def handler(payload: Ask) -> Any:
            return payload

        assert client.post("/invocations", json=[1, 2]).json() == [1, 2]
        assert client.post("/invocations", json={"prompt": "hi"}).status_code == 400

    @pytest.mark.parametrize("payload", [threading.Lock, "nonsense"])
    def test_a_type_that_cannot_be_decoded_is_a_type_error_that_names_it(
        self, app: BedrockAgentCoreApp, payload: Any
    ) -> None:
        with pytest.raises(TypeError, match="cannot be decoded"):
            app.entrypoint(plain, payload=payload)

    def test_one_that_changes_the_payload_hands_on_what_it_made(self, app: BedrockAgentCoreApp, client: Client) -> None:
        @app.entrypoint
        @exclaims
        async def handler(payload: Any, context: RequestContext) -> Any:
            return [payload["prompt"], context.session_id]

        response = client.post("/invocations", json={"prompt": "hi"}, headers={SESSION_ID: "session"})
        assert response.json() == ["hi!", "session"]

    @pytest.mark.parametrize("takes", ["payload", "payload and context"])
    def test_one_that_adds_an_argument_is_called_with_what_the_inner_function_names(
        self, app: BedrockAgentCoreApp, client: Client, takes: str
    ) -> None:
        async def of_payload(payload: Any, *, token: str) -> Any:
            return [payload, None, token]

        async def of_both(payload: Any, context: RequestContext, *, token: str) -> Any:
            return [payload, context.session_id, token]

        app.entrypoint(adds_an_argument(of_payload if takes == "payload" else of_both))
        response = client.post("/invocations", json=1, headers={SESSION_ID: "session"})
        assert response.json() == [1, None if takes == "payload" else "session", "secret"]

    def test_one_that_hands_a_coroutine_on_has_it_awaited_on_the_agents_loop(
        self, app: BedrockAgentCoreApp, client: Client
    ) -> None:
        for decorator in (handed_on, plainly_decorated):
            app.entrypoint(decorator(where_after_an_await))
            assert client.post("/invocations", json={}).json() == ["agentcore-loop", id(app.agent.loop.loop)]

    def test_one_around_a_generator_function_streams(self, app: BedrockAgentCoreApp, client: Client) -> None:
        for inner in (generator_context, async_generator_context):
            app.entrypoint(plainly_decorated(inner))
            response = client.post("/invocations", json=1, headers={SESSION_ID: "session"})
            assert events(response) == [1, "session"]

    def test_the_function_comes_back_unchanged(self, app: BedrockAgentCoreApp) -> None:
        for handler in (plain, traced(awaits)):
            assert app.entrypoint(payload=dict)(handler) is handler

    def test_the_start_tells_how_the_handler_runs(
        self, app: BedrockAgentCoreApp, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        told = {}
        for handler in (plain, generator, coroutine, awaits, async_generator):
            app.entrypoint(handler)
            caplog.clear()
            with TestClient(app=app):
                pass
            (told[handler.__name__],) = [
                record.message for record in caplog.records if record.message.startswith(f"{handler.__name__}: ")
            ]
        assert told == {
            "plain": "plain: plain, in a thread for each call",
            "generator": "generator: plain generator, in a thread for each call",
            "coroutine": "coroutine: async without await, in a thread for each call",
            "awaits": "awaits: async, on the agent's loop",
            "async_generator": "async_generator: async generator, on the agent's loop",
        }


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
        await asyncio.sleep(0)
        return self.plain(payload)

    async def one_step(self, payload: Any) -> Any:
        return self.plain(payload)

    async def thread(self, payload: Any) -> Any:
        return await asyncio.to_thread(self.plain, payload)


@pytest.mark.parametrize("name", ["plain", "coroutine", "one_step", "thread"])
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


async def asks_for_its_task(payload: Any) -> str:
    task = asyncio.current_task()
    return type(task).__name__


async def opens_a_cancel_scope(payload: Any) -> str:
    with anyio.CancelScope():
        pass
    return "done"


@pytest.mark.parametrize("handler", [asks_for_its_task, opens_a_cancel_scope])
def test_a_handler_that_asks_for_its_task_has_one_though_it_has_no_await(
    handler: Any, app: BedrockAgentCoreApp, client: Client
) -> None:
    assert inspect_handler(handler).kind is HandlerKind.COROUTINE
    app.entrypoint(handler)
    response = client.post("/invocations", json={})
    assert response.status_code == 200
    assert response.json() != "NoneType"


async def streams_numbers(payload: Any) -> AsyncIterator[int]:
    yield 1


def returns_a_coroutine(payload: Any) -> Any:
    return awaits(payload)


def returns_an_async_generator(payload: Any) -> Any:
    return streams_numbers(payload)


def returns_a_response(payload: Any) -> Response[Any]:
    return Response(payload)


@pytest.mark.parametrize("handler", [awaits, returns_a_coroutine, returns_a_response], ids=name_of)
def test_one_that_is_cancelled_before_its_first_step_is_answered_500(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)
    loop = app.agent.execution.agent_loop.loop
    loop.call_soon_threadsafe(cancel_all_before_their_first_step, loop)
    with deadline(PATIENCE):
        response = client.post("/invocations", json="hi")
    assert response.status_code == 500
    assert response.json()["error"] in {"", "CancelledError"}  # as for one that is cancelled later
    assert client.post("/invocations", json=["hi"]).json() == ["hi"]
    assert not app.agent.running


@pytest.mark.parametrize("handler", [streams_numbers, returns_an_async_generator], ids=name_of)
def test_a_stream_that_is_cancelled_before_its_first_step_ends_with_an_error(
    app: BedrockAgentCoreApp, client: Client, handler: Handler
) -> None:
    app.entrypoint(handler)
    loop = app.agent.execution.agent_loop.loop
    loop.call_soon_threadsafe(cancel_all_before_their_first_step, loop)
    with deadline(PATIENCE):
        (event,) = events(client.post("/invocations", json="hi"))
    assert event["error_type"] == "CancelledError"
    assert events(client.post("/invocations", json="hi")) == [1]
    assert not app.agent.running
