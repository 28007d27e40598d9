"""Where the candidates are installed: each peer in an environment of its own, made where it is not there yet."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

OURS = ROOT / ".venv-ours"
PEER = ROOT / ".venv-peer"
PEER_TRACED = ROOT / ".venv-peer-traced"
AG_UI = ROOT / ".venv-ag-ui"
PEER_A2A = ROOT / ".venv-peer-a2a"
MCP = ROOT / ".venv-mcp-bench"
NPM_PEER = ROOT / ".npm-peer"

FOREIGN = ("AGENTCORE_", "AGENT_NAME", "DOCKER_CONTAINER", "KUBERNETES_", "NODE_", "OTEL_", "PYTEST_", "PYTHON")
"""Variables of the caller's that would change what is measured."""


class MissingTool(Exception):
    """Something that the benchmarks need is not on this machine. The message says how to get it."""


def base_environment() -> dict[str, str]:
    """The caller's variables, without those that would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def require(tool: str, remedy: str) -> str:
    """The path of a tool that has to be there."""
    path = shutil.which(tool)
    if path is None:
        raise MissingTool(f"The benchmarks need {tool}, and it is not on the PATH: {remedy}")
    return path


def wrk() -> str:
    return require("wrk", "apt-get install wrk, or brew install wrk")


def node() -> str:
    return require("node", "install Node.js 20 or newer, with npm")


def ours() -> Path:
    """The Python of an environment with what this runtime needs, and nothing that its developers need."""
    return _venv(OURS, ROOT / "requirements/runtime.txt")


def python_peer() -> Path:
    """The Python of the environment with the official SDK."""
    return _venv(PEER, HERE / "requirements-peer.txt")


def traced_python_peer() -> Path:
    """The Python of the environment with the official SDK and OpenTelemetry's distribution."""
    return _venv(PEER_TRACED, HERE / "requirements-peer-traced.txt")


def ag_ui() -> Path:
    """The Python of the environment with AG-UI's library, what this runtime needs, and the official SDK."""
    return _venv(AG_UI, ROOT / "tests/e2e/requirements-ag-ui.txt")


def a2a() -> Path:
    """The Python of the environment with the a2a-sdk, what this runtime needs, and the official SDK."""
    return _venv(PEER_A2A, ROOT / "tests/e2e/requirements-a2a.txt")


def mcp() -> Path:
    """The Python of the environment with MCP's library, and what this runtime needs."""
    return _venv(MCP, ROOT / "tests/e2e/requirements-mcp.txt")


def npm_peer() -> Path:
    """The directory whose ``node_modules`` have the official TypeScript SDK."""
    npm = require("npm", "install Node.js 20 or newer, with npm")
    files = [HERE / "package.json", HERE / "package-lock.json"]
    if _outdated(NPM_PEER, files):
        NPM_PEER.mkdir(exist_ok=True)
        (NPM_PEER / ".gitignore").write_text("*\n")
        for file in files:
            shutil.copy(file, NPM_PEER)
        _run([npm, "ci", "--no-audit", "--no-fund"], NPM_PEER)
        _mark(NPM_PEER, files)
    return NPM_PEER


def _venv(directory: Path, requirements: Path) -> Path:
    python = directory / "bin" / "python"
    if _outdated(directory, [requirements]):
        if not (directory / "bin" / "pip").exists():
            _run([sys.executable, "-m", "venv", str(directory)], ROOT)
        install = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--requirement"]
        _run([str(python), "-m", "pip", *install, str(requirements)], ROOT)
        _mark(directory, [requirements])
    return python


def _outdated(directory: Path, files: list[Path]) -> bool:
    mark = directory / ".benchmarks"
    return not mark.exists() or mark.read_text() != _digest(files)


def _mark(directory: Path, files: list[Path]) -> None:
    (directory / ".benchmarks").write_text(_digest(files))


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _run(command: list[str], directory: Path) -> None:
    print(f"Preparing {directory.name}: {' '.join(command[:4])} ...", file=sys.stderr)
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise MissingTool(f"A peer cannot be installed: {' '.join(command)}\n{done.stdout}{done.stderr}")
