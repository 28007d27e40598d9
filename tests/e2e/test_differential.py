"""The same agents on the reference runtime and on ours, asked the same over real sockets, answer the same.

Where they do not, the contract has a sentence that decides: the tables of what is decided quote it beside both answers.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.runtimes import HERE, OURS, Runtime, free_ports

AGENTS = HERE / "differential" / "agents.py.txt"
SOURCE = AGENTS.read_text()

SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
REQUEST = "X-Amzn-Bedrock-AgentCore-Runtime-Request-Id"
CUSTOM = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"
IDENTITY = "X-Amz-Bedrock-AgentCore-Identity-WAT"

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Headers = list[tuple[str, str]]
Ports = Mapping[str, Mapping[str, int]]
"""By runtime and agent."""


class Ask(msgspec.Struct, frozen=True):
    agent: str
    json: Any = None
    headers: Headers = []
    body: bytes | None = None
    method: str = "POST"
    path: str = "/invocations"


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Any
    """Decoded, where it is JSON or a list of events; else the text."""
    content_type: str | None = "application/json"
    headers: dict[str, str] = {}
    """Those that only a handler can have set."""


class Decided(msgspec.Struct, frozen=True):
    ask: Ask
    contract: str
    reference: Answer
    ours: Answer


class Talk(msgspec.Struct, frozen=True):
    messages: list[Any] = []
    agent: str = "async"
    path: str = "/ws"


class Conversation(msgspec.Struct, frozen=True):
    answers: list[Any]
    end: int
    """The close code (1006: there was none), or the status of a handshake that was refused."""
    reason: str = ""


class DecidedTalk(msgspec.Struct, frozen=True):
    talk: Talk
    contract: str
    reference: Conversation
    ours: Conversation


def keys_of(name: str) -> list[str]:
    """The keys of one of the agents' tables."""
    for statement in ast.parse(SOURCE).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Dict(keys=keys)) if found == name:
                return [ast.literal_eval(key) for key in keys if key is not None]
    raise LookupError(name)


NAMES = ["busy", "debug", "empty", *keys_of("HANDLERS"), *keys_of("PINGS")]


def ping(agent: str) -> Ask:
    return Ask(agent, method="GET", path="/ping")


def action(name: Any) -> Ask:
    return Ask("debug", {"_agent_core_app_action": name})


def value(name: str) -> Ask:
    return Ask("plain", {"value": name})


def body(content: bytes, content_type: str = "application/json") -> Ask:
    return Ask("async", body=content, headers=[("Content-Type", content_type)])


def context(*headers: tuple[str, str]) -> Ask:
    return Ask("async", {"tell": "context"}, list(headers))


def failed(text: str) -> Answer:
    return Answer(500, {"error": text})


NUMBERS = {"numbers": [1, 2, 3]}
IN_SESSION = [(SESSION, "s-1")]
PLAIN_TEXT = "text/plain; charset=utf-8"

