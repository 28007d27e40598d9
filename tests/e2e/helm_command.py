"""``helm`` for the pages: renders what would be installed with Helm's own engine, and has it checked for a cluster."""

import argparse
import re
from functools import reduce
from pathlib import Path
from typing import Any

import helm_python as helm

from tests.e2e.chart import CHART, complaints, merged, render, set_values

KUBERNETES = "1.31"


def main() -> None:
    """Render the chart with the values of the command line, and fail where a cluster would refuse an object."""
    parser = argparse.ArgumentParser(prog="helm")
    parser.add_argument("action", choices=["install", "upgrade"])
    parser.add_argument("--install", action="store_true")
    parser.add_argument("name")
    parser.add_argument("chart", type=Path)
    parser.add_argument("--values", action="append", type=Path, default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--set-file", action="append", default=[])
    arguments = parser.parse_args()
    assert arguments.chart.resolve() == CHART, f"{arguments.chart} is not the chart"
    files = [helm.values_from_yaml(path.read_text()) for path in arguments.values]
    values = merged(*files, set_values(*arguments.set), *map(_of_file, arguments.set_file))
    found = [words for manifest in render(values, name=arguments.name) for words in complaints(manifest, KUBERNETES)]
    if found:
        parser.exit(1, "\n".join(found))


def _of_file(expression: str) -> dict[str, Any]:
    key, _, path = expression.partition("=")
    keys = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", key)]
    text: Any = Path(path).read_text()
    return dict(reduce(lambda below, name: {name: below}, reversed(keys), text))


if __name__ == "__main__":
    main()
