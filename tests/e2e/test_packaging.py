"""The distribution beside a project's own packages: what becomes importable, and what a type checker sees of it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.environments import environment as environment_of
from tests.e2e.runtimes import ROOT
from tests.integration.server import free_port, run

OURS = {"litestar_agentcore", "agentcore_telemetry"}

PROJECT = {
    "service/__init__.py": 'NAME = "the project\'s service"\n',
    "telemetry/__init__.py": 'NAME = "the project\'s telemetry"\n',
    "tests/__init__.py": "",
    "tests/test_agent.py": (
        "from litestar.testing import TestClient\n"
        "from {module} import app\n\n\n"
        "def test_the_agent_answers() -> None:\n"
        "    with TestClient(app=app) as client:\n"
        '        answer = client.post("/invocations", json={{}}).json()\n'
        '    assert answer == ["the project\'s service", "the project\'s telemetry"]\n'
    ),
}
AGENT = """
import sys

import service
import telemetry
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def agent(payload):
    return [service.NAME, telemetry.NAME]


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
"""


def backend(directory: Path, *, make: str, source: Path = ROOT) -> Path:
    """Call a hook of the build backend (PEP 517, PEP 660) in the source tree, and give the file that it made."""
    directory.mkdir()
    code = f"import hatchling.build as b; print(b.{make}({str(directory)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backend(tmp_path_factory.mktemp("wheel") / "dist", make="build_wheel")


@pytest.fixture(scope="module")
def sdist_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution."""
    directory = tmp_path_factory.mktemp("sdist")
    with tarfile.open(backend(directory / "dist", make="build_sdist")) as archive:
        archive.extractall(directory, filter="data")
    (source,) = (path for path in directory.iterdir() if path.name != "dist")
    return backend(directory / "wheel", make="build_wheel", source=source)


@pytest.fixture(scope="module")
def editable_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backend(tmp_path_factory.mktemp("editable") / "dist", make="build_editable")


