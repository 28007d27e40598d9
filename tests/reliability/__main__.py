"""Asks both runtimes, and writes the page: ``python -m tests.reliability [SCENARIO|all] [--short] [--ours]``."""

import argparse
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.reliability import drain, faults, overload, soak
from tests.reliability.report import SCENARIOS, Section, summary, write
from tests.reliability.servers import OURS, official_sdk

RUNS = {"overload": overload.run, "faults": faults.run, "drain": drain.run, "soak": soak.run}


async def main() -> int:
    """Run what is asked for; 1 where a promise of ours did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("scenario", nargs="?", default="all", choices=[*SCENARIOS, "all"])
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes; the page is left as it is")
    parser.add_argument("--ours", action="store_true", help="ask our runtime alone; the page is left as it is")
    options = parser.parse_args()
    runtimes = [OURS] if options.ours else [OURS, official_sdk()]
    chosen = SCENARIOS if options.scenario == "all" else (options.scenario,)
    sections: list[Section] = []
    for scenario in chosen:
        with tempfile.TemporaryDirectory() as directory:
            section = await RUNS[scenario](runtimes, Path(directory), short=options.short)
        sections.append(section)
        print(section.details, "", sep="\n", flush=True)
        if not options.short and not options.ours:
            write([section])
    print(summary(sections))
    broken = [promise for section in sections for promise in section.broken]
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
