"""An agent written for the official SDK runs here after one import line is changed, and its own tests still pass."""

import inspect
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import litestar_agentcore
import pytest
from litestar_agentcore import BedrockAgentCoreApp

from tests.e2e.runtimes import HERE, OURS, ROOT, Runtime, free_ports, ported

AGENT = HERE / "migration" / "agent.py.txt"
AGENTS_TESTS = HERE / "migration" / "agent_tests.py.txt"
NAMES = re.findall(r"^def (test_\w+)", AGENTS_TESTS.read_text(), re.MULTILINE)

Verdicts = dict[str, str]


@pytest.fixture(scope="module")
def verdicts(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    directory = tmp_path_factory.mktemp(runtime.name)
    runtime.write_agent(AGENT, directory)
    (directory / "test_agent.py").write_text(AGENTS_TESTS.read_text())
    report = directory / "report.xml"
    done = runtime.run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", directory=directory)
    assert report.exists(), done.stdout + done.stderr
    verdicts: Verdicts = {}
    for case in ET.parse(report).iter("testcase"):
        failures = [outcome.text or outcome.tag for outcome in case if outcome.tag in {"failure", "error", "skipped"}]
        name = case.attrib["name"].partition("[")[0]
        verdicts[name] = verdicts.get(name, "") + "\n".join(failures)
    return verdicts


def test_moving_an_agent_here_changes_one_line() -> None:
    source = AGENT.read_text().splitlines()
    moved = ported(AGENT.read_text()).splitlines()
    changed = [lines for lines in zip(source, moved, strict=True) if lines[0] != lines[1]]
    names = "BedrockAgentCoreApp, BedrockAgentCoreContext, PingStatus, RequestContext"
    assert changed == [(f"from bedrock_agentcore.runtime import {names}", f"from litestar_agentcore import {names}")]


def test_the_agents_own_tests_need_no_change() -> None:
    assert ported(AGENTS_TESTS.read_text()) == AGENTS_TESTS.read_text()


def test_the_moved_agent_needs_nothing_of_the_official_sdk(tmp_path: Path) -> None:
    OURS.write_agent(AGENT, tmp_path)
    unimportable = "import sys; sys.modules['bedrock_agentcore'] = None; import agent"
    loaded = OURS.run("-c", unimportable, directory=tmp_path)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_agents_own_tests_pass(name: str, verdicts: Verdicts) -> None:
    if failures := verdicts[name]:
        pytest.fail(failures, pytrace=False)


def test_the_agent_serves_when_its_file_is_run(runtime: Runtime, tmp_path: Path) -> None:
    file = runtime.write_agent(AGENT, tmp_path)
    (port,) = free_ports(1)
    with (
        runtime.serve(file, ports=[port], PORT=str(port)),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert client.get("/ping").json()["status"] == "Healthy"
        answer = client.post("/invocations", json={"prompt": "Hi"})
        volumes = client.post("/invocations", json={"action": "look up", "title": "cookbook"})
    assert answer.json() == {"answer": "You said: Hi", "session": None, "sources": []}
    assert (volumes.status_code, volumes.json()) == (404, {"error": "There is no such book"})


# What docs/migration.md says of the official SDK's names

TABLE = dict(
    re.findall(
        r"^\| `(\w+)` \| (here|stays where it is: keep that import|not yet \(.+\)) \|$",
        (ROOT / "docs" / "migration.md").read_text(),
        re.MULTILINE,
    )
)
HERE_TOO = [name for name, where in TABLE.items() if where == "here"]
PUBLIC_NAMES = """
import inspect
import json
import sys
import bedrock_agentcore
import bedrock_agentcore.runtime as runtime


def members(owner):
    if inspect.isfunction(owner):
        return sorted(inspect.signature(owner).parameters)
    return sorted(name for name in vars(owner) if not name.startswith("_"))


app = runtime.BedrockAgentCoreApp()
own = {name for name in vars(app) if not name.startswith("_")} - set(vars(runtime.BedrockAgentCoreApp.__mro__[1]()))
print(json.dumps({name: members(getattr(runtime, name)) for name in sys.argv[1:]} | {
    "names": sorted({*runtime.__all__, *bedrock_agentcore.__all__}),
    "BedrockAgentCoreApp": sorted({*members(runtime.BedrockAgentCoreApp), *own}),
    "BedrockAgentCoreContext": members(runtime.BedrockAgentCoreContext),
    "RequestContext": sorted(runtime.RequestContext.model_fields),
    "PingStatus": sorted(runtime.PingStatus.__members__),
}))
"""


@pytest.fixture(scope="module")
def public(reference: Runtime, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The public names of the installed SDK, and the members, or parameters, of those that are here too."""
    done = reference.run("-c", PUBLIC_NAMES, *HERE_TOO, directory=tmp_path_factory.mktemp("names"))
    assert done.returncode == 0, done.stderr
    names: dict[str, list[str]] = json.loads(done.stdout)
    return names


def test_every_public_name_of_the_official_sdk_is_in_the_table(public: dict[str, list[str]]) -> None:
    assert sorted(TABLE) == public["names"]


@pytest.mark.parametrize("name", TABLE)
def test_a_name_is_where_the_table_says(name: str) -> None:
    assert hasattr(litestar_agentcore, name) is (TABLE[name] == "here")


@pytest.mark.parametrize("name", HERE_TOO)
def test_what_is_here_has_every_public_member_or_parameter(name: str, public: dict[str, list[str]]) -> None:
    ours: Any = BedrockAgentCoreApp() if name == "BedrockAgentCoreApp" else getattr(litestar_agentcore, name)
    if inspect.isfunction(ours):
        assert sorted(inspect.signature(ours).parameters) == public[name]
        return
    assert public[name]
    assert [member for member in public[name] if not hasattr(ours, member)] == []
