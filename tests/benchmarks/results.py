"""What was measured: rounds, their medians, and the ratios between them."""

import math
import statistics
from collections.abc import Sequence

import msgspec

SPANS_KEPT = 0.97
"""Below which telemetry is not on: of ours, each invocation leaves one span."""


class Round(msgspec.Struct, frozen=True):
    """What one candidate did under one load, once."""

    figures: dict[str, float]
    """By name: rates per second, times in seconds, memory in bytes, the load generator's CPU as a share of a core."""
    answers: int = 0
    """How many invocations were answered in full."""
    failures: int = 0
    """Answers that were not 2xx, that were cut off or short, and connections that broke."""


class Key(msgspec.Struct, frozen=True):
    """Which rounds belong together."""

    load: str
    concurrency: int
    candidate: str


class Results(msgspec.Struct):
    """All rounds of a run."""

    rounds: dict[Key, list[Round]] = {}
    spans: dict[Key, float] = {}
    """Spans that reached the tracing backend, per invocation that was begun."""
    refused: dict[tuple[str, str], str] = {}
    """Why a candidate was not measured under a load: it did not start, or its answer was wrong."""

    def add(self, key: Key, measured: Round) -> None:
        self.rounds.setdefault(key, []).append(measured)

    def median(self, key: Key, figure: str) -> float | None:
        """The median of the rounds that have the figure; none where less than half of them do."""
        rounds = self.rounds.get(key, [])
        values = [each.figures[figure] for each in rounds if figure in each.figures]
        return statistics.median(values) if 2 * len(values) > len(rounds) else None

    def spread(self, key: Key, figure: str) -> float | None:
        """How far the rounds are apart: the largest less the smallest, as a share of the median."""
        values = [each.figures[figure] for each in self.rounds.get(key, []) if figure in each.figures]
        median = self.median(key, figure)
        return (max(values) - min(values)) / median if median else None

    def ratio(self, key: Key, to: Key, figure: str) -> float | None:
        """The ratio of two medians."""
        ours, theirs = self.median(key, figure), self.median(to, figure)
        return None if ours is None or not theirs else ours / theirs

    def failures(self, key: Key) -> int:
        return sum(each.failures for each in self.rounds.get(key, []))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least a share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Row(msgspec.Struct, frozen=True):
    """A promise about one figure of ours: as such, or as the ratio to another candidate's."""

    what: str
    figure: str
    key: Key
    to: Key | None
    floor: float
    aim: float
    unit: str = "x"
    """``x`` and ``%`` for ratios, ``s`` for seconds."""
    at_most: bool = False

    def measured(self, results: Results) -> float | None:
        if self.to is None:
            return results.median(self.key, self.figure)
        return results.ratio(self.key, self.to, self.figure)

    def verdict(self, results: Results) -> str:
        measured = self.measured(results)
        if measured is None:
            return "not measured"
        flaws = ""
        if failures := results.failures(self.key) + (results.failures(self.to) if self.to else 0):
            flaws += f", with {failures} failures"
        if (spans := results.spans.get(self.key, 1)) < SPANS_KEPT:
            flaws += f", with {1 - spans:.0%} of the spans lost"
        return self._reached(measured) + flaws

    def _reached(self, measured: float) -> str:
        sign = -1 if self.at_most else 1
        if sign * measured >= sign * self.aim:
            return "aim reached"
        return "floor reached" if sign * measured >= sign * self.floor else "**under the floor**"


def rows(suffix: str = "") -> list[Row]:
    """What we hold ourselves to. A suffix names the checkout of ours that is meant."""

    def unary(name: str) -> Key:
        return Key("unary-async", 32, name)

    def stream(name: str) -> Key:
        return Key("stream-async", 32, name)

    def opened(name: str) -> Key:
        return Key("open-streams", 1000, name)

    def cold(name: str) -> Key:
        return Key("cold-start", 1, name)

    def ag_ui(name: str) -> Key:
        return Key("stream-ag-ui", 32, name)

    def a2a(name: str) -> Key:
        return Key("unary-a2a", 32, name)

    def mcp(name: str) -> Key:
        return Key("unary-mcp", 32, name)

    traced, isolated, inline = f"isolated-traced{suffix}", f"isolated{suffix}", f"inline{suffix}"
    python_traced, python, typescript, limit = "python-traced", "python", "typescript", "limit"
    return [
        Row("req/s, telemetry on, to the Python SDK traced", "rate", unary(traced), unary(python_traced), 4, 6),
        Row("req/s, telemetry on, to the Python SDK bare", "rate", unary(traced), unary(python), 2, 3),
        Row("req/s, telemetry off, to the TypeScript SDK", "rate", unary(isolated), unary(typescript), 0.8, 1.2),
        Row("req/s, inline, telemetry off, to bare ASGI", "rate", unary(inline), unary(limit), 0.5, 0.7, "%"),
        Row("req/s, telemetry off, isolated to inline", "rate", unary(isolated), unary(inline), 0.7, 0.9, "%"),
        Row("p99, telemetry off, isolated to inline", "p99", unary(isolated), unary(inline), 3, 1.5, at_most=True),
        Row("events/s, telemetry on, to the Python SDK traced", "rate", stream(traced), stream(python_traced), 50, 100),
        Row("events/s, telemetry off, to the TypeScript SDK", "rate", stream(isolated), stream(typescript), 1.5, 3),
        Row("req/s, telemetry on to off", "rate", unary(traced), unary(isolated), 0.6, 0.75, "%"),
        Row(
            "1,000 invocations that sleep 1 s, telemetry on: until all are answered",
            "seconds",
            Key("sleepers", 1000, traced),
            None,
            2,
            1.3,
            "s",
            at_most=True,
        ),
        Row(
            "memory per open stream, to the Python SDK",
            "stream_bytes",
            opened(isolated),
            opened(python),
            0.5,
            0.25,
            at_most=True,
        ),
        Row(
            "A2A: req/s, telemetry off, to the a2a-sdk alone",
            "rate",
            a2a(f"a2a{suffix}"),
            a2a("a2a-bare"),
            0.6,
            0.8,
            "%",
        ),
        Row("MCP: req/s, telemetry off, to mcp alone", "rate", mcp(f"mcp{suffix}"), mcp("mcp-bare"), 0.6, 0.8, "%"),
        Row(
            "AG-UI: events/s, telemetry off, to its library alone",
            "rate",
            ag_ui(f"ag-ui{suffix}"),
            ag_ui("ag-ui-limit"),
            1,
            2,
        ),
        Row("cold start, to the Python SDK", "seconds", cold(isolated), cold(python), 1, 0.7, at_most=True),
    ]
