"""The short forms of what ``make reliability`` measures: what must hold on any machine, however busy it is."""

import asyncio
from pathlib import Path

import pytest

from tests.reliability import drain, faults, overload, report, soak
from tests.reliability.client import Answer, whole_stream
from tests.reliability.report import Row, Section
from tests.reliability.servers import OURS, complaints

pytestmark = pytest.mark.serial


def hold(section: Section) -> None:
    print(section.details)
    assert section.broken == []


def test_under_overload_what_is_accepted_is_answered_rightly_and_the_rest_is_refused(tmp_path: Path) -> None:
    hold(asyncio.run(overload.run([OURS], tmp_path, short=True)))


def test_no_fault_of_a_handler_a_client_or_a_backend_hurts_anybody_else(tmp_path: Path) -> None:
    hold(asyncio.run(faults.run([OURS], tmp_path, short=True)))


def test_who_ends_at_a_random_moment_truncates_nothing_and_loses_nothing_without_a_word(tmp_path: Path) -> None:
    section = asyncio.run(drain.run([OURS], tmp_path, short=True))
    hold(section)
    assert len(section.rows) == 5


def test_a_mixed_load_is_answered_rightly_and_leaves_nothing_open(tmp_path: Path) -> None:
    hold(asyncio.run(soak.run([OURS], tmp_path, short=True)))


# -- The page


PAGE = "By hand.\n\n" + "".join(
    f"{report.BEGIN.format(name)}\n{report.END.format(name)}\n\nBy hand: {name}.\n"
    for name in ("table", *report.SCENARIOS)
)


def section_of(scenario: str, figure: str) -> Section:
    return Section(scenario, [Row(f"what {scenario} shows", "0", figure)], f"Details of {scenario}: {figure}.")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "reliability.md"
    page.write_text(PAGE)
    return page


def test_a_scenario_that_ran_replaces_its_own_figures_and_leaves_all_others(page: Path) -> None:
    report.write([section_of("drain", "1"), section_of("faults", "2")], page)
    report.write([section_of("drain", "3")], page)
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| what ")]
    assert [row.split("|")[1].strip() for row in rows] == ["what", "what faults shows", "what drain shows"]
    assert [row.split("|")[3].strip() for row in rows] == ["ours", "2", "3"]
    assert "Details of faults: 2." in text
    assert "Details of drain: 3." in text
    assert "Details of drain: 1." not in text


def test_what_is_written_by_hand_stays(page: Path) -> None:
    report.write([section_of("soak", "1"), section_of("overload", "2 | 3")], page)
    by_hand = [line for line in page.read_text().splitlines() if line.startswith("By hand")]
    assert by_hand == [line for line in PAGE.splitlines() if line.startswith("By hand")]


def test_a_page_without_marks_is_left_alone(page: Path) -> None:
    page.write_text("Nothing.\n")
    with pytest.raises(ValueError, match="no marks for 'table'"):
        report.write([section_of("soak", "1")], page)
    assert page.read_text() == "Nothing.\n"


def test_the_log_s_complaints_are_told_from_the_rest() -> None:
    log = "\n".join(
        [
            '{"level": "INFO", "message": "fine"}',
            '{"level": "ERROR", "message": "broken", "errorType": "KeyError"}',
            "INFO:     Started server process [1]",
            "ERROR:    Exception in ASGI application",
            "Traceback (most recent call last):",
            "  File somewhere",
            "KeyError: 1",
        ]
    )
    assert complaints(log) == [
        "broken (KeyError)",
        "ERROR:    Exception in ASGI application",
        "Traceback (most recent call last):",
        "KeyError: 1",
    ]


# -- The judgement: a test that cannot fail would prove nothing


@pytest.mark.parametrize(
    ("kind", "answer", "outcome"),
    [
        ("unary", Answer(), drain.NOT_ACCEPTED),
        ("unary", Answer(status=200, body=b'{"answer": "a"}', whole=True), drain.WHOLE),
        ("unary", Answer(status=200, body=b'{"answer": "b"}', whole=True), drain.LOST),
        ("unary", Answer(status=200, body=b'{"answ'), drain.TRUNCATED),
        ("unary", Answer(status=500, body=b"{}", whole=True), drain.LOST),
        ("unary", Answer(status=503, body=b"{}", whole=True), drain.REFUSED),
        ("stream", Answer(status=200, body=whole_stream(), whole=True), drain.WHOLE),
        ("stream", Answer(status=200, body=whole_stream(19), whole=True), drain.TRUNCATED),
        ("stream", Answer(status=200, body=b'data: {"error": "x"}\n\n', whole=True), drain.TOLD),
    ],
)
def test_what_becomes_of_a_request_is_judged(kind: str, answer: Answer, outcome: str) -> None:
    assert drain.outcome_of(kind, "a", answer, begun=set()) == outcome


def test_a_request_that_was_begun_and_not_answered_is_lost() -> None:
    assert drain.outcome_of("unary", "a", Answer(), begun={"a"}) == drain.LOST
    told = Answer(status=503, body=b"{}", whole=True)
    assert drain.outcome_of("unary", "a", told, begun={"a"}) == drain.TOLD
