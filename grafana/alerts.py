"""The alerting and recording rules: burn rates of an error budget, and conditions that need a person.

Every threshold is a constant here. ``python -m grafana.generate`` writes the rule file.
"""

from typing import Any, Literal

import msgspec
import yaml

OBJECTIVE_PERCENT = 99.9
"""The service level objective: the percentage of valid invocations that succeed."""

BUDGET = (100 - OBJECTIVE_PERCENT) / 100
"""The error budget: the share of valid invocations that may fail."""

MIN_FAILURES = 10
"""Fewer failures in a window alert nobody, whatever share they are: one at night must not wake anybody."""

FAILED = 'outcome=~"server_error|rejected|timeout"'
VALID = 'outcome!~"client_error|disconnected|cancelled"'
"""What a caller did wrong, did not wait for or had stopped is neither good nor bad."""

OUTCOME_SHARE = 0.01
"""The share of valid invocations that may be refused, or may time out, for long.

The error budget pages for more; these alerts say why.
"""
OUTCOME_MINUTES = 10

FIRST_CHUNK_SECONDS = 10
"""A bound of the histogram's buckets, so that the quantile is exact at this value."""
FIRST_CHUNK_MIN_STREAMS = 20

LAG_SECONDS = 10
"""For how long the agent's event loop may not have turned."""
LAG_MINUTES = 5
"""Half of the scrapes of so many minutes must show more than that, and for as long again.

So a single call that blocks for two minutes alerts nobody, and neither do short ones that come now and then.
"""

AUTH_FAILURES_MIN = 100
"""Callers who were not let in, in 15 minutes: nobody is alerted to fewer.

A client whose token has expired and that asks every ten seconds stays below.
"""

TASK_HOURS = 6
STALLS = 5

AGENT = "namespace, job, agent"
"""The labels of an agent. One that a scraper does not attach is empty, and groups nothing."""
INSTANCE = "namespace, job, agent, agent_version, pod, instance"
"""The labels of an instance of an agent."""
CHARTED = 'agent!="", agent_version!=""'
"""Matches targets of the chart's monitors, which attach these labels to ``up`` as well."""

Severity = Literal["page", "ticket"]


class RecordingRule(msgspec.Struct, frozen=True):
    """A recording rule."""

    record: str
    expr: str

    def as_rule(self) -> dict[str, Any]:
        """The rule as an entry of a rule file."""
        return {"record": self.record, "expr": self.expr}


class AlertingRule(msgspec.Struct, frozen=True, kw_only=True):
    """An alerting rule."""

    name: str
    severity: Severity
    expr: str
    summary: str
    description: str
    pending: str = ""
    """The rule's ``for``: how long the expression must be true before the alert fires."""
    labels: dict[str, str] = {}

    def as_rule(self) -> dict[str, Any]:
        """The rule as an entry of a rule file."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.pending} if self.pending else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"docs/runbook.md#{self.name.lower()}",
            },
        }


class BurnRate(msgspec.Struct, frozen=True):
    """A burn rate that alerts where both a long and a short window exceed it."""

    long: str
    short: str
    rate: float
    severity: Severity
    name: str


FAST, SLOW = "AgentErrorBudgetBurnFast", "AgentErrorBudgetBurnSlow"

BURN_RATES = (
    BurnRate("1h", "5m", 14.4, "page", FAST),
    BurnRate("6h", "30m", 6, "page", FAST),
    BurnRate("1d", "2h", 3, "ticket", SLOW),
    BurnRate("3d", "6h", 1, "ticket", SLOW),
)
"""The windows and rates that Google's SRE workbook ("Alerting on SLOs") gives for a budget of thirty days."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


def rate(selector: str, window: str, by: str) -> str:
    """The PromQL expression for the rate of a counter, summed by labels.

    Args:
        selector: The counter's name, with label matchers.
        window: A PromQL duration.
        by: The labels to keep.
    """
    return f"sum by ({by}) (rate({selector}[{window}]))"


def increase(selector: str, window: str, by: str) -> str:
    """The PromQL expression for the increase of a counter, summed by labels.

    Args:
        selector: The counter's name, with label matchers.
        window: A PromQL duration.
        by: The labels to keep.
    """
    return f"sum by ({by}) (increase({selector}[{window}]))"


