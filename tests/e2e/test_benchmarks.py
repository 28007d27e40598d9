"""What the benchmarks say can be believed."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.candidates import AGENT, Candidate, ours, peers
from tests.benchmarks.report import BEGIN, END, PAGE, promises, rewritten, throughput, write
from tests.benchmarks.results import Key, Results, Round, Row, rows
from tests.benchmarks.runner import Plan, Runner

pytestmark = pytest.mark.serial

OURS, THEIRS = Key("unary-async", 32, "ours"), Key("unary-async", 32, "theirs")
FASTER = Row("req/s, to theirs", "rate", OURS, THEIRS, floor=2, aim=3)
SMALLER = Row("p99, to theirs", "p99", OURS, THEIRS, floor=2, aim=1.5, at_most=True)
SOON = Row("until all are answered", "seconds", OURS, None, floor=2, aim=1.3, unit="s", at_most=True)

UNTRUE_ASGI = """
import json, sys, uvicorn

answers = 0

async def app(scope, receive, send):
    global answers
    answers += scope["method"] == "POST"
    good = scope["method"] == "GET" or {good}
    stream = {stream}
    body = json.dumps({{"echo": "What does a careful engineer measure before a change?"}}).encode()
    if stream:
        body = b"".join(b'data: {{"token": "token %d"}}\\n\\n' % number for number in range(100 if good else 50))
    headers = [] if stream else [(b"content-length", b"%d" % len(body))]
    status = 503 if good == 503 else 200 if good or stream else 500
    await send({{"type": "http.response.start", "status": status, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), lifespan="off", access_log=False, log_level="warning")
"""


def results(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]] = ()) -> Results:
    made = Results()
    for key, rounds in ((OURS, ours), (THEIRS, theirs)):
        for figures in rounds:
            made.add(key, Round(figures, answers=100))
    return made


def measured(load: str, *candidates: Candidate, directory: Path) -> Results:
    return Runner(Plan(candidates, [load], [4], rounds=1, seconds=0.3), directory).run()


def named(*names: str) -> list[Candidate]:
    return [each for each in ours() + peers() if each.name in names]


def untrue(load: str, good: str) -> Candidate:
    """A server whose answers are right where a condition on their number holds."""

    def prepare(directory: Path) -> Sequence[str]:
        source = UNTRUE_ASGI.format(good=good, stream=load.startswith("stream"))
        (directory / "untrue.py").write_text(source)
        return [sys.executable, str(directory / "untrue.py")]

    return Candidate("untrue", "untrue", frozenset({load}), prepare)


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(299, "floor reached"), (300, "aim reached"), (200, "floor reached"), (199, "under the floor")],
)
def test_a_ratio_is_held_against_its_floor_and_its_aim(rate: float, verdict: str) -> None:
    assert FASTER.verdict(results([{"rate": rate}], [{"rate": 100}])).strip("*") == verdict


@pytest.mark.parametrize(("p99", "verdict"), [(1.5, "aim reached"), (2, "floor reached"), (2.1, "under the floor")])
def test_a_ratio_that_is_to_be_small_is_held_against_them_the_other_way(p99: float, verdict: str) -> None:
    assert SMALLER.verdict(results([{"p99": p99}], [{"p99": 1}])).strip("*") == verdict


def test_a_ratio_is_that_of_the_medians() -> None:
    made = results([{"rate": 900}, {"rate": 10}, {"rate": 400}], [{"rate": 100}, {"rate": 1}, {"rate": 5000}])
    assert FASTER.measured(made) == 4
    assert made.spread(OURS, "rate") == (900 - 10) / 400
    assert promises([FASTER], made).splitlines()[-1].split("|")[1:-1] == [
        " req/s, to theirs ",
        "    4.00x ",
        "    2x ",
        "  3x ",
        " aim reached ",
    ]


def test_a_promise_without_a_peer_is_held_against_the_figure_itself() -> None:
    assert "| until all are answered |   1.20 s | at most 2 s | at most 1.3 s | aim reached |" in promises(
        [SOON], results([{"seconds": 1.2}])
    )


def test_a_figure_that_most_rounds_lack_is_not_made_up_of_the_others() -> None:
    made = results([{"rate": 1, "p99": 9}, {"rate": 1}, {"rate": 1}], [{"p99": 1}])
    assert made.median(OURS, "p99") is None
    assert SMALLER.verdict(made) == "not measured"


def test_a_verdict_says_that_there_were_failures_on_either_side() -> None:
    for key in (OURS, THEIRS):
        made = results([{"rate": 400}], [{"rate": 100}])
        made.add(key, Round({"rate": 1}, failures=7))
        assert "with 7 failures" in FASTER.verdict(made)


def test_a_verdict_says_that_spans_were_lost() -> None:
    made = results([{"rate": 400}], [{"rate": 100}])
    made.spans[OURS] = 0.6
    assert FASTER.verdict(made) == "aim reached, with 40% of the spans lost"


def test_each_promise_is_about_candidates_that_are_driven_so() -> None:
    driven = {(load, each.name) for each in ours() + peers() for load in each.loads}
    assert {(key.load, key.candidate) for row in rows() for key in (row.key, row.to) if key} <= driven


def test_the_report_leaves_alone_what_is_written_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write(page, "first figures")
    page.write_text(page.read_text() + "A profile by hand.\n")
    write(page, "second figures")
    assert page.read_text() == PAGE.replace(END, f"\nsecond figures\n\n{END}") + "A profile by hand.\n"


def test_a_page_without_its_marks_is_not_overwritten() -> None:
    for page in ("# Benchmarks\n", f"{BEGIN}\n", f"{END}\n"):
        with pytest.raises(ValueError, match="lost one of its marks"):
            rewritten(page, "figures")


def test_the_agent_of_the_python_sdk_is_ours_but_for_one_import(tmp_path: Path) -> None:
    [sdk] = named("python")
    sdk.prepare(tmp_path)
    lines, theirs = AGENT.read_text().splitlines(), (tmp_path / AGENT.name).read_text().splitlines()
    changed = [pair for pair in zip(lines, theirs, strict=True) if pair[0] != pair[1]]
    assert changed == [
        (
            "from litestar_agentcore import BedrockAgentCoreApp",
            "from bedrock_agentcore.runtime import BedrockAgentCoreApp",
        )
    ]


@pytest.mark.parametrize("load", ["unary-async", "stream-async"])
def test_a_run_measures_us_beside_the_limit(load: str, tmp_path: Path) -> None:
    candidates = named("isolated-traced", "isolated", "limit")
    made = measured(load, *candidates, directory=tmp_path)
    assert not made.refused
    for candidate in candidates:
        key = Key(load, 4, candidate.name)
        for figure in ("rate", "p50", "p99", "load_cpu"):
            assert (made.median(key, figure) or 0) > 0, (candidate.name, figure)
        assert made.failures(key) == 0
    assert made.spans[Key(load, 4, "isolated-traced")] == pytest.approx(1, abs=0.1)
    table = throughput(load, 4, candidates, made).splitlines()
    assert [line.split("|")[1].strip() for line in table] == [
        "candidate",
        "-" * 27,
        *(each.title for each in candidates),
    ]
    assert table[-1].count("1.00x") == 1


def test_a_thousand_sleepers_are_waited_for(tmp_path: Path) -> None:
    made = measured("sleepers", *named("isolated"), directory=tmp_path)
    key = Key("sleepers", 1000, "isolated")
    assert (made.median(key, "seconds") or 0) >= 1
    assert (made.rounds[key][0].answers, made.failures(key)) == (1000, 0)


def test_a_cold_start_is_timed(tmp_path: Path) -> None:
    made = measured("cold-start", *named("limit"), directory=tmp_path)
    assert 0.05 < (made.median(Key("cold-start", 1, "limit"), "seconds") or 0) < 20


@pytest.mark.parametrize("load", ["unary-async", "stream-async"])
def test_a_wrong_answer_is_not_measured_but_reported(load: str, tmp_path: Path) -> None:
    candidate = untrue(load, good="False")
    made = measured(load, candidate, directory=tmp_path)
    assert not made.rounds
    assert "not measured: " in throughput(load, 4, [candidate], made)


def test_a_stream_that_is_refused_under_load_is_counted(tmp_path: Path) -> None:
    made = measured("stream-async", untrue("stream-async", good="answers < 10 or 503"), directory=tmp_path)
    assert made.failures(Key("stream-async", 4, "untrue")) > 4


@pytest.mark.parametrize("load", ["unary-async", "stream-async"])
def test_answers_that_go_wrong_under_load_are_counted(load: str, tmp_path: Path) -> None:
    candidate = untrue(load, good="answers < 10 or answers % 10")
    made = measured(load, candidate, directory=tmp_path)
    [measurement] = made.rounds[Key(load, 4, "untrue")]
    assert measurement.failures == pytest.approx((measurement.answers + measurement.failures) / 10, rel=0.2, abs=3)


def test_a_machine_without_wrk_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["--quick"]) == 2
    assert "apt-get install wrk" in capsys.readouterr().err
