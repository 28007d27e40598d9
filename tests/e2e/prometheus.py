"""A real Prometheus, asked by its HTTP API."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.runtimes import free_ports

PATIENCE = 20.0
"""Seconds after which what should have happened long ago counts as not happening."""

SCRAPE_TOLERANCE = 0.01
"""Seconds by which Prometheus may move the timestamp of a scrape, to have them at even distances."""

Labels = dict[str, str]


class Prometheus:
    """A running Prometheus.

    Args:
        client: Reaches its HTTP API.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        """What the HTTP API answers."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """The value of an expression now, for each of its series."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", data
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def value(self, expression: str) -> float:
        """The value of an expression that has one series."""
        result = self.query(expression)
        assert len(result) == 1, f"{expression} is {result}"
        return result[0][1]

    def values(self, expression: str, since: float) -> list[float]:
        """The values that a series has had since a moment, one a scrape."""
        seconds = int(time.time() - since) + 1
        (series,) = self.get("query", query=f"{expression}[{seconds}s]")["result"]
        return [float(value) for moment, value in series["values"] if moment >= since]

    def exemplars(self, name: str) -> list[tuple[Labels, Labels]]:
        """The exemplars of a metric, each with the labels of its series."""
        now = time.time()
        found = self.get("query_exemplars", query=name, start=now - 600, end=now + 1)
        return [(series["seriesLabels"], exemplar["labels"]) for series in found for exemplar in series["exemplars"]]

    def wait_for_scrape(self) -> None:
        """Wait until the target was scraped once more, from now on, and well."""
        now = time.time() + SCRAPE_TOLERANCE
        deadline = time.monotonic() + PATIENCE
        while not self.query(f'timestamp(up{{job="agent"}}) > {now} and up{{job="agent"}} == 1'):
            assert time.monotonic() < deadline, self.get("targets")["activeTargets"]
            time.sleep(0.05)


def executable(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"`{name}` is not on the PATH: install it, on Debian with `apt-get install prometheus`", pytrace=False
        )
    return path


def check_metrics(text: str) -> str:
    """What ``promtool check metrics`` has to say about an exposition in Prometheus' text format."""
    command = [executable("promtool"), "check", "metrics"]
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    return done.stdout or (f"exit status {done.returncode}" if done.returncode else "")


@contextmanager
def prometheus(jobs: Mapping[str, Sequence[Mapping[str, Any]]], *rule_files: Path) -> Iterator[Prometheus]:
    """Run Prometheus until the test is through. It scrapes every second, and evaluates rules as often.

    Args:
        jobs: The ``static_configs`` of each job.
        *rule_files: Its rule files.
    """
    binary = executable("prometheus")
    (port,) = free_ports(1)
    content = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file) for file in rule_files],
        "scrape_configs": [{"job_name": name, "static_configs": list(targets)} for name, targets in jobs.items()],
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        configuration, log = directory / "prometheus.yml", directory / "prometheus.log"
        configuration.write_text(yaml.safe_dump(content))
        command = [
            binary,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ]
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
                _wait_until_ready(client, process, log)
                yield Prometheus(client)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
