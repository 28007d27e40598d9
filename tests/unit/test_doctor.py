"""``litestar agent doctor``: each check says what is so, what to do about it, and nothing that is secret."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar_agentcore import Settings
from litestar_agentcore.cli.findings import Finding, Report, Setting, without_credentials
from litestar_agentcore.cli.port_check import check_port
from litestar_agentcore.cli.settings_check import check_settings, check_telemetry_variables, settings_in_force
from litestar_agentcore.cli.trace_check import SPAN, check_traces
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console

SECRETS = {
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://anna:hunter2@collector:4318/x?key=hunter2",
    "OTEL_RESOURCE_ATTRIBUTES": "service.name=chef,api.token=hunter2",
    "OTEL_EXPORTER_OTLP_TRACES_HEDERS": "authorization=hunter2",
    "AGENTCORE_JWT_DISCOVERY_URL": "https://anna:hunter2@issuer/.well-known/openid-configuration?hunter2=hunter2",
    "AGENTCORE_GATEWAY_TOKEN": "hunter2",
}


def texts(findings: Iterator[Finding]) -> list[str]:
    return [f"{finding.level}: {finding.text} {finding.advice}".strip() for finding in findings]


def doctor(directory: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command in a process of its own, with no more variables of ours than are given."""
    prefixes = ("AGENTCORE_", "OTEL_", "KUBERNETES_", "DOCKER_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    command = [sys.executable, "-P", "-m", "litestar_agentcore.cli.console", "doctor", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=inherited | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def report(directory: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, list[Finding]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = doctor(directory, *arguments, "--json", "--host", "127.0.0.1", "--port", str(port), **environment)
    decoded = msgspec.convert(json.loads(out), Report)
    assert (decoded.ok, code) in {(True, 0), (False, 1)}, err
    found: dict[str, list[Finding]] = {}
    for finding in decoded.checks:
        found.setdefault(finding.subject, []).append(finding)
    return code, found


AGENT = """
import logging
from bedrock_agentcore.runtime import BedrockAgentCoreApp, PingStatus
import msgspec

logging.basicConfig()
app = BedrockAgentCoreApp(debug=True)

class Ask(msgspec.Struct):
    prompt: str

@app.entrypoint
async def answer(ask: Ask, context):
    yield ask.prompt

@app.websocket
async def talk(websocket, context): ...

@app.ping
def health():
    return PingStatus.HEALTHY
"""


def test_of_an_agent_it_tells_how_everything_will_run(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "keys").write_text("caller:hunter2")
    code, found = report(tmp_path, AGENTCORE_API_KEYS_FILE=str(tmp_path / "keys"))
    assert code == 0
    (loaded,) = found["agent"]
    assert loaded.level == "ok"
    assert loaded.text.startswith("agent.py is imported in ")
    how = ["answer: async, on the agent's loop", "payload validated as Ask", "with the context", "streams"]
    assert found["handler"][0].text == "; ".join(how)
    assert found["WebSocket"][0].text == "/ws: talk, async, on the agent's loop"
    assert found["ping"][0].text == "/ping: health, within 0.5 s"
    assert found["debug mode"][0].level == "warning"
    assert found["authentication"][0].text == "on: API keys"
    assert "logging.StreamHandler, set up by the program" in found["logging"][0].text
    assert found["traces"][0].text == "none: no exporter"
    assert found["port"][0].level == "ok"


BROKEN = {
    "raises.py": ("import os\n\n1 / 0", "ZeroDivisionError: division by zero"),
    "leaves.py": ("import sys\nsys.exit('no key')", "ends the process when it is imported (no key)"),
    "silent.py": (
        "from bedrock_agentcore import *\napp = BedrockAgentCoreApp()",
        "each invocation would be answered 500",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_an_agent_that_cannot_serve_it_tells_why(name: str, tmp_path: Path) -> None:
    source, says = BROKEN[name]
    (tmp_path / name).write_text(source)
    code, found = report(tmp_path, name)
    assert code == 1
    failures = [finding for findings in found.values() for finding in findings if finding.level == "failure"]
    assert [says in failure.text for failure in failures] == [True]
    if name == "raises.py":
        assert failures[0].text.endswith(f"({tmp_path / name}, line 3)")


def test_an_agent_that_serves_while_it_is_imported_is_looked_at_and_does_not_serve(tmp_path: Path) -> None:
    source = "from bedrock_agentcore import *\napp = BedrockAgentCoreApp()\n"
    source += "@app.entrypoint\ndef f(p): ...\napp.run()\n1/0"
    (tmp_path / "main.py").write_text(source)
    code, found = report(tmp_path)
    assert code == 0
    assert [finding.level for finding in found["agent"]] == ["warning"]
    assert "while it is imported" in found["agent"][0].text
    assert found["handler"][0].text.startswith("f: plain, in a thread for each call; any JSON; without the context")


def test_a_person_reads_it_at_any_width_and_secrets_are_not_in_it(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    for width in ("60", "200"):
        code, out, err = doctor(tmp_path, "--all", "--timeout", "0.2", "--host", "127.0.0.1", COLUMNS=width, **SECRETS)
        assert code == 1
        assert "hunter2" not in out + err
        words = " ".join(out.split())
        assert "failure traces (otlp)" in words
        assert "By default: AGENTCORE_MAX_BODY_BYTES 104857600 " in words


def test_bad_usage_is_a_sentence(tmp_path: Path) -> None:
    code, out, err = doctor(tmp_path, "there.py", COLUMNS="200")
    assert (code, out) == (2, "")
    assert "There is no file there.py" in err


# The checks by themselves


def test_a_setting_with_a_typo_is_told_from_what_is_not_the_services() -> None:
    environment = {
        "AGENTCORE_SYNC_THREAD": "3",
        "AGENTCORE_AGENT_NAME": "chef",
        "AGENTCORE_RUNTIME_URL": "http://x",
        "AGENTCORE_MEMORY_ID": "m",
        "AGENTCORE_MAX_WORKER_LOOPS": "2",
        "AGENTCORE_LOG_LEVEL": "debug",
    }
    found = texts(check_settings(environment))
    assert found[0].startswith("ok: 1 from the environment, ")
    assert set(found[1:]) == {
        "warning: AGENTCORE_MAX_WORKER_LOOPS no longer means anything Remove it.",
        "warning: AGENTCORE_AGENT_NAME is no setting Did you mean AGENT_NAME?",
        "warning: AGENTCORE_SYNC_THREAD is no setting Did you mean AGENTCORE_SYNC_THREADS?",
        "ok: Not the service's: AGENTCORE_MEMORY_ID, AGENTCORE_RUNTIME_URL",
    }


def test_a_setting_that_makes_no_sense_is_a_failure() -> None:
    assert texts(check_settings({"AGENTCORE_SYNC_THREADS": "many"}))[0].startswith(
        "failure: AGENTCORE_SYNC_THREADS='many' makes no sense: "
    )


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_no_setting_counts_as_a_typo_of_another(field: str) -> None:
    variable = "AGENT_NAME" if field == "agent_name" else f"AGENTCORE_{field.upper()}"
    assert not [text for text in texts(check_settings({variable: " "})) if text.startswith("warning")]


def test_a_variable_of_opentelemetry_is_checked_for_its_name_and_its_value() -> None:
    found = texts(
        check_telemetry_variables({"OTEL_SERVICE_NAM": "chef", "OTEL_TRACES_SAMPLER": "often", "OTEL_X": "1"})
    )
    assert len(found) == 2
    assert found[0].startswith("warning: OTEL_TRACES_SAMPLER: 'often' is not understood")
    assert found[1] == "warning: OTEL_SERVICE_NAM is no variable Did you mean OTEL_SERVICE_NAME?"


def test_settings_tell_where_they_are_from_and_nothing_secret() -> None:
    settings = {setting.variable: setting for setting in settings_in_force({**SECRETS, "AGENTCORE_QUEUE_SIZE": "7"})}
    assert settings["AGENTCORE_QUEUE_SIZE"] == Setting("AGENTCORE_QUEUE_SIZE", "7", "environment")
    assert settings["AGENTCORE_LOG_LEVEL"] == Setting("AGENTCORE_LOG_LEVEL", "INFO", "default")
    assert settings["AGENTCORE_MAX_WEBSOCKETS"].value == "(unset)"
    assert settings["OTEL_EXPORTER_OTLP_ENDPOINT"].value == "https://collector:4318/x"
    assert settings["OTEL_RESOURCE_ATTRIBUTES"].value == "service.name=chef,api.token=(not shown)"
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://a:b@c/d?e=f", "http://c/d"),
        ("grpc://token@c:1", "grpc://c:1"),
        ("no URL, is it? no", "no URL, is it? no"),
        ("url: /v1/traces?key=x (Caused by", "url: /v1/traces (Caused by"),
    ],
)
def test_credentials_are_taken_out_of_urls(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


class Answering(BaseHTTPRequestHandler):
    """Answers with the server's status, and keeps the spans."""

    server: "AnsweringServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append(body)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_: Any) -> None: ...


class AnsweringServer(ThreadingHTTPServer):
    status = 200
    answer = b"{}"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.bodies: list[bytes] = []


@contextmanager
def answering() -> Iterator[AnsweringServer]:
    with AnsweringServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    return monkeypatch


def traces(limit: float = 10) -> str:
    (text,) = texts(check_traces("chef", limit))
    return text


def test_a_backend_gets_a_span_of_the_service(environment: pytest.MonkeyPatch) -> None:
    with answering() as server:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert traces().startswith(f"ok: http://127.0.0.1:{server.server_port}/v1/traces took a span in ")
        (resource,) = ExportTraceServiceRequest.FromString(server.bodies[0]).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == [SPAN]
    assert {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"] == "chef"


def test_a_backend_that_refuses_the_span_is_told_with_its_reason(environment: pytest.MonkeyPatch) -> None:
    with answering() as server:
        server.status = 401
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://anna:hunter2@127.0.0.1:{server.server_port}")
        text = traces()
    assert text.startswith(f"failure: http://127.0.0.1:{server.server_port}/v1/traces took no span: ")
    assert "401" in text


def test_a_backend_that_is_not_there_or_says_nothing_is_given_up_in_time(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer within 0.2 s" in traces(0.2)
    assert "nothing listens there (connection refused)" in traces(0.2)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "ok: none: no exporter"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, "warning: OTEL_SDK_DISABLED"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "ok: written to standard output"),
    ],
)
def test_where_nothing_is_sent_that_is_told(
    variables: dict[str, str], says: str, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert traces().startswith(says)


def test_a_port_that_is_taken_is_told_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        finding = check_port("127.0.0.1", port)
    assert finding.level == "failure"
    assert finding.text.startswith(f"{port} is taken")
    if sys.platform == "linux":
        assert f"by process {os.getpid()} (" in finding.text
    assert check_port("127.0.0.1", port).level == "ok"


def test_a_port_on_which_an_agent_is_served_is_no_failure() -> None:
    with answering() as server:
        server.answer = b'{"status": "HealthyBusy"}'
        finding = check_port("0.0.0.0", server.server_port)
    assert finding.level == "ok"
    assert finding.text.endswith("it says HealthyBusy")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    finding = check_port("192.0.2.1", 8080)
    assert finding.level == "failure"
    assert "192.0.2.1:8080 cannot be listened on: " in finding.text


def test_the_summary_counts_what_is_wrong() -> None:
    console = Console(width=60, file=io.StringIO())
    findings = [Finding("ok", "a", "x"), Finding("warning", "b", "[y]", "do"), Finding("failure", "c", "z")]
    Report.of(findings, [Setting("X", "[1]", "environment")]).write(console, with_defaults=False)
    words = " ".join(str(console.file.getvalue()).split())  # type: ignore[attr-defined]
    assert words == "ok a x warning b [y] do failure c z From the environment: X [1] 1 failure, 1 warning"
