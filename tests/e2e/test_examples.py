"""The examples do what their pages say: they start, answer, stream, remember, are traced in Phoenix, and end quietly.

Each is served from its own directory, as a reader does, with the versions of its own ``requirements.txt``.
"""

import difflib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.e2e.environments import environment
from tests.e2e.phoenix import Phoenix, phoenix
from tests.e2e.runtimes import HERE, OURS, ROOT, Runtime, free_ports
from tests.e2e.trace_promises import Span
from tests.integration.server import REQUEST_ID, SESSION_ID, ServerProcess, run
from tests.integration.test_serving import ENDED_BY_SIGTERM

EXAMPLES = ROOT / "examples"
MOVING = EXAMPLES / "moving"

START_SECONDS = 120.0
"""Within which a framework has been imported, without compiled files and on a busy machine."""

PATIENCE = 60.0

LITESTAR_AGENT = "from litestar_agentcore.cli.group import main; main()"
"""What the command ``litestar-agent`` does: in the environment of the frameworks we are not installed."""

WEATHER = {"prompt": "What is the weather in Lisbon?"}
ANSWER = "It is sunny in Lisbon, at 21 °C."

TRACES = {
    "strands": """
        POST /invocations
          invoke_agent weather agent
            execute_event_loop_cycle
              chat
              execute_tool weather
            execute_event_loop_cycle
              chat
    """,
    "langgraph": """
        POST /invocations
          weather agent
            model
              ScriptedModel
            tools
              weather
            model
              ScriptedModel
    """,
    "pydantic_ai": """
        POST /invocations
          invoke_agent weather agent
            chat scripted
            execute_tool weather
            chat scripted
    """,
    "openai_agents": """
        POST /invocations
          Agent workflow
            Agent workflow
              weather agent
                turn
                  generation
                  weather
                turn
                  generation
    """,
    "llama_index": """
        POST /invocations
          FunctionAgent.run
            BaseWorkflowAgent.init_run
            BaseWorkflowAgent.setup_agent
            BaseWorkflowAgent.run_agent_step
              ScriptedModel._prepare_chat_with_tools
              ScriptedModel.astream_chat
            BaseWorkflowAgent.parse_agent_output
            BaseWorkflowAgent.call_tool
              FunctionTool.acall
            BaseWorkflowAgent.aggregate_tool_results
            BaseWorkflowAgent.setup_agent
            BaseWorkflowAgent.run_agent_step
              ScriptedModel._prepare_chat_with_tools
              ScriptedModel.astream_chat
            BaseWorkflowAgent.parse_agent_output
    """,
}
"""What Phoenix shows of a question for which the agent calls its tool, whether it is streamed or not."""


class Answer(msgspec.Struct, frozen=True):
    body: Any
    """The value, or the events."""
    request_id: str


class Life(msgspec.Struct, frozen=True):
    """What one process of an example did."""

    session: str
    answer: Answer
    next_in_session: Answer
    in_no_session: list[Answer]
    stream: Answer
    seconds_of_stream: float
    seconds_until_first_event: float
    exit_code: int
    stderr: list[str]
    calls_home: int
    """How many connections beyond this machine it has tried to make."""


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("moved") / "python"


@pytest.fixture(scope="module")
def backend() -> Iterator[Phoenix]:
    with phoenix() as running:
        yield running


@pytest.fixture(scope="module", params=TRACES)
def example(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def traced(example: str, python: Path, backend: Phoenix) -> Life:
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    return live(example, [str(python), "-c", LITESTAR_AGENT, "run", "agent.py"], **tracing)


@pytest.fixture(scope="module")
def untraced(example: str, python: Path) -> Life:
    return live(example, [str(python), "-m", "litestar", "--app", "agent:app", "run"])


@pytest.fixture(params=["traced", "untraced"])
def life(request: pytest.FixtureRequest, traced: Life, untraced: Life) -> Life:
    return traced if request.param == "traced" else untraced


def live(example: str, serve: list[str], **variables: str) -> Life:
    """Serve an example by a command that takes a port, talk to it and end it."""
    session = f"session-{uuid.uuid4()}"
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as internet:
        internet.setblocking(False)
        proxy = f"http://127.0.0.1:{internet.getsockname()[1]}"
        variables |= {
            "AGENTCORE_STALL_SECONDS": "30",  # on a busy machine the first request of a framework takes its time
            "HOME": os.environ["HOME"],
            "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "127.0.0.1",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT / 'service'}{os.pathsep}{ROOT / 'telemetry'}",
        }
        command = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items())]
        command += [*serve, "--port", str(port)]
        with run(command, port, EXAMPLES / example, START_SECONDS) as server:
            answer = ask(server, WEATHER, session)
            next_in_session = ask(server, {"prompt": "Hello"}, session)
            in_no_session = [ask(server, {"prompt": "Hello"}) for _ in range(2)]
            stream = ask(server, WEATHER | {"stream": True}, session)
            with server.client() as client:
                metrics = client.get("/metrics").text
            exit_code = server.terminate()
            stderr = server.stderr()
        return Life(
            session,
            answer,
            next_in_session,
            in_no_session,
            stream,
            metric(metrics, 'agentcore_invocation_duration_seconds_sum{mode="stream"}'),
            metric(metrics, "agentcore_time_to_first_chunk_seconds_sum"),
            exit_code,
            stderr,
            connections_to(internet),
        )


