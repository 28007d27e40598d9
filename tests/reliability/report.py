"""The page with what was measured: rows of one table, and a section of details for each scenario."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.environments import ROOT

PAGE = ROOT / "docs" / "reliability.md"

SCENARIOS = ("overload", "faults", "drain", "soak")

BEGIN, END = "<!-- {}: from here to its end mark, this is written by `make reliability` -->", "<!-- {}: end mark -->"

HEADINGS = ["what", "promise", "ours", "official SDK", "command"]

NOT_ASKED = "not asked"


@dataclass
class Row:
    """One line of the closing table."""

    what: str
    promise: str
    ours: str
    official: str = NOT_ASKED


@dataclass
class Section:
    """What a scenario came to."""

    scenario: str
    rows: list[Row]
    details: str = ""
    broken: list[str] = field(default_factory=list)
    """Promises of ours that did not hold."""


def command(scenario: str) -> str:
    return f"`python -m tests.reliability {scenario}`"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table that is as readable in its source as on the page."""
    cells = [[_cell(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def summary(sections: list[Section], page: str = "") -> str:
    """The closing table: new rows for the scenarios that ran, the page's own for those that did not."""
    ran = {section.scenario: section for section in sections}
    rows: list[list[str]] = []
    for scenario in SCENARIOS:
        if scenario in ran:
            rows += [[row.what, row.promise, row.ours, row.official, command(scenario)] for row in ran[scenario].rows]
        else:
            rows += [cells for cells in _rows_of(_part(page, "table")) if cells[-1] == command(scenario)]
    return table(HEADINGS, rows)


def write(sections: list[Section], page: Path = PAGE) -> None:
    """Write what was measured between its marks, and leave everything else as it is."""
    text = page.read_text()
    text = _replaced(text, "table", summary(sections, text))
    for section in sections:
        text = _replaced(text, section.scenario, section.details)
    page.write_text(text)


def _part(text: str, name: str) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    return text.partition(begin)[2].partition(end)[0]


def _replaced(text: str, name: str, new: str) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    _, ends, after = rest.partition(end)
    if not found or not ends:
        raise ValueError(f"{PAGE.name} has no marks for {name!r}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def _rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
