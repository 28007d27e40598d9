"""What is known of the current request: its values hold where it is served, and leak nowhere else."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from litestar_agentcore import BedrockAgentCoreContext, RequestContext
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request

Get = Callable[[], Any]
Set = Callable[[Any], None]

VALUES: list[tuple[Set, Get, Any]] = [
    (BedrockAgentCoreContext.set_request_context, BedrockAgentCoreContext.get_request_id, "r-1"),
    (
        BedrockAgentCoreContext.set_workload_access_token,
        BedrockAgentCoreContext.get_workload_access_token,
        "token",
    ),
    (
        BedrockAgentCoreContext.set_oauth2_callback_url,
        BedrockAgentCoreContext.get_oauth2_callback_url,
        "https://app/done",
    ),
    (
        BedrockAgentCoreContext.set_request_headers,
        BedrockAgentCoreContext.get_request_headers,
        {"X-Api-Key": "k"},
    ),
]
GETTERS = [get for _, get, _ in VALUES] + [BedrockAgentCoreContext.get_session_id]

named = pytest.mark.parametrize(("put", "get", "value"), VALUES, ids=lambda part: getattr(part, "__name__", ""))


@pytest.fixture(autouse=True)
def _outside_any_request() -> Iterator[None]:
    token = current_request.set(RequestValues())
    yield
    current_request.reset(token)


@pytest.mark.parametrize("get", GETTERS, ids=lambda get: get.__name__)
def test_each_value_is_none_where_nothing_was_set(get: Get) -> None:
    assert contextvars.Context().run(get) is None


@named
def test_each_value_is_what_was_set_last(put: Set, get: Get, value: Any) -> None:
    put("before")
    put(value)
    assert get() == value


@named
def test_setting_one_value_leaves_the_others_alone(put: Set, get: Get, value: Any) -> None:
    for other_put, _, other_value in VALUES:
        other_put(other_value)
    put("new")
    assert get() == "new"
    assert [other() for _, other, _ in VALUES if other != get] == [kept for _, other, kept in VALUES if other != get]


def test_the_request_context_sets_both_ids() -> None:
    BedrockAgentCoreContext.set_request_context("r-1", "s-1")
    assert BedrockAgentCoreContext.get_request_id() == "r-1"
    assert BedrockAgentCoreContext.get_session_id() == "s-1"


def test_a_request_context_without_a_session_has_none() -> None:
    BedrockAgentCoreContext.set_request_context("r-1", "s-1")
    BedrockAgentCoreContext.set_request_context("r-2")
    assert BedrockAgentCoreContext.get_session_id() is None


@named
def test_a_value_set_in_a_copied_context_stays_there(put: Set, get: Get, value: Any) -> None:
    copied = contextvars.copy_context()
    copied.run(put, value)
    assert copied.run(get) == value
    assert get() is None


@named
def test_a_thread_of_its_own_sees_no_value(put: Set, get: Get, value: Any) -> None:
    put(value)
    seen: list[Any] = []
    context = contextvars.Context()
    thread = threading.Thread(target=lambda: seen.append(context.run(get)))
    thread.start()
    thread.join()
    assert seen == [None]


@named
def test_a_task_inherits_the_value_of_the_request_that_started_it(put: Set, get: Get, value: Any) -> None:
    async def task() -> Any:
        await asyncio.sleep(0)
        return get()

    async def handler() -> Any:
        put(value)
        return await asyncio.create_task(task())

    assert asyncio.run(handler()) == value
    assert get() is None


@named
def test_what_a_task_sets_does_not_reach_the_request_that_started_it(put: Set, get: Get, value: Any) -> None:
    async def task() -> None:
        put("changed")

    async def handler() -> Any:
        put(value)
        await asyncio.create_task(task())
        return get()

    assert asyncio.run(handler()) == value


def test_requests_that_are_served_at_once_never_see_each_other() -> None:
    async def serve(number: int, everyone: asyncio.Barrier) -> list[str | None]:
        BedrockAgentCoreContext.set_request_context(f"r-{number}")
        seen = []
        for _ in range(3):
            await everyone.wait()
            seen.append(BedrockAgentCoreContext.get_request_id())
        return seen

    async def serve_all() -> list[list[str | None]]:
        everyone = asyncio.Barrier(20)
        return await asyncio.gather(*(serve(number, everyone) for number in range(20)))

    assert asyncio.run(serve_all()) == [[f"r-{number}"] * 3 for number in range(20)]


def test_values_hold_in_a_generator_between_two_yields() -> None:
    async def stream() -> AsyncIterator[str | None]:
        BedrockAgentCoreContext.set_request_context("r-1")
        yield BedrockAgentCoreContext.get_request_id()
        await asyncio.sleep(0)
        yield BedrockAgentCoreContext.get_request_id()

    async def handler() -> list[str | None]:
        return [value async for value in stream()]

    assert asyncio.run(handler()) == ["r-1", "r-1"]


def test_a_request_context_has_only_defaults_until_told_otherwise() -> None:
    context = RequestContext()
    assert (context.session_id, context.request_id, context.request_headers, context.request) == (None, "", None, None)


@pytest.mark.parametrize("field", RequestContext.__struct_fields__)
def test_a_request_context_is_frozen(field: str) -> None:
    context = RequestContext(session_id="s", request_id="r", request_headers={"a": "b"})
    with pytest.raises(AttributeError):
        setattr(context, field, None)


def test_the_context_of_the_reference_sdk_is_told_where_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Reference:
        def __getattr__(self, name: str) -> Any:
            return lambda *values: told.update({name: values})

    monkeypatch.setitem(
        sys.modules, "bedrock_agentcore.runtime.context", SimpleNamespace(BedrockAgentCoreContext=Reference())
    )
    values = RequestValues(
        request_id="r", session_id="s", workload_access_token="t", oauth2_callback_url="u", request_headers={"h": "v"}
    )
    contextvars.copy_context().run(enter_request, values)
    assert told == {
        "set_request_context": ("r", "s"),
        "set_workload_access_token": ("t",),
        "set_oauth2_callback_url": ("u",),
        "set_request_headers": ({"h": "v"},),
    }
