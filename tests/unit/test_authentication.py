"""Who may come in: requests, WebSockets, open endpoints, routes of the author's; and settings that make no sense."""

import base64
import builtins
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litestar
import pytest
from litestar import Litestar, WebSocket
from litestar.exceptions import WebSocketDisconnect
from litestar.testing import TestClient
from litestar_agentcore import (
    AgentCorePlugin,
    BedrockAgentCoreApp,
    BedrockAgentCoreContext,
    RequestContext,
    Settings,
    SettingsError,
    require_authentication,
)

from tests.issuer import Issuer, Key, issuing
from tests.unit.conftest import REQUEST_ID, Client, LogLines, events

KEY = {"X-Api-Key": "key-of-ann"}
SUBPROTOCOL = "base64UrlBearerAuthorization"
Socket = WebSocket[Any, Any, Any]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("ann:key-of-ann\nplain-key\n")
    return path


@pytest.fixture
def with_keys(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_API_KEYS_FILE", str(key_file))


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """An issuer whose tokens are asked for."""
    with issuing() as issuer:
        monkeypatch.setenv("AGENTCORE_JWT_DISCOVERY_URL", issuer.discovery_url)
        monkeypatch.setenv("AGENTCORE_JWT_ALLOWED_AUDIENCE", "agent")
        yield issuer


def show(payload: Any, context: RequestContext) -> Any:
    """What an agent sees of its caller."""
    assert context.claims == BedrockAgentCoreContext.get_claims()
    return {
        "claims": context.claims,
        "headers": context.request_headers,
        "raw": sorted(name for name, _ in context.request.headers.items()),
        "dumped": "claims" in context.model_dump(),
    }


def served(handler: Callable[..., Any] = show, **options: Any) -> Client:
    app = BedrockAgentCoreApp(**options)
    app.entrypoint(handler)
    return TestClient(app=app)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def failures(client: TestClient[Any], **headers: str) -> dict[str, int]:
    """How many callers were not let in, by the reason."""
    prefix = 'agentcore_auth_failures_total{reason="'
    lines = [
        line.removeprefix(prefix)
        for line in client.get("/metrics", headers=headers).text.splitlines()
        if prefix in line
    ]
    counted = {line.partition('"')[0]: int(float(line.split()[-1])) for line in lines if not line.startswith("#")}
    return {reason: count for reason, count in counted.items() if count}


# Off


def test_without_a_setting_everybody_may_come_in(client: Client, app: BedrockAgentCoreApp) -> None:
    app.entrypoint(show)
    answer = client.post("/invocations", json={}, headers=KEY | bearer("whatever")).json()
    assert (answer["claims"], answer["dumped"]) == (None, False)
    assert {name.lower(): value for name, value in answer["headers"].items()} == {
        "x-api-key": "key-of-ann",
        "authorization": "Bearer whatever",
    }
    assert BedrockAgentCoreContext.get_claims() is None
    page = client.get("/schema/openapi.json").json()
    assert "security" not in page["paths"]["/invocations"]["post"]
    assert "securitySchemes" not in page["components"]


# API keys


@pytest.mark.usefixtures("with_keys")
class TestApiKeys:
    def test_a_key_lets_its_caller_in_and_never_reaches_the_agent(self) -> None:
        with served() as client:
            answer = client.post("/invocations", json={}, headers=KEY)
        assert answer.json()["claims"] == {"api_key": "ann"}
        assert answer.json()["headers"] is None
        assert "x-api-key" not in answer.json()["raw"]
        assert answer.json()["dumped"]

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR "])
    def test_a_key_may_come_as_a_bearer_token(self, scheme: str) -> None:
        with served() as client:
            answer = client.post("/invocations", json={}, headers={"Authorization": f"{scheme} plain-key"})
        assert answer.json()["claims"] == {"api_key": None}
        assert "Authorization" in answer.json()["headers"]

    @pytest.mark.parametrize(
        ("headers", "reason", "error"),
        [
            ([], "missing", None),
            ([("authorization", "Basic YTpi")], "missing", None),
            ([("authorization", "AWS4-HMAC-SHA256 Credential=x")], "missing", None),
            ([("authorization", "plain-key")], "missing", None),
            ([("x-api-key", "wrong")], "api_key", "invalid_token"),
            ([("x-api-key", "")], "missing", None),
            ([("x-api-key", "wrong"), ("authorization", "Bearer plain-key")], "api_key", "invalid_token"),
            ([("authorization", "Bearer wrong")], "api_key", "invalid_token"),
            ([("authorization", "Bearer")], "malformed", "invalid_request"),
            ([("authorization", "Bearer  ")], "malformed", "invalid_request"),
            ([("authorization", "Bearer plain-key x")], "malformed", "invalid_request"),
            ([("authorization", "Bearer plain-key, Bearer plain-key")], "malformed", "invalid_request"),
            (
                [("authorization", "Bearer plain-key"), ("Authorization", "Bearer plain-key")],
                "malformed",
                "invalid_request",
            ),
            ([("x-api-key", "plain-key"), ("X-Api-Key", "plain-key")], "api_key", "invalid_token"),
        ],
    )
    def test_anybody_else_is_answered_401(
        self, headers: list[tuple[str, str]], reason: str, error: str | None, log: LogLines
    ) -> None:
        called: list[Any] = []
        with served(called.append) as client:
            answer = client.post("/invocations", json={}, headers=headers)
            assert failures(client) == {reason: 1}
        assert answer.status_code == 401
        assert answer.json().keys() == {"error", "details"}
        assert answer.json()["error"] == "Unauthorized"
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith('Bearer realm="agent"')
        assert (f'error="{error}"' in challenge) if error else ("error" not in challenge)
        assert called == []
        (line,) = [line for line in log.of_request(answer.headers[REQUEST_ID]) if line["level"] == "WARNING"]
        assert f"({reason})" in line["message"]
        assert "wrong" not in answer.text + str(line)
        assert "plain-key" not in answer.text + str(line)

    def test_a_stranger_is_told_nothing_of_what_else_is_wrong(self) -> None:
        with served() as client:
            assert client.post("/invocations", content=b"{", headers={REQUEST_ID: "a b"}).status_code == 401
            assert client.post("/invocations", content=b"{", headers=KEY).status_code == 400

    @pytest.mark.parametrize("path", ["/ping", "/ready", "/metrics", "/schema/openapi.json"])
    def test_what_is_open_stays_open(self, path: str) -> None:
        with served() as client:
            assert client.get(path).status_code == 200

    def test_debug_actions_need_an_authenticated_caller(self) -> None:
        action = {"_agent_core_app_action": "force_busy"}
        with served(debug=True) as client:
            assert client.post("/invocations", json=action).status_code == 401
            assert client.get("/ping").json()["status"] == "Healthy"
            assert client.post("/invocations", json=action, headers=KEY).json() == {"forced_status": "HealthyBusy"}

    @pytest.mark.parametrize("variable", ["AGENTCORE_AUTH_METRICS", "AGENTCORE_AUTH_SCHEMA"])
    def test_metrics_and_schema_may_be_closed_too(self, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, "true")
        closed = ["/metrics"] if variable == "AGENTCORE_AUTH_METRICS" else ["/schema", "/schema/openapi.json"]
        with served() as client:
            for path in ["/metrics", "/schema", "/schema/openapi.json"]:
                answer = client.get(path)
                assert answer.status_code == (401 if path in closed else 200)
                if path in closed:
                    assert answer.json() == {"error": "Unauthorized"}
                    assert answer.headers["www-authenticate"] == 'Bearer realm="agent"'
                assert client.get(path, headers=KEY).status_code == 200

    def test_the_way_through_a_middleware_is_guarded_as_well(self) -> None:
        def around(app: Any) -> Any:
            async def serve(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    assert litestar.Request(scope).headers["host"]  # which Litestar keeps
                await app(scope, receive, send)

            return serve

        with served(middleware=[around]) as client:
            assert client.post("/invocations", json={}).status_code == 401
            assert "x-api-key" not in client.post("/invocations", json={}, headers=KEY).json()["raw"]

    def test_a_host_application_keeps_its_own_routes(self) -> None:
        @litestar.get("/own")
        async def own() -> str:
            return "open"

        app = Litestar([own], plugins=[AgentCorePlugin(show)], logging_config=None)
        with TestClient(app=app) as client:
            assert client.get("/own").text == "open"
            assert client.post("/invocations", json={}).status_code == 401
            assert client.post("/invocations", json={}, headers=KEY).json()["claims"] == {"api_key": "ann"}

    def test_an_author_may_guard_routes_likewise(self) -> None:
        @litestar.get("/report", guards=[require_authentication], sync_to_thread=False)
        def report(request: litestar.Request[Any, Any, Any]) -> Any:
            return request.auth

        with served(route_handlers=[report]) as client:
            answer = client.get("/report")
            assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
            assert client.get("/report", headers=KEY).json() == {"api_key": "ann"}
            assert failures(client) == {"missing": 1}

    def test_apps_in_one_process_have_each_their_own(self, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = served()
        other = key_file.with_name("other")
        other.write_text("key-of-bob")
        monkeypatch.setenv("AGENTCORE_API_KEYS_FILE", str(other))
        second = served()
        monkeypatch.delenv("AGENTCORE_API_KEYS_FILE")
        third = served()
        statuses = [client.post("/invocations", json={}, headers=KEY).status_code for client in (first, second, third)]
        assert statuses == [200, 401, 200]

    def test_claims_hold_for_one_request(self) -> None:
        with served() as client:
            client.post("/invocations", json={}, headers=KEY)
            assert client.post("/invocations", json={}, headers={"X-Api-Key": "plain-key"}).json()["claims"] == {
                "api_key": None
            }
        assert BedrockAgentCoreContext.get_claims() is None

    def test_the_schema_tells_what_is_asked(self) -> None:
        with served() as client:
            page = client.get("/schema/openapi.json").json()
        operation = page["paths"]["/invocations"]["post"]
        assert operation["security"] == [{"bearer": []}, {"api_key": []}]
        assert page["components"]["securitySchemes"].keys() == {"bearer", "api_key"}
        assert {"401", "403", "503"} <= operation["responses"].keys()


def test_a_guarded_route_is_open_where_authentication_is_off() -> None:
    @litestar.get("/report", guards=[require_authentication], sync_to_thread=False)
    def report(request: litestar.Request[Any, Any, Any]) -> Any:
        return {"auth": request.auth}

    with served(route_handlers=[report]) as client:
        assert client.get("/report").json() == {"auth": None}


# Bearer tokens


class TestBearerTokens:
    def test_a_token_lets_its_bearer_in_and_is_handed_on(self, issuer: Issuer) -> None:
        token = issuer.token()
        with served() as client:
            answer = client.post("/invocations", json={}, headers=bearer(token) | KEY).json()
        assert answer["claims"]["sub"] == "ann"
        assert answer["headers"]["Authorization"] == f"Bearer {token}"
        assert "x-api-key" in answer["raw"]  # which is the author's, where no key is asked for

    @pytest.mark.parametrize(
        ("claims", "status", "reason", "error"),
        [
            ({"exp": 1}, 401, "expired", "invalid_token"),
            ({"nbf": 4_000_000_000}, 401, "not_yet_valid", "invalid_token"),
            ({"iss": "https://other.example"}, 401, "issuer", "invalid_token"),
            ({"aud": "other"}, 403, "audience", "insufficient_scope"),
            ({"client_id": "other"}, 403, "client", "insufficient_scope"),
            ({"scope": "other"}, 403, "scope", "insufficient_scope"),
        ],
    )
    def test_another_token_does_not(
        self,
        issuer: Issuer,
        monkeypatch: pytest.MonkeyPatch,
        claims: dict[str, Any],
        status: int,
        reason: str,
        error: str,
    ) -> None:
        monkeypatch.setenv("AGENTCORE_JWT_ALLOWED_CLIENTS", "one")
        monkeypatch.setenv("AGENTCORE_JWT_ALLOWED_SCOPES", "agent/invoke agent/admin")
        good: dict[str, Any] = {"client_id": "one", "scope": "agent/invoke"}
        with served() as client:
            assert client.post("/invocations", json={}, headers=bearer(issuer.token(**good))).status_code == 200
            answer = client.post("/invocations", json={}, headers=bearer(issuer.token(**good | claims)))
            assert failures(client) == {reason: 1}
        assert answer.status_code == status
        assert answer.json()["error"] == {401: "Unauthorized", 403: "Forbidden"}[status]
        challenge = answer.headers["www-authenticate"]
        assert f'error="{error}"' in challenge
        assert ('scope="agent/invoke agent/admin"' in challenge) == (reason == "scope")

    def test_of_a_forged_token_no_more_is_told_than_that_it_is_not_valid(self, issuer: Issuer) -> None:
        header, payload, _ = issuer.token().split(".")
        with served() as client:
            told = {
                client.post("/invocations", json={}, headers=bearer(token)).json()["details"]
                for token in (
                    issuer.token(Key("first")),
                    issuer.token(Key("other")),
                    f"{header}.{payload}.AAAA",
                    issuer.token(iss="x"),
                )
            }
        assert told == {"The token is not valid"}

    def test_while_the_issuer_is_down_the_answer_is_503(self, issuer: Issuer) -> None:
        issuer.answers["/keys"] = lambda handler: handler.send_error(500)
        with served() as client:
            answer = client.post("/invocations", json={}, headers=bearer(issuer.token()))
            assert failures(client) == {"unavailable": 1}
            assert client.get("/ping").status_code == client.get("/ready").status_code == 200
        assert (answer.status_code, answer.json()["error"]) == (503, "Authentication unavailable")
        assert answer.headers["retry-after"] == "5"

    def test_keys_and_tokens_may_both_do(self, issuer: Issuer, with_keys: None) -> None:
        with served() as client:
            for headers in (bearer(issuer.token()), KEY, bearer("plain-key")):
                assert client.post("/invocations", json={}, headers=headers).status_code == 200
            assert client.post("/invocations", json={}, headers={"X-Api-Key": "x"}).status_code == 401
            assert client.post("/invocations", json={}, headers=bearer("x")).status_code == 401
            assert failures(client) == {"api_key": 1, "malformed": 1}

    def test_claims_are_there_in_a_stream_and_in_async_code(self, issuer: Issuer) -> None:
        async def stream(payload: Any) -> Any:
            yield (BedrockAgentCoreContext.get_claims() or {})["sub"]
            yield (BedrockAgentCoreContext.get_claims() or {})["aud"]

        with served(stream) as client:
            assert events(client.post("/invocations", json={}, headers=bearer(issuer.token()))) == ["ann", "agent"]


# WebSockets


async def tell(websocket: Socket, context: RequestContext) -> None:
    await websocket.accept()
    await websocket.send_json(
        {
            "claims": context.claims,
            "headers": context.request_headers,
            "offered": websocket.scope["subprotocols"],
            "raw": sorted(name for name, _ in websocket.headers.items()),
        }
    )


def talking() -> Client:
    app = BedrockAgentCoreApp()
    app.websocket(tell)
    return TestClient(app=app)


def encoded(token: str) -> str:
    return base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()


@pytest.mark.usefixtures("with_keys")
def test_a_socket_is_opened_with_a_key() -> None:
    with talking() as client, client.websocket_connect("/ws", headers=KEY) as websocket:
        told = websocket.receive_json(timeout=60)
    assert told["claims"] == {"api_key": "ann"}
    assert "x-api-key" not in told["raw"]


@pytest.mark.usefixtures("with_keys")
@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "wrong"}], ids=["no key", "wrong key"])
def test_a_socket_is_closed_to_strangers(headers: dict[str, str]) -> None:
    with talking() as client:
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect("/ws", headers=headers) as websocket,
        ):
            websocket.receive(timeout=60)
        assert sum(failures(client).values()) == 1
    assert closed.value.code == 1008


