"""Agents in the shapes that people publish answer the same here as on the reference runtime, one import line apart.

Strands, LangGraph and LangChain, Pydantic AI, the OpenAI Agents SDK, LlamaIndex, AutoGen, Google's ADK, and none: each
with a model that follows a script, so that nothing needs a key or the network. All of them fit into one environment
beside both runtimes, which serve the same file with the same versions of everything.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.environments import environment
from tests.e2e.runtimes import HERE, ROOT, Runtime, free_ports, ported

AGENTS = HERE / "moved"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
IDENTITY = "X-Amz-Bedrock-AgentCore-Identity-WAT"

PATIENCE = 120.0
"""Seconds after which an answer counts as not coming."""

RUNTIMES = ("bedrock_agentcore", "litestar_agentcore")
"""The loggers of the two begin so; frameworks log failures of their own."""

CLOSED_PORT = "http://127.0.0.1:9"
"""Where anything that would reach beyond this machine ends at once."""


class Ask(msgspec.Struct, frozen=True):
    payload: Any
    says: str = ""
    """What is in both answers, so that two that went wrong in the same way are not taken for the same answer."""
    status: int = 200
    odd: bool = False
    """Whether it has values that the reference's encoder does not know: the reference answers a string in the place of
    the whole, and we one in the place of the odd value (docs/migration.md)."""
    headers: dict[str, str] = {}
    path: str = "/invocations"


class Served(msgspec.Struct, frozen=True):
    port: int
    log: Path

    def lines_with(self, text: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if text in line]


class Pair(msgspec.Struct, frozen=True):
    """The same agent, served by both."""

    reference: Served
    ours: Served


class Answer(msgspec.Struct, frozen=True):
    status: int
    content_type: str
    body: Any
    """Decoded: a value, or a list of events; else the text."""

    @property
    def text(self) -> str:
        return json.dumps(self.body, ensure_ascii=False)


class AtOnce(msgspec.Struct, frozen=True):
    """Two requests that come together, each in a session of its own."""

    prompts: tuple[str, str]


class Decided(msgspec.Struct, frozen=True):
    """A difference that docs/migration.md has a row about."""

    payload: Any
    row: str
    reference: tuple[int, Any]
    ours: tuple[int, Any]


Case = list[Ask] | AtOnce | Decided


def ping(says: str) -> Ask:
    return Ask(None, says, path="/ping")


IN_PLACE = "one odd value in an answer | the whole answer becomes a string | that value alone becomes a string"

MESSAGE = "{'role': 'assistant', 'content': [{'text': 'You said: Grüße'}]}"
OPAQUE = "__main__.Usage object at <address>"

HI = {"prompt": "Hi there"}
LOOK_UP = {"prompt": "look up Emma"}
FAIL = {"prompt": "look up Ulysses"}

CASES: dict[str, dict[str, Case]] = {
    "strands_import": {
        "unary": [Ask(HI, "You said: Hi there")],
        "a tool": [Ask(LOOK_UP, "published in 1815")],
        "an error in the tool": [Ask(FAIL, "KeyError")],
    },
    "strands_sessions": {
        "two turns of a session": [
            Ask(HI, '"turns": 2'),
            Ask(LOOK_UP, '"turns": 6'),
        ],
        "an error that the tool tells": [Ask(FAIL, "There is no Ulysses")],
        "no prompt": [Ask({}, "'prompt'", 500)],
        "two at once": AtOnce(("slowly one", "slowly two")),
    },
    "strands_stream": {
        "text": [Ask(HI, "there")],
        "a tool": [Ask(LOOK_UP, "published")],
        "an error in the tool": [Ask(FAIL, "KeyError")],
        "an error of the agent's own": [Ask({}, "no 'prompt'")],
        "events as they are": [Ask(LOOK_UP | {"raw": True}, "current_tool_use", odd=True)],
        "two at once": AtOnce(("slowly one", "slowly two")),
    },
    "strands_background": {
        "work after the answer": [
            Ask(LOOK_UP, '"active": 1'),
            ping("HealthyBusy"),
            Ask({"action": "deliver"}, "delivered"),
            ping('"Healthy"'),
        ],
    },
    "langgraph_agent": {
        "two turns of a session": [Ask(HI, "You said: Hi there"), Ask(LOOK_UP, '"messages": 6')],
        "an error in the tool": [Ask(FAIL, "'Ulysses'", 500)],
        "messages as they are": [Ask(LOOK_UP | {"all": True}, '"type": "tool"')],
        "updates": [Ask(LOOK_UP | {"stream": "updates"}, "tools")],
        "tokens": [Ask(HI | {"stream": "messages"}, "said:")],
        "an error in the middle of a stream": [Ask(FAIL | {"stream": "updates"}, "An error occurred during streaming")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "langgraph_steps": {
        "steps": [Ask(HI, "You said: Hi there")],
        "a tool": [Ask(LOOK_UP, "published in 1815")],
        "an error in the tool": [Ask(FAIL, "An error occurred during streaming")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "pydantic_ai_agent": {
        "unary": [Ask(HI, "You said: Hi there")],
        "a tool": [Ask(LOOK_UP, "says a-tool")],
        "an error in the tool": [Ask(FAIL, "'Ulysses'", 500)],
        "a model": [Ask(HI | {"card": True}, '"year": 1815')],
        "messages as they are": [Ask(LOOK_UP | {"all": True}, "published in 1815, says", odd=True)],
        "tokens": [Ask(HI | {"stream": True}, "there")],
        "a tool in a stream": [Ask(LOOK_UP | {"stream": True}, "published")],
        "an error in the tool of a stream": [Ask(FAIL | {"stream": True}, "An error occurred during streaming")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "openai_agents_agent": {
        "two turns of a session": [Ask(HI, '"remembered": 2'), Ask(LOOK_UP, '"remembered": 6')],
        "an error in the tool": [Ask(FAIL, "An error occurred while running the tool")],
        "an error that ends the run": [Ask(FAIL | {"strict": True}, "Error running tool look_up", 500)],
        "responses as they are": [Ask(HI | {"all": True}, "output_text", odd=True)],
        "tokens and items": [Ask(LOOK_UP | {"stream": True}, "function_call_output")],
        "an error in the tool of a stream": [Ask(FAIL | {"stream": True}, "An error occurred while running the tool")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "openai_agents_sync": {
        "unary": [Ask(HI, "You said: Hi there")],
        "an error of the model": [Ask({"prompt": "fail"}, "the model hung up", 500)],
        "two at once": AtOnce(("one", "two")),
    },
    "llama_index_agent": {
        "two turns of a session": [Ask(HI, '"remembered": 2'), Ask(LOOK_UP, '"remembered": 4')],
        "an error in the tool": [Ask(FAIL, "'Ulysses'")],
        "an error of the model": [Ask({"prompt": "fail"}, "the model hung up", 500)],
        "an output as it is": [Ask(HI | {"all": True}, "current_agent_name")],
        "events": [Ask(LOOK_UP | {"stream": True}, "published in 1815")],
        "an error in the tool of a stream": [Ask(FAIL | {"stream": True}, '"failed": true')],
        "an error of the model in a stream": [Ask({"prompt": "fail", "stream": True}, "during streaming")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "llama_index_chat": {
        "unary": [Ask(HI, "Hi there")],
        "tokens": [Ask(HI | {"stream": True}, '"H"')],
        "a workflow on a loop of its own": [Ask(HI | {"shout": True}, "HI THERE")],
        "an error in a workflow": [Ask({"prompt": "", "shout": True}, "nothing to shout", 500)],
    },
    "autogen_agent": {
        "tokens and messages": [Ask(HI, "You said: Hi there")],
        "a tool": [Ask(LOOK_UP, "ToolCallExecutionEvent")],
        "an error in the tool": [Ask(FAIL, "is_error=True")],
        "a team": [Ask({"prompt": "write", "team": True}, "A better draft")],
        "messages as they are": [Ask(HI | {"all": True}, "created_at", odd=True)],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "autogen_task": {
        "one after the other": [Ask(HI, "A draft"), Ask(HI, "Too long")],
        "a result as it is": [Ask(HI | {"all": True}, "A better draft", odd=True)],
        "an error of the model": [Ask(HI, "No more mock responses", 500)],
    },
    "google_adk_agent": {
        "two turns of a session": [Ask(HI, '"events": 2'), Ask(LOOK_UP, '"events": 6')],
        "an error in the tool": [Ask(FAIL, "'Ulysses'", 500)],
        "tokens": [Ask(HI | {"stream": True}, '"partial": true')],
        "a tool in a stream": [Ask(LOOK_UP | {"stream": True}, "published")],
        "an error in the tool of a stream": [Ask(FAIL | {"stream": True}, "An error occurred during streaming")],
        "events as they are": [Ask(LOOK_UP | {"stream": True, "all": True}, "function_response")],
        "two at once": AtOnce(("one", "look up Emma")),
    },
    "google_adk_runner": {
        "unary": [Ask(HI, "You said: Hi there")],
        "an error of the model": [Ask({"prompt": "fail"}, "the model hung up", 500)],
        "two at once": AtOnce(("one", "two")),
    },
    "plain_results": {
        **{
            name: [Ask({"answer": name}, says)]
            for name, says in {
                "agent result": "You said: Grüße",
                "text of an agent result": "You said: Grüße",
                "dataclass": "tokens",
                "dataclasses": "Persuasion",
                "model": "good",
                "models": "count",
                "json text": "answer",
                "fenced json": "```json",
                "nothing": "null",
                "tuple": "1815",
                "set": "Emma",
                "keys": '"null": "none"',
                "decimal": "1.10",
                "large number": "1208925819614629174706176",
                "stream of its own": "You said",
            }.items()
        },
        "a response of its own": [Ask({"answer": "response"}, "queued", 202)],
        "uuid": [Ask({"answer": "uuid"}, "1815", odd=True)],
        "an error": [
            Ask({"raise": "value"}, "Grüße", 500),
            Ask({"raise": "key"}, "'prompt'", 500),
            Ask({"raise": "bare"}, '""', 500),
            Ask({"raise": "timeout"}, '""', 500),
            Ask({"raise": "json"}, "Expecting value", 500),
            Ask({"raise": "group"}, "2 sub-exceptions", 500),
        ],
        "an error with a status": [
            Ask({"raise": "http"}, "There is no such book", 404),
            Ask({"raise": "http object"}, "title", 422),
        ],
        "an agent result in a dict": Decided(
            {"answer": "agent result in a dict"},
            IN_PLACE,
            (200, f"{{'result': AgentResult(message={MESSAGE}, usage=<{OPAQUE}>, state={{}}), 'ok': True}}"),
            (200, {"result": "You said: Grüße", "ok": True}),
        ),
        "an exception with a status that is no HTTPException": Decided(
            {"raise": "like http"},
            "an exception with `status_code` and `detail` that is no `HTTPException` | 500 | that status",
            (500, {"error": ""}),
            (429, {"error": "The budget is spent"}),
        ),
    },
    "plain_queue": {
        "events of a task": [Ask({"prompt": "one two"}, "events-of-a-task")],
        "an error of a task": [Ask({"prompt": "one crash"}, "the model hung up")],
        "callbacks of a thread": [Ask({"prompt": "one two", "from": "thread"}, "two")],
        "a plain queue": [Ask({"prompt": "one two", "from": "plain thread"}, "two")],
        "a lock": [Ask({"prompt": "one two", "from": "lock"}, "two")],
        "tasks that are gathered": [Ask({"prompt": "one two", "from": "gather"}, "TWO")],
        "two at once": AtOnce(("one one", "two two")),
    },
    "plain_generator": {
        "rows": [Ask({"prompt": "one two"}, "rows")],
        "an error": [Ask({"prompt": "one", "fail": True}, "the model hung up")],
        "its end": [Ask({"prompt": "one"}, "one"), Ask({"do": "was it closed"}, "true")],
        "two at once": AtOnce(("one one", "two two")),
    },
    "plain_tasks": {
        "work after the answer": [
            Ask({"do": "research", "topic": "Emma"}, "HealthyBusy"),
            ping("HealthyBusy"),
            Ask({"do": "print"}, '"print", "research"'),
            Ask({"do": "fail", "topic": "Emma"}, "HealthyBusy"),
            Ask({"do": "finish"}, "All about Emma"),
            ping('"Healthy"'),
        ],
        "a task that is waited for": [Ask({"do": "finish"}), Ask({"do": "wait", "topic": "Ulysses"}, "All about")],
        "a task that never was": [Ask({"do": "complete", "task": 7}, "false")],
        "a status by hand": [
            Ask({"do": "force"}, "HealthyBusy"),
            ping("HealthyBusy"),
            Ask({"_agent_core_app_action": "ping_status"}, "HealthyBusy"),
            Ask({"do": "clear"}, "Healthy"),
            ping('"Healthy"'),
        ],
    },
    "plain_identity": {
        "tokens": [
            Ask({"path": "/a"}, "drive for wat-1", headers={IDENTITY: "wat-1", "OAuth2CallbackUrl": "https://a"})
        ],
    },
    "plain_lazy_identity": {
        "the first request of all": [Ask({"prompt": "a"}, "a, posted for wat-1", headers={IDENTITY: "wat-1"})],
        "the next": [Ask({"prompt": "a"}, "a, posted for wat-2", headers={IDENTITY: "wat-2"})],
        "a stream": [Ask({"prompt": "a b", "stream": True}, "b, posted for wat-3", headers={IDENTITY: "wat-3"})],
        "no token": [Ask({"prompt": "a"}, "No workload access token", 500)],
    },
    "plain_decorated": {
        "a prompt": [Ask(HI, "You said: Hi there"), Ask(HI | {"tone": "loud"}, "HI THERE")],
        "no prompt": [Ask({}, "'prompt'", 500)],
    },
}
"""By agent, and by what is tried."""

TALKS: dict[str, list[Any]] = {
    "messages": [{"a": "é"}, [1, 2], {"do": "bye"}],
    "tokens": [{"do": "speak", "text": "one two three"}, {"do": "bye"}],
    "ids and a query": [{"do": "who"}, {"do": "bye"}],
    "a message that is no JSON": ["{", {"still": "here"}, {"do": "bye"}],
    "text that is iterated over": [{"do": "iterate"}, "héllo", "enough", {"do": "bye"}],
    "bytes": [{"do": "bytes"}, b"\x01\xff", {"do": "bye"}],
    "its state": [{"do": "state"}, {"do": "bye"}],
    "a handler that raises": [{"do": "crash"}],
}


VARYING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{32}\b|(?<=pyd_ai_)[0-9a-f]{32}"), "<id>"),
    (re.compile(r"0x[0-9a-f]+"), "<address>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)"), "<time>"),
    (re.compile(r'(?<=")(timestamp|latencyMs|timeToFirstByteMs|time_of_last_update)": ?[\d.]+'), r'\1": "<number>"'),
]
"""What is another in each answer: ids, addresses, times."""


class Agents:
    """Serves one agent at a time, until the next is asked for: there are many, and a start takes seconds."""

    def __init__(self, python: Path, directory: Path) -> None:
        self._runtimes = Runtime("reference", python), Runtime("ours", python)
        self._directory = directory
        self._name = ""
        self._pair: Pair | None = None
        self._stack = ExitStack()

    def pair(self, name: str) -> Pair:
        """Both servers of an agent."""
        if self._pair is None or self._name != name:
            self.close()
            served = [self._stack.enter_context(self._serve(runtime, name)) for runtime in self._runtimes]
            self._name, self._pair = name, Pair(*served)
        return self._pair

    def close(self) -> None:
        self._pair = None
        self._stack.close()

    @contextmanager
    def _serve(self, runtime: Runtime, name: str) -> Iterator[Served]:
        directory = self._directory / runtime.name / name
        directory.mkdir(parents=True, exist_ok=True)
        for template in AGENTS.iterdir():
            runtime.write_agent(template, directory)
        environment = {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": "us-east-1",
            "HTTP_PROXY": CLOSED_PORT,
            "HTTPS_PROXY": CLOSED_PORT,
        }
        if not runtime.is_reference:  # what we depend on is in the environment, and we are not
            environment["PYTHONPATH"] = f"{ROOT / 'service'}{os.pathsep}{ROOT / 'telemetry'}"
        (port,) = free_ports(1)
        file = directory / f"{name}.py"
        with runtime.serve(file, ports=[port], PORT=str(port), **environment):
            yield Served(port, file.with_suffix(".log"))


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    agents = Agents(environment("moved") / "python", tmp_path_factory.mktemp("moved"))
    try:
        yield agents
    finally:
        agents.close()


def send(served: Served, ask: Ask, session: str) -> Answer:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", trust_env=False, timeout=PATIENCE) as client:
        if ask.path == "/invocations":
            response = client.post(ask.path, json=ask.payload, headers={SESSION: session, **ask.headers})
        else:
            response = client.get(ask.path)
    text = response.text
    for pattern, mask in VARYING:
        text = pattern.sub(mask, text)
    content_type = response.headers["content-type"].partition(";")[0]
    body: Any = text
    if content_type == "application/json":
        body = json.loads(text)
    elif content_type == "text/event-stream":
        *events, rest = text.split("\n\n")
        assert not rest
        body = [json.loads(event.removeprefix("data: ")) for event in events]
    return Answer(response.status_code, content_type, body)


def at_once(served: Served, prompts: tuple[str, str], seconds_between: float = 0) -> list[Answer]:
    with ThreadPoolExecutor(len(prompts)) as callers:
        coming = []
        for number, prompt in enumerate(prompts):
            coming.append(callers.submit(send, served, Ask({"prompt": prompt}), f"at-once-{number}"))
            time.sleep(seconds_between)
        return [each.result() for each in coming]


def converse(served: Served, messages: list[Any]) -> list[Any]:
    """What the agent says, and the close code at the end."""
    said: list[Any] = []
    url = f"ws://127.0.0.1:{served.port}/ws?tone=kind"
    with connect(url, additional_headers={SESSION: "s-1"}, proxy=None) as socket:
        for message in messages:
            socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
        try:
            while True:
                answer = socket.recv(timeout=PATIENCE)
                said.append(json.loads(answer) if isinstance(answer, str) and answer[0] in "{[" else answer)
        except ConnectionClosed as closed:
            return [*said, closed.rcvd.code if closed.rcvd else None]


def in_place(theirs: Any, ours: Any) -> bool:
    """Whether the reference's string tells of the same object as our own answer does."""
    return isinstance(theirs, str) and isinstance(ours, dict) and all(key in theirs for key in ours)


