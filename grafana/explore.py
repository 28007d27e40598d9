"""Links to Grafana's Explore, by its URL schema 1."""

import json
from typing import Any
from urllib.parse import quote

from grafana_foundation_sdk.models.dashboard import DataSourceRef

from grafana.variables import JAEGER, TEMPO

SESSION_TRACEQL = '{ span.session.id = "${session}" }'
"""Every span of a request carries the session's id."""


def tempo_session() -> str:
    """The traces of the session that was typed in, in Tempo."""
    return _explore(TEMPO, queryType="traceql", tableType="traces", limit=100, query=SESSION_TRACEQL)


def jaeger_session() -> str:
    """The traces of the session that was typed in, in Jaeger."""
    return _explore(JAEGER, queryType="search", service="${service}", tags="session.id=${session}", limit=100)


def _explore(datasource: DataSourceRef, **query: Any) -> str:
    pane = {
        "datasource": datasource.uid,
        "queries": [{"refId": "A", "datasource": datasource.to_json(), **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = quote(json.dumps({"session": pane}, separators=(",", ":")), safe="")
    # Grafana puts the values in only where it finds its own braces; what people type is encoded by it.
    for name in ("tempo", "jaeger", "session", "service", "__from", "__to"):
        typed = ":percentencode" if name in ("session", "service") else ""
        panes = panes.replace(quote(f"${{{name}}}", safe=""), f"${{{name}{typed}}}")
    return f"/explore?schemaVersion=1&panes={panes}"
