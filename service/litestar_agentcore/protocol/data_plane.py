"""AWS's data plane for agent runtimes, in words: the ids of its paths, the limits of its headers, what signs a call.

The service model ``bedrock-agentcore`` of 2024-02-28, operations InvokeAgentRuntime, GetAgentCard and
StopRuntimeSession, as botocore 1.44 has it. WebSockets are not in the model: see "Get started with bidirectional
streaming using WebSocket" in the AgentCore Runtime developer guide.
"""

import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from litestar_agentcore.protocol.aws_errors import InvalidFieldError
from litestar_agentcore.protocol.headers import AUTHORIZATION, SESSION_ID, WORKLOAD_ACCESS_TOKEN, RawHeader
from litestar_agentcore.protocol.models import Refusal
from litestar_agentcore.protocol.settings import RUNTIME_ARN

MAX_PAYLOAD_BYTES = 100_000_000

LOCAL_ARN = "arn:aws:bedrock-agentcore:local:000000000000:runtime/local"
"""What our own clients put in the path where no ARN is set: an agent that has none of its own takes any."""

CLIENT_TOKEN_PATTERN = r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*\Z"  # noqa: S105 - the form of an idempotency token  # nosec B105

Operation = Literal["invocations", "stopruntimesession", "ws", "invocations/.well-known/agent-card.json"]
"""The end of the path of an operation that is served."""

GET_AGENT_CARD: Operation = "invocations/.well-known/agent-card.json"

_AGENT_ID = re.compile(r"[a-zA-Z0-9_-]{1,256}")
_ACCOUNT_ID = re.compile(r"[0-9]{12}")
_ARN = re.compile(RUNTIME_ARN)

_SESSION_ID = SESSION_ID.lower().encode()
_USER_ID = b"x-amzn-bedrock-agentcore-runtime-user-id"
_AUTHORIZATION = AUTHORIZATION.lower().encode()
_WORKLOAD_ACCESS_TOKEN = WORKLOAD_ACCESS_TOKEN.lower().encode()

MIN_SESSION_ID, MAX_SESSION_ID = 33, 256

LIMITS: dict[bytes, tuple[str, int, int]] = {
    b"content-type": ("contentType", 1, 256),
    b"accept": ("accept", 1, 256),
    b"mcp-session-id": ("mcpSessionId", 1, 1024),
    _SESSION_ID: ("runtimeSessionId", MIN_SESSION_ID, MAX_SESSION_ID),
    b"mcp-protocol-version": ("mcpProtocolVersion", 1, 1024),
    b"mcp-method": ("mcpMethod", 1, 1024),
    b"mcp-name": ("mcpName", 1, 1024),
    _USER_ID: ("runtimeUserId", 1, 1024),
    b"x-amzn-trace-id": ("traceId", 0, 128),
    b"traceparent": ("traceParent", 0, 128),
    b"tracestate": ("traceState", 0, 512),
    b"baggage": ("baggage", 0, 8192),
}
"""The member of the model, the least and the most characters of each header that it limits."""

RETURNED = (b"x-amzn-trace-id", b"traceparent", b"tracestate", b"baggage", b"mcp-session-id", b"mcp-protocol-version")
"""The headers of a request that the model has in the answer too."""


class Target(msgspec.Struct, frozen=True):
    """What a path below ``/runtimes/`` asks for."""

    runtime: str
    """An ARN, or the id of an agent; percent-decoded."""
    operation: str
    """The end of the path."""


def target_of(path: str) -> Target:
    """Take a path apart.

    Clients percent-encode the slash in an ARN, servers decode it, and some proxies do so before: the operation is at
    the end, however what comes before it came.

    Args:
        path: What follows ``/runtimes/``, percent-decoded.
    """
    path = path.strip("/")
    if path.endswith(f"/{GET_AGENT_CARD}"):
        return Target(path.removesuffix(f"/{GET_AGENT_CARD}"), GET_AGENT_CARD)
    runtime, _, operation = path.rpartition("/")
    return Target(runtime, operation)


def check_runtime(runtime: str, query_string: bytes, own_arn: str) -> None:
    """Check that a request is for the agent that is served.

    Args:
        runtime: The ARN of its path, perhaps with the endpoint, or the agent's id.
        query_string: The query, with the ``accountId`` that clients give with an id.
        own_arn: The ARN of the agent that is served; empty for any.

    Raises:
        Refusal: It is no ARN and no id, or there is no such account (status 400); or it is for another agent (404).
    """
    query = dict(reversed(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)))
    account = query.get("accountId")
    if account is not None and _ACCOUNT_ID.fullmatch(account) is None:
        raise InvalidFieldError("accountId", "An accountId has 12 digits")
    own = _ARN.match(own_arn)
    if (arn := _ARN.match(runtime)) is not None:
        is_own = own is None or arn["runtime"] == own["runtime"]
    elif _AGENT_ID.fullmatch(runtime) is not None:
        is_own = own is None or (runtime == own["id"] and account in (None, own["account"]))
    else:
        raise InvalidFieldError(
            "agentRuntimeArn",
            "Neither an agent's id nor an ARN of the form arn:aws:bedrock-agentcore:<region>:<account>:runtime/<id>",
        )
    if not is_own:
        raise Refusal(404, f"No runtime {runtime} is served here", reason="Another agent's ARN")


def check_headers(headers: Iterable[RawHeader]) -> None:
    """Check headers against the model.

    Args:
        headers: Names and values of the ASGI scope.

    Raises:
        InvalidFieldError: One is too short or too long.
    """
    for name, value in headers:
        if (limit := LIMITS.get(name.lower())) is not None:
            member, least, most = limit
            if not least <= len(value) <= most:
                raise InvalidFieldError(member, f"It has {len(value)} characters, and must have {least} to {most}")


def unsigned_headers(headers: Iterable[RawHeader]) -> list[RawHeader]:
    """The headers without those that sign a call: an agent gets a bearer token, and no other ``Authorization``.

    Args:
        headers: Names and values of the ASGI scope.
    """
    return [(name, value) for name, value in headers if not _signs(name.lower(), value)]


def _signs(name: bytes, value: bytes) -> bool:
    if name == _AUTHORIZATION:
        return value.strip(b" \t")[:7].lower() != b"bearer "
    if name.startswith(b"x-amz-"):
        return name != _WORKLOAD_ACCESS_TOKEN
    return name.startswith(b"amz-sdk-")


def unsigned_query(query_string: bytes) -> bytes:
    """The query without the ``X-Amz-*`` parameters of a presigned URL.

    Args:
        query_string: The query of the ASGI scope.
    """
    if b"=" not in query_string:
        return query_string
    kept = [
        parameter
        for parameter in query_string.split(b"&")
        if not unquote_to_bytes(parameter.partition(b"=")[0]).lower().startswith(b"x-amz-")
    ]
    return b"&".join(kept)
