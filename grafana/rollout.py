"""The dashboard for a rollout: is the new version as good as the old one?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.alerts import BUDGET, BURN_RATES, FAILED, FIRST_CHUNK_SECONDS
from grafana.overview import INSTANCE, RATE, ROLLOUT_UID, UID, failed_ratio, quantile, rate
from grafana.panels import GREEN, RED, YELLOW, AnyPanel, Query, assemble, link, thresholds, time_series_panel
from grafana.variables import selected

VERSION = "{{agent_version}}"


def by_version(expression: str) -> list[Query]:
    """A sum for each version.

    Args:
        expression: What is summed up.
    """
    return [Query(f"sum by (agent_version) ({expression})", VERSION)]


def increase(metric: str, *matchers: str) -> str:
    """What was counted on the instances that are chosen.

    Args:
        metric: The name of a counter.
        *matchers: More label matchers.
    """
    return f"increase({selected(metric, *matchers)}{RATE})"


def _instances() -> list[AnyPanel]:
    up = selected("up")
    tasks = selected("agentcore_active_tasks")
    return [
        time_series_panel(
            "Instances",
            "Instances of each version that Prometheus knows, and those that answer. The new version's two lines"
            " apart for more than a minute: its pods do not start; look at their logs and events.",
            [
                Query(f"count by (agent_version) ({up})", f"{VERSION} known"),
                Query(f"sum by (agent_version) ({up})", f"{VERSION} answering"),
            ],
            "short",
        ),
        time_series_panel(
            "Restarts",
            "Processes that started anew in place. A version that restarts crashes: stop the rollout, and read the"
            " log of the container before.",
            by_version(f"changes({selected('process_start_time_seconds')}{RATE})"),
            "short",
            bars=True,
        ),
        time_series_panel(
            "Tasks on instances that went away",
            "Background tasks that were active when an instance was last scraped, within five minutes: lost, unless"
            " they ended after that. Above 0: give instances a longer grace period, or wait for the tasks before you"
            " take them away.",
            [
                Query(
                    f"sum by (agent_version) (last_over_time({tasks}[5m]) unless {tasks}) or 0 * sum by"
                    f" (agent_version) ({tasks})",
                    VERSION,
                )
            ],
            "short",
            bars=True,
        ),
    ]


def _traffic() -> list[AnyPanel]:
    invocations = rate("agentcore_invocations_total")
    return [
        time_series_panel(
            "Share of traffic",
            "What each version serves. It is to follow the weights that you set. Sessions that stick, and long"
            " streams, move later.",
            [
                Query(
                    f"sum by (agent_version) ({invocations}) / ignoring (agent_version) group_left ()"
                    f" sum({invocations})",
                    VERSION,
                )
            ],
            "percentunit",
            stacked=True,
            maximum=1,
        ),
        time_series_panel(
            "Failed",
            "The share of each version's invocations that failed through its fault. The new one is above the old"
            " one, and there are more than a handful: roll back first, ask afterwards.",
            [Query(failed_ratio("agent_version"), VERSION)],
            "percentunit",
            colours=thresholds(GREEN, (BUDGET, YELLOW), (BURN_RATES[0].rate * BUDGET, RED)),
        ),
        time_series_panel(
            "Failures",
            "The same in numbers, since a share of a few invocations says little. server_error: the handler raised.",
            [
                Query(
                    f"sum by (agent_version, outcome) ({increase('agentcore_invocations_total', FAILED)})",
                    f"{VERSION} {{{{outcome}}}}",
                )
            ],
            "short",
            bars=True,
        ),
    ]


def _durations() -> list[AnyPanel]:
    duration = "agentcore_invocation_duration_seconds"
    panels: list[AnyPanel] = [
        time_series_panel(
            f"Duration of {mode} invocations",
            "The median and p99 of each version. A new version's first minutes are slower: caches and connections"
            " are cold.",
            [
                Query(quantile(0.5, duration, "agent_version", f'mode="{mode}"'), f"{VERSION} p50"),
                Query(quantile(0.99, duration, "agent_version", f'mode="{mode}"'), f"{VERSION} p99", exemplars=True),
            ],
            "s",
        )
        for mode in ("unary", "stream")
    ]
    return [
        *panels,
        time_series_panel(
            "Time to first chunk, p95",
            "How long people look at nothing, with each version.",
            [Query(quantile(0.95, "agentcore_time_to_first_chunk_seconds", "agent_version"), VERSION, exemplars=True)],
            "s",
            colours=thresholds(GREEN, (FIRST_CHUNK_SECONDS, RED)),
        ),
    ]


def _behaviour() -> list[AnyPanel]:
    not_completed = increase("agentcore_async_tasks_total", 'outcome!="completed"')
    return [
        time_series_panel(
            "Handler stalls",
            "Times a handler held the agent's event loop. New in this version: a call that blocks has come in; the log"
            " names it.",
            by_version(increase("agentcore_handler_stalls_total")),
            "short",
            bars=True,
        ),
        time_series_panel(
            "Tasks that failed or were lost",
            "Background tasks of each version that did not complete.",
            [Query(f"sum by (agent_version, outcome) ({not_completed})", f"{VERSION} {{{{outcome}}}}")],
            "short",
            bars=True,
        ),
        time_series_panel(
            "Active tasks",
            "Background tasks of each version that run now. Wait until the old one has none before you take it away.",
            by_version(selected("agentcore_active_tasks")),
            "short",
        ),
        time_series_panel(
            "CPU for one invocation",
            "CPU seconds by invocation. Twice as much as before: the new version does more than it should.",
            [
                Query(
                    f"sum by (agent_version) ({rate('process_cpu_seconds_total')}) / sum by (agent_version)"
                    f" ({rate('agentcore_invocations_total')})",
                    VERSION,
                )
            ],
            "s",
        ),
        time_series_panel(
            "Memory",
            "Resident memory of each instance. Compare instances of the same age.",
            [
                Query(
                    f"sum by (agent_version, pod, instance) ({selected('process_resident_memory_bytes')})",
                    f"{VERSION} {INSTANCE}",
                )
            ],
            "bytes",
        ),
        time_series_panel(
            "In progress",
            "Invocations of each version that are being served now, and open WebSockets: what ends with its last"
            " instance.",
            [
                Query(
                    f"sum by (agent_version) ({selected('agentcore_invocations_in_progress')})",
                    f"{VERSION} invocations",
                ),
                Query(
                    f"sum by (agent_version) ({selected('agentcore_websocket_connections')})", f"{VERSION} WebSockets"
                ),
            ],
            "short",
        ),
    ]


def rollout() -> Dashboard:
    """Make the dashboard."""
    return assemble(
        ROLLOUT_UID,
        "AgentCore / Rollout",
        "Versions of an agent side by side, by the label agent_version that the chart's monitors attach.",
        [
            ("Instances", _instances()),
            ("Traffic and errors", _traffic()),
            ("Durations", _durations()),
            ("Behaviour", _behaviour()),
        ],
        [link("Overview", f"/d/{UID}", "How the agent is", keep_variables=True)],
    )
