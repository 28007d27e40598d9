"""``/playground``: when it is there, what its headers allow, and what it tells whom."""

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any

import litestar
import msgspec
import pydantic
import pytest
from litestar import Controller, Litestar, Router
from litestar.testing import TestClient
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, Settings
from litestar_agentcore.playground.page import SCRIPTS, playground_page
from litestar_agentcore.playground.payload_schema import payload_schema

from tests.unit.conftest import SESSION_ID

ON = Settings(playground=True)


def echo(payload: Any) -> Any:
    return payload


def application(plugin: AgentCorePlugin, **options: Any) -> Litestar:
    return Litestar(plugins=[plugin], logging_config=None, **options)


def client_of(settings: Settings = ON, **options: Any) -> TestClient[Litestar]:
    return TestClient(app=application(AgentCorePlugin(echo, settings=settings), **options))


# -- When it is there


@pytest.mark.parametrize(
    ("debug", "setting", "status"), [(False, None, 404), (True, None, 200), (False, "true", 200), (False, "false", 404)]
)
def test_it_is_there_in_debug_mode_and_where_a_setting_says_so(
    debug: bool, setting: str | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        monkeypatch.setenv("AGENTCORE_PLAYGROUND", setting)
    client = TestClient(app=BedrockAgentCoreApp(debug=debug))
    for path in ("/playground", "/playground/state", "/playground/agent"):
        assert client.get(path).status_code == status


@pytest.mark.parametrize("kind", ["handler", "controller", "router", "mount"])
def test_a_route_of_the_applications_own_wins(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    @litestar.get("/playground")
    async def own() -> str:
        return "the application's"

    class Own(Controller):
        path = "/playground"

        @litestar.get()
        async def own(self) -> str:
            return "the application's"

    @litestar.asgi("/playground", is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await litestar.response.base.ASGIResponse(body=b"the application's")(scope, receive, send)

    @litestar.get("/")
    async def index() -> str:
        return "the application's"

    handlers = {
        "handler": own,
        "controller": Own,
        "router": Router("/playground", route_handlers=[index]),
        "mount": mounted,
    }
    with client_of(route_handlers=[handlers[kind]]) as client:
        assert client.get("/playground").text == "the application's"
    assert "The playground is not served: the application has /playground itself" in caplog.text


def test_it_moves_or_goes() -> None:
    moved = TestClient(app=application(AgentCorePlugin(echo, settings=ON, playground_path="/dev/try")))
    assert 'data-path="/dev/try"' in moved.get("/dev/try").text
    assert moved.get("/dev/try/state").status_code == 200
    assert moved.get("/playground").status_code == 404
    gone = TestClient(app=application(AgentCorePlugin(echo, settings=ON, playground_path=None)))
    assert gone.get("/playground").status_code == 404


def test_it_is_not_in_the_schema() -> None:
    assert not [path for path in client_of().get("/schema/openapi.json").json()["paths"] if "playground" in path]


# -- The page


class Inline(HTMLParser):
    """Finds what a page has in ``style`` and ``script``, and what could load or run anything else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.foreign: list[str] = []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.foreign += [
            f"<{tag} {name}={value}>"
            for name, value in attrs
            if name.startswith("on")
            or name in ("style", "src", "action")
            or (name == "href" and not str(value).startswith(("#", "data:")))
        ]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("style", "script"):
            self.found[self._tag] = self.found.get(self._tag, "") + data


def policy_of(response: Any) -> dict[str, str]:
    directives = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


def test_the_policy_allows_the_pages_own_style_and_script_by_their_hashes_and_nothing_else() -> None:
    response = client_of().get("/playground")
    page = Inline(response.text)
    assert page.foreign == []
    hashes = {
        tag: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for tag, text in page.found.items()
    }
    assert policy_of(response) == {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_page_is_neither_guessed_at_nor_kept_nor_told_of() -> None:
    headers = client_of().get("/playground").headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_head_is_answered_with_the_headers_of_get() -> None:
    client = client_of()
    get, head = client.get("/playground"), client.head("/playground")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == get.headers


def test_a_path_is_text_in_the_page() -> None:
    assert b'data-path="/&lt;b&gt;&quot;"' in playground_page('/<b>"').body


def test_the_script_makes_no_markup_and_asks_nobody_but_the_agent() -> None:
    directory = Path(__file__).parents[2] / "service" / "litestar_agentcore" / "playground"
    assert sorted(path.name for path in directory.glob("*.js")) == sorted(SCRIPTS)
    script = "".join((directory / name).read_text() for name in SCRIPTS)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://", "http://"):
        assert forbidden not in script


# -- What it tells


def test_the_state_is_that_of_the_agent() -> None:
    app = BedrockAgentCoreApp(debug=True)

    with TestClient(app=app) as client:
        before = client.get("/playground/state").json()
        assert before["ping"]["status"] == "Healthy"
        assert before["ping"] == client.get("/ping").json()
        assert (before["tasks"], before["sessions"], before["processes"]) == (
            {"active_count": 0, "running_jobs": []},
            [],
            1,
        )

        @app.entrypoint
        def begin(payload: Any) -> int:
            return app.add_async_task("research")

        task = client.post("/invocations", json={}, headers={SESSION_ID: "ann"}).json()
        time.sleep(0.01)
        state = client.get("/playground/state").json()
        assert state["ping"]["status"] == "HealthyBusy"
        assert state["tasks"]["active_count"] == 1
        (job,) = state["tasks"]["running_jobs"]
        assert (job["name"], job["duration"] >= 0.01) == ("research", True)
        (session,) = state["sessions"]
        assert session.pop("age") >= 0.01
        assert session == {
            "session_id": "ann",
            "idle": 0.0,
            "invocations": 0,
            "streams": 0,
            "websockets": 0,
            "tasks": 1,
        }
        app.complete_async_task(task)
        assert client.get("/playground/state").json()["ping"]["status"] == "Healthy"


def test_the_description_is_that_of_the_entrypoint() -> None:
    app = BedrockAgentCoreApp(debug=True)
    client = TestClient(app=app)
    assert client.get("/playground/agent").json()["payload_schema"] is None

    @app.entrypoint
    def trip_planner(payload: Struct) -> None:
        """Plan a trip."""

    @app.websocket
    async def converse(websocket: Any, context: Any) -> None: ...

    response = client.get("/playground/agent")
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "name": "trip_planner",
        "description": "Plan a trip.",
        "payload_schema": payload_schema(Struct),
        "websocket": True,
        "http": True,
        "ag_ui_path": None,
        "runtime_arn": "arn:aws:bedrock-agentcore:local:000000000000:runtime/local",
    }


@pytest.mark.parametrize("path", ["/playground/state", "/playground/agent"])
def test_where_callers_need_credentials_the_page_alone_does_not(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:k3y\n")
    with client_of(Settings(playground=True, api_keys_file=str(keys))) as client:
        assert client.get("/playground").status_code == 200
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": "other"}).status_code == 401
        assert client.get(path, headers={"x-api-key": "k3y"}).status_code == 200
        assert client.get(path, headers={"authorization": "Bearer k3y"}).status_code == 200


# -- The schema that its form is made of


class Struct(msgspec.Struct):
    """What to ask."""

    prompt: Annotated[str, msgspec.Meta(description="The question.", examples=["Why?"])]
    limit: int = 3


class Model(pydantic.BaseModel):
    """What to ask."""

    prompt: str = pydantic.Field(description="The question.", examples=["Why?"])
    limit: int = 3


@dataclass
class Data:
    prompt: str
    limit: int = 3


@pytest.mark.parametrize("kind", [Struct, Model, Data])
def test_the_schema_tells_descriptions_examples_and_defaults(kind: Any) -> None:
    schema = payload_schema(kind)
    assert schema is not None
    target = schema["$defs"][kind.__name__] if "$ref" in schema else schema
    assert target["required"] == ["prompt"]
    assert (target["properties"]["limit"]["type"], target["properties"]["limit"]["default"]) == ("integer", 3)
    if kind is not Data:
        assert target["properties"]["prompt"]["description"] == "The question."
        assert target["properties"]["prompt"]["examples"] == ["Why?"]


def test_a_model_within_other_types_is_described_as_far_as_it_can_be() -> None:
    class Outer(msgspec.Struct):
        model: Model

    listed, within = payload_schema(list[Model]), payload_schema(Outer)
    assert listed is not None
    assert within is not None
    assert listed["$defs"]["Model"]["required"] == ["prompt"]
    assert within["$defs"]["Outer"]["properties"]["model"] == {"title": "Model"}


@pytest.mark.parametrize("kind", [Any, object])
def test_any_json_has_no_schema(kind: Any) -> None:
    assert payload_schema(kind) is None


@pytest.mark.parametrize("kind", [Struct, Model, Data, dict, list[Model], int, str])
def test_a_schema_is_json(kind: Any) -> None:
    assert json.loads(json.dumps(payload_schema(kind)))
