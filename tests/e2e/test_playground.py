"""The playground in headless Chromium, driven by Playwright in an environment of its own."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.e2e.environments import environment
from tests.e2e.runtimes import HERE, ROOT, ported
from tests.e2e.served import served
from tests.integration.server import free_port, run

CHECKS = HERE / "playground_checks.py"
AGENT = "tests.e2e.playground_agent"
KEY = "the-key-of-the-playgrounds-tests"
SECONDS = 300.0
"""After which the browser counts as hanging; it takes about half a minute."""


def names_of(path: Path) -> list[str]:
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return [function.name for function in functions if function.name.startswith("test_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """By the name of each check, what it said where it failed."""
    directory = tmp_path_factory.mktemp("playground")
    keys, report = directory / "keys", directory / "report.xml"
    keys.write_text(f"tests:{KEY}\n")
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not on the PATH"
    browser = environment("browser")
    port = free_port()
    agent, ag_ui_port = directory / "agent.py", free_port()
    agent.write_text(ported((HERE / "ag_ui" / "agent.py.txt").read_text()))
    paths = f"PYTHONPATH={ROOT / 'service'}:{ROOT / 'telemetry'}"
    ag_ui = ["env", paths, "AGENTCORE_PLAYGROUND=true", str(environment("ag-ui") / "python"), str(agent)]
    with (
        pytest.MonkeyPatch.context() as patch,
        served(f"{AGENT}:app", AGENTCORE_PLAYGROUND="true") as plain,
        served(f"{AGENT}:app", AGENTCORE_PLAYGROUND="true", AGENTCORE_API_KEYS_FILE=str(keys)) as guarded,
    ):
        patch.setenv("AGENTCORE_PLAYGROUND", "true")
        command = [sys.executable, "-m", "uvicorn", f"{AGENT}:mounted", "--port", str(port)]
        with run(command, port) as mounted, run([*ag_ui, str(ag_ui_port)], ag_ui_port, start_seconds=60) as runs:
            variables = {
                "PLAYGROUND_URL": plain.url,
                "PLAYGROUND_GUARDED_URL": guarded.url,
                "PLAYGROUND_MOUNTED_URL": f"{mounted.url}/agents/one",
                "PLAYGROUND_AG_UI_URL": runs.url,
                "PLAYGROUND_KEY": KEY,
                "PLAYGROUND_CHROMIUM": chromium,
                "PLAYGROUND_PYTHON": sys.executable,
            }
            options = [
                "--noconftest",
                "--import-mode=importlib",
                "-p",
                "no:cacheprovider",
                "-c",
                os.devnull,
                f"--junitxml={report}",
            ]
            done = subprocess.run(
                [browser / "python", "-m", "pytest", *options, CHECKS],
                cwd=directory,
                env=os.environ | variables,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        said = found.setdefault(case.attrib["name"].partition("[")[0], [])
        said += [fault.text or fault.attrib.get("message", "") for fault in case]
    return found


@pytest.mark.parametrize("name", names_of(CHECKS))
def test_in_a_browser(name: str, outcomes: Mapping[str, list[str]]) -> None:
    assert outcomes[name] == [], "\n".join(outcomes[name])


def test_the_script_is_javascript(tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node, "node is not on the PATH"
    parts = sorted((ROOT / "service" / "litestar_agentcore" / "playground").glob("*.js"))
    assert parts
    for part in parts:
        module = tmp_path / part.with_suffix(".mjs").name
        module.write_text(part.read_text())
        done = subprocess.run([node, "--check", module], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