def failed_ratio(window: str) -> str:
    """The name of the recorded share of valid invocations that failed.

    Args:
        window: A PromQL duration.
    """
    return f"agent:agentcore_invocations_failed:ratio_rate{window}"


def failed_increase(window: str) -> str:
    """The name of the recorded number of invocations that failed.

    Args:
        window: A PromQL duration.
    """
    return f"agent:agentcore_invocations_failed:increase{window}"


def recording_rules() -> list[RecordingRule]:
    """The rules that the burn rates are computed from.

    Without traffic there is no ratio: ``> 0`` leaves out what would be 0 / 0.
    """
    failed, valid = (f"agentcore_invocations_total{{{matcher}}}" for matcher in (FAILED, VALID))
    ratios = [
        RecordingRule(failed_ratio(window), f"{rate(failed, window, AGENT)}\n/\n({rate(valid, window, AGENT)} > 0)")
        for window in WINDOWS
    ]
    return ratios + [
        RecordingRule(failed_increase(burn.long), increase(failed, burn.long, AGENT)) for burn in BURN_RATES
    ]


AGENT_NAME = (
    "{{ with $labels.namespace }}{{ . }}/{{ end }}{{ with $labels.agent }}{{ . }}{{ else }}{{ $labels.job }}{{ end }}"
)
INSTANCE_NAME = f"{AGENT_NAME} ({{{{ with $labels.pod }}}}{{{{ . }}}}, {{{{ end }}}}{{{{ $labels.instance }}}})"


def burn_rate_alert(burn: BurnRate) -> AlertingRule:
    """The alert for one burn rate.

    Args:
        burn: The rate and its windows.
    """
    threshold = f"{burn.rate:g} * {BUDGET:g}"
    return AlertingRule(
        name=burn.name,
        severity=burn.severity,
        labels={"window": burn.long},
        expr=(
            f"{failed_ratio(burn.long)} > {threshold}\nand\n{failed_ratio(burn.short)} > {threshold}\nand\n"
            f"{failed_increase(burn.long)} >= {MIN_FAILURES}"
        ),
        summary=f"{AGENT_NAME} fails too many invocations.",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the invocations of {AGENT_NAME} failed in the last {burn.long},"
            f" and it goes on. At this speed, {burn.rate:g} times what the objective of {OBJECTIVE_PERCENT:g} % allows,"
            f" nothing is left of the budget of 30 days after {_days(30 / burn.rate)}."
        ),
    )


def _days(days: float) -> str:
    return f"{days:.0f} days" if days > 3 else f"{days * 24:.0f} hours"


def outcome_alert(outcome: str, name: str, summary: str, cause: str) -> AlertingRule:
    """The alert for a share of invocations that goes on ending in one way, through no fault of their callers.

    Args:
        outcome: A value of the label ``outcome``.
        name: The alert's name.
        summary: Its summary.
        cause: The end of its description: what the invocations have met.
    """
    ended, valid = (f"agentcore_invocations_total{{{matcher}}}" for matcher in (f'outcome="{outcome}"', VALID))
    return AlertingRule(
        name=name,
        severity="ticket",
        pending=f"{OUTCOME_MINUTES}m",
        expr=(
            f"{rate(ended, '5m', AGENT)}\n/\n({rate(valid, '5m', AGENT)} > 0)\n> {OUTCOME_SHARE:g}\nand\n"
            f"{increase(ended, '15m', AGENT)} >= {MIN_FAILURES}"
        ),
        summary=summary,
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the invocations of {AGENT_NAME} in the last 5 minutes {cause}."
            f" It has been more than {OUTCOME_SHARE * 100:g} % for {OUTCOME_MINUTES} minutes."
        ),
    )