SAME: dict[str, list[Ask]] = {
    "an object": [body(b'{"a": [1, 2.5, "x", null, true]}')],
    "an array": [body(b"[1, 2]")],
    "a string": [body(b'"x"')],
    "a number": [body(b" \r\n\t-1.5e3 ")],
    "null": [body(b"null")],
    "false": [body(b"false")],
    "an empty object": [body(b"{}")],
    "text that is not ASCII": [body('{"ключ": "Grüße 🦊"}'.encode())],
    "escapes": [body(rb'{"a": "\u00e9\n\"\\\/\ud83e\udd8a\u0000"}')],
    "half of a pair of surrogates": [body(rb'{"tell": "length", "of": "\ud83e"}')],
    "a surrogate in the bytes of a body": [body(b'{"tell": "length", "of": "\xed\xa0\x80"}')],
    "a byte order mark": [body(b'\xef\xbb\xbf{"a": "\xc3\xa9"}'), body(b"\xef\xbb\xbf"), body(b"\xff\xfe")],
    "a body in UTF-16 or UTF-32": [
        body('{"a": "é"}'.encode(encoding)) for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-32-le")
    ],
    "half a character of UTF-16": [body('{"a": 1}'.encode("utf-16")[:-1])],
    "numbers that are not finite": [body(b'{"tell": "length", "of": [NaN, Infinity, -Infinity, 1e400]}')],
    "a key twice": [body(b'{"a": 1, "a": 2}')],
    "integers beyond 64 bits": [body(b"[18446744073709551616, -123456789012345678901234567890]")],
    "a deep array": [body(b"[" * 100 + b"]" * 100)],
    "a content type that is no JSON": [body(b'{"a": 1}', "text/plain"), body(b'{"a": 1}', "multipart/form-data")],
    "an empty body": [body(b""), body(b"  ")],
    "no JSON": [
        body(b"{"),
        body(b"prompt=Hi"),
        body(b"{'a': 1}"),
        body(b"[1,]"),
        body(b"1 2"),
        body(b"01"),
        body(b"tru"),
    ],
    "a control character in a string": [body(b'"a\tb"')],
    "no UTF-8": [body('{"a": "é"}'.encode("latin-1")), body(b"\x80"), body(b'{"a": "\xc3"}')],
    "no entrypoint": [Ask("empty", {})],
    "no entrypoint and no JSON": [Ask("empty", body=b"{")],
    "a query": [Ask("async", {"tell": "request"}, [("Cookie", "c=d")], path="/invocations?q=1")],
    "the body once more": [Ask("async body", {"a": "é"})],
    "a request without a context": [context()],
    "a request with a context": [
        context((REQUEST, "r-1"), (SESSION, "s-1"), (IDENTITY, "wat"), ("OAuth2CallbackUrl", "https://a.example/cb"))
    ],
    "headers in lower case": [context((REQUEST.lower(), "r-1"), (SESSION.lower(), "s-1"), (IDENTITY.lower(), "wat"))],
    "the older token header": [context(("WorkloadAccessToken", "old"))],
    "both token headers": [context(("WorkloadAccessToken", "old"), (IDENTITY, "new"))],
    "an empty token header": [context((IDENTITY, ""), ("WorkloadAccessToken", "old"))],
    "one context after another": [context((SESSION, "s-1"), (IDENTITY, "wat"), ("Authorization", "x")), context()],
    "authorization": [context(("authorization", "Bearer x")), context(("AUTHORIZATION", "Bearer x"))],
    "custom headers": [context((CUSTOM + "Mood", "good"), (CUSTOM.lower() + "weather", "fine"), (CUSTOM, "bare"))],
    "other headers": [context(("X-Api-Key", "k"), ("DNT", "1"), ("Priority", "u=1"), ("Idempotency-Key", "i"))],
    "headers of the platform": [context(("X-Amz-Date", "d"), ("X-Amzn-Trace-Id", "t"), ("X-Amz-Security-Token", "s"))],
    "trace headers": [context(("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("tracestate", "a=b"))],
    "baggage": [context(("baggage", "user=alice,session=s-1"))],
    "a debug action without debug": [Ask("plain", {"_agent_core_app_action": "ping_status"})],
    "the debug action ping_status": [action("ping_status"), ping("debug")],
    "the debug action job_status": [action("job_status")],
    "the debug action force_busy": [action("force_busy"), action("ping_status"), ping("debug")],
    "the debug action force_healthy": [action("force_healthy"), action("ping_status"), ping("debug")],
    "the debug action clear_forced_status": [action("clear_forced_status"), ping("debug")],
    "an unknown debug action": [action("dance"), action(5)],
    "no debug action": [Ask("debug", {"prompt": "Hi"})],
    "health": [ping("async"), ping("empty")],
    "health while a task runs": [
        Ask("busy", {"do": "start"}),
        ping("busy"),
        Ask("busy", {"do": "end"}),
        ping("busy"),
    ],
    "health that is forced": [Ask("busy", {"do": "force"}), ping("busy"), Ask("busy", {"do": "clear"}), ping("busy")],
    "a task that is counted by hand": [Ask("busy", {"do": "add"}), ping("busy")],
    "a health function that returns a status": [ping("ping busy")],
    "a health function that returns a string": [ping("ping string")],
    "a health function that returns nothing": [ping("ping none")],
    "a health function that returns nonsense": [ping("ping nonsense")],
    "a health function that raises": [ping("ping broken")],
    **{f"handler: {name}": [Ask(name, NUMBERS | {"error": "value"}, IN_SESSION)] for name in keys_of("HANDLERS")},
    **{
        f"value: {name}": [value(name), Ask("async", {"stream": "values", "values": [name]})]
        for name in keys_of("VALUES")
    },
    **{f"error: {name}": [Ask("plain", {"error": name}), Ask("async", {"error": name})] for name in keys_of("ERRORS")},
    **{
        f"error in a stream: {name}": [
            Ask("async", {"error": name, "stream": "failing"}),
            Ask("async", {"error": name, "stream": "async failing"}),
        ]
        for name in keys_of("ERRORS")
    },
    **{
        f"response: {name}": [Ask("plain", {"response": name}), Ask("async", {"response": name})]
        for name in keys_of("RESPONSES")
    },
}

IN_PLACE = 'any other object becomes its `str()`, *at the place where it stands* ("ours")'
KNOWN = "msgspec encodes what it knows (structs, dataclasses, attrs, enums, dates, UUIDs, decimals, sets, bytes)"
VALID = "NaN and infinities become `null`: what leaves is always valid JSON (ours)"
ACTION = "a JSON object with `_agent_core_app_action` is not handed to the handler: [...] anything else 400"
REFUSED = "an integer that it refuses for its length and nesting that it refuses for its depth are 400 Invalid JSON"
WRONG = 'wrong method or path: 405 / 404, in the same `{"error": ...}` shape (ours)'
TOO_DEEP = json.loads("[" * 51 + '"<too_deep:list>"' + "]" * 51)
CRASHED = Answer(500, "Internal Server Error", PLAIN_TEXT)
MALFORMED = Answer(400, {"error": "Invalid JSON", "details": "<details>"})
BAD_ID = Answer(400, {"error": "Invalid request context", "details": "<details>"})

DECIDED: dict[str, Decided] = {
    "an integer of 5,000 digits": Decided(Ask("async", body=b"1" * 5000), REFUSED, CRASHED, MALFORMED),
    "a body that is nested too deep": Decided(Ask("async", body=b"[" * 50_000), REFUSED, CRASHED, MALFORMED),
    "a session id with a space": Decided(
        Ask("async", {}, [(SESSION, "my session")]),
        "the ids are validated (1 to 256 visible ASCII characters) (ours)",
        Answer(200, {"echo": {}}),
        BAD_ID,
    ),
    "an empty request id": Decided(
        Ask("async", {}, [(REQUEST, "")]),
        "the ids are validated (1 to 256 visible ASCII characters) (ours)",
        Answer(200, {"echo": {}}),
        BAD_ID,
    ),
    "headers that browsers and proxies add": Decided(
        Ask(
            "async",
            {"tell": "headers"},
            [("Sec-Fetch-Mode", "cors"), ("Proxy-Status", "x"), ("Age", "1"), ("X-A", "b")],
        ),
        "Not forwardable: the hop-by-hop, content, caching, cookie, CORS, client-hint, proxy, `Sec-*` [...]",
        Answer(200, {"sec-fetch-mode": "cors", "proxy-status": "x", "age": "1", "x-a": "b"}),
        Answer(200, {"x-a": "b"}),
    ),
    "a debug action that is empty": Decided(
        action(""),
        ACTION,
        Answer(200, {"echo": {"_agent_core_app_action": ""}}),
        Answer(400, {"error": "Unknown action: "}),
    ),
    "a debug action that is null": Decided(
        action(None),
        ACTION,
        Answer(200, {"echo": {"_agent_core_app_action": None}}),
        Answer(400, {"error": "Unknown action: None"}),
    ),
    "a debug action that is a list": Decided(
        action(["x"]),
        ACTION,
        Answer(500, {"error": "Debug action failed", "details": "<details>"}),
        Answer(400, {"error": "Unknown action: ['x']"}),
    ),
    "an array in an app with debug": Decided(
        Ask("debug", [1]), ACTION, failed("'list' object has no attribute 'get'"), Answer(200, {"echo": [1]})
    ),
    "an async health function": Decided(
        ping("ping async"),
        "the custom function's (a `PingStatus` or its string; sync, or async (ours))",
        Answer(200, {"status": "Healthy", "time_of_last_update": "<time>"}),
        Answer(200, {"status": "HealthyBusy", "time_of_last_update": "<time>"}),
    ),
    "a handler that is cancelled": Decided(
        Ask("async", {"error": "cancelled"}),
        'raises anything else: 500, `{"error": str(e)}`',
        Answer(500, "Internal Server Error", PLAIN_TEXT),
        failed("on second thoughts"),
    ),
    "a wrong path": Decided(
        Ask("async", {}, path="/nowhere"),
        WRONG,
        Answer(404, "Not Found", PLAIN_TEXT),
        Answer(404, {"error": "Not Found"}),
    ),
    "a wrong method": Decided(
        Ask("async", method="GET"),
        WRONG,
        Answer(405, "Method Not Allowed", PLAIN_TEXT),
        Answer(405, {"error": "Method Not Allowed"}),
    ),
    "value: object in a dict": Decided(
        value("object in a dict"),
        IN_PLACE,
        Answer(200, "{'odd': an opaque object, 'even': 2}"),
        Answer(200, {"odd": "an opaque object", "even": 2}),
    ),
    "value: mock in a dict": Decided(
        value("mock in a dict"),
        IN_PLACE,
        Answer(200, "{'odd': a mock, 'even': 2}"),
        Answer(200, {"odd": "a mock", "even": 2}),
    ),
    "value: dated model": Decided(
        value("dated model"),
        IN_PLACE,
        Answer(200, "day=datetime.date(2024, 2, 29)"),
        Answer(200, {"day": "2024-02-29"}),
    ),
    "value: dataclass with a text in a dict": Decided(
        value("dataclass with a text in a dict"),
        "that object (the innermost such one) becomes its `str()` as a whole",
        Answer(200, "{'answer': Report(text='sunny', details=an opaque object), 'tokens': 3}"),
        Answer(200, {"answer": "sunny", "tokens": 3}),
    ),
    "value: integer of 5,000 digits in a dict": Decided(
        value("integer of 5,000 digits in a dict"),
        "A leaf that no encoder can do [...] costs its own place alone",
        Answer(200, {"error": "Serialization failed", "original_type": "dict"}),
        Answer(200, {"n": {"error": "Serialization failed", "original_type": "int"}, "caption": "ok"}),
    ),
    "value: number of a library in a dict": Decided(
        value("number of a library in a dict"),
        "Numbers that pretend to be (`numpy` scalars: `__index__`, `__float__`, `item()`) are numbers.",
        Answer(200, "{'n': five}"),
        Answer(200, {"n": 5}),
    ),
    "value: time with seconds in its offset": Decided(
        value("time with seconds in its offset"),
        KNOWN,
        Answer(200, "1900-01-01 00:00:00+00:19:32"),
        Answer(200, "1899-12-31T23:40:28Z"),
    ),
    "value: time": Decided(
        value("time"), KNOWN, Answer(200, "2024-02-29 12:30:00"), Answer(200, "2024-02-29T12:30:00")
    ),
    "value: plain enum": Decided(value("plain enum"), KNOWN, Answer(200, "Mood.GOOD"), Answer(200, "good")),
    "value: bytes": Decided(value("bytes"), KNOWN, Answer(200, "b'ab'"), Answer(200, "YWI=")),
    "value: frozen set": Decided(value("frozen set"), KNOWN, Answer(200, "frozenset({1})"), Answer(200, [1])),
    "value: not finite": Decided(
        value("not finite"), VALID, Answer(200, ["NaN", "Infinity", "-Infinity"]), Answer(200, [None, None, None])
    ),
    "value: surrogate": Decided(
        value("surrogate"),
        VALID,
        failed("'utf-8' codec can't encode character '\\ud800' in position 3: surrogates not allowed"),
        Answer(200, "a \ufffd b"),
    ),
    "value: tuple as key": Decided(
        value("tuple as key"), "Non-string keys become strings.", Answer(200, "{(1, 2): 3}"), Answer(200, {"(1, 2)": 3})
    ),
    "value: cycle": Decided(
        value("cycle"),
        'A cycle [...] is answered with `{"error": "Serialization failed", "original_type": "<type name>"}`',
        Answer(200, TOO_DEEP),
        Answer(200, {"error": "Serialization failed", "original_type": "list"}),
    ),
}

HELLO = {"session": ["s-1", "s-1"], "mood": "good", "headers": "good"}
CLOSE = {"do": "close"}

SAME_TALKS: dict[str, Talk] = {
    "a message": Talk([{"a": "é"}, CLOSE]),
    "many messages": Talk([*range(20), CLOSE]),
    "text": Talk([{"do": "text"}, CLOSE]),
    "bytes": Talk([{"do": "bytes"}, CLOSE]),
    "text and bytes from the client": Talk([{"do": "listen"}, "héllo", b"\x00\xff", CLOSE]),
    "a code of the handler's own": Talk([{"do": "close with a code"}]),
    "a handler that raises": Talk([{"do": "raise"}]),
    "a message that is no JSON": Talk(["{"]),
}

CLOSES = "no handler, or one that raises: close code 1011"

DECIDED_TALKS: dict[str, DecidedTalk] = {
    "no handler": DecidedTalk(Talk(agent="empty"), CLOSES, Conversation([], 403), Conversation([], 1011)),
    "a handler that raises before the handshake": DecidedTalk(
        Talk(path="/ws?early=raise"), CLOSES, Conversation([], 403), Conversation([], 1011)
    ),
}


@pytest.fixture(scope="module")
def ports(reference: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    numbers = free_ports(2 * len(NAMES))
    theirs, ours = dict(zip(NAMES, numbers[::2], strict=True)), dict(zip(NAMES, numbers[1::2], strict=True))
    their_file = reference.write_agent(AGENTS, tmp_path_factory.mktemp("reference"))
    our_file = OURS.write_agent(AGENTS, tmp_path_factory.mktemp("ours"))
    with (
        reference.serve(their_file, *(f"{name}={port}" for name, port in theirs.items()), ports=list(theirs.values())),
        OURS.serve(our_file, *(f"{name}={port}" for name, port in ours.items()), ports=list(ours.values())),
    ):
        yield {"reference": theirs, "ours": ours}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    # A connection for each: a server that has crashed over the last request may be about to close its own.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(trust_env=False, timeout=10, limits=limits) as client:
        yield client


def without_ids_and_times(found: dict[str, Any]) -> dict[str, Any]:
    masked = dict(found)
    if isinstance(found.get("time_of_last_update"), int):
        masked["time_of_last_update"] = "<time>"
    if UUID.fullmatch(str(found.get("request"))):
        masked["request"] = "<id>"
    if isinstance(found.get("details"), str):  # the contract has them in nobody's words
        masked["details"] = "<details>"
    return masked


def decode(text: str) -> Any:
    return json.loads(text, parse_constant=str, object_hook=without_ids_and_times)


def answer_of(response: httpx.Response) -> Answer:
    content_type = response.headers.get("content-type")
    content: Any = response.text
    if content_type == "application/json":
        content = decode(content)
    elif content_type and content_type.startswith("text/event-stream"):
        content_type = "text/event-stream"
        events = content.split("\n\n")
        if all(event.startswith("data: ") for event in events[:-1]) and events[-1] == "":
            content = [decode(event.removeprefix("data: ")) for event in events[:-1]]
    headers = {name: response.headers[name] for name in ("x-made-by", "location") if name in response.headers}
    return Answer(response.status_code, content, content_type, headers)


def send(client: httpx.Client, port: int, ask: Ask) -> httpx.Response:
    content = ask.body
    if content is None and ask.method == "POST":
        content = json.dumps(ask.json).encode()
    return client.request(ask.method, f"http://127.0.0.1:{port}{ask.path}", content=content, headers=ask.headers)


def converse(port: int, talk: Talk) -> Conversation:
    answers: list[Any] = []
    headers = {SESSION: "s-1", "X-Mood": "good"}
    try:
        with connect(f"ws://127.0.0.1:{port}{talk.path}", additional_headers=headers, proxy=None) as socket:
            for message in talk.messages:
                socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
            while True:
                answer = socket.recv(timeout=10)
                answers.append(decode(answer) if isinstance(answer, str) and answer[0] in "{[" else answer)
    except InvalidStatus as refused:
        return Conversation(answers, refused.response.status_code)
    except ConnectionClosed as closed:
        return (
            Conversation(answers, closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else Conversation(answers, 1006)
        )


@pytest.mark.parametrize("asks", SAME.values(), ids=SAME)
def test_both_answer_the_same_to(asks: list[Ask], ports: Ports, client: httpx.Client) -> None:
    for ask in asks:
        theirs = answer_of(send(client, ports["reference"][ask.agent], ask))
        ours = answer_of(send(client, ports["ours"][ask.agent], ask))
        assert ours == theirs


@pytest.mark.parametrize("decided", DECIDED.values(), ids=DECIDED)
def test_the_contract_decides_what_is_answered_to(decided: Decided, ports: Ports, client: httpx.Client) -> None:
    ask = decided.ask
    assert answer_of(send(client, ports["reference"][ask.agent], ask)) == decided.reference
    assert answer_of(send(client, ports["ours"][ask.agent], ask)) == decided.ours, decided.contract


def test_every_value_that_differs_is_decided() -> None:
    assert {f"value: {name}" for name in keys_of("ODD_VALUES")} == {
        name for name in DECIDED if name.startswith("value: ")
    }


@pytest.mark.parametrize("talk", SAME_TALKS.values(), ids=SAME_TALKS)
def test_both_hold_the_same_conversation_with(talk: Talk, ports: Ports) -> None:
    theirs = converse(ports["reference"][talk.agent], talk)
    assert theirs.answers[0] == HELLO
    assert converse(ports["ours"][talk.agent], talk) == theirs


@pytest.mark.parametrize("decided", DECIDED_TALKS.values(), ids=DECIDED_TALKS)
def test_the_contract_decides_how_a_conversation_ends_with(decided: DecidedTalk, ports: Ports) -> None:
    talk = decided.talk
    assert converse(ports["reference"][talk.agent], talk) == decided.reference
    assert converse(ports["ours"][talk.agent], talk) == decided.ours, decided.contract


def test_an_agent_sees_no_header_that_the_reference_withholds(
    reference: Runtime, ports: Ports, client: httpx.Client
) -> None:
    module = "bedrock_agentcore.runtime.models"
    listed = reference.run("-c", f"import {module} as m; print(*sorted(m.RESTRICTED_HEADERS))", directory=HERE)
    framing = {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
    names = [
        name for name in listed.stdout.split() if name not in framing and not name.startswith((":", "sec-websocket"))
    ]
    assert len(names) > 70
    ask = Ask("async", {"tell": "headers"}, [(name, "x") for name in names])
    assert answer_of(send(client, ports["reference"]["async"], ask)) == Answer(200, None)
    assert answer_of(send(client, ports["ours"]["async"], ask)) == Answer(200, None)


def test_the_content_type_of_a_stream_needs_no_charset(ports: Ports, client: httpx.Client) -> None:
    ask = Ask("generator", NUMBERS)
    theirs = send(client, ports["reference"]["generator"], ask).headers["content-type"]
    ours = send(client, ports["ours"]["generator"], ask).headers["content-type"]
    assert (theirs, ours) == ("text/event-stream; charset=utf-8", "text/event-stream")
