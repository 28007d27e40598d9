"""The alert rules: an error budget, the burn rates that follow from it, and the other things that need a person.

Every threshold is a constant here. ``python -m grafana.generate`` writes the rules as Prometheus reads them.
"""

from typing import Any, Literal

import msgspec
import yaml

OBJECTIVE_PERCENT = 99.9
"""The service level objective: of a hundred invocations that the service is answerable for, so many succeed."""

BUDGET = (100 - OBJECTIVE_PERCENT) / 100
"""The share of invocations that may fail."""

MIN_FAILURES = 10
"""Fewer failures than that burn nothing, whatever share they are: one at night must not wake anybody."""

FAILED = 'outcome=~"server_error|rejected|timeout"'
ELIGIBLE = 'outcome!~"client_error|disconnected"'
"""What a caller did wrong, or did not wait for, says nothing of the service: neither good nor bad."""

FIRST_CHUNK_SECONDS = 10
"""A bound of the histogram's buckets, so that the quantile is exact where it matters."""
FIRST_CHUNK_MIN_STREAMS = 20

TASK_HOURS = 6
STALLS = 5

SERVICE = "namespace, job, agent"
"""What makes an agent. A label that a scraper does not attach is empty, and groups nothing."""
INSTANCE = "namespace, job, agent, agent_version, pod, instance"
CHARTED = 'agent!="", agent_version!=""'
"""The labels that the chart's monitors attach, to ``up`` as well."""

Severity = Literal["page", "ticket"]


class Recording(msgspec.Struct, frozen=True):
    """An expression that Prometheus computes ahead."""

    record: str
    expr: str

    def as_rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {"record": self.record, "expr": self.expr}


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person is to look at."""

    name: str
    severity: Severity
    expr: str
    summary: str
    description: str
    lasting: str = ""
    """For how long it must be true first."""
    labels: dict[str, str] = {}

    def as_rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasting} if self.lasting else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"docs/runbook.md#{self.name.lower()}",
            },
        }


class Burn(msgspec.Struct, frozen=True):
    """A speed at which the budget is spent that is too high: seen over a long window, and going on over a short one."""

    long: str
    short: str
    rate: float
    severity: Severity
    name: str


FAST, SLOW = "AgentErrorBudgetBurnFast", "AgentErrorBudgetBurnSlow"

BURNS = (
    Burn("1h", "5m", 14.4, "page", FAST),
    Burn("6h", "30m", 6, "page", FAST),
    Burn("1d", "2h", 3, "ticket", SLOW),
    Burn("3d", "6h", 1, "ticket", SLOW),
)
"""The windows and rates that the SRE workbook recommends for a budget of thirty days."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


def ratio(window: str) -> str:
    """The name of the recorded share of invocations that failed in a window.

    Args:
        window: How long it is, as PromQL writes it.
    """
    return f"agent:agentcore_invocations_failed:ratio_rate{window}"


def failures(window: str) -> str:
    """The name of the recorded number of invocations that failed in a window.

    Args:
        window: How long it is, as PromQL writes it.
    """
    return f"agent:agentcore_invocations_failed:increase{window}"


def recordings() -> list[Recording]:
    """What the burn rates are computed from.

    Without traffic there is no ratio at all: 0 divided by 0 is not a number, and nothing to be alarmed about.
    """
    rules = [
        Recording(
            ratio(window),
            f"sum by ({SERVICE}) (rate(agentcore_invocations_total{{{FAILED}}}[{window}]))\n/\n"
            f"(sum by ({SERVICE}) (rate(agentcore_invocations_total{{{ELIGIBLE}}}[{window}])) > 0)",
        )
        for window in WINDOWS
    ]
    return rules + [
        Recording(
            failures(burn.long),
            f"sum by ({SERVICE}) (increase(agentcore_invocations_total{{{FAILED}}}[{burn.long}]))",
        )
        for burn in BURNS
    ]


WHICH = (
    "{{ with $labels.namespace }}{{ . }}/{{ end }}{{ with $labels.agent }}{{ . }}{{ else }}{{ $labels.job }}{{ end }}"
)
WHERE = f"{WHICH} ({{{{ with $labels.pod }}}}{{{{ . }}}}, {{{{ end }}}}{{{{ $labels.instance }}}})"