@pytest.mark.parametrize("template", sorted(AGENTS.iterdir()), ids=lambda template: template.name)
def test_one_import_line_is_changed(template: Path) -> None:
    source = template.read_text().splitlines()
    moved = ported(template.read_text()).splitlines()
    changed = [(before, after) for before, after in zip(source, moved, strict=True) if before != after]
    if template.name.startswith("scripted_"):
        assert not changed
    else:
        ((before, after),) = changed
        assert before.replace("bedrock_agentcore.runtime", "litestar_agentcore") == after


def test_every_agent_is_tried() -> None:
    files = {template.name.removesuffix(".py.txt") for template in AGENTS.iterdir()}
    assert set(CASES) | {"plain_websocket", "scripted_strands_model"} == files


@pytest.mark.parametrize(
    ("agent", "title"),
    [(agent, title) for agent, cases in CASES.items() for title in cases],
    ids=lambda name: name.replace(" ", "_"),
)
def test_both_answer_the_same(agents: Agents, agent: str, title: str) -> None:
    pair = agents.pair(agent)
    match CASES[agent][title]:
        case list() as asks:
            for ask in asks:
                compare(pair, ask, title.replace(" ", "-"))
            theirs, ours = (errors_logged(served, title.replace(" ", "-")) for served in (pair.reference, pair.ours))
            assert ours == theirs >= sum(ask.status >= 500 for ask in asks)
        case AtOnce(prompts=prompts):
            answers = at_once(pair.ours, prompts)
            assert answers == at_once(pair.reference, prompts)
            for answer, prompt in zip(answers, prompts, strict=True):
                assert answer.status == 200
                assert prompt.split()[-1] in answer.text
        case Decided() as decided:
            their, our = (send(served, Ask(decided.payload), "s-1") for served in (pair.reference, pair.ours))
            assert (their.status, their.body) == decided.reference
            assert (our.status, our.body) == decided.ours, decided.row


