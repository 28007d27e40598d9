"""The image: what its Dockerfile says, what a container engine makes of it, and how it runs there.

The base, which comes from a registry, has a stand-in: see :mod:`tests.e2e.base_image`. A build for the other
architecture is ``make arm64``; of that one, only the wheels are looked at here.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from litestar_agentcore.version import __version__
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import base_image
from tests.e2e.engine import Container, Engine, Failed, running_engine, wait_until
from tests.e2e.executables import executable
from tests.e2e.runtimes import ROOT
from tests.markdown import blocks

IMAGE = "litestar-agentcore"

SIZE_LIMIT = 115e6
"""Bytes of files that the image may add to its base. cryptography, for bearer tokens, has 14 MB of them."""

SERVICE_LIMIT = 5e6
"""Bytes that a new release of the service may cost whoever has the one before."""

LOCK = ROOT / "requirements/runtime.txt"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LABEL = "org.opencontainers.image."

UNPRIVILEGED = ("--cap-drop=all", "--security-opt=no-new-privileges")

HARDENED = ("--read-only", "--read-only-tmpfs=false", *UNPRIVILEGED)
"""No place to write to: podman makes even ``/dev/shm`` read-only, which Docker and Kubernetes leave writable."""


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what it says."""
    lines = (line for line in dockerfile.splitlines() if line and not line.startswith("#"))
    joined = "\n".join(lines).replace("\\\n", "")
    return [(name, value.strip()) for name, _, value in (line.partition(" ") for line in joined.splitlines())]


STEPS = instructions(DOCKERFILE)


def said(instruction: str) -> list[str]:
    """What the instructions of one kind say, in their order."""
    return [value for name, value in STEPS if name == instruction]


# -- What the files say