def test_a_browser_puts_its_token_into_the_subprotocols(issuer: Issuer) -> None:
    token = issuer.token()
    offered = [f"{SUBPROTOCOL}.{encoded(token)}", SUBPROTOCOL, "chat"]
    with talking() as client, client.websocket_connect("/ws", subprotocols=offered) as websocket:
        assert websocket.accepted_subprotocol == SUBPROTOCOL
        told = websocket.receive_json(timeout=60)
    assert told["claims"]["sub"] == "ann"
    assert told["headers"]["Authorization"] == f"Bearer {token}"
    assert told["offered"] == ["chat"]


@pytest.mark.parametrize("token", ["", "%%%", "a", encoded("wrong"), encoded("two words")])
def test_a_token_in_the_subprotocols_that_makes_no_sense_opens_nothing(issuer: Issuer, token: str) -> None:
    with (
        talking() as client,
        pytest.raises(WebSocketDisconnect) as closed,
        client.websocket_connect("/ws", subprotocols=[f"{SUBPROTOCOL}.{token}", SUBPROTOCOL]) as websocket,
    ):
        websocket.receive(timeout=60)
    assert closed.value.code == 1008


# Settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"jwt_allowed_audience": ("a",)},
            "AGENTCORE_JWT_ALLOWED_AUDIENCE is set, and AGENTCORE_JWT_DISCOVERY_URL is not",
        ),
        ({"jwt_allowed_clients": ("a",)}, "AGENTCORE_JWT_ALLOWED_CLIENTS is set"),
        ({"jwt_allowed_scopes": ("a",)}, "AGENTCORE_JWT_ALLOWED_SCOPES is set"),
        (
            {"jwt_discovery_url": "https://id.example/.well-known/openid-configuration"},
            "AGENTCORE_JWT_ALLOWED_AUDIENCE",
        ),
        (
            {"jwt_discovery_url": "https://id.example/", "jwt_allowed_audience": ("a",)},
            "AGENTCORE_JWT_DISCOVERY_URL='https",
        ),
        (
            {"jwt_discovery_url": "http://id.example/.well-known/openid-configuration", "jwt_allowed_audience": ("a",)},
            "must be https",
        ),
        (
            {"jwt_discovery_url": "https://x/.well-known/openid-configuration", "jwt_allowed_scopes": ('a"b',)},
            "AGENTCORE_JWT_ALLOWED_SCOPES",
        ),
        ({"auth_metrics": True}, "AGENTCORE_AUTH_METRICS is true"),
        ({"auth_schema": True}, "AGENTCORE_AUTH_SCHEMA is true"),
        ({"api_keys_file": "/nowhere/keys"}, "AGENTCORE_API_KEYS_FILE='/nowhere/keys' cannot be used: No such file"),
    ],
)
def test_settings_that_contradict_another_are_an_error_that_names_the_variable(settings: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        AgentCorePlugin(settings=Settings(**settings))


@pytest.mark.parametrize("module", ["jwt", "cryptography"])
def test_without_the_extra_the_start_fails_with_a_sentence_that_names_it(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    import importlib

    load = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] == module:
            raise ImportError(f"No module named {module!r}")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SettingsError, match=r"pip install 'litestar-agentcore\[auth\]'"):
        BedrockAgentCoreApp()