def burn_alert(burn: Burn) -> Alert:
    """The alert for one burn rate.

    Args:
        burn: The rate and its windows.
    """
    threshold = f"{burn.rate:g} * {BUDGET:g}"
    return Alert(
        name=burn.name,
        severity=burn.severity,
        labels={"window": burn.long},
        expr=(
            f"{ratio(burn.long)} > {threshold}\nand\n{ratio(burn.short)} > {threshold}\nand\n"
            f"{failures(burn.long)} >= {MIN_FAILURES}"
        ),
        summary=f"{WHICH} fails too many invocations.",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the invocations of {WHICH} failed in the last {burn.long}, and"
            f" it goes on. At this speed, {burn.rate:g} times what the objective of {OBJECTIVE_PERCENT:g} % allows,"
            f" nothing is left of the budget of 30 days after {_days(30 / burn.rate)}."
        ),
    )


def _days(days: float) -> str:
    return f"{days:.0f} days" if days > 3 else f"{days * 24:.0f} hours"


def burn_alerts() -> list[Alert]:
    """The alerts for the burn rates, the fastest first."""
    return [burn_alert(burn) for burn in BURNS]


def condition_alerts() -> list[Alert]:
    """All the other alerts, the gravest first."""
    known = "last_over_time(agentcore_build_info[1d])"
    answering = f"group by ({SERVICE}) (agentcore_build_info)"
    expected = (
        f"(\n  group by ({SERVICE}) (up{{{CHARTED}}})\nor\n"
        f"  group by ({SERVICE}) (up == 0 and on (namespace, job, instance) {known})\n)"
    )
    return [
        Alert(
            name="AgentDown",
            severity="page",
            lasting="2m",
            expr=f"{expected}\nunless\n{answering}",
            summary=f"No instance of {WHICH} answers.",
            description=f"{WHICH} has instances, and Prometheus reaches /metrics of none of them. Nobody is served.",
        ),
        Alert(
            name="AgentGone",
            severity="page",
            lasting="5m",
            expr=f"group by ({SERVICE}) ({known})\nunless\n{answering}\nunless\n{expected}",
            summary=f"{WHICH} has no instance any more.",
            description=f"{WHICH} was there within the last day, and now it has no instance at all. Nobody is served.",
        ),
        Alert(
            name="AgentSyncQueueSaturated",
            severity="page",
            lasting="5m",
            expr="min_over_time(agentcore_sync_queue_length[5m]) > 0",
            summary=f"Invocations of {WHERE} wait for a thread.",
            description=(
                "For ten minutes there was no moment at which no invocation waited for a thread; at the least {{"
                " $value }} did. All threads for plain handlers are taken (AGENTCORE_SYNC_THREADS)."
            ),
        ),
        Alert(
            name="AgentInstanceDown",
            severity="ticket",
            lasting="5m",
            expr=(
                "up == 0\nand on (namespace, job, instance)\n(\n"
                f"  group by (namespace, job, instance) ({known})\nor\n"
                f"  group by (namespace, job, instance) (up{{{CHARTED}}})\n)"
            ),
            summary=f"{WHERE} does not answer.",
            description=f"Prometheus has not reached /metrics of {WHERE} for five minutes.",
        ),
        Alert(
            name="AgentMetricsAbsent",
            severity="ticket",
            lasting="15m",
            expr=f"absent({known})",
            summary="No agent is known to Prometheus.",
            description=(
                "No target has exposed agentcore_build_info for a day, so none of the other alerts could fire: most"
                " likely nothing scrapes the agents."
            ),
        ),
        Alert(
            name="AgentFirstChunkSlow",
            severity="ticket",
            lasting="10m",
            expr=(
                "histogram_quantile(\n  0.95,\n"
                f"  sum by ({SERVICE}, le) (rate(agentcore_time_to_first_chunk_seconds_bucket[15m]))\n"
                f") > {FIRST_CHUNK_SECONDS}\nand\n"
                f"sum by ({SERVICE}) (increase(agentcore_time_to_first_chunk_seconds_count[15m])) >="
                f" {FIRST_CHUNK_MIN_STREAMS}"
            ),
            summary=f"Streams of {WHICH} begin late.",
            description=(
                f"Five in a hundred streams of {WHICH} showed nothing for {{{{ $value | humanizeDuration }}}} or"
                f" longer in the last 15 minutes; {FIRST_CHUNK_SECONDS} s is the limit."
            ),
        ),
        Alert(
            name="AgentTasksNeverEnd",
            severity="ticket",
            expr=(
                f"min_over_time(agentcore_active_tasks[{TASK_HOURS}h]) > 0\n"
                f"and\n(agentcore_active_tasks offset {TASK_HOURS}h) > 0\n"
                f"unless on ({INSTANCE})\n(\n"
                f"  sum by ({INSTANCE}) (increase(agentcore_async_tasks_total[{TASK_HOURS}h])) > 0\nor\n"
                f"  group by ({INSTANCE}) (\n"
                f"    agentcore_async_tasks_total unless agentcore_async_tasks_total offset {TASK_HOURS}h\n  )\n"
                ")"
            ),
            summary=f"Background tasks of {WHERE} do not end.",
            description=(
                f"{WHERE} has had at least {{{{ $value }}}} active tasks for {TASK_HOURS} hours, and not one has"
                " ended. It reports HealthyBusy, so nobody will take it away."
            ),
        ),
        Alert(
            name="AgentTasksLost",
            severity="ticket",
            expr=(
                f'sum by ({INSTANCE}) (increase(agentcore_async_tasks_total{{outcome="lost"}}[15m])) > 0\nor\n'
                f"sum by ({INSTANCE}) (\n"
                '  agentcore_async_tasks_total{outcome="lost"}\n'
                '  unless\n  agentcore_async_tasks_total{outcome="lost"} offset 15m\n'
                ") > 0\nor\n"
                f"sum by ({INSTANCE}) (\n"
                "  last_over_time(agentcore_active_tasks[15m]) unless agentcore_active_tasks\n) > 0\nor\n"
                f"sum by ({INSTANCE}) (\n  agentcore_active_tasks offset 5m\n  and\n"
                "  process_start_time_seconds > process_start_time_seconds offset 5m\n) > 0"
            ),
            lasting="2m",
            summary=f"Background tasks of {WHERE} are lost.",
            description=(
                f"{{{{ $value }}}} background tasks ran on {WHERE} when it was last seen, and it has ended or started"
                " anew since. What was not done by then will not be."
            ),
        ),
        Alert(
            name="AgentHandlerStalls",
            severity="ticket",
            expr=f"sum by ({INSTANCE}) (increase(agentcore_handler_stalls_total[15m])) >= {STALLS}",
            summary=f"Handlers of {WHERE} block their event loop.",
            description=(
                f"{{{{ $value | humanize }}}} times in 15 minutes an async handler of {WHERE} held its event loop. The"
                " log names the handler and shows where it stood."
            ),
        ),
        Alert(
            name="AgentSpansDropped",
            severity="ticket",
            lasting="10m",
            expr=f"sum by ({INSTANCE}) (increase(agentcore_spans_dropped_total[10m])) > 0",
            summary=f"Traces of {WHERE} are incomplete.",
            description=(
                f"{{{{ $value | humanize }}}} spans of {WHERE} did not reach the tracing backend in the last 10"
                " minutes. Requests are served all the same."
            ),
        ),
    ]


def rule_file() -> str:
    """The rules, as a Prometheus rule file."""
    # Alerts stand in one group with what they read: the rules of a group are computed in order, for one moment.
    groups: list[dict[str, Any]] = [
        {
            "name": "agentcore-budget",
            "rules": [*(rule.as_rule() for rule in recordings()), *(rule.as_rule() for rule in burn_alerts())],
        },
        {"name": "agentcore-alerts", "rules": [alert.as_rule() for alert in condition_alerts()]},
    ]
    header = "# Generated by `python -m grafana.generate` from grafana/alerts.py, which is the place to change it.\n"
    return header + yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=1_000_000, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as people would."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
