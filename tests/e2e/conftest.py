"""The environment of the reference runtime, made where it is not there yet."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runtimes import HERE, OURS, ROOT, Runtime

VENV = ROOT / ".venv-peer"
REQUIREMENTS = HERE / "requirements-peer.txt"


@pytest.fixture(scope="session")
def reference() -> Runtime:
    python = VENV / "bin" / "python"
    if not (VENV / "bin" / "pip").exists():
        run(Path(sys.executable), "-m", "venv", str(VENV))
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(REQUIREMENTS))
    return Runtime("reference", python)


@pytest.fixture(scope="session", params=["reference", "ours"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param == "ours":
        return OURS
    reference: Runtime = request.getfixturevalue("reference")
    return reference


def run(python: Path, *arguments: str) -> None:
    done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.fail(f"The reference runtime cannot be installed: {' '.join(arguments)}\n{done.stdout}{done.stderr}")
