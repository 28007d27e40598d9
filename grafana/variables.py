"""What is chosen at the top of a dashboard, and how queries and links refer to it.

The labels ``namespace``, ``agent``, ``agent_version`` and ``pod`` are there only where a scraper attaches them, as the
chart's monitors do. "All" is therefore ``.*``, which a label that is not there matches, too.
"""

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable, TextBoxVariable
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh, VariableSort

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO = DataSourceRef(type_val="tempo", uid="${tempo}")
JAEGER = DataSourceRef(type_val="jaeger", uid="${jaeger}")

SELECTED = (
    'job=~"$job", namespace=~"$namespace", agent=~"$agent", agent_version=~"$agent_version", instance=~"$instance"'
)
"""The instances that are chosen, as PromQL's label matchers."""

EVERYTHING = ".*"
LABEL_VALUES = 1
VARIABLE_QUERY = "PrometheusVariableQueryEditor-VariableQuery"
"""What Grafana's own editor calls such a query, and its type."""


def selected(metric: str, *matchers: str) -> str:
    """A selector of the instances that are chosen.

    Args:
        metric: The name of a metric.
        *matchers: More label matchers.
    """
    return f"{metric}{{{', '.join((SELECTED, *matchers))}}}"


def datasource() -> DatasourceVariable:
    """Which Prometheus."""
    return DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def targets() -> list[QueryVariable]:
    """Which instances, each variable narrowing the ones after it."""
    narrowed = ""
    variables = []
    for name, label in (
        ("job", "Job"),
        ("namespace", "Namespace"),
        ("agent", "Agent"),
        ("agent_version", "Version"),
        ("instance", "Instance"),
    ):
        known = f"agentcore_build_info{{{narrowed}}}" if narrowed else "agentcore_build_info"
        variable = (
            QueryVariable(name)
            .label(label)
            .datasource(PROMETHEUS)
            .query({"qryType": LABEL_VALUES, "query": f"label_values({known}, {name})", "refId": VARIABLE_QUERY})
            .multi(True)
            .include_all(True)
            .current(VariableOption(text="All", value="$__all"))
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.NATURAL_ASC)
        )
        # All jobs are those that have an agent, and no others: ``up`` is a metric of every job.
        variables.append(variable if name == "job" else variable.all_value(EVERYTHING))
        narrowed = f'{narrowed}, {name}=~"${name}"' if narrowed else f'{name}=~"${name}"'
    return variables


def tracing() -> list[DatasourceVariable | TextBoxVariable]:
    """Where traces are, and whose are wanted."""
    return [
        DatasourceVariable("tempo").label("Tempo").type("tempo"),
        DatasourceVariable("jaeger").label("Jaeger").type("jaeger"),
        TextBoxVariable("session")
        .label("Session id")
        .description("The traces of this session are listed at the bottom, and linked at the top."),
        TextBoxVariable("service")
        .label("Service in Jaeger")
        .description("Jaeger searches in one service: OTEL_SERVICE_NAME, else the agent's name.")
        .default_value("agent"),
    ]
