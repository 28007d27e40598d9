"""Images without a container engine: Dockerfiles carried out step by step, and what they describe run as it would be.

Bubblewrap makes the namespaces. A root file system holds what the Dockerfile puts there; the rest is this machine's,
read-only. The place of the base image is taken by a copy of a Python at ``/usr/local``, where the base has its own.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

PATIENCE = 15.0
"""Seconds after which what should have happened long ago counts as not happening."""

STOP_SECONDS = 5.0
"""Seconds within which an idle container ends; Docker kills it after 10."""

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

OWN = ("opt", "src", "app", "tmp", "wheels")
"""The directories of an image that are not its base's. ``/wheels`` stands in for a package index."""

NOT_IN_THE_BASE = shutil.ignore_patterns(
    *("__pycache__", "config-*", "dist-packages", "site-packages"),
    *("idlelib", "lib2to3", "test", "tests", "turtledemo"),
)
"""What of a standard library is left out: what the base leaves out, and what takes long to copy."""


def parsed(dockerfile: str, **arguments: str) -> DockerfileParser:
    """A Dockerfile, with its build arguments."""
    file: Any = BytesIO(dockerfile.encode())  # which its types take for text
    return DockerfileParser(fileobj=file, parent_env={"PATH": BASE_PATH}, build_args=arguments)


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.fail(f"`{name}` is not there: install {package}", pytrace=False)
    return found


def run(*command: str, **options: Any) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
    output: str = done.stdout
    return output


def download(to: Path, version: str, machine: str, *requirements: str) -> Path:
    """Fetch wheels, and nothing but wheels, for a version of Python on a kind of machine."""
    platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_17", "_2_28")]
    abis = [f"--abi={abi}" for abi in (f"cp{version.replace('.', '')}", "abi3", "none")]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}", *platforms, *abis]
    run(sys.executable, "-m", "pip", "download", "--quiet", f"--dest={to}", *target, *requirements)
    return to


@dataclass(frozen=True)
class Image:
    """A root file system, and what the Dockerfile says on how to run it.

    Args:
        root: The file system: what is not in it is this machine's.
        environment: The variables that its processes get.
        directory: Where they start.
        command: What is run.
        healthcheck: What tells whether it is well.
        user: Who runs it.
    """

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    command: Sequence[str] = ()
    healthcheck: Sequence[str] = ()
    user: tuple[int, int] = (0, 0)

    def enter(self, *options: str, writable: bool) -> list[str]:
        """The command line that runs another one in the image, without a network."""
        host = ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if (link := Path("/", name)).is_symlink():
                host += ["--symlink", str(link.readlink()), f"/{name}"]
            elif link.exists():
                host += ["--ro-bind", str(link), str(link)]
        bind = "--bind" if writable else "--ro-bind"
        own = [bind, str(self.root / "usr/local"), "/usr/local"]
        tree = [word for name in OWN for word in (bind, str(self.root / name), f"/{name}")]
        # Without --dev, which would put one user namespace into another: nobody but root could enter it from outside.
        devices = ["--tmpfs", "/dev", "--tmpfs", "/dev/shm"]
        devices += [
            word
            for name in ("full", "null", "random", "urandom", "zero")
            for word in ("--dev-bind", *["/dev/" + name] * 2)
        ]
        variables = [word for name, value in self.environment.items() for word in ("--setenv", name, value)]
        return [
            tool("bwrap", "the Debian package bubblewrap"),
            *["--unshare-pid", "--unshare-net", "--unshare-ipc", "--die-with-parent", "--as-pid-1", "--new-session"],
            *host,
            *own,
            *tree,
            *devices,
            *["--proc", "/proc", "--chdir", self.directory, "--clearenv"],
            *variables,
            *options,
            *([] if writable else ["--remount-ro", "/"]),
        ]