def ask(server: ServerProcess, payload: dict[str, Any], session: str | None = None) -> Answer:
    with server.client(PATIENCE) as client:
        response = client.post("/invocations", json=payload, headers={SESSION_ID: session} if session else {})
    assert response.status_code == 200, response.text
    if not payload.get("stream"):
        return Answer(response.json(), response.headers[REQUEST_ID])
    *events, rest = response.text.split("\n\n")
    assert not rest
    return Answer([json.loads(event.removeprefix("data: ")) for event in events], response.headers[REQUEST_ID])


def metric(text: str, name: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.rpartition(" ")[2])


def connections_to(listener: socket.socket) -> int:
    number = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return number
        number += 1


def test_it_calls_its_tool_and_answers(life: Life) -> None:
    assert life.answer.body == {"answer": ANSWER}


def test_it_remembers_the_session(life: Life) -> None:
    assert "asked 2 questions" in life.next_in_session.body["answer"]


def test_it_remembers_nothing_of_a_request_without_a_session(life: Life) -> None:
    assert all("asked 1 questions" in answer.body["answer"] for answer in life.in_no_session)


def test_it_streams_the_call_of_the_tool_and_each_token(life: Life) -> None:
    tool, *tokens = life.stream.body
    assert tool["tool"] == "weather"
    assert [token["token"] for token in tokens] == re.findall(r"\S+\s*", ANSWER)


def test_its_events_are_sent_when_they_come(life: Life) -> None:
    pauses_of_the_scripted_model = 0.05 * (len(ANSWER.split()) - 1)
    assert life.seconds_of_stream - life.seconds_until_first_event > pauses_of_the_scripted_model


def test_sigterm_ends_it(life: Life) -> None:
    assert life.exit_code in ENDED_BY_SIGTERM


def test_it_writes_the_services_log_lines_and_warns_of_nothing(life: Life) -> None:
    levels = {json.loads(line)["level"] for line in life.stderr}
    assert levels == {"INFO"}, life.stderr


def test_it_does_not_call_home(life: Life) -> None:
    assert life.calls_home == 0


def test_its_spans_are_below_the_requests_with_the_session(backend: Phoenix, example: str, traced: Life) -> None:
    lines = [line for line in TRACES[example].splitlines() if line.strip()]
    for request_id in (traced.answer.request_id, traced.stream.request_id):
        spans = backend.spans_of_request(request_id, len(lines))
        assert len({span.trace_id for span in spans}) == 1
        assert {span.attributes.get("session.id") for span in spans} == {traced.session}
        assert {span.status_code for span in spans} <= {"OK", "UNSET"}
        assert tree(spans) == [line.removeprefix(" " * 8) for line in lines]


def tree(spans: list[Span], parent: str | None = None, indent: str = "") -> list[str]:
    lines = []
    for span in spans:
        if span.parent_id == parent:
            lines += [indent + span.name, *tree(spans, span.span_id, f"{indent}  ")]
    return lines


def test_each_is_tested_has_a_page_and_is_in_the_index() -> None:
    directories = {directory.name for directory in EXAMPLES.iterdir() if directory.is_dir()}
    assert directories == {*TRACES, MOVING.name}
    index = (EXAMPLES / "README.md").read_text()
    for name in directories:
        assert (EXAMPLES / name / "README.md").exists()
        assert f"({name}/README.md)" in index


@pytest.mark.parametrize("name", TRACES)
def test_what_its_requirements_ask_for_is_what_is_tested(name: str) -> None:
    locked = set(re.findall(r"^(\S+==\S+)", (HERE / "requirements-moved.txt").read_text(), re.MULTILINE))
    wanted = (EXAMPLES / name / "requirements.txt").read_text().split()
    assert wanted
    assert set(wanted) <= locked


# Moving from the official SDK


def test_moving_changes_one_line() -> None:
    before, after = ((MOVING / name).read_text().splitlines() for name in ("before.py", "after.py"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert changed == [
        "- from bedrock_agentcore.runtime import BedrockAgentCoreApp",
        "+ from litestar_agentcore import BedrockAgentCoreApp",
    ]


def test_before_and_after_moving_it_answers_the_same(reference: Runtime, tmp_path: Path) -> None:
    before, after = trip(reference, "before.py", tmp_path), trip(OURS, "after.py", tmp_path)
    assert before == after
    assert before == (
        [{"step": "a train in Oslo"}, {"step": "a room in Oslo"}, {"step": "a museum in Oslo"}],
        {"booking": "Oslo", "session": "s-1"},
    )


def trip(runtime: Runtime, name: str, directory: Path) -> tuple[Any, Any]:
    """The plan, and the booking, once its task is through."""
    file = directory / name
    file.write_text((MOVING / name).read_text())
    (port,) = free_ports(1)
    with (
        runtime.serve(file, ports=[port], PORT=str(port)),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client,
    ):
        stream = client.post("/invocations", json={"city": "Oslo", "plan": True}).text
        booking = client.post("/invocations", json={"city": "Oslo"}, headers={SESSION_ID: "s-1"}).json()
        deadline = time.monotonic() + PATIENCE
        while "Booked a trip to Oslo" not in file.with_suffix(".log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while client.get("/ping").json()["status"] != "Healthy":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return [json.loads(event.removeprefix("data: ")) for event in stream.split("\n\n") if event], booking
