"""What A2A's face does that needs no library: names, URLs, what is recorded of a call, the card on the data plane."""

import json
from collections.abc import Sequence
from typing import Any

import litestar_agentcore
import pytest
from litestar.testing import TestClient
from litestar.types import Receive, Scope, Send
from litestar_agentcore import AgentCorePlugin, BedrockAgentCoreApp, build_runtime_url
from litestar_agentcore.a2a import METHODS, A2APlugin, BedrockCallContextBuilder, build_a2a_app, describe, serve_a2a
from litestar_agentcore.protocol.json_rpc import error_code
from litestar_agentcore.protocol.recognition import recognize

ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/agent-abc"
CARD = f"/runtimes/{ARN}/invocations/.well-known/agent-card.json"
SCOPE: Any = {}


@pytest.mark.parametrize(
    ("arn", "region", "url"),
    [
        (ARN, None, "https://bedrock-agentcore.us-east-1.amazonaws.com/runtimes/"),
        (ARN, "eu-west-2", "https://bedrock-agentcore.eu-west-2.amazonaws.com/runtimes/"),
        (ARN, "cn-north-1", "https://bedrock-agentcore.cn-north-1.amazonaws.com.cn/runtimes/"),
        (ARN, "us-gov-west-1", "https://bedrock-agentcore.us-gov-west-1.amazonaws.com/runtimes/"),
        (ARN, "us-isob-east-1", "https://bedrock-agentcore.us-isob-east-1.sc2s.sgov.gov/runtimes/"),
        (ARN, "eusc-de-east-1", "https://bedrock-agentcore.eusc-de-east-1.amazonaws.eu/runtimes/"),
    ],
)
def test_the_url_of_a_runtime_is_that_of_its_region(arn: str, region: str | None, url: str) -> None:
    encoded = "arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A123456789012%3Aruntime%2Fagent-abc"
    assert build_runtime_url(arn, region) == f"{url}{encoded}/invocations"


@pytest.mark.parametrize(
    ("arn", "region", "message"),
    [
        ("agent-abc", None, "There is no region in 'agent-abc'"),
        (ARN, "x@attacker.example:443/#", "'x@attacker.example:443/#' is no AWS region"),
        (ARN, "us-east-1\n", "is no AWS region"),
        ("arn:aws:bedrock-agentcore::123456789012:runtime/a", None, "'' is no AWS region"),
    ],
)
def test_what_is_no_region_is_told(arn: str, region: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_runtime_url(arn, region)


@pytest.mark.parametrize("enter", [A2APlugin, build_a2a_app, serve_a2a])
def test_without_the_library_the_extra_is_named(enter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "a2a", None)
    with pytest.raises(ImportError, match=r"pip install 'litestar-agentcore\[a2a\]'"):
        enter(object())


def test_its_names_are_the_packages_too() -> None:
    for name in ("A2APlugin", "BedrockCallContextBuilder", "build_a2a_app", "build_runtime_url", "serve_a2a"):
        assert name in litestar_agentcore.__all__
        assert getattr(litestar_agentcore, name) is getattr(litestar_agentcore.a2a, name)
    with pytest.raises(AttributeError, match="has no attribute 'A2A'"):
        litestar_agentcore.A2A


def test_a_context_builder_can_be_made_without_the_library() -> None:
    assert BedrockCallContextBuilder() is not None


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_is_recorded_by_its_name(method: str) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": {"message": {}}}).encode()
    call = describe(SCOPE, body)
    assert call.name == method
    assert call.attributes == {
        "rpc.system.name": "jsonrpc",
        "rpc.method": method,
        "jsonrpc.protocol.version": "2.0",
        "jsonrpc.request.id": "7",
    }
    assert recognize(body) in ("a2a", None)


@pytest.mark.parametrize("head", [{"method": "people's data"}, {"method": 5, "id": {}}, {"id": "x" * 200}, {}])
def test_what_is_no_method_is_recorded_as_other(head: dict[str, Any]) -> None:
    call = describe(SCOPE, json.dumps({"jsonrpc": "2.0", **head}).encode())
    assert call.name == "other"
    assert call.attributes["rpc.method"] == "_OTHER"
    assert "jsonrpc.request.id" not in call.attributes


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"5", b"[" * 100_000])
def test_anything_can_be_described(body: bytes) -> None:
    assert describe(SCOPE, body).name == "other"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "no"}}', -32603),
        (b'{"error": {"code": -32001, "message": "no"}, "jsonrpc": "2.0"}', -32001),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {"error": {"code": -32603}}}', None),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}, "error": null}', None),
        (b'{"jsonrpc": "2.0", "error": "text"}', None),
        (b'{"error": {"code": 5}}', None),
        (b'{"jsonrpc": "2.0", "error"', None),
        (b'"error"', None),
        (b"", None),
    ],
)
def test_an_answer_is_an_error_where_json_rpc_says_so(body: bytes, code: int | None) -> None:
    assert error_code(body) == code


async def card(scope: Scope, receive: Receive, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    own = [(b"content-type", b"application/json"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": own})
    await send({"type": "http.response.body", "body": b'{"name": "agent"}', "more_body": False})


def test_awss_clients_get_the_card_where_there_is_one() -> None:
    app = BedrockAgentCoreApp()
    app.entrypoint(lambda payload: payload)
    plugin: AgentCorePlugin = app._plugin
    with TestClient(app) as client:
        missing = client.get(CARD)
        assert (missing.status_code, missing.headers["x-amzn-errortype"]) == (404, "ResourceNotFoundException")
        plugin.data_plane.agent_card = card
        answer = client.get(CARD, headers={"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": "s" * 33})
        assert (answer.status_code, answer.json()) == (200, {"name": "agent"})
        assert answer.headers["x-amzn-bedrock-agentcore-runtime-session-id"] == "s" * 33
        assert answer.headers["x-amzn-requestid"]
        posted = client.post(CARD)
        assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
        options = client.options(CARD)
        assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, GET")


def test_the_card_of_another_agent_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCORE_RUNTIME_ARN", ARN.replace("agent-abc", "agent-other"))
    app = BedrockAgentCoreApp()
    app._plugin.data_plane.agent_card = card
    with TestClient(app) as client:
        answer = client.get(CARD)
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (404, "ResourceNotFoundException")