def test_nothing_of_the_extra_is_loaded_where_no_token_is_asked_for(
    with_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def noting(name: str, *args: Any, **options: Any) -> Any:
        assert name.partition(".")[0] not in {"jwt", "cryptography"}
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", noting)
    client = served()
    assert client.post("/invocations", json={}, headers=KEY).status_code == 200


# AGENTCORE_EXPOSE_ERRORS


def fails(payload: Any) -> Any:
    raise LookupError("the password is hunter2")


def fails_while_streaming(payload: Any) -> Any:
    yield 1
    raise LookupError("the password is hunter2")


async def fails_while_streaming_async(payload: Any) -> Any:
    yield 1
    raise LookupError("the password is hunter2")


class FailingResponse(litestar.Response[None]):
    def to_asgi_response(self, *args: Any, **options: Any) -> Any:
        raise LookupError("the password is hunter2")


def fails_as_a_response(payload: Any) -> Any:
    return FailingResponse(None)


def raises_http(payload: Any) -> Any:
    raise litestar.exceptions.HTTPException(status_code=500, detail="said on purpose")


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_EXPOSE_ERRORS", "false")


@pytest.mark.parametrize("handler", [fails, fails_as_a_response])
def test_a_500_has_the_id_of_the_request_in_the_place_of_its_text(
    hidden: None, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with served(handler) as client:
        answer = client.post("/invocations", json={}, headers={REQUEST_ID: "r-1"})
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal error", "request_id": "r-1"})
    assert "hunter2" in caplog.text


@pytest.mark.parametrize("handler", [fails_while_streaming, fails_while_streaming_async])
def test_the_last_event_of_a_stream_does_so_too(hidden: None, handler: Any) -> None:
    with served(handler) as client:
        answer = client.post("/invocations", json={}, headers={REQUEST_ID: "r-1"})
    assert events(answer) == [
        1,
        {
            "error": "Internal error",
            "error_type": "InternalError",
            "message": "An error occurred during streaming",
            "request_id": "r-1",
        },
    ]


def test_an_own_route_of_the_author_does_so_too(hidden: None) -> None:
    @litestar.get("/own", sync_to_thread=False)
    def own() -> None:
        raise LookupError("the password is hunter2")

    with served(route_handlers=[own]) as client:
        answer = client.get("/own", headers={REQUEST_ID: "r-1"})
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal error", "request_id": "r-1"})


def test_the_detail_of_an_http_exception_is_the_authors_own_word(hidden: None) -> None:
    with served(raises_http) as client:
        answer = client.post("/invocations", json={})
    assert (answer.status_code, answer.json()) == (500, {"error": "said on purpose"})


@pytest.mark.parametrize("handler", [fails, fails_as_a_response])
def test_by_default_a_500_tells_what_was_raised(handler: Any) -> None:
    with served(handler) as client:
        assert client.post("/invocations", json={}).json()["error"].endswith("the password is hunter2")


def test_nothing_secret_is_logged(issuer: Issuer, with_keys: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = issuer.token()
    with served() as client:
        for headers in (
            bearer(token),
            bearer(issuer.token(exp=1)),
            KEY,
            bearer("plain-key"),
            {"X-Api-Key": "secret-guess"},
        ):
            client.post("/invocations", json={}, headers=headers)
    for secret in (token.split(".")[1], token.split(".")[2], "key-of-ann", "plain-key", "secret-guess"):
        assert secret not in caplog.text
