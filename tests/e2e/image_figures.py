"""Builds the image, runs it, and prints the figures of docs/container.md: ``python -m tests.e2e.image_figures arm64``.

Where the architecture is not this machine's, QEMU emulates it: see :func:`emulated`.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import base_image
from tests.e2e.engine import Container, Engine, running_engine
from tests.e2e.executables import executable
from tests.e2e.runtimes import ROOT

IMAGE = "litestar-agentcore"

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

STARTS = 5
"""How often it is started where it is not emulated."""

START_SECONDS = 600.0
"""How long a start may take, emulated on a machine that does other things as well."""

BINARY_FORMATS = Path("/proc/sys/fs/binfmt_misc")

ARM64 = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
"""What the programs of arm64 begin with, and which bits of that count: ELF, 64 bits, little-endian, machine 183."""

NO_BYTECODE = "--env=PYTHONPYCACHEPREFIX=/nowhere"
"""Has Python look for bytecode where there is none."""


@contextmanager
def emulated(architecture: str) -> Iterator[None]:
    """Let this machine run the programs of another one for a while, in every root file system."""
    if MACHINES.get(platform.machine()) == architecture:
        yield
        return
    if architecture != "arm64":
        sys.exit(f"{architecture} is not emulated here: arm64 is")
    emulator = executable("qemu-aarch64-static", "the Debian package qemu-user-static")
    is_mounted = (BINARY_FORMATS / "register").exists()
    if not is_mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINARY_FORMATS], check=True)
    name = "litestar-agentcore-arm64"
    # F: the emulator is opened now, so that it need not be in the image.
    (BINARY_FORMATS / "register").write_text(":".join(("", name, "M", "", *ARM64, emulator, "F")))
    try:
        yield
    finally:
        (BINARY_FORMATS / name).write_text("-1")
        if not is_mounted:
            subprocess.run(["umount", BINARY_FORMATS], check=True)


def moment(text: str) -> datetime:
    """A point in time as podman and the log write it, podman with nine digits after the second."""
    head, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{fraction[:6]:0<6}+00:00")


def start_seconds(container: Container) -> float:
    """How long its process took until it listened."""
    (listens,) = [line["timestamp"] for line in container.entries() if line["message"].startswith("Uvicorn running")]
    return (moment(listens) - moment(container.state["StartedAt"])).total_seconds()


def process_metrics(container: Container) -> dict[str, float]:
    """What ``/metrics`` says of its process."""
    families = text_string_to_metric_families(container.ask("/metrics")[1])
    samples = [sample for family in families for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.name.startswith("process_")}


def print_layers(engine: Engine) -> None:
    history = json.loads(engine.podman("history", "--format=json", "--no-trunc", IMAGE))
    for layer in reversed(history):
        if layer["size"]:
            print(f"  {layer['size'] / 1e6:7.2f} MB  {' '.join(layer['CreatedBy'].split())[:90]}")


def main(architecture: str) -> None:
    """Print the figures of the image for an architecture."""
    with emulated(architecture):
        began = time.monotonic()
        archive = base_image.base_archive(architecture)
        print(f"base: {time.monotonic() - began:.0f} s")
        with running_engine() as engine:
            versions = [engine.run(*command).strip() for command in (["buildah", "--version"], ["podman", "--version"])]
            print("; ".join(versions), engine.run("runc", "--version").partition("\n")[0], sep="; ")
            engine.load(archive, base_image.NAME, *base_image.CHANGES, architecture=architecture)
            began = time.monotonic()
            engine.build(ROOT, IMAGE, f"--arch={architecture}")
            print(f"build: {time.monotonic() - began:.0f} s; architecture: {engine.image(IMAGE)['Architecture']}")
            print_layers(engine)
            if MACHINES.get(platform.machine()) == architecture:
                print_runs(engine, "", STARTS)
                print_runs(engine, " without bytecode", STARTS, NO_BYTECODE)
            else:
                print_runs(engine, ", emulated", 1)


def print_runs(engine: Engine, what: str, times: int, *options: str) -> None:
    """Start the image several times, and print how long that took, what it answered and how it ended.

    Args:
        engine: What runs it.
        what: How these runs differ from others.
        times: How often.
        options: Those of ``podman run``.
    """
    starts, stops, cpu, memory = [], [], [], []
    for _ in range(times):
        with engine.running(IMAGE, "--read-only", "--cap-drop=all", *options, seconds=START_SECONDS) as container:
            machine = container.execute("python", "-c", "import platform as p; print(p.machine(), p.python_version())")
            answers = container.ask("/ping"), container.invoke({"prompt": "hi"})
            starts.append(start_seconds(container))
            process = process_metrics(container)
            cpu.append(process["process_cpu_seconds_total"])
            memory.append(process["process_resident_memory_bytes"])
            began = time.monotonic()
            code = container.stop(seconds=60)["ExitCode"]
            stops.append(time.monotonic() - began)
    print(f"{machine.strip()}: {answers}, exit code {code}")
    print(f"start{what}: {statistics.median(starts):.2f} s, {statistics.median(cpu):.2f} s of CPU time", end="; ")
    print(f"stop: {statistics.median(stops):.2f} s; memory: {statistics.median(memory) / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
