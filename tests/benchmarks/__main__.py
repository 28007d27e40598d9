"""``python -m tests.benchmarks``: see the package for how to read what it prints."""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import environments, machine, report
from tests.benchmarks.candidates import LOADS, Candidate, ours, peers
from tests.benchmarks.environments import ROOT, MissingTool
from tests.benchmarks.results import rows
from tests.benchmarks.runner import Plan, Runner, tell

PAGE = ROOT / "docs" / "benchmarks.md"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if not sys.platform.startswith("linux"):
        tell("The benchmarks need Linux: they read /proc, and pin processes to cores.")
        return 2
    _raise_file_limit()
    suffixes = suffixes_of(options.root or [ROOT])
    candidates = chosen(suffixes, options.candidates)
    plan = Plan(
        candidates,
        options.only or LOADS,
        options.concurrency or (1, 32, 256),
        1 if options.quick else options.rounds,
        0.5 if options.quick else options.seconds,
    )
    try:
        environments.wrk()
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory:
            runner = Runner(plan, Path(directory))
            results = runner.run()
            versions = machine.versions(candidates)
    except MissingTool as error:
        tell(str(error))
        return 2
    tables = report.details(plan.loads, plan.concurrency, candidates, results)
    if options.only or options.concurrency or options.candidates or options.root or options.quick:
        print(tables)
        for suffix in suffixes.values():
            if measured := [row for row in rows(suffix) if row.measured(results) is not None]:
                print(f"\n{report.promises(measured, results)}")
    else:
        promises = report.promises(rows(), results)
        print(promises)
        made = machine.how_it_was_made(plan, runner.cores, versions)
        report.write(PAGE, f"## In short\n\n{promises}\n\n{made}\n\n## All figures\n\n{tables}")
        tell(f"Written to {PAGE}")
    return 1 if results.refused else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    made.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    made.add_argument("--seconds", type=float, default=1.2, help="that a round takes, per candidate (1.2)")
    made.add_argument("--only", type=_loads, metavar="LOAD,...", help=f"of {', '.join(LOADS)}")
    made.add_argument("--concurrency", type=_numbers, metavar="N,...", help="connections (1,32,256)")
    made.add_argument("--candidates", type=_names, metavar="NAME,...", help="; ".join(_help(ours() + peers())))
    made.add_argument("--quick", action="store_true", help="one short round of each, to see that all is in order")
    made.add_argument(
        "--root", type=Path, action="append", metavar="DIRECTORY", help="a checkout to take ours from; repeatable"
    )
    return made


def suffixes_of(roots: list[Path]) -> dict[Path, str]:
    """What tells the candidates of one checkout from those of another: nothing for the first, else its name."""
    first, *others = [root.resolve() for root in roots]
    return {first: ""} | {other: f"@{other.name}" for other in others}


def chosen(suffixes: dict[Path, str], names: list[str] | None) -> list[Candidate]:
    """The candidates of these names, ours from each of the checkouts."""
    candidates = [candidate for root, suffix in suffixes.items() for candidate in ours(root, suffix)]
    candidates += peers()
    if names is None:
        return candidates
    known = {each.name.partition("@")[0] for each in candidates}
    if unknown := set(names) - known:
        raise SystemExit(f"no such candidate: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [each for each in candidates if each.name.partition("@")[0] in names]


def _help(candidates: list[Candidate]) -> list[str]:
    return [f"{each.name}: {each.title}" for each in candidates]


def _loads(text: str) -> list[str]:
    loads = text.split(",")
    if unknown := set(loads) - set(LOADS):
        raise argparse.ArgumentTypeError(f"no such load: {', '.join(sorted(unknown))}")
    return loads


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _raise_file_limit() -> None:
    """Have room for a thousand connections, here and in what is started."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
