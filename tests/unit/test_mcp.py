"""MCP without its library: what is recorded of a request, and what is said where the library is not there."""

import json
from typing import Any

import litestar_agentcore
import pytest
from litestar_agentcore.mcp import METHODS, describe, is_response, mcp_app


def described(body: bytes, method: str = "POST", **headers: str) -> Any:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"type": "http", "method": method, "headers": raw}
    return describe(scope, body)


def test_without_the_library_the_extra_is_named() -> None:
    with pytest.raises(ImportError, match=r"pip install 'litestar-agentcore\[mcp\]'"):
        mcp_app(object())


@pytest.mark.parametrize("name", ["MCPPlugin", "mcp_app", "serve_mcp"])
def test_the_names_are_the_packages_too(name: str) -> None:
    assert getattr(litestar_agentcore, name).__module__ == "litestar_agentcore.mcp"
    assert name in dir(litestar_agentcore)


def test_a_call_of_a_tool_is_described_by_the_conventions() -> None:
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "weather", "arguments": {"a": 1}}}
    call = described(json.dumps(body).encode(), mcp_session_id="s-1", mcp_protocol_version="2025-06-18")
    assert call.name == "tools/call"
    assert call.attributes == {
        "mcp.method.name": "tools/call",
        "mcp.session.id": "s-1",
        "mcp.protocol.version": "2025-06-18",
        "jsonrpc.request.id": "7",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
    }


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_is_a_label_of_its_own(method: str) -> None:
    assert described(json.dumps({"jsonrpc": "2.0", "method": method}).encode()).name == method


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/secret"}', "other"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": {"tools": "call"}}', "response"),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}}', "response"),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "tools/call"}]', "other"),
        (b"", "other"),
        (b"\xff\xfe", "other"),
        (b"[" * 50_000, "other"),
    ],
)
def test_anything_else_is_one_of_a_few(body: bytes, name: str) -> None:
    call = described(body)
    assert call.name == name
    assert call.attributes == {}


@pytest.mark.parametrize("parameters", ["text", [1], {"name": 5}, {}, None])
def test_a_call_that_names_nothing_is_described_without(parameters: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", "method": "tools/call", "params": parameters}).encode()
    assert described(body).attributes == {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool"}


def test_what_a_client_names_is_cut() -> None:
    body = {"jsonrpc": "2.0", "id": "x" * 1000, "method": "prompts/get", "params": {"name": "y" * 1000}}
    attributes = described(json.dumps(body).encode(), mcp_session_id="z" * 1000).attributes
    assert {len(value) for name, value in attributes.items() if name != "mcp.method.name"} == {256}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_is_no_call_is_told_by_its_method(method: str) -> None:
    assert described(b"", method).name == method


@pytest.mark.parametrize(
    ("events", "is_last"),
    [
        (b'event: message\r\ndata: {"jsonrpc":"2.0","id":1,"result":{}}\r\n\r\n', True),
        (b'data:{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}\n\n', True),
        (b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"result":1}}\n\n', False),
        (b'data: {"jsonrpc":"2.0","id":3,"method":"sampling/createMessage"}\n\n', False),
        (b"data: \n\nid: 4\n\n", False),
        (b"data: {broken\n\n", False),
    ],
)
def test_a_response_is_the_last_that_a_client_waits_for(events: bytes, is_last: bool) -> None:
    assert is_response(events) is is_last
