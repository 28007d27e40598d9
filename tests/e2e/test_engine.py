"""The engine of the image's tests: nothing of it outlives whoever runs it, and its builds get packages as pip does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.engine import TRUST_STORE, pip_configuration, running_engine, wait_until
from tests.e2e.runtimes import ROOT

RUNS_ONE = """\
import sys
from tests.e2e.engine import running_engine

with running_engine() as engine:
    print(engine.process, flush=True)
    sys.stdin.read()
"""


def test_it_has_no_network_but_its_own_and_sees_no_other_engine() -> None:
    with running_engine() as engine:
        assert engine.podman("ps", "--all", "--quiet") == ""
        assert engine.podman("images", "--quiet") == ""
        links = engine.run("ip", "-brief", "link").splitlines()
        assert [link.split()[0] for link in links] == ["lo"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_whoever_runs_it(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUNS_ONE],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        first = Path("/proc", owner.stdout.readline().strip())
        started = (first / "stat").read_text().split()[21]
        os.kill(owner.pid, number)
        owner.wait(60)

    def is_gone() -> bool:
        try:
            return (first / "stat").read_text().split()[21] != started
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(is_gone, lambda: f"{first} is still there")


def test_builds_are_told_what_pip_has_been_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example.com/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "packages.example.com")
    monkeypatch.setenv("PIP_FIND_LINKS", "/of/this/machine")
    monkeypatch.setenv("PIP_CERT", "/of/this/machine.pem")
    lines = pip_configuration(constraint="/mnt/constraints.txt").splitlines()
    assert lines[0] == "[global]"
    assert {
        f"cert = {TRUST_STORE}",
        "index-url = https://packages.example.com/simple",
        "trusted-host = packages.example.com",
        "constraint = /mnt/constraints.txt",
    } <= set(lines)
    assert "/of/this/machine" not in "\n".join(lines)
