"""What is sent, and what has to come back."""

import http.client
import json
import socket

PROMPT = "What does a careful engineer measure before a change?"
BODY = json.dumps({"prompt": PROMPT})
RUN_BODY = json.dumps(
    {
        "threadId": "thread-1",
        "runId": "run-1",
        "state": {},
        "messages": [{"id": "message-1", "role": "user", "content": PROMPT}],
        "tools": [],
        "context": [],
        "forwardedProps": {},
    }
)
"""The same for an agent that speaks AG-UI."""
HEADERS = {
    "Content-Type": "application/json",
    "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": "7c9f4a52-3f0b-4a86-9a3e-2f1d8b6c5e40",
}
A2A_MESSAGE = {"kind": "message", "messageId": "m", "role": "user", "parts": [{"kind": "text", "text": PROMPT}]}
A2A_BODY = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": A2A_MESSAGE}})
MCP_CALL = {"name": "echo", "arguments": {"prompt": PROMPT}}
MCP_BODY = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": MCP_CALL})
EVENTS = 100
"""In a stream, where it has an end."""

PATIENCE = 30.0


class WrongAnswer(Exception):
    """A candidate does not do what it is measured at."""


def headers(stream: bool = False) -> dict[str, str]:
    return {**HEADERS, "Accept": "text/event-stream" if stream else "application/json"}


def target(load: str) -> tuple[str, str]:
    """The path and the body of a load's requests."""
    if load == "unary-a2a":
        return "/", A2A_BODY
    if load == "unary-mcp":
        return "/mcp", MCP_BODY
    return "/invocations", RUN_BODY if load == "stream-ag-ui" else BODY


def request(stream: bool = False, load: str = "") -> bytes:
    """An invocation as it goes over the wire."""
    path, body = target(load)
    fields = {"Host": "127.0.0.1", **headers(stream), "Content-Length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", body]).encode()


def check_unary(port: int) -> None:
    status, body = _invoke(port, stream=False)
    if status != 200 or json.loads(body) != {"echo": PROMPT}:
        raise WrongAnswer(f"{status} {body[:200]!r} is no echo")


def check_a2a(port: int) -> None:
    status, body = _invoke(port, stream=False, load="unary-a2a")
    if status != 200 or json.loads(body).get("result", {}).get("parts") != A2A_MESSAGE["parts"]:
        raise WrongAnswer(f"{status} {body[:200]!r} is no echo")


def check_mcp(port: int) -> None:
    status, body = _invoke(port, stream=False, load="unary-mcp")
    if status != 200 or json.loads(body).get("result", {}).get("content", [{}])[0].get("text") != PROMPT:
        raise WrongAnswer(f"{status} {body[:200]!r} is no echo")


def check_stream(port: int) -> None:
    """All events are there, each by itself and in order."""
    _check_events(port, "stream-async", [{"token": f"token {number}"} for number in range(EVENTS)])


def check_run(port: int) -> None:
    """Likewise of a run of AG-UI."""
    kind = {"type": "TEXT_MESSAGE_CONTENT", "messageId": "message-2"}
    _check_events(port, "stream-ag-ui", [{**kind, "delta": f"token {number}"} for number in range(EVENTS)])


def _check_events(port: int, load: str, expected: list[dict[str, str]]) -> None:
    status, body = _invoke(port, stream=True, load=load)
    events = [line.removeprefix("data:") for line in body.decode().splitlines() if line.startswith("data:")]
    if status != 200 or [json.loads(event) for event in events] != expected:
        raise WrongAnswer(f"{status} with {len(events)} events is not the stream of {EVENTS}: {body[:200]!r}")


def bytes_of_answer(port: int, load: str = "") -> int:
    """How long a complete unary answer is on the wire, its headers included."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request(load=load))
        answer = b""
        while True:
            if not (received := connection.recv(65536)):
                raise WrongAnswer(f"the connection was closed after {answer[:200]!r}")
            answer += received
            head, end, body = answer.partition(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            ]
            if end and lengths and len(body) >= int(lengths[0]):
                return len(answer)


def _invoke(port: int, stream: bool, load: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        path, sent = target(load)
        connection.request("POST", path, sent, headers(stream))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise WrongAnswer(f"no answer: {error!r}") from None
    finally:
        connection.close()
