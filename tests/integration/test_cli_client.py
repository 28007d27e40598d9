"""The commands that talk to a running agent: what they send and print, and what they end with."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from litestar_agentcore.cli.group import agent_group

from tests.integration.agents import talking
from tests.integration.server import SESSION_ID, Server, free_port, serve

COMMAND = str(Path(sys.executable).with_name("litestar-agent"))
LONG_ID = "a-session-id-of-33-characters-or-more"

LONGEST = 60.0
"""Seconds after which a command counts as hanging, on a machine that does much else."""


@pytest.fixture(scope="module")
def agent() -> Iterator[Server]:
    with serve(talking.app) as server:
        yield server


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def patient(arguments: tuple[str, ...]) -> list[str]:
    """Have a command wait for an answer as long as a machine may take that does much else."""
    name, *rest = arguments
    return [name, *rest] if "--timeout" in rest else [name, "--timeout", f"{LONGEST:g}", *rest]


def command(url: str, *arguments: str, stdin: bytes = b"", **variables: str) -> Ended:
    """Run a command to its end in this process, which takes a fiftieth of the time that a process of its own does."""
    result = CliRunner().invoke(
        agent_group,
        patient(arguments),
        input=stdin,
        env={"AGENTCORE_URL": url, **variables},
        prog_name="litestar-agent",
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout_bytes, result.stderr)


def environment(url: str, **variables: str) -> dict[str, str]:
    return os.environ | {"AGENTCORE_URL": url, "TERM": "dumb", "COLUMNS": "80", **variables}


def process_of(url: str, *arguments: str, stdin: bytes = b"", stdout: int = subprocess.PIPE) -> Ended:
    """Run a command to its end in a process of its own."""
    done = subprocess.run(
        [COMMAND, *patient(arguments)],
        env=environment(url),
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=LONGEST,
        check=False,
    )
    err = done.stderr.decode()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return Ended(done.returncode, done.stdout, err)


@contextmanager
def started(url: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a command, which does not outlive the test."""
    process = subprocess.Popen(
        [COMMAND, *patient(arguments)],
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Fake(Server):
    """A server that answers as a test wants it to."""

    requests: list[bytes] = field(default_factory=list)


@contextmanager
def faked(answer: Callable[[str, bytes], bytes | None]) -> Iterator[Fake]:
    """Serve what a function makes of each request, one connection at a time.

    Args:
        answer: Takes the path and the whole request; ``None`` leaves it without an answer until its client has left.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = Fake(listener.getsockname()[1])

        def work() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, suppress(ConnectionError):
                    if not (request := whole_request(connection)):
                        return
                    fake.requests.append(request)
                    made = answer(request.split(b" ", 2)[1].decode(), request)
                    if made is None:
                        connection.recv(1)
                    else:
                        connection.sendall(made)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield fake
        finally:
            socket.create_connection(("127.0.0.1", fake.port)).close()
            thread.join(LONGEST)
            assert not thread.is_alive()


def whole_request(connection: socket.socket) -> bytes:
    connection.settimeout(LONGEST)
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            return received
        if not (chunk := connection.recv(65536)):
            return b""
        received += chunk


def answered(body: Any, status: str = "200 OK", *headers: str, kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", f"content-type: {kind}", "connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


def by_path(**answers: bytes) -> Callable[[str, bytes], bytes]:
    """Answer by the last part of the path, and 404 to everything else."""
    return lambda path, _: answers.get(path.rpartition("/")[2], answered({"detail": "Not Found"}, "404 Not Found"))


# -- invoke: what is sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [command, process_of])
@pytest.mark.parametrize("way", ["argument", "file", "standard input"])
def test_a_payload_comes_from_an_argument_a_file_or_standard_input(
    way: str, run: Callable[..., Ended], agent: Server, tmp_path: Path
) -> None:
    payload = b'{"numbers": [1, 2.50], "text": "na\xc3\xafve"}'
    file = tmp_path / "payload.json"
    file.write_bytes(payload)
    arguments = {"argument": (payload.decode(),), "file": (f"@{file}",), "standard input": ()}[way]
    ended = run(agent.url, "invoke", *arguments, stdin=payload if way == "standard input" else b"")
    assert ended.code == 0
    assert json.loads(ended.out) == json.loads(payload)
    assert ended.out.endswith(b"\n")


def test_text_is_sent_as_a_field_and_that_is_said(agent: Server) -> None:
    ended = command(agent.url, "invoke", "--key", "question", "how", "are you?")
    assert json.loads(ended.out) == {"question": "how are you?"}
    assert '{"question": "how are you?"}' in ended.err


def test_session_trace_status_and_times_are_said_unless_it_is_to_be_quiet(agent: Server) -> None:
    ended = command(agent.url, "invoke", "--session", "my-session", "session")
    assert json.loads(ended.out) == {"session": "my-session"}
    assert "session  my-session\n" in ended.err
    assert re.search(r"^trace    [0-9a-f]{32}$", ended.err, re.MULTILINE)
    assert re.search(r"^status   200 OK, .* in all$", ended.err, re.MULTILINE)
    quiet = command(agent.url, "invoke", "--quiet", "session")
    assert re.fullmatch(r'\{"session": ?"[0-9a-f-]{36}"\}\n', quiet.text)
    assert not quiet.err


def test_headers_and_token_reach_the_agent_and_a_header_replaces_the_commands_own() -> None:
    custom = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Color"
    with faked(by_path(invocations=answered("yes"))) as fake:
        options = ("-H", f"{custom}: blue", "-H", f"{SESSION_ID}: mine", "--token", "secret", "-H", "User-Agent: me")
        ended = command(f"{fake.url}/below/", "invoke", "{}", *options, AGENTCORE_TOKEN="other")
    assert (ended.code, ended.text) == (0, "yes\n")
    assert "session  mine\n" in ended.err
    assert "secret" not in ended.err
    head = fake.requests[0].lower()
    assert head.startswith(b"post /below/invocations http/1.1\r\n")
    for line in (f"{custom}: blue", f"{SESSION_ID}: mine", "Authorization: Bearer secret", "User-Agent: me"):
        name = line.partition(":")[0].lower().encode()
        assert re.findall(rb"\r\n(" + name + rb":.*)\r\n", head) == [line.lower().encode()]


def test_the_token_of_the_environment_is_used(agent: Server) -> None:
    ended = command(agent.url, "invoke", "headers", AGENTCORE_TOKEN="secret")
    assert json.loads(ended.out)["Authorization"] == "Bearer secret"


# -- invoke: what is printed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("text",), "Hello \N{CAT}\nbye\x1b[31m\n"),
        (("text", "--json"), '"Hel"\n"lo"\n" \N{CAT}\\n"\n"bye\\u001b[31m"\n'),
        (("numbers",), '{"number": 1}\n{"number": 2}\n'),
        (("numbers", "--text"), '{"number": 1}\n{"number": 2}\n'),
        (("say one two", "--text"), "one two \n"),
        (("numbers", "--raw"), 'data: {"number": 1}\n\ndata: {"number": 2}\n\n'),
        (('"a string"',), "a string\n"),
        (('"a string"', "--json"), '"a string"\n'),
        (('{"result": "found"}', "--text"), "found\n"),
        (("null",), "null\n"),
    ],
)
def test_answers_are_printed_as_text_or_json(arguments: tuple[str, ...], printed: str, agent: Server) -> None:
    ended = command(agent.url, "invoke", *arguments)
    assert ended.code == 0
    if "--raw" in arguments or arguments[0] == "numbers":
        assert ended.text.replace('":', '": ').replace("  ", " ") == printed
    else:
        assert ended.text == printed


def test_events_are_printed_as_they_come(agent: Server) -> None:
    with started(agent.url, "invoke", "endless") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONGEST)
    assert process.returncode == 130
    assert b"interrupted after 1 event" in err
    assert b"Traceback" not in err


def test_bytes_are_passed_on(agent: Server) -> None:
    ended = process_of(agent.url, "invoke", "binary")
    assert (ended.code, ended.out) == (0, b"\x00\xff\x1b[31m")


def test_an_answer_that_is_not_what_it_says_is_printed_as_it_is() -> None:
    with faked(by_path(invocations=answered(b"<html>"))) as fake:
        ended = process_of(fake.url, "invoke", "{}")
    assert (ended.code, ended.text) == (0, "<html>\n")


# -- invoke: how it can fail -------------------------------------------------------------------------------------------


def test_an_error_of_the_handlers_is_a_server_error_with_what_it_says(agent: Server) -> None:
    ended = command(agent.url, "invoke", "fail")
    assert (ended.code, ended.out) == (5, b"")
    assert "/invocations answered 500 Internal Server Error." in ended.err
    assert "it broke" in ended.err


def test_a_refusal_is_a_client_error_with_its_reason() -> None:
    refusal = answered({"error": "no such field"}, "400 Bad Request")
    with faked(by_path(invocations=refusal)) as fake:
        ended = command(fake.url, "invoke", "{}")
    assert (ended.code, ended.out) == (4, b"")
    assert "answered 400 Bad Request." in ended.err
    assert "no such field" in ended.err


def test_whoever_is_not_let_in_is_told_how_to_give_a_token() -> None:
    with faked(by_path(invocations=answered({}, "401 Unauthorized"))) as fake:
        ended = command(fake.url, "invoke", "{}")
    assert ended.code == 4
    assert "--token" in ended.err


def test_a_stream_that_ends_with_an_error_has_failed(agent: Server) -> None:
    ended = process_of(agent.url, "invoke", "failing")
    assert ended.code == 6
    first, error = ended.text.splitlines()
    assert first == "before"
    assert json.loads(error)["error_type"] == "ValueError"
    assert "The stream ended with an error: ValueError: no more" in ended.err
    assert "200 OK, 2 events" in ended.err


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("answer", "printed", "said"),
    [
        (STREAM_HEAD + b'transfer-encoding: chunked\r\n\r\nb\r\ndata: "a"\n\n\r\n', "a\n", "cut off after 1 event"),
        (STREAM_HEAD + b'\r\ndata: "a"\n\ndata: "b"', "ab\n", "in the middle of an event, after 2 events"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nhalf", "half\n", "was cut off"),
        (b"", "", "closed the connection without an answer in HTTP"),
    ],
)
def test_an_answer_without_its_end_is_cut_off(answer: bytes, printed: str, said: str) -> None:
    with faked(lambda *_: answer) as fake:
        ended = command(fake.url, "invoke", "{}")
    assert (ended.code, ended.text) == (7, printed)
    assert said in ended.err


def test_where_nothing_listens_it_says_what_to_do() -> None:
    ended = process_of(f"http://127.0.0.1:{free_port()}", "invoke", "{}")
    assert ended.code == 3
    assert "Nothing listens at http://127.0.0.1:" in ended.err
    assert "AGENTCORE_URL" in ended.err


def test_a_server_that_says_nothing_is_waited_for_so_long_and_no_longer() -> None:
    with faked(lambda *_: None) as fake:
        ended = command(fake.url, "invoke", "{}", "--timeout", "0.2")
    assert ended.code == 8
    assert "for 0.2 s (--timeout)" in ended.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"+OK ready\r\n\r\n", "does not speak HTTP"), (answered(b"", "302 Found", "location: /login"), "redirect")],
)
def test_what_is_no_agent_is_told_from_one(answer: bytes, said: str) -> None:
    with faked(lambda *_: answer) as fake:
        ended = command(fake.url, "invoke", "{}")
    assert ended.code == 9
    assert said in ended.err


def test_a_reader_that_leaves_ends_the_command_quietly(agent: Server) -> None:
    with started(agent.url, "invoke", "--quiet", "flood") as process:
        assert process.stdout is not None
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        process.wait(LONGEST)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_reader_of_a_table_that_leaves_ends_the_command_quietly() -> None:
    unread, out = os.pipe()
    os.close(unread)
    try:
        with faked(by_path(state=answered(STATE))) as fake:
            ended = process_of(fake.url, "tasks", stdout=out)
    finally:
        os.close(out)
    assert (ended.code, ended.err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("arguments", [("invoke", "text"), ("tasks", "--json")])
def test_output_that_cannot_be_written_is_a_failure(arguments: tuple[str, ...], agent: Server) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = process_of(agent.url, *arguments, stdout=full.fileno())
    assert ended.code == 1
    assert "The output cannot be written: No space left on device." in ended.err


def test_a_closed_standard_output_is_as_good_as_none(agent: Server) -> None:
    process = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" invoke --quiet text >&-', COMMAND],
        env=environment(agent.url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LONGEST,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, b"")


def test_whoever_reads_what_is_said_of_an_answer_may_leave_without_the_answer_being_lost(agent: Server) -> None:
    unread, said = os.pipe()
    os.close(unread)
    try:
        process = subprocess.run(
            [COMMAND, "invoke", "numbers"],
            env=environment(agent.url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            timeout=LONGEST,
            check=False,
        )
    finally:
        os.close(said)
    assert process.returncode == 0
    assert [json.loads(line) for line in process.stdout.splitlines()] == [{"number": 1}, {"number": 2}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("invoke", "{not json"), "is not JSON"),
        (("invoke", "@missing-file"), "No such file"),
        (("invoke",), "is empty"),
        (("invoke", "{}", "-H", "no colon"), "'Name: value'"),
        (("invoke", "{}", "--session", "a b"), "visible ASCII"),
        (("ping", "--url", "ftp://agent"), "http:// or https://"),
        (("ping", "--timeout", "-1"), "--timeout"),
        (("chat", "--template", '{"a": 1}'), "{message}"),
        (("stop", "short"), "33 to 256"),
    ],
)
def test_bad_usage_gets_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    ended = command("http://127.0.0.1:9", *arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert said in " ".join(ended.err.replace("│", " ").split())


# -- ping --------------------------------------------------------------------------------------------------------------


def test_ping_says_the_status_and_since_when(agent: Server) -> None:
    ended = command(agent.url, "ping")
    assert ended.code == 0
    assert re.match(r"Healthy(Busy)? +since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}, for ", ended.text)


def test_ping_knows_what_is_no_agent() -> None:
    with faked(by_path(ping=answered(b"pong", kind="text/plain"))) as fake:
        ended = command(fake.url, "ping")
    assert ended.code == 9
    assert "answered something else than an agent's status" in ended.err


def test_ping_watches_until_it_is_interrupted_also_while_nothing_listens() -> None:
    answers = [{"status": "Healthy", "time_of_last_update": 1}] * 3 + [{"status": "HealthyBusy"}]

    def answer(*_: object) -> bytes:
        return answered(answers.pop(0) if len(answers) > 1 else answers[0])

    with ExitStack() as stack:
        with faked(answer) as fake:
            process = stack.enter_context(started(fake.url, "ping", "--watch", "--interval", "0.1"))
            assert process.stdout is not None
            first, second = process.stdout.readline(), process.stdout.readline()
        third = next(line for line in process.stdout if b"Nothing listens" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONGEST)
    assert re.match(rb"\d\d:\d\d:\d\d  Healthy +since 19", first)
    assert re.fullmatch(rb"\d\d:\d\d:\d\d  HealthyBusy\n", second)
    assert re.match(rb"\d\d:\d\d:\d\d  Nothing", third)
    assert (process.returncode, err) == (130, b"Interrupted\n")


# -- tasks and sessions ------------------------------------------------------------------------------------------------

STATE = {
    "ping": {"status": "HealthyBusy", "time_of_last_update": 1.0},
    "tasks": {
        "active_count": 2,
        "running_jobs": [{"name": "short", "duration": 0.5}, {"name": "long", "duration": 3700}],
    },
    "sessions": [
        {
            "session_id": name,
            "age": 100.0,
            "idle": idle,
            "invocations": 1,
            "streams": 2,
            "websockets": 3,
            "tasks": 4,
        }
        for name, idle in (("idle-one", 90000.0), (LONG_ID, 0.0))
    ],
}


def test_tasks_and_sessions_are_listed_where_the_agent_tells_its_state() -> None:
    with faked(by_path(state=answered(STATE))) as fake:
        tasks, sessions = command(fake.url, "tasks"), command(fake.url, "sessions")
        tasks_json, sessions_json = command(fake.url, "tasks", "--json"), command(fake.url, "sessions", "--json")
    assert [line.split(maxsplit=1) for line in tasks.text.splitlines()] == [
        ["Task", "Running for"],
        ["long", "1 h 1 min"],
        ["short", "500 ms"],
    ]
    lines = [line.split() for line in sessions.text.splitlines()]
    assert lines[0] == ["Session", "Age", "Idle", "Calls", "Streams", "WS", "Tasks"]
    assert lines[1] == [LONG_ID, "1", "min", "40", "s", "0", "ms", "1", "2", "3", "4"]
    assert lines[2][0] == "idle-one"
    assert json.loads(tasks_json.out) == STATE["tasks"]
    assert json.loads(sessions_json.out) == STATE["sessions"]
    assert {each.code for each in (tasks, sessions, tasks_json, sessions_json)} == {0}
    assert {each.err for each in (tasks, sessions, tasks_json, sessions_json)} == {""}


def test_where_the_agent_does_not_tell_its_state_tasks_and_sessions_are_counted() -> None:
    metrics = b"# TYPE agentcore_active_tasks gauge\nagentcore_active_tasks 1.0\nagentcore_sessions 3.0\n"
    with faked(by_path(metrics=answered(metrics, kind="text/plain"))) as fake:
        tasks, sessions = command(fake.url, "tasks"), command(fake.url, "sessions")
        as_json = command(fake.url, "sessions", "--json")
    assert (tasks.code, tasks.text) == (0, "1 active task\n")
    assert (sessions.code, sessions.text) == (0, "3 sessions\n")
    assert json.loads(as_json.out) == {"count": 3}
    assert "AGENTCORE_PLAYGROUND=true" in tasks.err
    assert "AGENTCORE_PLAYGROUND=true" in sessions.err


def test_tasks_and_sessions_know_what_does_not_tell_them() -> None:
    with faked(by_path()) as fake:
        nothing = command(fake.url, "sessions")
    with faked(by_path(state=answered([1]))) as fake:
        other = command(fake.url, "tasks")
    with faked(by_path(state=answered({}, "401 Unauthorized"))) as fake:
        refused = command(fake.url, "tasks")
    assert (nothing.code, other.code, refused.code) == (4, 9, 4)
    assert "neither /playground/state" in nothing.err
    assert "something else than an agent's state" in other.err
    assert "--token" in refused.err


def test_a_debug_action_names_the_tasks_of_an_app_in_debug_mode(agent: Server) -> None:
    task = int(command(agent.url, "invoke", "task").out)
    try:
        ended = command(agent.url, "tasks", "--debug-action", "--json")
    finally:
        assert talking.app.complete_async_task(task)
    assert ended.code == 0
    assert [job["name"] for job in json.loads(ended.out)["running_jobs"]] == ["research"]


def test_an_app_that_takes_no_debug_actions_is_told_from_one() -> None:
    with faked(by_path(invocations=answered({"echo": 1}))) as fake:
        ended = command(fake.url, "tasks", "--debug-action")
    assert ended.code == 9
    assert "debug=True" in ended.err


# -- stop --------------------------------------------------------------------------------------------------------------


def test_stop_asks_as_aws_does() -> None:
    arn = "arn:aws:bedrock-agentcore:eu-west-1:123456789012:runtime/mine"
    with faked(by_path(stopruntimesession=answered({}, "200 OK", f"{SESSION_ID}: {LONG_ID}"))) as fake:
        ended = command(fake.url, "stop", LONG_ID)
        with_arn = command(fake.url, "stop", LONG_ID, AGENTCORE_RUNTIME_ARN=arn)
    assert (ended.code, ended.text) == (with_arn.code, with_arn.text) == (0, f"Stopped {LONG_ID}\n")
    first, second = fake.requests
    local = b"arn%3Aaws%3Abedrock-agentcore%3Alocal%3A000000000000%3Aruntime%2Flocal"
    assert first.startswith(b"POST /runtimes/" + local + b"/stopruntimesession HTTP/1.1\r\n")
    assert second.startswith(
        b"POST /runtimes/arn%3Aaws%3Abedrock-agentcore%3Aeu-west-1%3A123456789012%3Aruntime%2Fmine/"
    )
    tokens = {json.loads(request.partition(b"\r\n\r\n")[2])["clientToken"] for request in (first, second)}
    assert len(tokens) == 2
    assert f"{SESSION_ID}: {LONG_ID}".lower().encode() in first.lower()


def test_stop_tells_a_session_that_is_not_there_from_a_server_that_stops_none() -> None:
    not_there = answered({"message": "No session"}, "404 Not Found", "x-amzn-errortype: ResourceNotFoundException")
    with faked(by_path(stopruntimesession=not_there)) as fake:
        missing = command(fake.url, "stop", LONG_ID)
    with faked(by_path()) as fake:
        unserved = command(fake.url, "stop", LONG_ID)
    assert (missing.code, unserved.code) == (4, 4)
    assert f"Session {LONG_ID} is not at {fake.url[:17]}" in missing.err
    assert "ResourceNotFoundException: No session" in missing.err
    assert "does not serve StopRuntimeSession" in unserved.err


# -- chat --------------------------------------------------------------------------------------------------------------


def test_lines_from_a_pipe_are_a_conversation_in_one_session(agent: Server) -> None:
    lines = b"say one two\n\nsession\n/session other-one\nsession\n//text\n/quit\nsession\n"
    ended = process_of(agent.url, "chat", "--session", "my-session", stdin=lines)
    assert ended.code == 0
    printed = ended.text.splitlines()
    assert printed[0] == "one two "
    assert [json.loads(line) for line in printed[1:3]] == [{"session": "my-session"}, {"session": "other-one"}]
    assert json.loads(printed[3]) == {"prompt": "/text"}
    assert len(printed) == 4
    assert "Session other-one" in ended.err


def test_the_first_line_from_a_pipe_that_fails_ends_the_conversation(agent: Server) -> None:
    ended = command(agent.url, "chat", "--quiet", stdin=b"say one\nfail\nsay two\n")
    assert (ended.code, ended.text) == (5, "one \n")
    assert "it broke" in ended.err


def test_a_chat_prints_the_text_alone_unless_all_events_are_asked_for() -> None:
    events = (
        {"type": "response.output_text.delta", "delta": "hel"},
        {"type": "response.output_text.delta", "delta": "lo"},
        {"type": "response.output_text.done", "text": "hello"},
    )
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    with faked(by_path(invocations=answered(stream, kind="text/event-stream"))) as fake:
        ended = command(fake.url, "chat", stdin=b"hi\n")
        everything = command(fake.url, "chat", "--events", stdin=b"hi\n")
    assert (ended.code, ended.text) == (0, "hello\n")
    assert "1 of the events had no text" in ended.err
    assert [json.loads(line) for line in everything.text.splitlines()] == list(events)


def test_a_template_says_where_the_message_goes(agent: Server) -> None:
    template = '{"input": {"messages": [{"content": "{message}"}]}}'
    ended = command(agent.url, "chat", "--quiet", "--template", template, stdin=b'a "quoted" one\n')
    assert json.loads(ended.out) == {"input": {"messages": [{"content": 'a "quoted" one'}]}}


class Terminal:
    """A terminal at which a chat is typed."""

    def __init__(self, url: str, **variables: str) -> None:
        self.shown = ""
        self._master, self._slave = os.openpty()
        name = os.ttyname(self._slave)
        self.process = subprocess.Popen(
            # The first terminal that the leader of a session opens is the one whose Ctrl-C it gets.
            ["/bin/sh", "-c", f'exec "$0" "$@" <{name} >{name} 2>&1', COMMAND, "chat"],
            env=environment(url, TERM="xterm", **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until what is shown since the last wait has something, and return it all."""
        end = time.monotonic() + LONGEST
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"{pattern} was not shown: {self.shown!r}"
            if select.select([self._master], [], [], 1)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
            else:
                assert self.process.poll() is None, self.shown
        shown, self.shown = self.shown, ""
        return shown

    def interrupt(self, pattern: str) -> None:
        """Type Ctrl-C until that is answered: readline overlooks one that comes in the moment after another key."""
        end = time.monotonic() + LONGEST
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"{pattern} was not shown: {self.shown!r}"
            self.type("\x03")
            while not re.search(pattern, self.shown) and select.select([self._master], [], [], 5)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        self.shown = ""

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LONGEST)
        os.close(self._master)
        os.close(self._slave)


