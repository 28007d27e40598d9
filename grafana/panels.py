"""Builders for the kinds of panel that the dashboards have, and for a dashboard."""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from grafana_foundation_sdk.builders import prometheus, stat, table, tempo, text, timeseries
from grafana_foundation_sdk.builders import statetimeline as timeline
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, Row, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType
from grafana_foundation_sdk.models.text import TextMode

from grafana.explore import SESSION_TRACEQL, jaeger_session, tempo_session
from grafana.variables import PROMETHEUS, TEMPO, datasource, targets, tracing

MIN_INTERVAL = "30s"
"""The default scrape interval: ``$__rate_interval`` is at least four times as long."""

SCHEMA_VERSION = 39
"""Grafana 11.0's. Newer releases migrate it; older ones cannot read a newer one."""

GREEN, YELLOW, RED = "green", "yellow", "red"
Step = tuple[float, str]


class Query(msgspec.Struct, frozen=True):
    """A PromQL expression and the legend of its series."""

    expr: str
    legend: str
    exemplars: bool = False

    def build(self, number: int, instant: bool = False) -> prometheus.Dataquery:
        """Make a query of a panel.

        Args:
            number: Which of the panel's queries it is, from 0 on.
            instant: Whether it asks for the last value alone.
        """
        query = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(PROMETHEUS)
        query = query.expr(self.expr).legend_format(self.legend)
        query = query.instant() if instant else query.range()
        return query.exemplar(True) if self.exemplars else query


AnyPanel: TypeAlias = Builder[models.Panel]
"""A panel of any kind."""


def thresholds(base: str, *steps: Step) -> ThresholdsConfig:
    """Colours from the values on at which they begin.

    Args:
        base: The colour below all of them.
        *steps: Values in rising order, and their colours.
    """
    values = [models.Threshold(value=None, color=base), *(models.Threshold(value, color) for value, color in steps)]
    return ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(values)


