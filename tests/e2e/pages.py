"""A page carried out as its reader would: its files saved, its commands typed, what it shows compared with what comes.

A block ``console`` holds commands, each behind ``$ ``, and below each what it prints. ``...`` stands for anything
there, and a time in seconds since the epoch for any other. A command without output must succeed. A block ``python``
whose first line is ``# name.py`` is a file. Commands that serve go on beside the others, as in a terminal of their own.

Everything happens inside bubblewrap: a network of its own, in which every port is free, processes that end with it, and
a file system that is read-only but for one directory.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.executables import executable
from tests.markdown import ROOT, Block, blocks

PAGE_SECONDS = 120.0

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

ELSEWHERE = {
    r"make test": "`.ci/run` begins with it",
    r"python3? -m venv .*": "makes an environment, and the commands of this one are on the PATH",
    r"(\S+/)?pip install .*": "needs a network; test_packaging.py installs the wheel",
    r"\S+/phoenix serve": "test_traces.py has a real Phoenix",
}
"""Commands that are not carried out here, as regular expressions, and why not."""

_SERVES = r"(\w+=\S+ )*(make run|\S*litestar .*\brun\b|uvicorn )"

_PRELUDE = """\
server=
serve() {
  if [[ $server ]]; then
    kill -KILL -- "-$server"
    wait "$server"
    while kill -0 -- "-$server"; do sleep 0.05; done  # its children, which have the port
  fi 2>/dev/null
  setsid bash -c "$2" & server=$!
  for _ in {1..600}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 0; fi
    kill -0 "$server" || return
    sleep 0.1
  done
  return 1
}
"""


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Args:
        text: What is typed.
        shown: What the page says that it prints; nothing, where it says nothing.
        line: Its line in the page, from 1.
    """

    text: str
    shown: str
    line: int

    @property
    def elsewhere(self) -> bool:
        """Whether it is not carried out here."""
        return any(re.fullmatch(pattern, part) for pattern in ELSEWHERE for part in self.text.split(" && "))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a ``console`` block."""
    lines = block.text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"line {block.line}: a console block begins with a command, behind `$ `"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\"):
            last += 1
        text = "\n".join(lines[start : last + 1]).removeprefix("$ ")
        yield Command(re.sub(r"\s+# .*$", "", text), "\n".join(lines[last + 1 : end]), block.line + 1 + start)


def agrees(shown: str, printed: str) -> bool:
    """Whether a command has printed what a page shows."""
    lines = (
        r"[\s\S]*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") for line in shown.strip().splitlines()
    )
    pattern = re.sub(r"\b1\d{9}\b", r"\\d{10}", "\n".join(lines))
    return re.fullmatch(pattern, printed.strip()) is not None


class Page:
    """A page of the repository.

    Args:
        text: Its Markdown.
        name: Its name, for people.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._steps = [
            step
            for block in blocks(text)
            for step in ([block] if block.file else commands(block) if block.language == "console" else [])
        ]

    @property
    def commands(self) -> list[Command]:
        """Its commands, in their order."""
        return [step for step in self._steps if isinstance(step, Command)]

    def follow(self, workshop: Path, directory: str) -> list[str]:
        """Do what the page says.

        Args:
            workshop: A directory to work in, which has one like this repository, ``litestar-agentcore``.
            directory: The name of the directory in it in which the reader begins.

        Returns:
            What went otherwise than the page says, each with the page's line; nothing, where all is well.
        """
        results = workshop / "results"
        results.mkdir()
        script = [_PRELUDE]
        for number, step in enumerate(self._steps):
            result = results / str(number)
            if isinstance(step, Block):
                result.write_text(step.text)
                script.append(f"cp --remove-destination {result} {step.file}")
            elif not step.elsewhere:
                command = self._served(step) or f"{{ {step.text}\n}}"
                script.append(f"{command} >{result} 2>{result}.err </dev/null\necho $? >{result}.status")
        sandboxed(script, workshop, workshop / directory)
        return [
            f"{self.name}:{step.line}: {fault}"
            for number, step in enumerate(self._steps)
            if isinstance(step, Command) and not step.elsewhere and (fault := _fault(step, results / str(number)))
        ]

    def _served(self, command: Command) -> str | None:
        """How a command that serves is run; nothing, where it does not serve."""
        scripts = [step.file for step in self._steps if isinstance(step, Block) and "app.run(" in step.text]
        words = command.text.split()
        runs_script = len(words) == 2 and words[0].endswith("python") and words[1] in scripts
        if not runs_script and not re.match(_SERVES, command.text):
            return None
        port = re.search(r"(?:--port |PORT=)(\d+)", command.text)
        return f"serve {port[1] if port else 8080} {shlex.quote(command.text)}"


def _fault(command: Command, result: Path) -> str:
    status = result.with_name(f"{result.name}.status")
    printed = result.read_text() if result.exists() else ""
    if not status.exists():
        return f"`{command.text}` was never reached, or never ended\n{printed}"
    errors = result.with_name(f"{result.name}.err").read_text()
    if status.read_text().strip() != "0":
        return f"`{command.text}` failed\n{printed}{errors}"
    if command.shown and not agrees(command.shown, printed):
        return f"`{command.text}` printed\n{printed}\nand not\n{command.shown}\n{errors}"
    return ""


def workshop(directory: Path) -> Path:
    """Make a directory in which pages are followed, with one that looks like this repository.

    Args:
        directory: An empty directory.
    """
    repository = directory / "litestar-agentcore"
    repository.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".venv"):
            (repository / entry.name).symlink_to(entry)
    environment = repository / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    (environment / ".installed").unlink(missing_ok=True)
    (environment / ".installed").touch()  # or make would try to install what is newer, without a network
    helm = directory / "bin" / "helm"
    helm.parent.mkdir()
    helm.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m tests.e2e.helm_command "$@"\n')
    helm.chmod(0o755)
    return directory


def sandboxed(script: Sequence[str], workshop: Path, directory: Path) -> None:
    """Run a script of bash to its end, or until its time is over.

    Args:
        script: Its parts.
        workshop: The only directory that it may write to.
        directory: The one that it begins in; made where it is not there.
    """
    directory.mkdir(exist_ok=True)
    environment = {
        "PATH": os.pathsep.join([str(workshop / "bin"), str(Path(sys.executable).parent), BASE_PATH]),
        "HOME": str(workshop),
        "TMPDIR": str(workshop),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        executable("bwrap", "the Debian package bubblewrap"),
        *["--unshare-pid", "--unshare-net", "--die-with-parent", "--new-session", "--clearenv"],
        *["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", str(workshop), str(workshop)],
        *["--chdir", str(directory)],
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
        *[shutil.which("bash") or "/bin/bash", "-c", "\n".join(script)],
    ]
    with suppress(subprocess.TimeoutExpired):  # what was not reached is missing among the results
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PAGE_SECONDS, check=False)
