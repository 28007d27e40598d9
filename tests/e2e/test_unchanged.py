"""Agent files written for the official SDK are served as they are, byte for byte, and answer as they do there.

On the reference runtime a file is run (``python agent.py``), on ours it is given to ``litestar-agent run``.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.aws_stand_in import AwsStandIn
from tests.e2e.runtimes import HERE, ROOT, Runtime, free_ports

AGENTS = HERE / "unchanged"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
STYLE = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Style"
WAT = "X-Amz-Bedrock-AgentCore-Identity-WAT"
PATIENCE = 60.0
"""Seconds after which an answer counts as not coming."""

LITESTAR_AGENT = Path(sys.executable).with_name("litestar-agent")


class Aws(AwsStandIn):
    """AgentCore Memory and Identity, as far as the assistant asks them."""

    events: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        if self.path.startswith("/memories/assistant-memory/events"):
            event = asked | {"memoryId": "assistant-memory", "eventId": f"e{len(self.events)}"}
            event["eventTimestamp"] = len(self.events)
            self.events.append(event)
            self.answer({"event": event})
        elif self.path.startswith("/memories/assistant-memory/actor/"):
            self.answer({"events": list(reversed(self.events))})
        else:
            provider, token = asked["resourceCredentialProviderName"], asked["workloadIdentityToken"]
            self.answer({"accessToken": f"{provider} for {token}"})


@pytest.fixture
def aws() -> Iterator[str]:
    with Aws.serving() as url:
        Aws.events.clear()
        yield url


@contextmanager
def served(runtime: Runtime, reference: Runtime, name: str, directory: Path, aws: str = "") -> Iterator[httpx.Client]:
    """Serve a copy of an agent's file, with what it imports from beside it."""
    for template in AGENTS.iterdir():
        (directory / template.with_suffix("").name).write_bytes(template.read_bytes())
    (port,) = free_ports(1)
    environment = {
        "PORT": str(port),
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": aws,
        "NO_PROXY": "127.0.0.1",
    }
    with ExitStack() as stack:
        if runtime.is_reference:
            stack.enter_context(runtime.serve(directory / name, ports=[port], **environment))
        else:
            environment["PYTHONPATH"] = beside(reference, directory)
            script = directory / LITESTAR_AGENT.name
            script.write_bytes(LITESTAR_AGENT.read_bytes())  # so that it is run in the agent's directory
            arguments = ["run", name, "--port", str(port)]
            stack.enter_context(runtime.serve(script, *arguments, ports=[port], **environment))
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE))
    for template in AGENTS.iterdir():
        assert (directory / template.with_suffix("").name).read_bytes() == template.read_bytes()


def beside(reference: Runtime, directory: Path) -> str:
    """An import path with the official SDK, and what it needs, behind everything of ours."""
    packages = reference.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", directory=directory)
    (directory / "beside").mkdir()
    program = f"import sys\nsys.path.append({packages.stdout.strip()!r})\n"
    (directory / "beside" / "sitecustomize.py").write_text(program)
    return f"{directory / 'beside'}:{ROOT}"


def invoke(client: httpx.Client, payload: Any, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/invocations", json=payload, headers={SESSION: "s-1", **headers})


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]


def test_the_support_desk(runtime: Runtime, reference: Runtime, tmp_path: Path) -> None:
    with served(runtime, reference, "support.py", tmp_path) as client:
        assert client.get("/ping").json()["status"] == "Healthy"
        assert invoke(client, {"prompt": "a lamp"}).json() == {"result": "a lamp costs 60", "session": "s-1"}
        assert invoke(client, {"prompt": "ticket broken"}).json() == {"filing": 1}
        assert client.get("/ping").json()["status"] == "HealthyBusy"
        assert invoke(client, {"prompt": "file them"}).json() == {"filed": ["broken"]}
        assert client.get("/ping").json()["status"] == "Healthy"
        failed = invoke(client, {})
    assert (failed.status_code, failed.json()) == (500, {"error": "What is your question?"})


def test_the_researcher(runtime: Runtime, reference: Runtime, tmp_path: Path) -> None:
    found = [{"topic": "bees", "source": number, "session": "s-1"} for number in (1, 2, 3)]
    with served(runtime, reference, "researcher.py", tmp_path) as client:
        assert events(invoke(client, {"topic": "bees"}, **{STYLE: "terse"})) == [*found, {"styles": ["terse"]}]
        *before, last = events(invoke(client, {"topic": "bees", "fail": True}))
        assert (before, last["error"], last["error_type"]) == (found, "The library is closed", "RuntimeError")
        assert events(invoke(client, {"archive": "bees"})) == [{"archived": "BEES", "healthy": True}]
        assert invoke(client, {"_agent_core_app_action": "job_status"}).json()["active_count"] == 0
        url = f"ws://127.0.0.1:{client.base_url.port}/ws"
        with connect(url, additional_headers={SESSION: "s-1"}, proxy=None) as socket:
            socket.send('{"topic": "bees"}')
            assert [json.loads(socket.recv(timeout=PATIENCE)) for _ in found] == found
            socket.send('"bye"')
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=PATIENCE)


def test_the_assistant_with_the_sdks_memory_and_identity(
    runtime: Runtime, reference: Runtime, aws: str, tmp_path: Path
) -> None:
    with served(runtime, reference, "assistant.py", tmp_path, aws) as client:
        answers = [invoke(client, {"prompt": day}, **{WAT: f"wat-{day}"}) for day in ("Monday", "Tuesday")]
        assert [answer.status_code for answer in answers] == [200, 200], answers[-1].text
        first, second = (answer.json() for answer in answers)
        address = invoke(client, {"prompt": "address"}).json()
    monday = "Monday: lunch (calendar for wat-Monday)"
    assert first == {"answer": monday, "remembered": [], "token": "wat-Monday", "format": "ConversationalMessage"}
    assert second["remembered"] == [["Monday", monday]]
    assert second["token"] == "wat-Tuesday"
    assert address["url"].startswith("wss://")
    assert address["session"] == "s-1"