def stat_panel(
    title: str, description: str, query: Query, unit: str, colours: ThresholdsConfig, decimals: int | None = None
) -> stat.Panel:
    """A stat panel: the last value of a query, above a sparkline.

    Args:
        title: What it shows.
        description: What that means, and what to do about it.
        query: Where it comes from.
        unit: Grafana's name of the unit.
        colours: The colours of the number.
        decimals: How many digits there are after the point; as many as fit, by default.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .interval(MIN_INTERVAL)
        .with_target(query.build(0))
        .unit(unit)
        .thresholds(colours)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .graph_mode(BigValueGraphMode.AREA)
        .height(4)
        .span(4)
    )
    return panel if decimals is None else panel.decimals(decimals)


def time_series_panel(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    span: int = 8,
    colours: ThresholdsConfig | None = None,
    stacked: bool = False,
    bars: bool = False,
    maximum: float | None = None,
    fixed: dict[str, str] | None = None,
) -> timeseries.Panel:
    """A time series panel.

    Args:
        title: What it shows.
        description: What that means, and what to do about it.
        queries: Where the series come from.
        unit: Grafana's name of the unit.
        span: The width, of 24.
        colours: Limits that are drawn as lines.
        stacked: Whether the series add up.
        bars: Whether to draw bars: for what is counted now and then.
        maximum: The end of the axis.
        fixed: Colours of series, by their names.
    """
    legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.TABLE)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .interval(MIN_INTERVAL)
        .targets([query.build(index) for index, query in enumerate(queries)])
        .unit(unit)
        .min(0)
        .legend(legend.placement(LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"]))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(60 if stacked or bars else 10)
        .height(8)
        .span(span)
    )
    if bars:
        panel = panel.draw_style(GraphDrawStyle.BARS)
    if stacked or bars:
        panel = panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if maximum is not None:
        panel = panel.max(maximum)
    if colours is not None:
        lines = GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(colours).thresholds_style(lines)
    for name, colour in (fixed or {}).items():
        value = models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(name, [value])
    return panel


def state_timeline_panel(
    title: str, description: str, query: Query, names: dict[str, tuple[str, str]], span: int
) -> timeline.Panel:
    """A state timeline: which of a few states each series was in.

    Args:
        title: What it shows.
        description: What that means, and what to do about it.
        query: Where the series come from.
        names: For each value, the state's name and colour.
        span: The width, of 24.
    """
    options = {
        value: models.ValueMappingResult(text=name, color=colour, index=index)
        for index, (value, (name, colour)) in enumerate(names.items())
    }
    return (
        timeline.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .interval(MIN_INTERVAL)
        .with_target(query.build(0))
        .mappings([models.ValueMap(options=options)])
        .legend(VizLegendOptions().show_legend(False).display_mode(LegendDisplayMode.LIST).calcs([]))
        .fill_opacity(70)
        .height(8)
        .span(span)
    )


def table_panel(title: str, description: str, query: Query, span: int) -> table.Panel:
    """A table: the labels and last values of some series, a row each.

    Args:
        title: What it shows.
        description: What that means, and what to do about it.
        query: Where the series come from.
        span: The width, of 24.
    """
    organize = models.DataTransformerConfig(
        id_val="organize", options={"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}
    )
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(query.build(0, instant=True).format(PromQueryFormat.TABLE))
        .with_transformation(organize)
        .height(8)
        .span(span)
    )


def session_traces() -> Row:
    """The traces of one session. Closed at first, so that nobody without a tracing backend sees an error."""
    help_text = (
        "**From a session to its traces.** Type its id at the top. Where Tempo is chosen, the traces are listed"
        " beside this text; the links *Session in Tempo* and *Session in Jaeger* at the top open them there.\n\n"
        "**From a slow request to its trace.** The dots in the duration panels are exemplars. Pointing at one shows its"
        " `trace_id`, and a link to the trace where the Prometheus data source has been told of the tracing backend."
    )
    explained = text.Panel().title("How").mode(TextMode.MARKDOWN).content(help_text).height(8).span(8)
    explained = explained.description("How to come from a session, or from a slow request, to its traces.")
    query = tempo.TempoQuery().ref_id("A").datasource(TEMPO).query_type("traceql").limit(100)
    traces = (
        table.Panel()
        .title("Traces of the session")
        .description(
            "Every invocation, WebSocket and task of the session. Empty: no session id, or not within the time."
        )
        .datasource(TEMPO)
        .with_target(query.query(SESSION_TRACEQL).table_type(SearchTableType.TRACES))
        .height(8)
        .span(16)
    )
    return Row("Traces of a session").with_panel(explained).with_panel(traces)


def link(title: str, url: str, tooltip: str, *, keep_variables: bool = False) -> DashboardLink:
    """A link at the top of a dashboard.

    Args:
        title: What it says.
        url: Where it leads, with variables.
        tooltip: What is there.
        keep_variables: Whether that is a dashboard that is to show the same instances and time.
    """
    made = DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).tooltip(tooltip).icon("external link")
    if keep_variables:
        return made.keep_time(True).include_vars(True).icon("dashboard")
    return made.target_blank(True)


def assemble(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[AnyPanel]]],
    links: Sequence[DashboardLink],
) -> models.Dashboard:
    """Make a dashboard of rows of panels.

    Args:
        uid: What it is called in URLs, for ever.
        title: What people call it.
        description: What it is for.
        rows: Titles of rows, each with its panels.
        links: Links at its top, besides those to the session's traces.

    Returns:
        The dashboard. Its panels are numbered in their order.
    """
    builder = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["agentcore"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables([datasource(), *targets(), *tracing()])
        .links(
            [
                *links,
                link("Session in Tempo", tempo_session(), "The traces of the session id that is typed in above"),
                link("Session in Jaeger", jaeger_session(), "The traces of the session id that is typed in above"),
            ]
        )
    )
    for row, panels in rows:
        builder = builder.with_row(Row(row))
        for panel in panels:
            builder = builder.with_panel(panel)
    made = builder.with_row(session_traces()).build()
    made.schema_version = SCHEMA_VERSION
    numbered = [inner for outer in made.panels or [] for inner in (outer, *_inside(outer))]
    for index, panel_or_row in enumerate(numbered, start=1):
        panel_or_row.id_val = index
    return made


def _inside(panel: models.Panel | models.RowPanel) -> list[models.Panel]:
    return panel.panels if isinstance(panel, models.RowPanel) else []
