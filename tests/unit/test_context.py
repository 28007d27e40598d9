"""What is known of the current request: its values hold where it is served, and leak nowhere else."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pydantic
import pytest
from litestar_agentcore import BedrockAgentCoreContext, RequestContext
from litestar_agentcore.config_bundle import ConfigBundleRef
from litestar_agentcore.protocol.context import RequestValues, current_request, enter_request, span_attributes

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
    (
        BedrockAgentCoreContext.set_config_bundle_ref,
        BedrockAgentCoreContext.get_config_bundle_ref,
        ConfigBundleRef("arn:bundle/b", "1"),
    ),
    (
        lambda arn: BedrockAgentCoreContext.set_routing_experiment(arn, None),
        BedrockAgentCoreContext.get_routing_experiment_arn,
        "arn:experiment/e",
    ),
]
GETTERS = [
    *(get for _, get, _ in VALUES),
    BedrockAgentCoreContext.get_session_id,
    BedrockAgentCoreContext.get_routing_experiment_variant,
]

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


def test_both_members_of_the_routing_experiment_are_set() -> None:
    BedrockAgentCoreContext.set_routing_experiment("arn:e", "b")
    assert BedrockAgentCoreContext.get_routing_experiment_arn() == "arn:e"
    assert BedrockAgentCoreContext.get_routing_experiment_variant() == "b"


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
def test_the_fields_of_a_request_context_can_be_set(field: str) -> None:
    context = RequestContext(session_id="s", request_id="r", request_headers={"a": "b"})
    setattr(context, field, None)
    assert getattr(context, field) is None


# The reference's RequestContext is a pydantic model, so pydantic is the yardstick.


class Model(pydantic.BaseModel):
    session_id: str | None = None
    request_id: str = ""
    request_headers: dict[str, str] | None = None
    request: Any = None


FIELDS: dict[str, Any] = {
    "session_id": "Sitzung-ä",
    "request_id": "r",
    "request_headers": {"Authorization": "a", "X": "x"},
    "request": None,
}
SELECTIONS: list[Any] = [
    None,
    set(),
    {"request"},
    {"session_id", "request_headers"},
    {"no such field"},
    {"request": True},
    {"request": ..., "session_id": False},
    {"request_headers": {"Authorization"}},
    {"request_headers": {"Authorization": True, "X": False}},
    {"request_headers": {"Authorization": ...}, "request": True},
    {"request_headers": set()},
    {"session_id": {"inside"}},
]


def in_order(selection: Any) -> str:
    """The text of a selection, which is to be the same in every process."""
    return repr(sorted(selection) if isinstance(selection, set) else selection)


@pytest.mark.parametrize("exclude", SELECTIONS, ids=in_order)
@pytest.mark.parametrize("include", SELECTIONS, ids=in_order)
def test_model_dump_selects_what_pydantics_does(include: Any, exclude: Any) -> None:
    context, model = RequestContext(**FIELDS), Model(**FIELDS)
    dumped = context.model_dump(include=include, exclude=exclude)
    assert dumped == model.model_dump(include=include, exclude=exclude)
    assert list(dumped) == list(model.model_dump(include=include, exclude=exclude))
    assert context.model_dump_json(include=include, exclude=exclude) == model.model_dump_json(
        include=include, exclude=exclude
    )


def test_model_dump_has_the_request_itself_and_a_copy_of_the_headers() -> None:
    context = RequestContext(request_headers={"a": "b"}, request=object())
    dumped = context.model_dump()
    assert dumped["request"] is context.request
    dumped["request_headers"]["a"] = "changed"
    assert context.request_headers == {"a": "b"}


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_model_dump_json_is_indented_as_pydantics(indent: int | None) -> None:
    expected = Model(**FIELDS).model_dump_json(indent=indent)
    assert RequestContext(**FIELDS).model_dump_json(indent=indent) == expected


def test_a_request_is_no_json_unless_it_is_left_out() -> None:
    context = RequestContext(session_id="s", request=object())
    for dumps in (context.model_dump_json, Model(**context.model_dump()).model_dump_json):
        with pytest.raises(ValueError):
            dumps()
    assert context.model_dump_json(exclude={"request"}) == '{"session_id":"s","request_id":"","request_headers":null}'


@pytest.mark.parametrize("update", [None, {}, {"session_id": "t", "request": 1}, {"tenant": "t"}, {"session_id": 5}])
def test_model_copy_is_pydantics(update: dict[str, Any] | None) -> None:
    names = [*FIELDS, *(update or {})]
    context, model = RequestContext(**FIELDS), Model(**FIELDS)
    copied, expected = context.model_copy(update=update), model.model_copy(update=update)
    assert [getattr(copied, name) for name in names] == [getattr(expected, name) for name in names]
    assert copied.model_copy().model_dump() == expected.model_copy().model_dump(warnings=False)
    assert [getattr(copied.model_copy(), name) for name in names] == [getattr(copied, name) for name in names]
    assert copied.request_headers is context.request_headers
    assert context == RequestContext(**FIELDS)


# Entering a request


def entered(values: RequestValues, experiment: dict[str, str] | None = None, read: Get = current_request.get) -> Any:
    """What a getter gives in a request with these values."""

    def enter_and_read() -> Any:
        enter_request(values, experiment)
        return read()

    return contextvars.copy_context().run(enter_and_read)


ALL = RequestValues("r", "s", "token", "https://app/done", {"a": "b"})


def test_the_values_of_a_request_hold_once_it_is_entered() -> None:
    assert entered(ALL) == ALL
    assert entered(ALL, {"name": "value"}) == msgspec.structs.replace(ALL, experiment={"name": "value"})


def test_of_the_request_around_it_a_request_sees_nothing() -> None:
    assert contextvars.copy_context().run(lambda: (enter_request(ALL), entered(RequestValues("other")))[1]) == (
        RequestValues("other")
    )


def test_a_token_and_a_callback_url_that_were_set_outside_of_requests_hold_in_those_that_bring_none() -> None:
    BedrockAgentCoreContext.set_workload_access_token("outside")
    BedrockAgentCoreContext.set_oauth2_callback_url("https://outside")
    BedrockAgentCoreContext.set_request_headers({"outside": "header"})

    assert entered(RequestValues("r")) == RequestValues("r", None, "outside", "https://outside")
    assert entered(ALL) == ALL


EXPERIMENT, VARIANT = (f"aws.agentcore.gateway.routing_experiment_{name}" for name in ("arn", "variant_name"))


@pytest.mark.parametrize(
    ("baggage", "arn", "variant"),
    [
        (f"{EXPERIMENT}=arn%3Ae,{VARIANT}=treatment%20b", "arn:e", "treatment b"),
        (f"tenant=one , {EXPERIMENT} = arn:e ; ttl=5", "arn:e", None),
        (f"{VARIANT}=one,{VARIANT}=two", None, "one"),
        (f"{VARIANT},=,{VARIANT}=,{VARIANT}=b", None, "b"),
        ("tenant=one", None, None),
        ("", None, None),
    ],
)
def test_the_routing_experiment_is_in_the_baggage_whatever_else_there_is(
    baggage: str, arn: str | None, variant: str | None
) -> None:
    values = RequestValues("r", baggage=baggage)
    assert entered(values, read=BedrockAgentCoreContext.get_routing_experiment_arn) == arn
    assert entered(values, read=BedrockAgentCoreContext.get_routing_experiment_variant) == variant
    members = {EXPERIMENT: arn, VARIANT: variant}
    assert entered(values, read=span_attributes) == {"request.id": "r"} | {k: v for k, v in members.items() if v}


@pytest.mark.parametrize(("baggage", "arn"), [(f"{EXPERIMENT}=header", "header"), ("a=b", "host"), (None, "host")])
def test_what_a_propagator_found_of_the_experiment_counts_where_the_header_has_none(
    baggage: str | None, arn: str
) -> None:
    get = BedrockAgentCoreContext.get_routing_experiment_arn
    assert entered(RequestValues("r", baggage=baggage), {EXPERIMENT: "host"}, get) == arn


def test_an_experiment_that_is_set_is_an_attribute_of_the_spans_from_there_on() -> None:
    def read() -> tuple[Any, ...]:
        BedrockAgentCoreContext.set_routing_experiment("arn:e", "b")
        set_by_hand = span_attributes()
        BedrockAgentCoreContext.set_routing_experiment(None, None)
        return set_by_hand, span_attributes(), BedrockAgentCoreContext.get_routing_experiment_arn()

    values = RequestValues("r", baggage=f"{EXPERIMENT}=header")
    assert entered(values, read=read) == (
        {"request.id": "r", EXPERIMENT: "arn:e", VARIANT: "b"},
        {"request.id": "r"},
        None,
    )
