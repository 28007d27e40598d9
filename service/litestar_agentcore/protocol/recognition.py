"""Which of the protocols a body looks like, so that a client of the wrong one is told by name."""

from typing import Any, Literal

import msgspec

TITLES = {"http": "HTTP", "ag-ui": "AG-UI", "a2a": "A2A", "mcp": "MCP"}
"""The protocols' own spelling."""

PORTS = {"http": 8080, "ag-ui": 8080, "a2a": 9000, "mcp": 8000}
"""Where AgentCore Runtime expects each."""

_A2A_METHODS = ("message/", "tasks/resubscribe", "tasks/pushNotificationConfig/", "agent/")
"""Prefixes of the methods of A2A 0.3; those of 1.0 are ``SendMessage`` and the like. MCP has ``tasks/get`` too."""

_MCP_METHODS = (
    "initialize", "ping", "notifications/", "tools/", "resources/", "prompts/", "completion/", "logging/", "sampling/",
    "roots/", "elicitation/", "server/", "subscriptions/",
)  # fmt: skip


class _Head(msgspec.Struct):
    jsonrpc: Any = None
    method: Any = None
    threadId: Any = msgspec.UNSET  # noqa: N815 - as it is on the wire
    runId: Any = msgspec.UNSET  # noqa: N815 - as it is on the wire
    messages: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Head)


def recognize(body: bytes) -> Literal["ag-ui", "a2a", "mcp"] | None:
    """Tell which protocol's request a body looks like.

    Args:
        body: The body; anything.

    Returns:
        The protocol, or ``None`` where that cannot be told: JSON of no protocol, a method that is none's, no JSON.
    """
    try:
        head = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if head.jsonrpc is not None:
        return _of_method(head.method) if isinstance(head.method, str) else None
    # Members that every RunAgentInput has.
    return "ag-ui" if msgspec.UNSET not in (head.threadId, head.runId, head.messages) else None


def _of_method(method: str) -> Literal["a2a", "mcp"] | None:
    if method.startswith(_A2A_METHODS) or (method[:1].isupper() and method.isalpha()):
        return "a2a"
    return "mcp" if method.startswith(_MCP_METHODS) else None
