"""``/schema``: the OpenAPI page, and whether the service does what it says."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import attrs
import litestar
import msgspec
import pydantic
import pytest
from litestar.exceptions import HTTPException
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client

Page = dict[str, Any]


class Ask(msgspec.Struct):
    """What to ask."""

    prompt: Annotated[str, msgspec.Meta(description="The question.", examples=["Why?"], max_length=80)]
    limit: int = 3


@dataclass
class AskDataclass:
    """What to ask."""

    prompt: str
    limit: int = 3


class AskTypedDict(TypedDict):
    """What to ask."""

    prompt: str
    limit: NotRequired[int]


@attrs.define
class AskAttrs:
    """What to ask."""

    prompt: str
    limit: int = 3


class AskPydantic(pydantic.BaseModel):
    """What to ask."""

    prompt: str = pydantic.Field(description="The question.", examples=["Why?"], max_length=80)
    limit: int = 3


class Research(msgspec.Struct, tag="research"):
    """Look something up."""

    topic: str


class Forget(msgspec.Struct, tag="forget"):
    """Forget something."""

    topic: str
    forever: bool = False


class Color(Enum):
    RED = "red"


class Order(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    max_items: Annotated[int, msgspec.Meta(gt=0)]
    color: Color = Color.RED
    size: Literal["s", "m"] = "m"
    parts: "list[Order]" = []
    ask: Ask | None = None


class OrderPydantic(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    max_items: int = pydantic.Field(alias="maxItems", gt=0)


@dataclass
class OrderDataclass:
    tags: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class Pair(msgspec.Struct, array_like=True):
    left: int
    right: int


def handler_of(payload_type: Any) -> Callable[[Any], Any]:
    def handler(payload: Any) -> Any:
        return None

    handler.__annotations__["payload"] = payload_type
    return handler


def page_of(app: litestar.Litestar) -> Page:
    response = TestClient(app=app).get("/schema/openapi.json")
    assert response.status_code == 200, response.text
    page: Page = response.json()
    return page


def page_for(payload_type: Any) -> Page:
    app = BedrockAgentCoreApp()
    app.entrypoint(handler_of(payload_type))
    return page_of(app)


def resolved(page: Page, schema: Page) -> Page:
    if "$ref" not in schema:
        return schema
    target: Page = page["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
    return target


def operation(page: Page) -> Page:
    post: Page = page["paths"]["/invocations"]["post"]
    return post


def payload_schema(page: Page) -> Page:
    return resolved(page, operation(page)["requestBody"]["content"]["application/json"]["schema"])


def fits(page: Page, schema: Page, value: Any) -> bool:
    return bool(OAS31Validator({**schema, "components": page["components"]}).is_valid(value))


PAYLOAD_TYPES: list[Any] = [
    Any,
    dict,
    str,
    list[Ask],
    Ask | None,
    Ask,
    AskDataclass,
    AskTypedDict,
    AskAttrs,
    AskPydantic,
    Research | Forget,
    Annotated[Ask, msgspec.Meta(examples=[{"prompt": "Why?"}])],
    Order,
    OrderPydantic,
    OrderDataclass,
]


@pytest.mark.parametrize("payload_type", PAYLOAD_TYPES)
def test_the_page_is_valid_openapi(payload_type: Any) -> None:
    validate(page_for(payload_type))


def test_the_page_of_an_app_without_an_entrypoint_is_valid_openapi(app: BedrockAgentCoreApp) -> None:
    page = page_of(app)
    validate(page)
    assert {"/invocations", "/ping", "/ready"} <= page["paths"].keys()


def test_the_page_of_an_app_with_routes_of_its_own_is_valid_openapi() -> None:
    @litestar.get("/orders")
    async def orders() -> list[Order]:
        return []

    app = BedrockAgentCoreApp(route_handlers=[orders])
    app.entrypoint(handler_of(Order))
    page = page_of(app)
    validate(page)
    assert {"/invocations", "/orders"} <= page["paths"].keys()


def test_the_page_can_be_read(client: Client) -> None:
    response = client.get("/schema")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("payload_type", [Ask, AskDataclass, AskTypedDict, AskAttrs, AskPydantic])
def test_a_payload_class_is_described_with_its_docstring_and_fields(payload_type: Any) -> None:
    schema = payload_schema(page_for(payload_type))

    assert schema["type"] == "object"
    assert schema["description"] == "What to ask."
    assert schema["properties"].keys() == {"prompt", "limit"}
    assert schema["properties"]["prompt"]["type"] == "string"
    assert schema["properties"]["limit"]["type"] == "integer"
    assert schema["required"] == ["prompt"]


@pytest.mark.parametrize("payload_type", [Ask, AskDataclass, AskPydantic])
def test_the_default_of_a_field_is_described(payload_type: Any) -> None:
    assert payload_schema(page_for(payload_type))["properties"]["limit"]["default"] == 3


@pytest.mark.parametrize("payload_type", [Ask, AskPydantic])
def test_the_description_examples_and_constraints_of_a_field_are_described(payload_type: Any) -> None:
    assert payload_schema(page_for(payload_type))["properties"]["prompt"] == {
        "type": "string",
        "description": "The question.",
        "examples": ["Why?"],
        "maxLength": 80,
    }


def test_the_examples_of_an_annotated_payload_are_the_examples_of_the_body() -> None:
    page = page_for(Annotated[Ask, msgspec.Meta(examples=[{"prompt": "Why?"}, {"prompt": "How?", "limit": 1}])])
    examples = operation(page)["requestBody"]["content"]["application/json"]["examples"]
    assert [example["value"] for example in examples.values()] == [{"prompt": "Why?"}, {"prompt": "How?", "limit": 1}]
    assert payload_schema(page)["description"] == "What to ask."


def test_a_tagged_union_is_described_as_one_of_its_structs() -> None:
    page = page_for(Research | Forget)
    research, forget = (resolved(page, schema) for schema in payload_schema(page)["oneOf"])

    assert (research["description"], forget["description"]) == ("Look something up.", "Forget something.")
    assert research["properties"]["type"]["const"] == "research"
    assert forget["properties"]["type"]["const"] == "forget"
    assert "type" in research["required"]


@pytest.mark.parametrize("payload_type", [Any, dict, dict[str, Any]])
def test_an_untyped_payload_is_described_as_any_json(payload_type: Any) -> None:
    page = page_for(payload_type)
    schema = payload_schema(page)
    assert all(fits(page, schema, value) for value in ({"a": 1}, [1], "text", None))


def test_the_body_is_required() -> None:
    for payload_type in (Any, Ask):
        assert operation(page_for(payload_type))["requestBody"]["required"] is True


AGREEMENTS: list[tuple[Any, Any]] = [
    (Ask, {"prompt": "Why?"}),
    (Ask, {"prompt": "Why?", "limit": 1, "unknown": 1}),
    (Ask, {"limit": 1}),
    (Ask, {"prompt": 1}),
    (Ask, {"prompt": "?" * 81}),
    (Ask, []),
    (AskDataclass, {"prompt": "Why?"}),
    (AskDataclass, {"prompt": "Why?", "limit": None}),
    (AskTypedDict, {"prompt": "Why?"}),
    (AskTypedDict, {"limit": 1}),
    (AskAttrs, {"prompt": "Why?"}),
    (AskAttrs, {}),
    (AskPydantic, {"prompt": "Why?"}),
    (AskPydantic, {"prompt": "?" * 81}),
    (Research | Forget, {"type": "forget", "topic": "it", "forever": True}),
    (Research | Forget, {"type": "research", "topic": 1}),
    (Research | Forget, {"topic": "it"}),
    (Order, {"maxItems": 1, "color": "red", "size": "s", "parts": [{"maxItems": 1}], "ask": {"prompt": "Why?"}}),
    (Order, {"max_items": 1}),
    (Order, {"maxItems": 0}),
    (Order, {"maxItems": 1, "unknown": 1}),
    (Order, {"maxItems": 1, "color": "blue"}),
    (Order, {"maxItems": 1, "size": "xl"}),
    (Order, {"maxItems": 1, "parts": [{}]}),
    (Order, {"maxItems": 1, "ask": None}),
    (OrderPydantic, {"maxItems": 1}),
    (OrderPydantic, {"maxItems": 0}),
    (OrderPydantic, {"maxItems": 1, "unknown": 1}),
    (OrderDataclass, {"tags": ["a"], "counts": {"a": 1}}),
    (OrderDataclass, {"tags": [1]}),
    (OrderDataclass, {"tags": [], "counts": {"a": "b"}}),
    (Pair, [1, 2]),
    (Pair, {"left": 1, "right": 2}),
    (list[Ask], [{"prompt": "Why?"}]),
    (list[Ask], {"prompt": "Why?"}),
    (list[AskPydantic], [{}]),
    (Ask | None, None),
    (Ask | None, 1),
    (Literal["a", "b"], "c"),
    (Annotated[int, msgspec.Meta(ge=3)], 3),
    (Annotated[int, msgspec.Meta(ge=3)], 2),
]


@pytest.mark.parametrize(("payload_type", "payload"), AGREEMENTS)
def test_the_page_and_the_service_agree_on_whether_a_payload_fits(
    app: BedrockAgentCoreApp, client: Client, payload_type: Any, payload: Any
) -> None:
    app.entrypoint(handler_of(payload_type))
    page = page_of(app)

    status = client.post("/invocations", content=json.dumps(payload)).status_code

    assert status in {200, 400}
    assert fits(page, payload_schema(page), payload) is (status == 200)


def test_the_docstring_of_the_entrypoint_is_the_description_of_the_operation(app: BedrockAgentCoreApp) -> None:
    @app.entrypoint
    def answer_questions(payload: Ask) -> str:
        """Answer a question.

        As well as it can.
        """
        return "Because."

    described = operation(page_of(app))
    assert described["description"] == "Answer a question.\n\nAs well as it can."
    assert described["summary"] == "Answer questions"


def test_an_operation_without_a_docstring_has_no_description_of_someone_elses() -> None:
    assert "description" not in operation(page_for(Ask))


def test_both_kinds_of_answer_are_described() -> None:
    content = operation(page_for(Ask))["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/event-stream"}
    assert "type" not in content["application/json"]["schema"]
    assert "data: <json>" in content["text/event-stream"]["schema"]["description"]


def test_the_request_headers_are_described() -> None:
    parameters = {parameter["name"]: parameter for parameter in operation(page_for(Ask))["parameters"]}

    assert {
        REQUEST_ID,
        SESSION_ID,
        "X-Amz-Bedrock-AgentCore-Identity-WAT",
        "OAuth2CallbackUrl",
        "traceparent",
        "tracestate",
        "baggage",
    } <= parameters.keys()
    assert all(parameter["in"] == "header" for parameter in parameters.values())
    assert not any(parameter["required"] for parameter in parameters.values())


@pytest.mark.parametrize("name", [REQUEST_ID, SESSION_ID])
@pytest.mark.parametrize("value", ["x", "!~", "x" * 256, "", "x" * 257, "a b"])
def test_the_page_and_the_service_agree_on_whether_an_id_is_valid(
    app: BedrockAgentCoreApp, client: Client, name: str, value: str
) -> None:
    app.entrypoint(handler_of(Any))
    page = page_of(app)
    (schema,) = (parameter["schema"] for parameter in operation(page)["parameters"] if parameter["name"] == name)

    status = client.post("/invocations", json={}, headers={name: value}).status_code

    assert status in {200, 400}
    assert fits(page, schema, value) is (status == 200)


def test_the_ids_are_described_as_headers_of_every_answer() -> None:
    for response in operation(page_for(Ask))["responses"].values():
        assert response["headers"][REQUEST_ID]["required"] is True
        assert response["headers"][SESSION_ID]["required"] is False


def fails(payload: Ask) -> Any:
    raise RuntimeError("broken")


def refuses(payload: Ask) -> Any:
    raise HTTPException("no more", status_code=409)


class StructuredDetail(Exception):
    status_code = 422
    detail = [{"loc": ["prompt"]}]  # noqa: RUF012


def refuses_in_detail(payload: Ask) -> Any:
    raise StructuredDetail


@pytest.mark.parametrize(
    ("handler", "body", "headers", "status"),
    [
        (fails, b"{", {}, 400),
        (fails, b"\xff", {}, 400),
        (fails, b"{}", {}, 400),
        (fails, b'{"prompt": "Why?"}', {SESSION_ID: "a b"}, 400),
        (fails, b'"' + b"x" * 100 + b'"', {}, 413),
        (fails, b'{"prompt": "Why?"}', {}, 500),
        (refuses, b'{"prompt": "Why?"}', {}, 409),
        (refuses_in_detail, b'{"prompt": "Why?"}', {}, 422),
    ],
)
def test_every_error_is_answered_as_it_is_described(
    monkeypatch: pytest.MonkeyPatch, handler: Any, body: bytes, headers: dict[str, str], status: int
) -> None:
    monkeypatch.setenv("AGENTCORE_MAX_BODY_BYTES", "100")
    app = BedrockAgentCoreApp()
    app.entrypoint(handler)
    page = page_of(app)

    with TestClient(app=app) as client:
        response = client.post("/invocations", content=body, headers=headers)

    assert response.status_code == status
    responses = operation(page)["responses"]
    described = responses[str(status)] if status in {400, 413, 500} else responses["default"]
    schema = described["content"]["application/json"]["schema"]
    assert fits(page, schema, response.json())
    assert not fits(page, schema, {"unknown": 1})
    assert described["description"]


@pytest.mark.parametrize("status", [400, 401, 403, 408, 409, 413, 429, 431, 500, 503, 504])
def test_each_refusal_is_described_with_the_shape_of_an_error(status: int) -> None:
    page = page_for(Ask)
    described = operation(page)["responses"][str(status)]
    schema = described["content"]["application/json"]["schema"]
    assert described["description"]
    assert fits(page, schema, {"error": "wrong"})
    assert fits(page, schema, {"error": "wrong", "details": "so"})
    assert not fits(page, schema, {"details": "so"})


def test_only_the_refusal_of_too_many_says_when_to_try_again() -> None:
    responses = operation(page_for(Ask))["responses"]
    assert [status for status, response in responses.items() if "Retry-After" in response["headers"]] == ["429"]
    assert responses["429"]["headers"]["Retry-After"]["schema"] == {"type": "integer", "minimum": 1}


def test_an_invocation_that_takes_too_long_is_answered_as_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(payload: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setenv("AGENTCORE_INVOCATION_TIMEOUT_SECONDS", "0.05")
    app = BedrockAgentCoreApp()
    app.entrypoint(waits)
    page = page_of(app)
    with TestClient(app=app) as client:
        response = client.post("/invocations", json={})
    assert response.status_code == 504
    assert fits(page, operation(page)["responses"]["504"]["content"]["application/json"]["schema"], response.json())


@pytest.mark.parametrize("path", ["/ping", "/ready"])
def test_ping_and_ready_answer_as_they_are_described(app: BedrockAgentCoreApp, path: str) -> None:
    page = page_of(app)
    responses = page["paths"][path]["get"]["responses"]

    with TestClient(app=app) as client:
        running = client.get(path)
    stopped = client.get(path)

    for response in (running, stopped):
        described = responses[str(response.status_code)]["content"]["application/json"]["schema"]
        assert fits(page, described, response.json())
        assert not fits(page, described, {})


def test_the_statuses_of_ping_are_described(app: BedrockAgentCoreApp) -> None:
    page = page_of(app)
    schema = page["paths"]["/ping"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert resolved(page, resolved(page, schema)["properties"]["status"])["enum"] == ["Healthy", "HealthyBusy"]


def test_the_page_describes_an_entrypoint_that_is_registered_after_the_app_has_started(
    app: BedrockAgentCoreApp, client: Client
) -> None:
    app.entrypoint(handler_of(Ask))
    page = client.get("/schema/openapi.json").json()
    assert payload_schema(page)["description"] == "What to ask."


def test_the_page_describes_an_entrypoint_that_the_plugin_brings() -> None:
    page = page_of(litestar.Litestar(plugins=[AgentCorePlugin(handler_of(Ask))], logging_config=None))
    validate(page)
    assert payload_schema(page)["description"] == "What to ask."


def test_the_page_describes_an_entrypoint_that_is_registered_with_the_plugin_later() -> None:
    plugin = AgentCorePlugin()
    app = litestar.Litestar(plugins=[plugin], logging_config=None)
    plugin.entrypoint(handler_of(AskPydantic))
    page = page_of(app)
    validate(page)
    assert payload_schema(page)["description"] == "What to ask."


def test_the_pages_of_two_apps_describe_each_its_own_entrypoint() -> None:
    first, second = page_for(Order), page_for(Research)
    assert "maxItems" in payload_schema(first)["properties"]
    assert "topic" in payload_schema(second)["properties"]


def test_an_app_without_the_page_serves_as_well() -> None:
    app = BedrockAgentCoreApp(openapi_config=None)
    app.entrypoint(handler_of(Ask))
    with TestClient(app=app) as client:
        assert client.post("/invocations", json={"prompt": "Why?"}).status_code == 200
        assert client.get("/schema").status_code == 404