def hadolint(dockerfile: Path) -> str:
    done = subprocess.run(
        [executable("hadolint", "the locked requirements"), dockerfile], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_hadolint_has_nothing_to_say() -> None:
    assert hadolint(ROOT / "Dockerfile") == ""


def test_hadolint_has_a_word_for_a_dockerfile_that_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN apt-get install gcc\nCMD litestar run\n")
    words = hadolint(wrong)
    assert "DL3006" in words
    assert "DL3025" in words


def test_the_base_is_a_slim_python_that_a_build_argument_can_pin() -> None:
    assert said("ARG")[0] == "PYTHON_IMAGE=python:3.13-slim"
    assert [source.split()[0] for source in said("FROM")] == ["${PYTHON_IMAGE}", "dependencies", "${PYTHON_IMAGE}"]


def test_every_installation_is_of_wheels_with_known_hashes_or_of_the_wheel_just_built() -> None:
    installations = re.findall(r"pip .*?install [^&]+", " && ".join(said("RUN")))
    assert len(installations) == 3
    for installation in installations:
        assert {"--require-hashes", "--only-binary=:all:"} <= set(installation.split()) or (
            {"--no-index", "--no-deps"} <= set(installation.split())
        ), installation


def test_no_step_brings_in_a_compiler_a_shell_script_or_a_file_from_elsewhere() -> None:
    assert said("ADD") == []
    words = set(re.findall(r"[\w.+-]+", " ".join(said("RUN"))))
    assert not words & {"apt-get", "apt", "apk", "gcc", "g++", "make", "curl", "wget", "git", "https", "http"}


def test_the_last_stage_takes_over_the_environment_alone_and_runs_no_pip() -> None:
    last = STEPS[max(index for index, (name, _) in enumerate(STEPS) if name == "FROM") :]
    copied = [value.split()[1:] for name, value in last if name == "COPY" and value.startswith("--from")]
    assert copied == [["/opt/venv", "/opt/venv"], ["/service/opt/venv", "/opt/venv"]]
    assert "pip install" not in " ".join(value for name, value in last if name == "RUN")


def test_no_step_names_an_architecture() -> None:
    assert not re.search(
        r"amd64|arm64|x86_64|aarch64|PLATFORM|TARGETARCH", "\n".join(f"{name} {value}" for name, value in STEPS)
    )


# -- The wheels


def download(to: Path, machine: str) -> Path:
    """Fetch the wheels of all that is locked, and nothing but wheels, for the image's Python on a kind of machine."""
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_17", "_2_28")]
    target = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.13", *platforms]
    abis = ["--abi=cp313", "--abi=abi3", "--abi=none"]
    locked = ["--no-deps", "--require-hashes", f"--requirement={LOCK}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={to}", *target, *abis, *locked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return to


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """The wheels for both architectures."""
    directory = tmp_path_factory.mktemp("wheels")
    with ThreadPoolExecutor() as pool:
        yield {machine: pool.submit(download, directory / machine, machine) for machine in ("aarch64", "x86_64")}


def distributions(lock: str) -> set[str]:
    """What a lock has for CPython on Linux."""
    pins = re.findall(r"^([\w.-]+)==\S+(?: ; (.*?))? \\$", lock, re.MULTILINE)
    elsewhere = {"sys_platform == 'win32'"}
    here = {
        "",
        "sys_platform != 'win32'",
        "platform_python_implementation != 'PyPy'",
        "implementation_name != 'PyPy' and platform_python_implementation != 'PyPy'",
    }
    assert {condition for _, condition in pins} <= here | elsewhere
    return {name.replace("-", "_") for name, condition in pins if condition in here}


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_every_locked_dependency_has_a_wheel(machine: str, wheels: dict[str, Future[Path]]) -> None:
    found = {file.name.split("-")[0] for file in wheels[machine].result().glob("*.whl")}
    assert found == distributions(LOCK.read_text())


# -- What is built


@pytest.fixture(scope="module")
def bare_engine() -> Iterator[Engine]:
    """An engine that has nothing but the base."""
    archive = base_image.base_archive()
    with running_engine() as engine:
        engine.load(archive, base_image.NAME, *base_image.CHANGES)
        yield engine


@pytest.fixture(scope="module")
def engine(bare_engine: Engine) -> Engine:
    """An engine that has the image."""
    bare_engine.build(ROOT, IMAGE)
    return bare_engine


def layers(engine: Engine, name: str) -> list[str]:
    """The digests of an image's layers, the lowest first."""
    digests: list[str] = engine.image(name)["RootFS"]["Layers"]
    return digests


def sizes(engine: Engine, name: str) -> list[int]:
    """The sizes of the layers that an image adds to its base, in bytes of files, the lowest first."""
    history = json.loads(engine.podman("history", "--format=json", name))
    found = [layer["size"] for layer in reversed(history) if layer["size"]]
    assert len(found) <= len(layers(engine, name))
    return found[1:]


def files(*trees: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for tree in trees:
        for path in tree.rglob("*"):
            yield path, path.lstat()


def site_packages(root: Path) -> Path:
    (packages,) = (root / "opt/venv/lib").glob("python3.*/site-packages")
    return packages


def test_the_image_says_how_it_is_run(engine: Engine) -> None:
    image = engine.image(IMAGE)
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Cmd"] == ["litestar", "run", "--host", "0.0.0.0", "--port", "8080"]
    assert "Entrypoint" not in config
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert "Volumes" not in config
    check = image["Healthcheck"]
    assert check["Test"][:3] == ["CMD", "python", "-Ic"]
    assert check["Timeout"] < check["Interval"] < check["StartPeriod"]


def test_the_labels_say_what_this_is(engine: Engine) -> None:
    labels = engine.image(IMAGE)["Labels"]
    assert labels[f"{LABEL}title"] == "litestar-agentcore"
    assert labels[f"{LABEL}licenses"] == "Apache-2.0"
    assert labels[f"{LABEL}version"] == __version__
    assert labels[f"{LABEL}description"]


def test_a_new_commit_costs_labels_and_no_layer() -> None:
    last = STEPS[max(index for index, (name, _) in enumerate(STEPS) if name == "FROM") :]
    names = [name for name, _ in last]
    assert not {"RUN", "COPY", "ADD", "WORKDIR"} & set(names[names.index("ARG") :])


def test_a_new_release_of_the_service_costs_its_own_small_layer(engine: Engine, tmp_path: Path) -> None:
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "app.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    for name in ("requirements", "service", "telemetry"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "service/litestar_agentcore/version.py").open("a") as file:
        file.write('NEXT = "1"\n')
    given = {"VERSION": "2.0.0", "SOURCE": "https://example.com/agent", "REVISION": "abc"}
    engine.build(tmp_path, "next", *(f"--build-arg={name}={value}" for name, value in given.items()))
    before, after = layers(engine, IMAGE), layers(engine, "next")
    assert after[:3] == before[:3]  # the base, the standard library's bytecode, the dependencies
    assert after[3] != before[3]
    assert sum(sizes(engine, "next")[2:]) < SERVICE_LIMIT
    labels = engine.image("next")["Labels"]
    assert {LABEL + name.lower(): value for name, value in given.items()}.items() <= labels.items()


def test_what_the_image_adds_to_its_base_is_small(engine: Engine) -> None:
    size = sum(sizes(engine, IMAGE))
    assert SIZE_LIMIT / 2 < size < SIZE_LIMIT, f"{size / 1e6:.0f} MB"


def test_secrets_and_litter_stay_out_of_the_build(bare_engine: Engine, tmp_path: Path) -> None:
    litter = [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "id_rsa",
        "helm/values.yaml",
        "service/__pycache__/x.pyc",
        "tests/x.py",
    ]
    for name in [*litter, "app.py", "service/litestar_agentcore/app.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    shutil.copy2(ROOT / ".dockerignore", tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    bare_engine.build(tmp_path, "context")
    with bare_engine.files("context") as root:
        reached = {str(path.relative_to(root)) for path, status in files(root) if stat.S_ISREG(status.st_mode)}
    assert reached == {"app.py", "service/litestar_agentcore/app.py"}


def test_the_image_has_neither_build_tools_nor_a_file_that_others_may_change(engine: Engine) -> None:
    with engine.files(IMAGE) as root:
        installed = {file.name.split("-")[0].lower() for file in site_packages(root).glob("*.dist-info")}
        assert not installed & {"hatchling", "wheel", "editables"}
        assert "litestar_agentcore" in installed
        assert [path.name for path in (root / "opt").iterdir()] == ["venv"]
        assert [path.name for path in (root / "app").iterdir()] == ["app.py"]
        assert not (root / "src").exists()
        for path, status in files(root / "opt", root / "app"):
            assert (status.st_uid, status.st_gid) == (0, 0), path
            changeable = stat.S_IWOTH | stat.S_IWGRP | stat.S_ISUID | stat.S_ISGID
            assert stat.S_ISLNK(status.st_mode) or not status.st_mode & changeable, path


def test_the_service_is_installed_and_not_linked(engine: Engine) -> None:
    with engine.files(IMAGE) as root:
        packages = site_packages(root)
        source = ROOT / "service/litestar_agentcore/app.py"
        assert (packages / "litestar_agentcore/app.py").read_bytes() == source.read_bytes()
        assert (packages / "agentcore_telemetry/spans.py").exists()
        assert not (packages / "tests").exists()
        assert (root / "opt/venv/bin/litestar-agent").exists()
    with engine.running(IMAGE) as container:
        assert container.execute("pip", "check") == "No broken requirements found.\n"


# -- The container


ANYONE = pytest.mark.parametrize("user", [(10001, 10001), (1000730000, 0)], ids=["the image's user", "OpenShift's"])


def as_user(user: tuple[int, int]) -> tuple[str, ...]:
    return () if user == (10001, 10001) else (f"--user={user[0]}:{user[1]}",)


@ANYONE
def test_it_serves_with_no_privilege_and_no_file_to_write_to(engine: Engine, user: tuple[int, int]) -> None:
    with engine.running(IMAGE, *HARDENED, *as_user(user)) as container:
        assert container.invoke({"prompt": "hi"}) == (200, '{"answer":"You said: hi","session":null}')
        status, events = container.invoke({"prompt": "hi", "stream": True})
        assert status == 200
        assert events.startswith('data: {"token":"You"}\n\ndata: ')
        assert container.execute("python", "-c", "import os; print(os.getuid(), os.getgid())").split() == [
            str(number) for number in user
        ]
        for place in ("/tmp", "/app", "/opt/venv", "/"):
            assert not container.succeeds("touch", f"{place}/file"), place
        process = dict(line.split(":\t", 1) for line in container.execute("cat", "/proc/1/status").splitlines())
        assert {process[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert process["NoNewPrivs"] == "1"


@ANYONE
def test_it_is_one_process_that_ends_well_when_it_is_told_to(engine: Engine, user: tuple[int, int]) -> None:
    with engine.running(IMAGE, *HARDENED, *as_user(user)) as container:
        assert re.search(r"/bin/python3[.\d]*$", container.execute("readlink", "/proc/1/exe").strip())
        assert container.execute("cat", "/proc/1/task/1/children") == ""
        assert container.stop()["ExitCode"] == 0  # after 10 seconds it would be SIGKILL, and 137
        assert {line["level"] for line in container.entries()} == {"INFO"}


def test_without_any_option_its_code_is_still_not_its_to_change(engine: Engine) -> None:
    with engine.running(IMAGE) as container:
        assert container.invoke({"prompt": "hi"})[0] == 200
        for place in ("/app/app.py", "/opt/venv/pyvenv.cfg", "/opt/venv/bin/litestar"):
            assert not container.succeeds("sh", "-c", f": >>{place}"), place
        assert container.stop()["ExitCode"] == 0


def test_the_health_check_tells_a_server_that_does_not_answer(engine: Engine) -> None:
    with engine.running(IMAGE, *HARDENED) as container:
        wait_until(lambda: container.is_well, container.log)
        assert container.state["Health"]["Status"] == "healthy"
        engine.podman("kill", "--signal=STOP", container.name)
        assert not container.is_well
        engine.podman("kill", "--signal=CONT", container.name)
        wait_until(lambda: container.is_well, container.log)


def test_nothing_is_compiled_when_it_starts_but_the_agent_itself(engine: Engine) -> None:
    uncompiled = (
        "import os, sys, litestar.cli.main, uvicorn.server, app;"
        "print(*sorted(name for name, module in sys.modules.items() if getattr(module, '__cached__', None)"
        " and module.__file__.endswith('.py') and not os.path.exists(module.__cached__)))"
    )
    with engine.running(IMAGE, *HARDENED) as container:
        assert container.execute("python", "-c", uncompiled).split() == ["app"]


def test_a_task_that_runs_when_it_is_stopped_may_finish(engine: Engine) -> None:
    with engine.running(IMAGE, *HARDENED) as container:
        assert container.invoke({"prompt": "hi", "research_seconds": 5})[0] == 200
        assert container.stop(seconds=60)["ExitCode"] == 0
        assert "Done with the research on a prompt of 2 characters" in container.log()


def test_a_task_that_takes_longer_than_its_grace_is_cancelled_and_named(engine: Engine) -> None:
    with engine.running(IMAGE, *HARDENED, "--env=AGENTCORE_SHUTDOWN_GRACE_SECONDS=1") as container:
        assert container.invoke({"prompt": "hi", "research_seconds": 3600})[0] == 200
        assert container.stop(seconds=60)["ExitCode"] == 0
        warnings = [line["message"] for line in container.entries() if line["level"] == "WARNING"]
        assert any("research" in warning for warning in warnings), container.log()


def test_an_engine_that_does_not_wait_for_the_grace_kills_what_runs(engine: Engine) -> None:
    with engine.running(IMAGE, *HARDENED) as container:
        assert container.invoke({"prompt": "hi", "research_seconds": 3600})[0] == 200
        assert container.stop(seconds=1)["ExitCode"] == 137
        assert not container.state["OOMKilled"]


# -- An author's own image

GRPC_AGENT = """\
import grpc
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def agent(payload):
    return {"grpc": grpc.__name__}
"""

EATER = """\
import os
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def agent(payload):
    eaten = b"x" * payload.get("bytes", 0)
    return {"process": os.getpid(), "bytes": len(eaten)}
"""


def authors_dockerfile(page: str) -> str:
    """The author's Dockerfile that a page shows."""
    (shown,) = [block.text for block in blocks((ROOT / page).read_text()) if block.language == "dockerfile"]
    return shown


Author = Callable[[str, str, str], str]


@pytest.fixture(scope="module")
def author(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Author:
    """Builds an author's image out of the Dockerfile of a page, and an agent."""

    def build(name: str, page: str, agent: str) -> str:
        directory = tmp_path_factory.mktemp(name)
        (directory / "Dockerfile").write_text(authors_dockerfile(page))
        (directory / "app.py").write_text(agent)
        # What the author's pip installs is what is locked for the tests, whatever has been published since.
        pins = re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements/e2e.txt").read_text(), re.MULTILINE)
        shared = directory / "constraints"
        shared.mkdir()
        (shared / "constraints.txt").write_text("\n".join(pins))
        engine.build(directory, name, f"--volume={shared}:/mnt:ro", pip={"constraint": "/mnt/constraints.txt"})
        return name

    return build


@pytest.fixture(scope="module")
def grpc_image(author: Author) -> str:
    return author("with-grpc", "docs/container.md", GRPC_AGENT)


@pytest.fixture(scope="module")
def eater_image(author: Author) -> str:
    return author("eater", "docs/deploying.md", EATER)


def test_an_authors_image_is_a_few_lines_on_top(engine: Engine, grpc_image: str) -> None:
    with engine.running(grpc_image, *HARDENED, "--env=OTEL_TRACES_EXPORTER=none") as container:
        assert container.invoke({}) == (200, '{"grpc":"grpc"}')
        assert container.stop()["ExitCode"] == 0
    lower = layers(engine, IMAGE)
    assert layers(engine, grpc_image)[: len(lower)] == lower
    assert engine.image(grpc_image)["Config"]["User"] == "10001:10001"


def test_the_grpc_exporter_works_once_it_is_installed(engine: Engine, grpc_image: str) -> None:
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    environment = (f"--env={name}={value}" for name, value in collector.items())
    with engine.running(grpc_image, *HARDENED, *environment) as container:
        assert container.invoke({}) == (200, '{"grpc":"grpc"}')


def test_a_build_that_cannot_reach_the_index_says_so(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nUSER root\nRUN pip install six\n")
    nowhere = {"index-url": "http://127.0.0.1:1/simple", "retries": "0"}
    with pytest.raises(pytest.fail.Exception, match="could not reach its package index"):
        engine.build(tmp_path, "unreachable", pip=nowhere)


# -- Memory

LIMIT = 320 * 2**20
"""Bytes of memory that a container may have: enough for two workers."""

LOST = r"RemoteDisconnected|ConnectionResetError"

TOO_MUCH = {"bytes": 2 * LIMIT}


def limited(engine: Engine, image: str, *command: str) -> AbstractContextManager[Container]:
    memory = (f"--memory={LIMIT}", f"--memory-swap={LIMIT}")
    return engine.running(image, "--read-only", *UNPRIVILEGED, *memory, command=command)


def total(exposition: str, name: str, **labels: str) -> float:
    """What the samples of a name in ``/metrics`` come to, those with other labels aside."""
    samples = [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]
    found = [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
    assert found, exposition
    return sum(found)


def test_a_handler_that_eats_the_memory_ends_the_container_and_the_engine_says_why(
    engine: Engine, eater_image: str
) -> None:
    with limited(engine, eater_image) as container:
        assert container.invoke({"bytes": 1000})[0] == 200
        before = total(container.ask("/metrics")[1], "process_resident_memory_bytes")
        assert 2**20 < before < LIMIT
        with pytest.raises(Failed, match=LOST):
            container.invoke(TOO_MUCH)
        state = container.ended()
        assert state["ExitCode"] == 137
        assert state["OOMKilled"]
        # SIGKILL leaves no time for a word: the log ends with what was served before.
        assert {line["level"] for line in container.entries()} == {"INFO"}


def test_a_worker_that_eats_the_memory_is_replaced_and_its_counters_stay(engine: Engine, eater_image: str) -> None:
    command = ("python", "-c", "from app import app; app.run(host='0.0.0.0', workers=2)")
    with limited(engine, eater_image, *command) as container:
        answers = [container.invoke({}) for _ in range(5)]
        assert {status for status, _ in answers} == {200}
        with pytest.raises(Failed, match=LOST):
            container.invoke(TOO_MUCH)
        wait_until(lambda: "died" in container.log(), container.log)
        wait_until(container.answers, container.log)
        metrics = container.ask("/metrics")[1]
        assert total(metrics, "agentcore_invocations_total", outcome="ok") == 5, (
            f"{answers}\n{container.log()}\n{metrics}"
        )
        assert total(metrics, "agentcore_invocations_total") == 5
        assert total(metrics, "agentcore_invocations_in_progress") == 0
        assert container.invoke({})[0] == 200
        assert container.state["Status"] == "running"
        assert container.stop(seconds=60)["ExitCode"] == 0
