"""An agent written for the official SDK runs here after one import line is changed, and its own tests still pass."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest

from tests.e2e.runtimes import HERE, OURS, Runtime, free_ports, ported

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