def test_at_a_terminal_lines_are_edited_answers_interrupted_and_messages_kept(agent: Server, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    terminal = Terminal(agent.url, XDG_STATE_HOME=str(tmp_path))
    try:
        terminal.wait_for("> ")
        terminal.type("say twp\x7fo\r")  # backspace
        assert "two" in terminal.wait_for(r"trace [0-9a-f]{32}[^>]*> ")
        terminal.type("text\r")
        assert "bye\\u001b[31m" in terminal.wait_for(r"trace [0-9a-f]{32}[^>]*> ")
        terminal.type("endless\r")
        terminal.wait_for("begun")
        terminal.type("\x03")
        terminal.wait_for(r"Ended by Ctrl-C[^>]*> ")
        terminal.type("forgotten")
        terminal.wait_for("forgotten")
        terminal.interrupt("\n.*> ")
        terminal.type("\x1b[A\x1b[A\x1b[A\r")  # three times up: the first message
        assert "two" in terminal.wait_for(r"trace [0-9a-f]{32}[^>]*> ")
        terminal.type("\x04")
        assert terminal.process.wait(LONGEST) == 0
    finally:
        terminal.close()
    history = tmp_path / "litestar-agentcore" / "chat_history"
    assert history.read_text() == "say two\ntext\nendless\nsay two\n"
    assert history.stat().st_mode & 0o777 == 0o600
