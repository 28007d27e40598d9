"""The dashboard for the person on call: is it well, and if not, where does it hurt?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.alerts import BUDGET, BURN_RATES, FAILED, FIRST_CHUNK_SECONDS, LAG_SECONDS, VALID
from grafana.panels import (
    GREEN,
    RED,
    YELLOW,
    AnyPanel,
    Query,
    assemble,
    link,
    stat_panel,
    state_timeline_panel,
    table_panel,
    thresholds,
    time_series_panel,
)
from grafana.variables import selected

UID = "agentcore-overview"
ROLLOUT_UID = "agentcore-rollout"

RATE = "[$__rate_interval]"
PER_INSTANCE = "pod, instance"
INSTANCE = "{{pod}} {{instance}}"

OUTCOMES = {
    "ok": GREEN,
    "client_error": "blue",
    "disconnected": "purple",
    "cancelled": "text",
    "rejected": YELLOW,
    "timeout": "orange",
    "server_error": RED,
}


def rate(metric: str, *matchers: str) -> str:
    """The rate of a counter on the instances that are chosen.

    Args:
        metric: The name of a metric.
        *matchers: More label matchers.
    """
    return f"rate({selected(metric, *matchers)}{RATE})"


def failed_ratio(by: str = "") -> str:
    """The share of valid invocations that failed.

    Args:
        by: A label, for whose values to tell it apart.
    """
    grouping = f" by ({by})" if by else ""
    failed, valid = (rate("agentcore_invocations_total", matcher) for matcher in (FAILED, VALID))
    return f"sum{grouping} ({failed}) / sum{grouping} ({valid})"


def quantile(share: float, metric: str, by: str = "", *matchers: str) -> str:
    """A quantile of a histogram.

    Args:
        share: Which one, from 0 to 1.
        metric: The name of the histogram.
        by: A label, for whose values to tell it apart.
        *matchers: More label matchers.
    """
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate(metric + '_bucket', *matchers)}))"


def percentiles(metric: str, *matchers: str) -> list[Query]:
    """The median, what one in ten sees, and what one in a hundred sees, with exemplars.

    Args:
        metric: The name of a histogram.
        *matchers: More label matchers.
    """
    return [
        Query(quantile(0.5, metric, "", *matchers), "p50"),
        Query(quantile(0.9, metric, "", *matchers), "p90"),
        Query(quantile(0.99, metric, "", *matchers), "p99", exemplars=True),
    ]


def per_instance(metric: str, *matchers: str) -> list[Query]:
    """A gauge of each instance.

    Args:
        metric: The name of a metric.
        *matchers: More label matchers.
    """
    return [Query(f"sum by ({PER_INSTANCE}) ({selected(metric, *matchers)})", INSTANCE)]


def increase_per_instance(metric: str) -> list[Query]:
    """What was counted on each instance.

    Args:
        metric: The name of a counter.
    """
    return [Query(f"sum by ({PER_INSTANCE}) (increase({selected(metric)}{RATE}))", INSTANCE)]


def _now() -> list[AnyPanel]:
    duration, first = "agentcore_invocation_duration_seconds", "agentcore_time_to_first_chunk_seconds"
    return [
        stat_panel(
            "Instances",
            "Instances that answer Prometheus. Fewer than you run: look at the pods, or at the targets in Prometheus.",
            Query(f"count({selected('agentcore_build_info')})", "instances"),
            "short",
            thresholds(RED, (1, GREEN)),
        ),
        stat_panel(
            "Invocations",
            "Finished invocations a second. None where there should be some: does the ingress reach the instances?",
            Query(f"sum({rate('agentcore_invocations_total')})", "invocations"),
            "reqps",
            thresholds(GREEN),
        ),
        stat_panel(
            "Failed",
            "The share of invocations that failed through the service's fault: server errors, rejections, timeouts."
            " Yellow is more than the objective allows in the long run, red more than is bearable for an hour. No"
            " data means no traffic. Next: the outcomes below, then the log lines of level ERROR.",
            Query(failed_ratio(), "failed"),
            "percentunit",
            thresholds(GREEN, (BUDGET, YELLOW), (BURN_RATES[0].rate * BUDGET, RED)),
            decimals=2,
        ),
        stat_panel(
            "Duration, p90",
            "Nine in ten unary invocations take no longer. Compare with yesterday: what is right depends on the agent.",
            Query(quantile(0.9, duration, "", 'mode="unary"'), "p90"),
            "s",
            thresholds(GREEN),
        ),
        stat_panel(
            "First chunk, p95",
            "Nineteen in twenty streams show something within this time. Red is where the alert AgentFirstChunkSlow"
            " begins.",
            Query(quantile(0.95, first), "p95"),
            "s",
            thresholds(GREEN, (FIRST_CHUNK_SECONDS / 2, YELLOW), (FIRST_CHUNK_SECONDS, RED)),
        ),
        stat_panel(
            "In progress",
            "Invocations that are being served now. Rising while traffic does not: they take longer, so look at the"
            " durations and at what the agent waits for.",
            Query(f"sum({selected('agentcore_invocations_in_progress')})", "in progress"),
            "short",
            thresholds(GREEN),
        ),
    ]


def _traffic() -> list[AnyPanel]:
    invocations = "agentcore_invocations_total"
    return [
        time_series_panel(
            "Traffic",
            "Finished invocations a second, one value or a stream.",
            [Query(f"sum by (mode) ({rate(invocations)})", "{{mode}}")],
            "reqps",
            stacked=True,
        ),
        time_series_panel(
            "Outcomes",
            "How invocations ended. client_error is a bad request, disconnected a client that left, cancelled what was"
            " ended with its session or with the service; none of them counts as failed. rejected: there was no place"
            " (429; the panel Waiting shows the queue), or the service was ending (503). timeout: its time was over."
            " server_error: the handler raised; the log has its stack.",
            [Query(f"sum by (outcome) ({rate(invocations)})", "{{outcome}}")],
            "reqps",
            stacked=True,
            fixed=OUTCOMES,
        ),
        time_series_panel(
            "Failed",
            "The share of invocations that failed through the service's fault. The lines are the burn rates of the"
            " error budget from which tickets and pages come.",
            [Query(failed_ratio(), "failed")],
            "percentunit",
            colours=thresholds(GREEN, (BUDGET, YELLOW), (BURN_RATES[0].rate * BUDGET, RED)),
        ),
    ]


def _duration() -> list[AnyPanel]:
    duration = "agentcore_invocation_duration_seconds"
    dots = " The dots are exemplars: single requests, with links to their traces."
    return [
        time_series_panel(
            "Duration of unary invocations",
            "From the request to the last byte of its answer. All percentiles rise: what the agent calls is"
            " slow. Only p99 does: look at single traces, and at the sync queue." + dots,
            percentiles(duration, 'mode="unary"'),
            "s",
        ),
        time_series_panel(
            "Duration of streams",
            "From the request to the last event. Long is not bad as such: the first chunk matters more." + dots,
            percentiles(duration, 'mode="stream"'),
            "s",
        ),
        time_series_panel(
            "Time to first chunk",
            "How long people look at nothing. The line is the limit of the alert AgentFirstChunkSlow." + dots,
            percentiles("agentcore_time_to_first_chunk_seconds"),
            "s",
            colours=thresholds(GREEN, (FIRST_CHUNK_SECONDS, RED)),
        ),
    ]


def _protocols() -> list[AnyPanel]:
    duration = "agentcore_protocol_request_duration_seconds"
    return [
        time_series_panel(
            "Requests by protocol",
            "Finished requests of AG-UI, A2A and MCP a second, by what they call; those that call the agent are among"
            " the invocations above. No data: plain HTTP alone is served.",
            [Query(f"sum by (protocol, call) ({rate('agentcore_protocol_requests_total')})", "{{protocol}} {{call}}")],
            "reqps",
            span=12,
            stacked=True,
        ),
        time_series_panel(
            "Duration by protocol, p90",
            "From the request to the last byte of its answer. Streams by which a server may speak first are long.",
            [Query(quantile(0.9, duration, "protocol"), "{{protocol}}", exemplars=True)],
            "s",
            span=12,
        ),
    ]


def _connections() -> list[AnyPanel]:
    return [
        time_series_panel(
            "Invocations in progress",
            "On each instance, those that wait included. One far above the others: sessions stick to it, or its"
            " handlers hang.",
            per_instance("agentcore_invocations_in_progress"),
            "short",
            span=12,
            stacked=True,
        ),
        time_series_panel(
            "Waiting",
            "Invocations that wait for a place, by AGENTCORE_MAX_CONCURRENT_INVOCATIONS or"
            " AGENTCORE_MAX_CONCURRENT_PER_SESSION. At AGENTCORE_QUEUE_SIZE, or for longer than"
            " AGENTCORE_QUEUE_TIMEOUT_SECONDS, they are rejected. Above 0 for long: more instances, or higher limits.",
            per_instance("agentcore_invocations_waiting"),
            "short",
            span=12,
            stacked=True,
        ),
        time_series_panel(
            "Stream chunks",
            "Events sent a second. Falling while streams are open: the model is slow, or clients read slowly.",
            [Query(f"sum by ({PER_INSTANCE}) ({rate('agentcore_stream_chunks_total')})", INSTANCE)],
            "cps",
            span=6,
            stacked=True,
        ),
        time_series_panel(
            "WebSockets",
            "Open connections on each instance. They stay where they are when instances are added.",
            per_instance("agentcore_websocket_connections"),
            "short",
            span=6,
            stacked=True,
        ),
        time_series_panel(
            "Sessions",
            "Sessions for which something runs, or which are kept until AGENTCORE_SESSION_IDLE_SECONDS are over. Only"
            " ever rising beside level traffic: they are kept for ever, up to 10,000.",
            per_instance("agentcore_sessions"),
            "short",
            span=6,
            stacked=True,
        ),
        time_series_panel(
            "Callers not let in",
            "Requests without a token or key that is valid, by the reason; docs/securing.md lists these. expired or"
            " api_key from one moment on: keys or clocks were changed. unavailable: no key of the issuer is there.",
            [Query(f"sum by (reason) ({rate('agentcore_auth_failures_total')})", "{{reason}}")],
            "reqps",
            span=6,
            stacked=True,
        ),
    ]


def _tasks() -> list[AnyPanel]:
    status = selected("agentcore_ping_status", 'status="HealthyBusy"')
    busy = f"sum by ({PER_INSTANCE}) ({status})"
    changed = f"sum by ({PER_INSTANCE}) ({selected('agentcore_ping_status_last_change_timestamp_seconds')})"
    return [
        state_timeline_panel(
            "Health",
            "What /ping says. HealthyBusy means background tasks: the instance must not be taken away now. A gap: it"
            " did not answer Prometheus.",
            Query(busy, INSTANCE),
            {"0": ("Healthy", GREEN), "1": ("HealthyBusy", "blue")},
            span=8,
        ),
        time_series_panel(
            "Busy for",
            "How long each instance has been HealthyBusy. Hours: a task that does not end (alert AgentTasksNeverEnd).",
            [Query(f"(time() - {changed}) * {busy}", INSTANCE)],
            "s",
        ),
        time_series_panel(
            "Active tasks",
            "Background tasks that run now. Only ever rising: some are added and never completed.",
            per_instance("agentcore_active_tasks"),
            "short",
            stacked=True,
        ),
        time_series_panel(
            "Tasks that ended",
            "By outcome. failed: the task raised, and the log has its stack. lost: the service ended first.",
            [Query(f"sum by (outcome) (increase({selected('agentcore_async_tasks_total')}{RATE}))", "{{outcome}}")],
            "short",
            span=12,
            bars=True,
            fixed={"completed": GREEN, "failed": RED, "lost": "orange"},
        ),
        time_series_panel(
            "Duration of tasks, p90",
            "By name, up to the longest bucket of an hour. The exemplars lead to the traces.",
            [Query(quantile(0.9, "agentcore_async_task_duration_seconds", "name"), "{{name}}", exemplars=True)],
            "s",
            span=12,
        ),
    ]


def _handlers() -> list[AnyPanel]:
    return [
        time_series_panel(
            "Event loop lag",
            "For how long the agent's event loop had not turned when Prometheus asked. Above a second: an async"
            " handler blocks it, and all other async handlers wait; the log names it. Half of the scrapes above the"
            " line for minutes: alert AgentEventLoopBlocked.",
            per_instance("agentcore_event_loop_lag_seconds"),
            "s",
            colours=thresholds(GREEN, (LAG_SECONDS, RED)),
        ),
        time_series_panel(
            "Handler stalls",
            "Times an async handler held the agent's event loop for longer than AGENTCORE_STALL_SECONDS. All other"
            " async handlers wait meanwhile; the log names the handler, with its stack.",
            increase_per_instance("agentcore_handler_stalls_total"),
            "short",
            bars=True,
        ),
        time_series_panel(
            "Handler threads",
            "Threads of plain and await-less handlers. running at AGENTCORE_SYNC_THREADS: further invocations wait in"
            " the sync queue. parked: held by plain generators whose clients read slowly, and not counted as running;"
            " there are AGENTCORE_PARKED_THREADS at most.",
            [
                Query(
                    f"sum by ({PER_INSTANCE}, state) ({selected('agentcore_handler_threads')})",
                    f"{INSTANCE} {{{{state}}}}",
                )
            ],
            "short",
        ),
        time_series_panel(
            "Sync queue",
            "Invocations of plain and await-less handlers that wait for a thread. Above 0 for long: more instances,"
            " or a larger AGENTCORE_SYNC_THREADS.",
            per_instance("agentcore_sync_queue_length"),
            "short",
            span=12,
        ),
        time_series_panel(
            "Dropped spans",
            "Spans that never reached the tracing backend. Requests do not suffer, but traces have holes. Is the"
            " backend up?",
            increase_per_instance("agentcore_spans_dropped_total"),
            "short",
            span=12,
            bars=True,
        ),
    ]


def _process() -> list[AnyPanel]:
    open_files = f"sum by ({PER_INSTANCE}) ({selected('process_open_fds')})"
    most_files = f"sum by ({PER_INSTANCE}) ({selected('process_max_fds')})"
    return [
        time_series_panel(
            "CPU",
            "Cores that each instance uses. At 1 or more for long, Python itself is the limit: add instances.",
            [Query(f"sum by ({PER_INSTANCE}) ({rate('process_cpu_seconds_total')})", INSTANCE)],
            "short",
            span=6,
        ),
        time_series_panel(
            "Memory",
            "Resident memory of each instance. A steady rise over days is a leak; near the pod's limit it will be"
            " killed.",
            per_instance("process_resident_memory_bytes"),
            "bytes",
            span=6,
        ),
        time_series_panel(
            "Open files",
            "The share of the file descriptors that a process may have. At the line, connections leak, or there are"
            " too many; at 100 % no client can connect.",
            [Query(f"{open_files} / {most_files}", INSTANCE)],
            "percentunit",
            span=6,
            colours=thresholds(GREEN, (0.8, RED)),
            maximum=1,
        ),
        table_panel(
            "Builds",
            "What is running, and on how many instances. Two versions outside a rollout: one got stuck.",
            Query(
                f"count by (agent, agent_version, version, python_version) ({selected('agentcore_build_info')})",
                "builds",
            ),
            span=6,
        ),
    ]


def overview() -> Dashboard:
    """Make the dashboard."""
    return assemble(
        UID,
        "AgentCore / Overview",
        "How agents are: traffic, errors, durations, health, background tasks, saturation.",
        [
            ("Now", _now()),
            ("Traffic and errors", _traffic()),
            ("Durations", _duration()),
            ("Protocols beside HTTP", _protocols()),
            ("Connections", _connections()),
            ("Health and background tasks", _tasks()),
            ("Handlers and traces", _handlers()),
            ("Process", _process()),
        ],
        [link("Rollout", f"/d/{ROLLOUT_UID}", "Compare versions", keep_variables=True)],
    )
