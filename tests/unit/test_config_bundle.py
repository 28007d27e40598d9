"""Configuration bundles: which one the baggage of a request names, and how its configuration is fetched."""

import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext, config_bundle
from litestar_agentcore.config_bundle import CACHED_BUNDLES, ConfigBundleRef
from litestar_agentcore.protocol.context import RequestValues, enter_request

from tests.unit.conftest import Client, LogLines

ARN = "arn:aws:bedrock-agentcore:eu-west-1:123456789012:configuration-bundle/prices-AbC"
OWN_ARN = "arn:aws:bedrock-agentcore:eu-west-1:123456789012:runtime/agent-XyZ"


def baggage(arn: str = ARN, version: str = "v1") -> str:
    return f"aws.agentcore.configbundle_arn={arn},aws.agentcore.configbundle_version={version}"


def in_request(baggage: str | None, read: Callable[[], Any]) -> Any:
    def enter_and_read() -> Any:
        enter_request(RequestValues("r", baggage=baggage))
        return read()

    return contextvars.copy_context().run(enter_and_read)


class ControlPlane:
    """Stands in for boto3."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {OWN_ARN: {"configuration": {"model": {"name": "small"}}}}
        self.calls: list[dict[str, Any]] = []
        self.clients: list[tuple[str, str | None]] = []
        self.error: Exception | None = None
        self.seconds = 0.0

    def Session(self) -> Any:
        return SimpleNamespace(client=self.client)

    def client(self, service: str, region_name: str | None) -> Any:
        self.clients.append((service, region_name))
        return SimpleNamespace(get_configuration_bundle_version=self.get_configuration_bundle_version)

    def get_configuration_bundle_version(self, **arguments: Any) -> dict[str, Any]:
        self.calls.append(arguments)
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return {"components": self.components}


@pytest.fixture(autouse=True)
def boto3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    plane = ControlPlane()
    monkeypatch.setitem(sys.modules, "boto3", plane)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"service.name=agent,cloud.resource_id={OWN_ARN}")
    for cache in (config_bundle._client, config_bundle._cached, config_bundle.ref_in_baggage):
        cache.cache_clear()
    yield plane
    config_bundle._client.cache_clear()


# The reference


@pytest.mark.parametrize(
    "header",
    [
        baggage(),
        f"tenant=one,{baggage()},more=1",
        f"tenant, =, {baggage()}",
        baggage(ARN.replace(":", "%3A").replace("/", "%2F") + " ;ttl=5", " v1 "),
        f"{baggage()},{baggage('arn:other/o', 'v2')}",
    ],
)
def test_the_baggage_names_the_bundle_and_its_version(header: str) -> None:
    ref = in_request(header, BedrockAgentCoreContext.get_config_bundle_ref)
    assert (ref.bundle_arn, ref.bundle_version, ref.bundle_id) == (ARN, "v1", "prices-AbC")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "tenant=one",
        f"aws.agentcore.configbundle_arn={ARN}",
        "aws.agentcore.configbundle_version=v1",
        baggage(""),
    ],
)
def test_without_both_there_is_no_bundle_and_no_configuration(
    header: str | None, boto3: ControlPlane, log: LogLines
) -> None:
    assert in_request(header, BedrockAgentCoreContext.get_config_bundle_ref) is None
    assert in_request(header, BedrockAgentCoreContext.get_config_bundle) == {}
    assert (boto3.clients, log.lines) == ([], [])


@pytest.mark.parametrize("arn", ["prices-AbC", "arn:prices/", "/"])
def test_a_malformed_arn_is_warned_of_without_its_text_and_is_no_bundle(
    arn: str, boto3: ControlPlane, log: LogLines
) -> None:
    assert in_request(baggage(arn), BedrockAgentCoreContext.get_config_bundle_ref) is None
    assert in_request(baggage(arn), BedrockAgentCoreContext.get_config_bundle) == {}
    assert boto3.clients == []
    (line,) = log.lines
    assert (line["level"], line["requestId"]) == ("WARNING", "r")
    assert "prices" not in line["message"]


@pytest.mark.parametrize(("arn", "version"), [("", "1"), ("arn", "1"), ("arn/", "1"), (ARN, "")])
def test_a_reference_is_checked_where_it_is_made(arn: str, version: str) -> None:
    with pytest.raises(ValueError, match="bundle_"):
        ConfigBundleRef(arn, version)


# The configuration


def test_the_configuration_is_the_agents_own_component(boto3: ControlPlane) -> None:
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {"model": {"name": "small"}}
    assert boto3.calls == [{"bundleId": "prices-AbC", "versionId": "v1"}]
    assert boto3.clients == [("bedrock-agentcore-control", "eu-west-1")]


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({"AWS_REGION": "us-east-1"}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "us-east-2"}, "us-east-2"),
        ({"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-2"}, "us-east-1"),
        ({}, "eu-west-1"),
    ],
)
def test_the_region_is_the_environments_else_the_bundles(
    environment: dict[str, str], region: str, boto3: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    in_request(baggage(), BedrockAgentCoreContext.get_config_bundle)
    assert boto3.clients == [("bedrock-agentcore-control", region)]


def test_an_arn_without_a_region_leaves_it_to_boto3(boto3: ControlPlane) -> None:
    in_request(baggage("bundle/b"), BedrockAgentCoreContext.get_config_bundle)
    assert boto3.clients == [("bedrock-agentcore-control", None)]


@pytest.mark.parametrize(
    "attributes",
    [
        f"cloud.resource_id={OWN_ARN}",
        f" service.name=a , cloud.resource_id = {OWN_ARN} ",
        f"cloud.resource_id={OWN_ARN}/runtime-endpoint/DEFAULT:DEFAULT",
        "cloud.resource_id=" + OWN_ARN.replace(":", "%3A").replace("/", "%2F"),
    ],
)
def test_the_own_arn_is_the_resource_id_up_to_the_endpoint(attributes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {"model": {"name": "small"}}


@pytest.mark.parametrize("attributes", ["", "service.name=a", "cloud.resource_id=arn:another/agent"])
def test_without_a_component_of_its_own_an_agent_has_no_configuration_and_is_warned(
    attributes: str, monkeypatch: pytest.MonkeyPatch, log: LogLines
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {}
    assert [line["level"] for line in log.lines] == ["WARNING"]


def test_a_component_without_a_configuration_is_empty(boto3: ControlPlane) -> None:
    boto3.components = {OWN_ARN: {}}
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {}


def test_it_is_fetched_once_for_each_bundle_and_version(boto3: ControlPlane) -> None:
    for _ in range(3):
        for version in ("v1", "v2"):
            assert in_request(baggage(version=version), BedrockAgentCoreContext.get_config_bundle)
    assert [call["versionId"] for call in boto3.calls] == ["v1", "v2"]
    assert len(boto3.clients) == 1


def test_it_is_fetched_once_also_where_many_ask_at_the_same_time(boto3: ControlPlane) -> None:
    boto3.seconds = 0.05
    barrier = threading.Barrier(8)

    def ask(_: int) -> Any:
        barrier.wait(10)
        return in_request(baggage(), BedrockAgentCoreContext.get_config_bundle)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [{"model": {"name": "small"}}] * 8
    assert len(boto3.calls) == 1


def test_the_configurations_that_are_kept_have_a_bound(boto3: ControlPlane) -> None:
    versions = [f"v{number}" for number in range(CACHED_BUNDLES + 1)]
    for version in [*versions, versions[-1], versions[0]]:
        in_request(baggage(version=version), BedrockAgentCoreContext.get_config_bundle)
    assert [call["versionId"] for call in boto3.calls] == [*versions, versions[0]]


def test_what_one_request_changes_in_its_configuration_another_does_not_see() -> None:
    in_request(baggage(), BedrockAgentCoreContext.get_config_bundle)["model"]["name"] = "changed"
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {"model": {"name": "small"}}


def test_the_clients_exceptions_come_through_and_the_next_call_tries_again(boto3: ControlPlane) -> None:
    boto3.error = PermissionError("AccessDeniedException")
    for _ in range(2):
        with pytest.raises(PermissionError, match="AccessDeniedException"):
            in_request(baggage(), BedrockAgentCoreContext.get_config_bundle)
    boto3.error = None
    assert in_request(baggage(), BedrockAgentCoreContext.get_config_bundle) == {"model": {"name": "small"}}


def test_without_boto3_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ModuleNotFoundError, match="pip install boto3") as raised:
        in_request(baggage(), BedrockAgentCoreContext.get_config_bundle)
    assert raised.value.name == "boto3"


def test_a_bundle_that_is_set_by_hand_counts_in_the_place_of_the_baggages(boto3: ControlPlane) -> None:
    def read() -> list[Any]:
        BedrockAgentCoreContext.set_config_bundle_ref(ConfigBundleRef("arn:x/other", "v9"))
        configuration = BedrockAgentCoreContext.get_config_bundle()
        BedrockAgentCoreContext.set_config_bundle_ref(None)
        return [
            configuration,
            BedrockAgentCoreContext.get_config_bundle_ref(),
            BedrockAgentCoreContext.get_config_bundle(),
        ]

    assert in_request(baggage(), read) == [{"model": {"name": "small"}}, None, {}]
    assert boto3.calls == [{"bundleId": "other", "versionId": "v9"}]


def own_configuration(payload: Any) -> Any:
    return [BedrockAgentCoreContext.get_config_bundle_ref(), BedrockAgentCoreContext.get_config_bundle()]


@pytest.mark.parametrize("propagates_baggage", [True, False])
@pytest.mark.parametrize("headers", [[("Baggage", "tenant=one"), ("baggage", baggage())], [("baggage", baggage())]])
def test_a_handler_reads_its_configuration_whatever_is_propagated(
    headers: list[tuple[str, str]], propagates_baggage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not propagates_baggage:
        monkeypatch.setattr("opentelemetry.propagate.get_global_textmap", lambda: SimpleNamespace(fields=set()))
    app = BedrockAgentCoreApp()
    app.entrypoint(own_configuration)
    with TestClient(app) as client:
        answer = client.post("/invocations", json={}, headers=headers)
    assert answer.json() == [{"bundle_arn": ARN, "bundle_version": "v1"}, {"model": {"name": "small"}}]


def test_a_request_without_a_bundle_has_none_after_one_that_had_it(app: BedrockAgentCoreApp, client: Client) -> None:
    app.entrypoint(lambda payload: BedrockAgentCoreContext.get_config_bundle())
    assert client.post("/invocations", json={}, headers={"baggage": baggage()}).json() == {"model": {"name": "small"}}
    assert client.post("/invocations", json={}).json() == {}