def compare(pair: Pair, ask: Ask, session: str) -> None:
    theirs, ours = send(pair.reference, ask, session), send(pair.ours, ask, session)
    assert (theirs.status, ours.status) == (ask.status, ask.status), ours.text
    assert ask.says in theirs.text
    assert ask.says in ours.text
    assert ours.content_type == theirs.content_type
    if not ask.odd:
        assert ours.body == theirs.body
        return
    both = zip(theirs.body, ours.body, strict=True) if isinstance(ours.body, list) else [(theirs.body, ours.body)]
    different = [(their, our) for their, our in both if their != our]
    assert different, "it has no odd value"
    for their, our in different:
        assert in_place(their, our), IN_PLACE


def errors_logged(served: Served, session: str) -> int:
    """How many failures in a session the runtime has told; each with its request, and the place where it failed."""
    entries = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    errors = [
        entry
        for entry in entries
        if entry["level"] == "ERROR" and entry.get("sessionId") == session and entry["logger"].startswith(RUNTIMES)
    ]
    assert all(entry["requestId"] and entry["stackTrace"] and entry["errorType"] for entry in errors)
    return len(errors)


def test_an_agent_that_is_made_at_import_refuses_the_second_of_two_at_once(agents: Agents) -> None:
    pair, prompts = agents.pair("strands_import"), ("slowly one", "slowly two")
    theirs, ours = at_once(pair.reference, prompts, 0.5), at_once(pair.ours, prompts, 0.5)
    assert [answer.status for answer in theirs] == [200, 500]
    assert "concurrent" in theirs[1].text.lower()
    assert ours == theirs