class Environment:
    """A Python with the distribution and, unless it is bare, with what it depends on, and nothing else of ours."""

    def __init__(self, directory: Path, wheel: Path, *, bare: bool) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=60)
        self.bin = directory / "bin"
        self.python = self.bin / "python"
        (self.packages,) = (directory / "lib").glob("python3.*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        if not bare:
            # The packages of this environment, but not the links (.pth) in it, of which one leads to our sources.
            (here,) = (Path(sys.executable).parent.parent / "lib").glob("python3.*/site-packages")
            (self.packages / "zz-dependencies.pth").write_text(f"{here}\n")

    def importable(self) -> set[str]:
        """The top-level modules of all directories that the distribution has put on the path."""
        code = (
            "import pkgutil, sys; paths = [p for p in sys.path if 'lib/python' not in p or 'site-packages' in p];"
            "print(*{m.name for m in pkgutil.iter_modules(paths)})"
        )
        return set(self.run("-c", code, cwd=self.bin).split())

    def run(self, *arguments: str, cwd: Path) -> str:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [self.python, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.parametrize("built", ["wheel", "sdist_wheel", "editable_wheel"])
def test_two_packages_become_importable_and_nothing_else(
    built: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv", request.getfixturevalue(built), bare=True)
    assert environment.importable() == OURS


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "venv", wheel, bare=False)


def project(directory: Path, agent: str) -> Path:
    """A project with packages of its own that are called as our directories are."""
    files = {name: text.format(module=agent.removesuffix(".py").replace("/", ".")) for name, text in PROJECT.items()}
    if agent == "app/__main__.py":
        files["app/__init__.py"] = ""
    for name, text in {**files, agent: AGENT}.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize(
    ("agent", "command"),
    [
        ("app.py", lambda at, port: [at / "python", "app.py", port]),
        ("app.py", lambda at, port: [at / "python", "-m", "litestar", "run", "--port", port]),
        ("app.py", lambda at, port: [at / "python", "-m", "uvicorn", "app:app", "--port", port]),
        ("app/__main__.py", lambda at, port: [at / "python", "-m", "app", port]),
        ("app/__main__.py", lambda at, port: [at / "python", "-m", "uvicorn", "app.__main__:app", "--port", port]),
    ],
    ids=["python", "litestar run", "uvicorn", "a package called app", "a package called app under uvicorn"],
)
def test_a_project_keeps_its_packages_called_service_telemetry_app_and_tests(
    agent: str,
    command: Callable[[Path, str], list[object]],
    environment: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project(tmp_path, agent))
    port = free_port()
    with run([str(part) for part in command(environment.bin, str(port))], port, cwd=tmp_path) as server:
        answer = httpx.post(f"{server.url}/invocations", json={}, trust_env=False)
    assert answer.json() == ["the project's service", "the project's telemetry"]


@pytest.mark.parametrize("agent", ["app.py", "app/__main__.py"])
def test_a_project_with_such_packages_runs_its_tests(agent: str, environment: Environment, tmp_path: Path) -> None:
    assert "1 passed" in environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project(tmp_path, agent))


def test_no_second_copy_of_a_package_is_loaded_from_the_repositorys_root() -> None:
    code = (
        "import sys; from litestar.cli.main import litestar_group;"
        "litestar_group(['--app', 'app:app', 'routes'], standalone_mode=False);"
        "print('COPIES', [name for name in sys.modules if name.split('.')[0] in ('service', 'telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "COPIES []"


TYPED_PROJECT = """
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Litestar, WebSocket
from litestar_agentcore import (
    AgentCorePlugin, BedrockAgentCoreApp, BedrockAgentCoreContext, PingStatus, RequestContext, Settings,
)

app = BedrockAgentCoreApp(debug=True)


class Ask(msgspec.Struct):
    prompt: str


@app.entrypoint
async def agent(payload: Ask, context: RequestContext) -> dict[str, str | None]:
    return {"prompt": payload.prompt, "session": context.session_id}


@app.entrypoint(payload=Ask)
async def stream(payload: Ask) -> AsyncIterator[str]:
    yield payload.prompt


@app.ping
def health() -> PingStatus:
    return PingStatus.HEALTHY


@app.websocket
async def talk(websocket: "WebSocket[Any, Any, Any]", context: RequestContext) -> None:
    await websocket.accept()


@app.async_task
async def work(seconds: float, *, name: str = "work") -> int:
    return 1


async def make_number() -> int:
    number: int = await app.agent.run(work(1.0, name="x"))
    return number


task_id: int = app.add_async_task("name", {"k": 1})
done: bool = app.complete_async_task(task_id)
status: PingStatus = app.get_current_ping_status()
token: str | None = BedrockAgentCoreContext.get_workload_access_token()
host = Litestar(plugins=[AgentCorePlugin(agent, settings=Settings(agent_name="a"), metrics_path=None)])
"""
WRONG = "\nworking = work('soon')\ncounted: str = app.add_async_task('name')\n"


@pytest.fixture(scope="module")
def pyright() -> Path:
    return environment_of("pyright") / "pyright"


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize(("addition", "errors"), [("", 0), (WRONG, 2)], ids=["right", "wrong"])
def test_a_project_that_uses_the_wheel_is_checked_strictly(
    checker: str, addition: str, errors: int, environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "project.py").write_text(TYPED_PROJECT + addition)
    if checker == "mypy":
        command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path / 'cache'}"]
        command += [f"--python-executable={environment.python}", "project.py"]
    else:
        (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
        command = [str(request.getfixturevalue("pyright")), "--pythonpath", str(environment.python)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = [line for line in done.stdout.splitlines() if "project.py:" in line and "error" in line]
    assert len(found) == errors, done.stdout + done.stderr
    assert done.returncode == (1 if errors else 0)
