"""What Grafana and Prometheus are to know of an agent: dashboards and alert rules, written as code."""