def test_the_agents_own_lines_are_in_the_log_once_with_the_ids(agents: Agents) -> None:
    """Also where the agent has called ``logging.basicConfig``, as the documentation of Strands says."""
    pair, session = agents.pair("strands_sessions"), "a-session-to-find-in-the-log"
    for served in (pair.reference, pair.ours):
        send(served, Ask(HI), session)
    theirs = [json.loads(line) for line in pair.reference.lines_with(f"Answered for {session}") if line[0] == "{"]
    assert [their["sessionId"] for their in theirs] == [session]
    (line,) = pair.ours.lines_with(f"Answered for {session}")
    ours = json.loads(line)
    assert (ours["level"], ours["sessionId"]) == ("INFO", session)
    assert ours["requestId"]


@pytest.mark.parametrize("messages", TALKS.values(), ids=TALKS)
def test_both_hold_the_same_conversation(agents: Agents, messages: list[Any]) -> None:
    pair = agents.pair("plain_websocket")
    theirs = converse(pair.reference, messages)
    assert theirs[:-1] or messages == [{"do": "crash"}]
    assert converse(pair.ours, messages) == theirs


def test_a_client_that_leaves_is_noticed(agents: Agents) -> None:
    """With its own close code; while the agent sends, the reference has 1006 in that code's place."""
    pair = agents.pair("plain_websocket")
    ends = []
    for served in (pair.reference, pair.ours):
        for code in (1000, 1001, 4001):
            leave(served, {"still": "here"}, code)
        leave(served, {"do": "speak", "text": "word " * 500}, 1000)
        ends.append(send(served, Ask({"conversations": 4}), "s-1").body)
    theirs, ours = ends
    assert theirs == [{"left": 1000}, {"left": 1001}, {"left": 4001}, {"left": 1006}]
    assert ours in (theirs, [*theirs[:3], {"left": 1000}])


def leave(served: Served, message: Any, code: int) -> None:
    """Say something, and go away when the answer comes."""
    with connect(f"ws://127.0.0.1:{served.port}/ws", proxy=None) as socket:
        socket.send(json.dumps(message))
        socket.recv(timeout=PATIENCE)
        socket.close(code)
