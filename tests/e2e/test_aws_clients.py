"""AWS's own clients, with nothing changed but where they call: boto3, the official SDK's client, and npm's.

``make clients`` runs those for Go and Java too, which need tools that ``make e2e`` does not have.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.aws_clients import CLIENTS, agents, seen_by
from tests.e2e.environments import environment, node_modules, run, tool

SIGNS = ("authorization", "x-amz-", "amz-sdk-")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with agents(tmp_path_factory.mktemp("agents")) as told:
        yield told


@pytest.fixture(scope="module")
def boto3(variables: dict[str, str]) -> Any:
    return seen_by([environment("moved") / "python", "-W", "error::ResourceWarning", "boto3_client.py.txt"], variables)


@pytest.fixture(scope="module")
def npm(variables: dict[str, str]) -> Any:
    return seen_by([tool("node"), node_modules("clients", CLIENTS) / "client.mjs"], variables)


@pytest.fixture(scope="module")
def go(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = tmp_path_factory.mktemp("go") / "client"
    run(tool("go"), "build", "-o", program, ".", cwd=CLIENTS / "go")
    return seen_by([program], variables)


@pytest.fixture(scope="module")
def java(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    project = tmp_path_factory.mktemp("java") / "client"
    shutil.copytree(CLIENTS / "java", project)
    run(tool("mvn"), "--quiet", "compile", "dependency:copy-dependencies", cwd=project)
    classes = f"{project}/target/classes:{project}/target/dependency/*"
    return seen_by([tool("java"), "-classpath", classes, "Client"], variables)


@pytest.fixture(params=os.environ.get("AWS_CLIENTS", "boto3 npm").split())
def seen(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


# Each client


def test_an_invocation_is_answered_with_the_ids_that_went_in(seen: Any) -> None:
    unary = seen["unary"]

    assert (unary["status"], unary["contentType"], unary["byId"]) == (200, "application/json", 200)
    assert unary["session"] is True
    assert unary["madeUp"] >= 33
    assert unary["requestId"] is True
    assert unary["seen"]["payload"] == {"prompt": "hi"}
    assert TRACE_ID in unary["traceParent"]
    assert TRACE_ID in unary["seen"]["headers"]["traceparent"]


def test_what_signs_a_call_does_not_reach_the_agent(seen: Any) -> None:
    assert [name for name in seen["unary"]["seen"]["headers"] if name.startswith(SIGNS)] == []


def test_a_stream_is_read_event_by_event_as_it_comes(seen: Any) -> None:
    stream = seen["stream"]

    assert stream["contentType"] == "text/event-stream"
    (first, one), (last, other) = stream["events"]
    assert (one, other) == ('data: "first"', 'data: "last"')
    assert last - first >= 0.3, "the last event was only made once the first was read, and a while had passed"


def test_a_session_is_stopped_while_it_streams(seen: Any) -> None:
    stopped = seen["stopped"]

    assert stopped["first"] == 'data: "first"'
    assert stopped["statuses"] == [200, 200], "the repeat has the same client token"
    assert '"error_type":"SessionStopped"' in stopped["rest"][-1]
    assert stopped["ended"] is True, "the agent's own finally has run"
    assert stopped["again"][0] == "ResourceNotFoundException", "another token asks again"


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("validation", "ValidationException", "Invalid JSON"),
        ("not found", "ResourceNotFoundException", "No runtime"),
        ("runtime", "RuntimeClientError", "Received error (500) from runtime: the agent is broken"),
        ("card", "ResourceNotFoundException", "not served"),
        ("denied", "AccessDeniedException", "Unauthorized"),
        ("unauthorized", "UnauthorizedException", "Unauthorized"),
        ("internal", "InternalServerException", "No entrypoint"),
        ("throttled", "ThrottlingException", "Too many invocations"),
        ("conflict", "ConflictException", "The session was stopped"),
    ],
)
def test_each_error_is_the_clients_own_exception(seen: Any, what: str, name: str, message: str) -> None:
    raised, text = seen["errors"][what]

    assert raised == name
    assert message in text


def test_a_command_is_not_found(boto3: Any, npm: Any) -> None:
    """Which the newest Java client of today has no method for."""
    for seen in (boto3, npm):
        raised, text = seen["errors"]["command"]
        assert raised == "ResourceNotFoundException"
        assert "not served" in text


def test_a_validation_exception_says_why_and_where(seen: Any) -> None:
    assert seen["errors"]["reason"] == ["CannotParse", "payload"]


# Python alone


def test_a_variable_is_enough_where_the_code_cannot_be_changed(boto3: Any) -> None:
    assert boto3["by variable"] == {"prompt": "hi"}
    assert boto3["sdk"]["unary"] == {"prompt": "hi"}


def test_a_key_as_a_bearer_token_lets_boto3_in(boto3: Any) -> None:
    assert boto3["bearer"] == 200


def test_the_official_sdks_websocket_urls_work_with_another_host(boto3: Any) -> None:
    sdk = boto3["sdk"]

    for way in ("signed", "presigned"):
        assert sdk[way]["session"] == sdk["session"], way
        assert sdk[way]["echo"] == "hello"
        assert [name for name in sdk[way]["headers"] if name.startswith(SIGNS)] == []
        assert "X-Amz-" not in sdk[way]["url"]
    assert sdk["presigned"]["forwarded"] == {"X-Amzn-Bedrock-AgentCore-Runtime-Custom-Tenant": "acme"}
