"""The tables, and the page that they stand on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.candidates import Candidate
from tests.benchmarks.results import Key, Results, Row

BEGIN = "<!-- from here to the end mark, this is written by `make bench` -->"
END = "<!-- end mark -->"

PAGE = f"""# Benchmarks

How fast this runtime is, beside the official runtimes, on one machine and in one run. `make bench` measures it again
and rewrites what stands between the two marks in this page's source; the rest is written by hand.

{BEGIN}
{END}

## Profile

For each row under its floor: why, and what a profile shows.
"""

PEERS = (
    "python-traced",
    "python",
    "typescript",
    "limit",
    "ag-ui-python",
    "ag-ui-limit",
    "a2a-python",
    "a2a-bare",
    "mcp-bare",
)


def promises(rows: Sequence[Row], results: Results) -> str:
    """The first table: what we hold ourselves to."""
    body = [
        [
            row.what,
            _amount(row, row.measured(results)),
            _bound(row, row.floor),
            _bound(row, row.aim),
            row.verdict(results),
        ]
        for row in rows
    ]
    return table(["what", "measured", "floor", "aim", "verdict"], body)


def throughput(load: str, connections: int, candidates: Sequence[Candidate], results: Results) -> str:
    """All candidates under one load, at one concurrency."""
    present = [each for each in candidates if load in each.loads]
    peers = [peer for peer in PEERS if any(each.name == peer for each in present)]
    titles = {each.name: each.title for each in candidates}
    unit = "events/s" if load.startswith("stream") else "req/s"
    headings = ["candidate", unit, "spread", "p50 ms", "p99 ms", *(f"to {titles[peer]}" for peer in peers)]
    body = []
    for candidate in present:
        key = Key(load, connections, candidate.name)
        if reason := results.refused.get((load, candidate.name)):
            body.append([candidate.title, *["" for _ in headings[1:]], f"not measured: {one_line(reason)}", "", ""])
            continue
        ratios = [results.ratio(key, Key(load, connections, peer), "rate") for peer in peers]
        body.append(
            [
                candidate.title,
                number(results.median(key, "rate"), "{:,.0f}"),
                number(results.spread(key, "rate"), "{:.0%}"),
                milliseconds(results.median(key, "p50")),
                milliseconds(results.median(key, "p99")),
                *(number(ratio, "{:.2f}x") for ratio in ratios),
                str(results.failures(key)),
                number(results.spans.get(key), "{:.2f}"),
                number(results.median(key, "load_cpu"), "{:.0%}"),
            ]
        )
    return table([*headings, "failures", "spans/invocation", "load CPU"], body)


def sleepers(candidates: Sequence[Candidate], results: Results) -> str:
    columns = {"all answered after s": ("seconds", 1, "{:.2f}"), "p50 s": ("p50", 1, "{:.2f}")}
    return _plain("sleepers", 1000, columns, candidates, results)


def open_streams(candidates: Sequence[Candidate], results: Results) -> str:
    columns = {
        "KiB per stream": ("stream_bytes", 1 / 1024, "{:,.1f}"),
        "resident MiB with all open": ("rss", 1 / 1024**2, "{:,.0f}"),
        "events/s": ("rate", 1, "{:,.0f}"),
        "late p50 ms": ("p50", 1e3, "{:,.1f}"),
        "late p99 ms": ("p99", 1e3, "{:,.1f}"),
    }
    return _plain("open-streams", 1000, columns, candidates, results)


def cold_start(candidates: Sequence[Candidate], results: Results) -> str:
    return _plain("cold-start", 1, {"seconds to the first 200": ("seconds", 1, "{:.2f}")}, candidates, results)


def details(loads: Sequence[str], concurrency: Sequence[int], candidates: Sequence[Candidate], results: Results) -> str:
    """All tables but the first, for the loads that were measured."""
    headings = {
        "unary-async": "Unary, async handler",
        "unary-one-step": "Unary, async handler without an await",
        "unary-sync": "Unary, plain handler",
        "stream-async": "Streams of 100 events, async generator",
        "stream-sync": "Streams of 100 events, plain generator",
        "stream-ag-ui": "AG-UI: runs of 100 events, async generator",
        "unary-a2a": "A2A, a message that is answered with a message",
        "unary-mcp": "MCP, a call of a tool, stateless",
    }
    others = {
        "sleepers": ("1,000 invocations at once that sleep for 1 s", sleepers),
        "open-streams": ("1,000 open streams of one event a second", open_streams),
        "cold-start": ("Cold start: from the interpreter to the first 200 on `/ping`", cold_start),
    }
    parts = []
    for load in loads:
        if load in others:
            heading, make = others[load]
            parts.append(f"### {heading}\n\n{make(candidates, results)}")
        else:
            parts += [
                f"### {headings[load]}, {connections} connection{'s' * (connections > 1)}\n\n"
                + throughput(load, connections, candidates, results)
                for connections in concurrency
            ]
    return "\n\n".join(parts)


def rewritten(page: str, generated: str) -> str:
    """A page with what stands between its marks replaced, and everything else as it was."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has lost one of its marks, {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{generated.strip()}\n\n{END}{after}"


def write(path: Path, generated: str) -> None:
    """Put a report on its page, which is made where it is not there yet."""
    page = path.read_text() if path.exists() else PAGE
    path.write_text(rewritten(page, generated))


def table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too."""
    widths = [max(len(row[column]) for row in [headings, *body]) for column in range(len(headings))]
    rows = [
        headings,
        [("-" * width) if not index else "-" * (width - 1) + ":" for index, width in enumerate(widths)],
        *body,
    ]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    )


def number(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else seconds * 1e3, "{:,.1f}")


def one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[-200:]


def _plain(
    load: str,
    connections: int,
    columns: Mapping[str, tuple[str, float, str]],
    candidates: Sequence[Candidate],
    results: Results,
) -> str:
    body = []
    for candidate in candidates:
        if load not in candidate.loads:
            continue
        key = Key(load, connections, candidate.name)
        cells = []
        for figure, factor, form in columns.values():
            value = results.median(key, figure)
            cells.append(number(None if value is None else value * factor, form))
        reason = results.refused.get((load, candidate.name))
        flaw = f"not measured: {one_line(reason)}" if reason else str(results.failures(key))
        body.append([candidate.title, *cells, flaw])
    return table(["candidate", *columns, "failures"], body)


def _amount(row: Row, value: float | None) -> str:
    if row.unit == "%":
        return number(value, "{:.0%}")
    return number(value, "{:.2f} s" if row.unit == "s" else "{:.2f}x")


def _bound(row: Row, value: float) -> str:
    form = {"%": "{:.0%}", "s": "{:g} s"}.get(row.unit, "{:g}x")
    return f"{'at most ' if row.at_most else ''}{form.format(value)}"