def condition_alerts() -> list[AlertingRule]:
    """The alerts that have nothing to do with the error budget, pages first."""
    lost = 'agentcore_async_tasks_total{outcome="lost"}'
    known = "last_over_time(agentcore_build_info[1d])"
    answering = f"group by ({AGENT}) (agentcore_build_info)"
    expected = (
        f"(\n  group by ({AGENT}) (up{{{CHARTED}}})\nor\n"
        f"  group by ({AGENT}) (up == 0 and on (namespace, job, instance) {known})\n)"
    )
    return [
        AlertingRule(
            name="AgentDown",
            severity="page",
            pending="2m",
            expr=f"{expected}\nunless\n{answering}",
            summary=f"No instance of {AGENT_NAME} answers.",
            description=(
                f"{AGENT_NAME} has instances, and Prometheus reaches /metrics of none of them. Nobody is served."
            ),
        ),
        AlertingRule(
            name="AgentGone",
            severity="page",
            pending="5m",
            expr=f"group by ({AGENT}) ({known})\nunless\n{answering}\nunless\n{expected}",
            summary=f"{AGENT_NAME} has no instance any more.",
            description=(
                f"{AGENT_NAME} was there within the last day, and now it has no instance at all. Nobody is served."
            ),
        ),
        AlertingRule(
            name="AgentSyncQueueSaturated",
            severity="page",
            pending="5m",
            expr="min_over_time(agentcore_sync_queue_length[5m]) > 0",
            summary=f"Invocations of {INSTANCE_NAME} wait for a thread.",
            description=(
                "For ten minutes there was no moment at which no invocation waited for a thread; at the least {{"
                " $value }} did. All threads for plain handlers are taken (AGENTCORE_SYNC_THREADS)."
            ),
        ),
        AlertingRule(
            name="AgentEventLoopBlocked",
            severity="page",
            pending=f"{LAG_MINUTES}m",
            expr=f"quantile_over_time(0.5, agentcore_event_loop_lag_seconds[{LAG_MINUTES}m]) > {LAG_SECONDS}",
            summary=f"The event loop of {INSTANCE_NAME} is blocked.",
            description=(
                f"An async handler, or one after another, blocks the event loop of {INSTANCE_NAME}: half of the"
                f" scrapes of the last {LAG_MINUTES} minutes found that it had not turned for {{{{ $value |"
                " humanizeDuration }} or longer. All other async handlers wait, and /ping does not tell of it."
            ),
        ),
        AlertingRule(
            name="AgentInstanceDown",
            severity="ticket",
            pending="5m",
            expr=(
                "up == 0\nand on (namespace, job, instance)\n(\n"
                f"  group by (namespace, job, instance) ({known})\nor\n"
                f"  group by (namespace, job, instance) (up{{{CHARTED}}})\n)"
            ),
            summary=f"{INSTANCE_NAME} does not answer.",
            description=f"Prometheus has not reached /metrics of {INSTANCE_NAME} for five minutes.",
        ),
        AlertingRule(
            name="AgentMetricsAbsent",
            severity="ticket",
            pending="15m",
            expr=f"absent({known})",
            summary="No agent is known to Prometheus.",
            description=(
                "No target has exposed agentcore_build_info for a day, so none of the other alerts could fire: most"
                " likely nothing scrapes the agents."
            ),
        ),
        AlertingRule(
            name="AgentFirstChunkSlow",
            severity="ticket",
            pending="10m",
            expr=(
                "histogram_quantile(\n  0.95,\n"
                f"  sum by ({AGENT}, le) (rate(agentcore_time_to_first_chunk_seconds_bucket[15m]))\n"
                f") > {FIRST_CHUNK_SECONDS}\nand\n"
                f"{increase('agentcore_time_to_first_chunk_seconds_count', '15m', AGENT)} >= {FIRST_CHUNK_MIN_STREAMS}"
            ),
            summary=f"Streams of {AGENT_NAME} begin late.",
            description=(
                f"Five in a hundred streams of {AGENT_NAME} showed nothing for {{{{ $value | humanizeDuration }}}} or"
                f" longer in the last 15 minutes; {FIRST_CHUNK_SECONDS} s is the limit."
            ),
        ),
        outcome_alert(
            "rejected",
            "AgentInvocationsRejected",
            summary=f"{AGENT_NAME} refuses invocations.",
            cause="were refused, with 429 where there was no place for them, or with 503",
        ),
        outcome_alert(
            "timeout",
            "AgentInvocationsTimeOut",
            summary=f"Invocations of {AGENT_NAME} time out.",
            cause="were ended because their time was over (AGENTCORE_*_TIMEOUT_SECONDS, AGENTCORE_STREAM_IDLE_SECONDS)",
        ),
        AlertingRule(
            name="AgentAuthFailures",
            severity="ticket",
            expr=f"{increase('agentcore_auth_failures_total', '15m', AGENT)} >= {AUTH_FAILURES_MIN}",
            summary=f"{AGENT_NAME} turns many callers away.",
            description=(
                f"{{{{ $value | humanize }}}} times in 15 minutes {AGENT_NAME} did not let a caller in. Somebody tries"
                " tokens or keys, or those of a client have become wrong; agentcore_auth_failures_total has the"
                " reasons."
            ),
        ),
        AlertingRule(
            name="AgentTasksNeverEnd",
            severity="ticket",
            expr=(
                f"min_over_time(agentcore_active_tasks[{TASK_HOURS}h]) > 0\n"
                f"and\n(agentcore_active_tasks offset {TASK_HOURS}h) > 0\n"
                f"unless on ({INSTANCE})\n(\n"
                f"  {increase('agentcore_async_tasks_total', f'{TASK_HOURS}h', INSTANCE)} > 0\nor\n"
                f"  group by ({INSTANCE}) (\n"
                f"    agentcore_async_tasks_total unless agentcore_async_tasks_total offset {TASK_HOURS}h\n  )\n"
                ")"
            ),
            summary=f"Background tasks of {INSTANCE_NAME} do not end.",
            description=(
                f"{INSTANCE_NAME} has had at least {{{{ $value }}}} active tasks for {TASK_HOURS} hours, and not one"
                " has ended. It reports HealthyBusy, so nobody will take it away."
            ),
        ),
        AlertingRule(
            name="AgentTasksLost",
            severity="ticket",
            expr=(
                f"{increase(lost, '15m', INSTANCE)} > 0\nor\n"
                f"sum by ({INSTANCE}) (\n  {lost}\n  unless\n  {lost} offset 15m\n) > 0\nor\n"
                f"sum by ({INSTANCE}) (\n"
                "  last_over_time(agentcore_active_tasks[15m]) unless agentcore_active_tasks\n) > 0\nor\n"
                f"sum by ({INSTANCE}) (\n  agentcore_active_tasks offset 5m\n  and\n"
                "  process_start_time_seconds > process_start_time_seconds offset 5m\n) > 0"
            ),
            pending="2m",
            summary=f"Background tasks of {INSTANCE_NAME} are lost.",
            description=(
                f"{{{{ $value }}}} background tasks ran on {INSTANCE_NAME} when it was last seen, and it has ended or"
                " started anew since. What was not done by then will not be."
            ),
        ),
        AlertingRule(
            name="AgentHandlerStalls",
            severity="ticket",
            expr=f"{increase('agentcore_handler_stalls_total', '15m', INSTANCE)} >= {STALLS}",
            summary=f"Handlers of {INSTANCE_NAME} block the agent's event loop.",
            description=(
                f"{{{{ $value | humanize }}}} times in 15 minutes an async handler of {INSTANCE_NAME} held the agent's"
                " event loop. The log names the handler, with its stack."
            ),
        ),
        AlertingRule(
            name="AgentSpansDropped",
            severity="ticket",
            pending="10m",
            expr=f"{increase('agentcore_spans_dropped_total', '10m', INSTANCE)} > 0",
            summary=f"Traces of {INSTANCE_NAME} are incomplete.",
            description=(
                f"{{{{ $value | humanize }}}} spans of {INSTANCE_NAME} did not reach the tracing backend in the last 10"
                " minutes. Requests are served all the same."
            ),
        ),
    ]


def rule_file() -> str:
    """The rules, as a Prometheus rule file."""
    # The burn rate alerts share a group with the rules that they read: a group is evaluated in order, at one time.
    groups: dict[str, list[RecordingRule | AlertingRule]] = {
        "agentcore-budget": [*recording_rules(), *map(burn_rate_alert, BURN_RATES)],
        "agentcore-alerts": [*condition_alerts()],
    }
    content = {
        "groups": [{"name": name, "rules": [rule.as_rule() for rule in rules]} for name, rules in groups.items()]
    }
    header = "# Generated by `python -m grafana.generate` from grafana/alerts.py, which is the place to change it.\n"
    return header + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1_000_000, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as literal blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
