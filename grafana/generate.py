"""Writes the dashboards and the alert rules: ``python -m grafana.generate``."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.alerts import rule_file
from grafana.overview import overview
from grafana.rollout import rollout

ROOT = Path(__file__).parent.parent
PLACES = (ROOT / "grafana", ROOT / "helm" / "agentcore" / "files")
"""To be imported by hand, and for the chart, which can read nothing outside itself."""


def as_json(dashboard: Dashboard) -> str:
    """A dashboard as Grafana imports it.

    Args:
        dashboard: The dashboard.
    """
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def generated() -> dict[str, str]:
    """The files, by their path within each of the places."""
    return {
        "alerts.yaml": rule_file(),
        "dashboards/overview.json": as_json(overview()),
        "dashboards/rollout.json": as_json(rollout()),
    }


def main() -> None:
    """Write each file to each place."""
    files = generated()
    for place in PLACES:
        for path, content in files.items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
