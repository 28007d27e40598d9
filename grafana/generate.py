"""Writes the dashboards and the alert rules: ``python -m grafana.generate``."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.alerts import rule_file
from grafana.overview import overview
from grafana.rollout import rollout

ROOT = Path(__file__).parent.parent
DIRECTORIES = (ROOT / "grafana", ROOT / "helm" / "agentcore" / "files")
"""One to import from by hand, and the chart's, since Helm reads no files outside a chart."""


def as_json(dashboard: Dashboard) -> str:
    """A dashboard as Grafana imports it.

    Args:
        dashboard: The dashboard.
    """
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def generated() -> dict[str, str]:
    """The content of the generated files, by their path in each directory."""
    return {
        "alerts.yaml": rule_file(),
        "dashboards/overview.json": as_json(overview()),
        "dashboards/rollout.json": as_json(rollout()),
    }


def main() -> None:
    """Write each file to each directory."""
    files = generated()
    for directory in DIRECTORIES:
        for path, content in files.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
