"""The official SDK's own decorators and its client of AWS, used by one agent on both runtimes."""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import httpx
import pytest

from tests.e2e.aws_stand_in import AwsStandIn
from tests.e2e.runtimes import HERE, ROOT, Runtime, free_ports

AGENT = HERE / "migration" / "tools_agent.py.txt"
ACCOUNT = "arn:aws:bedrock-agentcore:eu-west-1:123456789012"
OWN_ARN = f"{ACCOUNT}:runtime/tools-XyZ"
BUNDLE = f"{ACCOUNT}:configuration-bundle/prices-AbC"
WAT = "X-Amz-Bedrock-AgentCore-Identity-WAT"


class Aws(AwsStandIn):
    """Answers what the agent asks AWS for."""

    calls: ClassVar[list[str]] = []
    configurations: ClassVar[dict[str, Any]] = {
        "/configuration-bundles/prices-AbC/versions/v1": {
            OWN_ARN: {"configuration": {"model": {"name": "small", "n": 1}}}
        },
        "/configuration-bundles/prices-AbC/versions/v2": {f"{OWN_ARN}-2": {"configuration": {}}},
    }

    def do_GET(self) -> None:
        self.calls.append(self.path)
        components = self.configurations.get(unquote(self.path))
        if components is None:
            self.answer({"message": "no such version"}, 404, {"x-amzn-errortype": "ResourceNotFoundException"})
        else:
            self.answer({"bundleId": "prices-AbC", "components": components})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.answer({"accessToken": f"{asked['resourceCredentialProviderName']}: {asked['workloadIdentityToken']}"})


@pytest.fixture
def aws() -> Iterator[str]:
    with Aws.serving() as url:
        Aws.calls.clear()
        yield url


@pytest.fixture
def client(runtime: Runtime, reference: Runtime, aws: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the agent; on our runtime it has the official SDK beside us."""
    environment = {
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": aws,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.name=tools,cloud.resource_id={OWN_ARN}/runtime-endpoint/DEFAULT",
        "NO_PROXY": "127.0.0.1",
    }
    if not runtime.is_reference:
        packages = reference.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", directory=tmp_path)
        assert sysconfig.get_path("purelib") != packages.stdout.strip()
        (tmp_path / "beside").mkdir()
        (tmp_path / "beside" / "sitecustomize.py").write_text(
            f"import sys\nsys.path.append({packages.stdout.strip()!r})\n"
        )
        environment["PYTHONPATH"] = f"{tmp_path / 'beside'}:{ROOT}"
    file = runtime.write_agent(AGENT, tmp_path)
    (port,) = free_ports(1)
    with (
        runtime.serve(file, ports=[port], PORT=str(port), **environment),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        yield client


def ask(client: httpx.Client, action: str, token: str | None, **headers: str) -> httpx.Response:
    if token is not None:
        headers[WAT] = token
    return client.post("/invocations", json={"action": action, "folder": "f"}, headers=headers)


@pytest.mark.parametrize("action", ["list", "who am I", "who am I, in a thread"])
def test_a_decorator_that_is_imported_in_the_handler_has_the_token_from_the_first_request(
    client: httpx.Client, action: str
) -> None:
    for token in ("first", "second"):
        expected = {"folder": "f", "token": f"drive: {token}"} if action == "list" else token
        response = ask(client, action, token)
        assert (response.status_code, response.json()) == (200, expected)


def test_a_request_without_a_token_has_none_after_one_that_had_it(client: httpx.Client) -> None:
    assert ask(client, "who am I", "first").json() == "first"
    response = ask(client, "who am I", None)
    assert response.status_code == 500
    assert "No workload access token" in response.json()["error"]


def test_a_stream_has_the_token_between_its_yields(client: httpx.Client) -> None:
    for token in ("first", "second"):
        lines = [line for line in ask(client, "stream", token).text.splitlines() if line]
        assert [json.loads(line.removeprefix("data: ")) for line in lines] == [
            {"folder": "a", "token": f"drive: {token}"},
            {"identity": token},
            {"folder": "b", "token": f"drive: {token}"},
            {"identity": token},
        ]


def configuration(client: httpx.Client, baggage: str | None) -> httpx.Response:
    return ask(client, "configuration", None, **({} if baggage is None else {"baggage": baggage}))


def bundle(arn: str = BUNDLE, version: str = "v1") -> str:
    return f"aws.agentcore.configbundle_arn={arn},aws.agentcore.configbundle_version={version}"


EXPERIMENT = (
    "aws.agentcore.gateway.routing_experiment_arn=arn%3Ae;ttl=1,"
    "aws.agentcore.gateway.routing_experiment_variant_name=treatment%20b"
)
NOTHING: dict[str, Any] = {"bundle": None, "configuration": {}, "experiment": [None, None]}
SMALL = {"model": {"name": "small", "n": 1}}


@pytest.mark.parametrize(
    ("baggage", "expected"),
    [
        (None, NOTHING),
        ("tenant=one", NOTHING),
        (bundle(), NOTHING | {"bundle": [BUNDLE, "v1", "prices-AbC"], "configuration": SMALL}),
        (bundle(version="v2"), NOTHING | {"bundle": [BUNDLE, "v2", "prices-AbC"]}),
        (f"junk,{bundle()},=,a=", NOTHING | {"bundle": [BUNDLE, "v1", "prices-AbC"], "configuration": SMALL}),
        (bundle("prices-AbC"), NOTHING),
        (bundle("arn:prices/"), NOTHING),
        (bundle(version=""), NOTHING),
        (EXPERIMENT, NOTHING | {"experiment": ["arn:e", "treatment b"]}),
        (f"junk, {EXPERIMENT}", NOTHING | {"experiment": ["arn:e", "treatment b"]}),
    ],
)
def test_the_configuration_and_the_experiment_of_a_request_are_the_same_on_both(
    client: httpx.Client, baggage: str | None, expected: Any
) -> None:
    for _ in range(2):
        assert configuration(client, baggage).json() == expected
    assert len(Aws.calls) == (1 if expected["bundle"] else 0)


def test_an_error_of_aws_comes_through_and_is_asked_for_again(client: httpx.Client) -> None:
    for _ in range(2):
        response = configuration(client, bundle(version="v9"))
        assert response.status_code == 500
        assert "ResourceNotFoundException" in response.json()["error"]
    assert len(Aws.calls) == 2
