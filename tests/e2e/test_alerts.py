"""Prometheus' own tools say that the alert rules are right: each fires when it should, and only then."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentcore_telemetry.metrics import DURATION_BUCKETS

from grafana.alerts import FIRST_CHUNK_SECONDS
from grafana.generate import ROOT
from tests.e2e.prometheus import executable

RULES = ROOT / "grafana" / "alerts.yaml"
RULE_TESTS = sorted((ROOT / "grafana" / "tests").glob("*.yaml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
SECONDS = 120


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


NAMES = sorted({alert["alert"] for alert in alerts()})


def promtool(*arguments: str | Path) -> str:
    """What promtool says, where it finds nothing wrong."""
    command = [executable("promtool"), *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def expectations() -> list[tuple[str, bool]]:
    """Every expression about alerts in the rule tests, and whether it is expected to find any."""
    cases = [case for file in RULE_TESTS for case in yaml.safe_load(file.read_text())["tests"]]
    found = [(test["expr"], bool(test["exp_samples"])) for case in cases for test in case["promql_expr_test"]]
    return [(expression, fires) for expression, fires in found if "ALERTS{" in expression]


def about(alert: str, expression: str) -> bool:
    pattern = re.search(r'alertname=~?"([^"]*)"', expression)
    return pattern is not None and re.fullmatch(pattern[1], alert) is not None


def test_the_rules_are_well_formed() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_the_limit_of_the_first_chunk_is_a_bound_of_the_buckets() -> None:
    assert FIRST_CHUNK_SECONDS in DURATION_BUCKETS


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_is_tried_for_firing_and_for_silence(alert: str) -> None:
    assert {fires for expression, fires in expectations() if about(alert, expression)} == {True, False}


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_has_its_section_in_the_runbook(alert: str) -> None:
    (link,) = {rule["annotations"]["runbook_url"] for rule in alerts() if rule["alert"] == alert}
    file, _, anchor = link.partition("#")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL))
    section = {name.lower(): text for name, text in sections.items()}[anchor]
    for part in ("**What it means.**", "**What users feel.**", "**Look at.**", "**Fix.**", "**Silence.**"):
        assert part in section, part
    assert len(re.findall(r"^[123]\. ", section, re.MULTILINE)) == 3


def test_the_runbook_has_no_section_without_an_alert() -> None:
    assert sorted(re.findall(r"^## (Agent\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == NAMES