class Builder:
    """Carries out what Dockerfiles say.

    Args:
        workshop: Where the file systems are made.
        context: What ``COPY`` copies from.
        images: What ``FROM`` may name.
    """

    def __init__(self, workshop: Path, context: Path, images: Mapping[str, Image]) -> None:
        self._workshop = workshop
        self._context = context
        self._images = dict(images)

    def build(self, dockerfile: DockerfileParser) -> Image:
        """The image that a Dockerfile describes."""
        image: Image | None = None
        arguments: dict[str, str] = {}
        for step, resolved in zip(dockerfile.structure, dockerfile.context_structure, strict=True):
            name, value = step["instruction"], step["value"]
            if name == "FROM":
                image = self._begin(re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], value))
            elif name == "ARG":
                argument, _, default = value.partition("=")
                arguments[argument] = default
            elif name in {"COMMENT", "LABEL", "EXPOSE", "STOPSIGNAL"}:
                continue
            else:
                assert image is not None, f"{name} comes before FROM"
                environment = resolved.get_line_value(context_type="ENV")
                image = replace(image, environment={**image.environment, **environment})
                image = getattr(self, f"_{name.lower()}")(image, value)
        assert image is not None
        return image

    def _begin(self, source: str) -> Image:
        base, _, name = source.partition(" AS ")
        image = self._images[base]
        root = self._workshop / (name or "last")
        shutil.copytree(image.root, root, copy_function=os.link, symlinks=True)
        image = replace(image, root=root)
        self._images[name] = image
        return image

    def _env(self, image: Image, _: str) -> Image:
        return image

    def _workdir(self, image: Image, value: str) -> Image:
        (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return replace(image, directory=value)

    def _user(self, image: Image, value: str) -> Image:
        user, _, group = value.replace("root", "0").partition(":")
        return replace(image, user=(int(user), int(group or user)))

    def _run(self, image: Image, value: str) -> Image:
        assert image.user[0] == 0, f"only root may write to the image: {value}"
        offline = ["--setenv", "PIP_NO_INDEX", "1", "--setenv", "PIP_FIND_LINKS", "/wheels"]
        run(*image.enter(*offline, writable=True), "/bin/sh", "-c", value, umask=0o022)
        return image

    def _copy(self, image: Image, value: str) -> Image:
        *sources, target = value.split()
        origin = self._context
        if sources[0].startswith("--from="):
            origin = self._images[sources.pop(0).removeprefix("--from=")].root
        destination = image.root / Path(image.directory, target).as_posix().lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            assert path.exists(), f"COPY {source}: not in the build's context"
            if path.is_dir():
                shutil.copytree(path, destination, symlinks=True, dirs_exist_ok=True)
            else:
                assert target.endswith("/"), f"COPY {value}: a directory is named with a slash"
                destination.mkdir(parents=True, exist_ok=True)
                (destination / path.name).unlink(missing_ok=True)
                shutil.copy2(path, destination)
        return image

    def _healthcheck(self, image: Image, value: str) -> Image:
        return replace(image, healthcheck=json.loads(value.partition("CMD ")[2]))

    def _cmd(self, image: Image, value: str) -> Image:
        return replace(image, command=json.loads(value))


def standing_in() -> tuple[str, str]:
    """A Python that can stand in for the base's, and its version: the same one where it is there, else the running."""
    asked = "import sys; print(sys._base_executable, '%d.%d' % sys.version_info[:2])"
    for candidate in ("python3.13", sys.executable):
        if shutil.which(candidate):
            answer = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                executable, version = answer.stdout.split()
                return executable, version
    raise AssertionError("the running Python does not run")


def base_image(root: Path, python: str, version: str, wheels: Path) -> Image:
    """What stands in for the base image: a Python at ``/usr/local``, without bytecode or packages."""
    asked = "from sysconfig import *; print(get_path('stdlib'), *get_config_vars('LIBDIR', 'INSTSONAME'))"
    stdlib, libraries, library = run(python, "-c", asked).split()
    for name in ("usr/local/bin", "usr/local/lib", *OWN):
        (root / name).mkdir(parents=True)
    shutil.copytree(wheels, root / "wheels", dirs_exist_ok=True)
    shutil.copytree(stdlib, root / f"usr/local/lib/python{version}", symlinks=True, ignore=NOT_IN_THE_BASE)
    if library.partition(".")[2] != "a" and (shared := Path(libraries, library)).exists():
        shutil.copy2(shared, root / "usr/local/lib")
    shutil.copy2(Path(python).resolve(), root / f"usr/local/bin/python{version}")
    (root / "usr/local/bin/python").symlink_to(f"python{version}")
    return Image(root, {"PATH": BASE_PATH, "LD_LIBRARY_PATH": "/usr/local/lib", "LANG": "C.UTF-8"})


@dataclass(frozen=True)
class Container:
    """A running image.

    Args:
        image: What is run.
        pid: Its first process, as this machine counts.
        process: What waits for it.
    """

    image: Image
    pid: int
    process: "subprocess.Popen[bytes]"

    def execute(self, *command: str, check: bool = True) -> str:
        """Run a command beside the first process, as ``docker exec`` does."""
        user, group = self.image.user
        join = [
            tool("nsenter", "the Debian package util-linux"),
            f"--target={self.pid}",
            *["--mount", "--pid", "--net", "--ipc", "--root", "--wd"],
        ]
        privileges = (
            [f"--setuid={user}", f"--setgid={group}"] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
        )
        done = subprocess.run(
            [*join, *privileges, "--", *command],
            env=dict(self.image.environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout if check else str(done.returncode)

    def invoke(self, payload: object) -> str:
        """What ``POST /invocations`` answers."""
        ask = (
            "import sys, http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=10);"
            "c.request('POST', '/invocations', sys.argv[1]); a = c.getresponse(); print(a.status, a.read().decode())"
        )
        return self.execute("python", "-c", ask, json.dumps(payload)).strip()

    def terminate(self) -> int:
        """Tell its first process to end, as an engine does."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def running(image: Image, log: Path, **environment: str) -> Iterator[Container]:
    """Run an image with a read-only root file system, ``/tmp`` included, until the test is through with it."""
    image = replace(image, environment={**image.environment, **environment})
    user, group = image.user
    if os.getuid() == 0:
        drop = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--"]
    else:
        drop, become = ["--unshare-user", "--uid", str(user), "--gid", str(group)], []
    read, write = os.pipe()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*image.enter(*drop, "--info-fd", str(write), writable=False), *become, *image.command],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
        )
    os.close(write)
    container = None
    try:
        with os.fdopen(read) as info:
            described = info.read()
        assert described, log.read_text()
        container = Container(image, json.loads(described)["child-pid"], process)
        deadline = time.monotonic() + PATIENCE
        while container.execute(*image.healthcheck, check=False) != "0":
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield container
    finally:
        # The kernel forgets that the container is to die with its parent when it becomes another user.
        if container is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(container.pid, signal.SIGKILL)
        process.kill()
        process.wait()
