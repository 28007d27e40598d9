"""Schemathesis on ``/schema``, with every check. ``python -m tests.fuzz.schema`` runs the long form."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from tests.e2e.test_schema import tool
from tests.fuzz.raw import ERROR_LINE
from tests.integration.server import free_port, run

ALL_PHASES = "examples,coverage,fuzzing,stateful"


class Figures(msgspec.Struct):
    """What came of the cases."""

    cases: int = 0
    failed: int = 0
    """Cases in which a check failed."""
    errored: int = 0
    """Cases that could not be tried."""
    outputs: list[str] = msgspec.field(default_factory=list)
    """What the runs printed that did not end well."""
    errors: list[str] = msgspec.field(default_factory=list)
    """The lines that the service logged at ERROR or above."""


def fuzz(cases: int, examples: int, seed: int, processes: int) -> Figures:
    """Try the service with at least so many cases.

    Args:
        cases: How many, by schemathesis' own count.
        examples: How many one run generates for each operation; a case costs the more, the longer its run is.
        seed: The first run's, which has every phase. Each run after it has the next one, and generates cases alone.
        processes: How many runs at a time.

    Raises:
        RuntimeError: A run tried nothing, so that the count would never be reached.
    """
    port = free_port()
    figures = Figures()
    with (
        tempfile.TemporaryDirectory() as directory,
        run([tool("litestar"), "run", "--port", str(port)], port) as server,
        ThreadPoolExecutor(processes) as pool,
    ):
        _add(figures, _run(port, examples, seed, ALL_PHASES, Path(directory)))
        while figures.cases < cases and not figures.outputs:
            seeds = range(seed + 1, seed + 1 + processes)
            seed = seeds[-1]
            for ended in pool.map(lambda each: _run(port, examples, each, "fuzzing", Path(directory)), seeds):
                _add(figures, ended)
            print(f"{figures.cases} cases so far", flush=True)
        figures.errors = [line for line in server.stderr() if ERROR_LINE.search(line)]
    return figures


def _run(port: int, examples: int, seed: int, phases: str, directory: Path) -> tuple[dict[str, Any], str]:
    """The report of one run, and what it printed where a check or the run itself failed."""
    report = directory / f"{seed}.json"
    command = [tool("schemathesis"), "run", f"http://127.0.0.1:{port}/schema/openapi.json", "--checks", "all"]
    command += ["--phases", phases, "--max-examples", str(examples), "--seed", str(seed)]
    command += ["--continue-on-failure", "--generation-database", "none"]
    command += ["--report", "json", "--report-json-path", str(report)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if not report.exists():
        raise RuntimeError(f"schemathesis wrote no report: {ended.stdout}")
    found: dict[str, Any] = msgspec.json.decode(report.read_bytes())
    return found, ended.stdout if ended.returncode or not found["complete"] else ""


def _add(figures: Figures, ended: tuple[dict[str, Any], str]) -> None:
    report, output = ended
    counts = report["test_cases"]
    if not counts["generated"]:
        raise RuntimeError(f"schemathesis tried nothing: {output}")
    figures.cases += counts["generated"]
    figures.failed += counts["with_failures"]
    figures.errored += counts["errored"]
    if output:
        figures.outputs.append(output)


def main() -> int:
    """Run the long form, and print its figures.

    Returns:
        0 where there were as many cases as asked for, and every check held in all of them.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50_000, help="at least so many, or the run has failed")
    parser.add_argument("--examples", type=int, default=2500, help="for each operation in one run of schemathesis")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    began = time.monotonic()
    figures = fuzz(options.cases, options.examples, options.seed, options.processes)
    for found in (*figures.outputs, *figures.errors):
        print(found)
    print(
        f"schemathesis: {figures.cases} cases in {time.monotonic() - began:.0f} s, {figures.failed} failed, "
        f"{figures.errored} with errors, {len(figures.errors)} lines at ERROR"
    )
    held = not (figures.failed or figures.errored or figures.outputs or figures.errors)
    return 0 if held and figures.cases >= options.cases else 1


if __name__ == "__main__":
    sys.exit(main())
