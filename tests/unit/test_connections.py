"""The request and the WebSocket of an agent: what agents written for Starlette ask of them."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import litestar
import pytest
import starlette.responses
import starlette.websockets
from litestar.datastructures import Headers
from litestar.exceptions import SerializationException, WebSocketDisconnect
from litestar_agentcore import BedrockAgentCoreApp, RequestContext, connections
from litestar_agentcore.connections import AgentRequest, AgentWebSocket, agent_request, agent_websocket

from tests.unit.conftest import REQUEST_ID, SESSION_ID, Client, LogLines

CUSTOM = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"
CONNECT = {"type": "websocket.connect"}
LEAVE = {"type": "websocket.disconnect", "code": 4001, "reason": "bored"}
STATES = starlette.websockets.WebSocketState

Act = Callable[[AgentWebSocket], Awaitable[Any]]


@litestar.websocket("/ws")
async def route_handler(socket: litestar.WebSocket[Any, Any, Any]) -> None: ...


class Conversation:
    """A WebSocket between a handler and a client that says what it is told to."""

    def __init__(self, *messages: dict[str, Any], socket_class: Any = litestar.WebSocket, **scope: Any) -> None:
        self.messages = [CONNECT, *messages]
        self.sent: list[Any] = []
        self.failure: Exception | None = None
        app = litestar.Litestar([route_handler], websocket_class=socket_class, openapi_config=None, logging_config=None)
        own: Any = {"type": "websocket", "headers": [], "litestar_app": app, "route_handler": route_handler}
        self.socket = agent_websocket(own | scope, self.receive, self.send)

    async def receive(self) -> Any:
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.failure is not None:
            raise self.failure


def text(text: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": text}


def binary(data: bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": data}


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


@pytest.fixture
def without_starlette(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "starlette.websockets")


# The handshake


@pytest.mark.parametrize(
    "accept",
    [
        lambda socket: socket.accept("chat"),
        lambda socket: socket.accept(subprotocol="chat"),
        lambda socket: socket.accept(subprotocols="chat"),
    ],
)
def test_a_subprotocol_is_accepted_as_starlette_and_as_litestar_name_it(accept: Act) -> None:
    talk = Conversation()
    run(accept(talk.socket))
    assert talk.sent == [{"type": "websocket.accept", "subprotocol": "chat", "headers": []}]


@pytest.mark.parametrize(
    "headers",
    [[(b"x-own", b"1")], ((b"x-own", b"1"),), iter([(b"x-own", b"1")]), {"x-own": "1"}, Headers({"x-own": "1"})],
)
def test_headers_of_the_handshake_are_pairs_or_a_mapping(headers: Any) -> None:
    talk = Conversation()
    run(talk.socket.accept(headers=headers))
    assert talk.sent[0]["headers"] == [(b"x-own", b"1")]


def test_a_header_that_cannot_be_sent_is_left_out_of_the_handshake(log: LogLines) -> None:
    talk = Conversation()
    run(talk.socket.accept(headers={"X-Good": "1", "X-Name": "日本"}))
    assert talk.sent[0]["headers"] == [(b"X-Good", b"1")]
    assert ["X-Name" in line["message"] for line in log.lines] == [True]


def test_a_handler_may_receive_the_handshake_itself_and_accept_twice() -> None:
    async def handle(socket: AgentWebSocket) -> None:
        assert (await socket.receive())["type"] == "websocket.connect"
        await socket.accept()
        await socket.accept()

    talk = Conversation()
    run(handle(talk.socket))
    assert [message["type"] for message in talk.sent] == ["websocket.accept"]


DENIALS = [
    lambda: litestar.Response({"error": "who?"}, status_code=401, headers={"X-Own": "1"}),
    lambda: starlette.responses.JSONResponse({"error": "who?"}, 401, {"X-Own": "1"}),
]


@pytest.mark.parametrize("response", DENIALS)
def test_a_handshake_is_denied_with_a_response_of_litestar_or_starlette(response: Callable[[], Any]) -> None:
    talk = Conversation(extensions={"websocket.http.response": {}})
    run(talk.socket.send_denial_response(response()))
    start, body = talk.sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert dict(start["headers"])[b"x-own"] == b"1"
    assert (body["type"], json.loads(body["body"])) == ("websocket.http.response.body", {"error": "who?"})
    assert talk.socket.application_state is STATES.DISCONNECTED


@pytest.mark.parametrize("extensions", [{}, None, {"extensions": None}])
def test_a_server_that_cannot_deny_is_an_error(extensions: Any) -> None:
    talk = Conversation(**extensions or {})
    with pytest.raises(RuntimeError):
        run(talk.socket.send_denial_response(starlette.responses.Response()))
    assert talk.sent == []


def test_a_denial_that_is_no_response_is_an_error() -> None:
    talk = Conversation(extensions={"websocket.http.response": {}})
    with pytest.raises(TypeError, match="dict"):
        run(talk.socket.send_denial_response({"error": "who?"}))


# Messages


async def all_of(iterator: Any) -> list[Any]:
    return [each async for each in iterator]


@pytest.mark.parametrize(
    ("messages", "iterate", "expected"),
    [
        ([text("a"), text("")], lambda socket: socket.iter_text(), ["a", ""]),
        ([binary(b"a"), binary(b"\xff")], lambda socket: socket.iter_bytes(), [b"a", b"\xff"]),
        (
            [text("1"), text('{"a": NaN}')],
            lambda socket: socket.iter_json(),
            [1, {"a": pytest.approx(float("nan"), nan_ok=True)}],
        ),
        ([binary(b"[1]")], lambda socket: socket.iter_json("binary"), [[1]]),
    ],
)
def test_messages_are_iterated_until_the_client_leaves(messages: Any, iterate: Any, expected: Any) -> None:
    talk = Conversation(*messages, LEAVE)
    assert run(all_of(iterate(talk.socket))) == expected


@pytest.mark.parametrize("document", ["", "{", "[1] 2", "nope"])
def test_what_is_not_json_is_the_error_of_json_and_of_litestar(document: str) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(document)
    for receive in (lambda socket: socket.receive_json(), lambda socket: all_of(socket.iter_json())):
        with pytest.raises(json.JSONDecodeError) as raised:
            run(receive(Conversation(text(document)).socket))
        assert isinstance(raised.value, SerializationException)
        assert str(raised.value) == raised.value.detail == str(expected.value)
        assert (raised.value.msg, raised.value.pos) == (expected.value.msg, expected.value.pos)
        assert (raised.value.doc, raised.value.lineno) == (document, expected.value.lineno)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ({"a": "ä", "n": None}, '{"a":"ä","n":null}'),
        ({1: 10**30, None: True}, '{"1":1000000000000000000000000000000,"null":true}'),
        (float("nan"), "null"),
    ],
)
def test_a_value_is_sent_as_an_answer_would_be(value: Any, sent: str) -> None:
    talk = Conversation()
    run(talk.socket.send_json(value))
    run(talk.socket.send_json(value, mode="binary"))
    assert [(message["text"], message["bytes"]) for message in talk.sent[1:]] == [(sent, None), (None, sent.encode())]


def test_a_serializer_of_the_handlers_own_is_used() -> None:
    talk = Conversation()
    run(talk.socket.send_json(object(), serializer=lambda value: "own"))
    assert talk.sent[-1]["text"] == '"own"'


# The end


RECEIVES: list[Act] = [
    lambda socket: socket.receive_text(),
    lambda socket: socket.receive_bytes(),
    lambda socket: socket.receive_json(),
    lambda socket: socket.receive_data("text"),
]
SENDS: list[Act] = [
    lambda socket: socket.send_text("a"),
    lambda socket: socket.send_bytes(b"a"),
    lambda socket: socket.send_json({}),
    lambda socket: socket.send({"type": "websocket.send", "text": "a", "bytes": None}),
]


def disconnect_of(*acts: Act, talk: Conversation) -> Any:
    """What the last of some acts raises."""

    async def handle() -> None:
        await talk.socket.accept()
        for act in acts[:-1]:
            with pytest.raises(WebSocketDisconnect):
                await act(talk.socket)
        await acts[-1](talk.socket)

    with pytest.raises(WebSocketDisconnect) as raised:
        run(handle())
    return raised.value


@pytest.mark.parametrize("act", RECEIVES)
def test_a_client_that_leaves_raises_starlettes_exception_and_litestars_with_its_code_and_reason(act: Act) -> None:
    error = disconnect_of(act, talk=Conversation(LEAVE))
    assert isinstance(error, starlette.websockets.WebSocketDisconnect)
    assert (error.code, error.reason) == (4001, "bored")
    assert "4001" in str(error)


@pytest.mark.parametrize("act", [*RECEIVES, *SENDS, lambda socket: socket.receive()])
def test_whatever_is_done_after_that_raises_the_same(act: Act) -> None:
    error = disconnect_of(RECEIVES[0], act, act, talk=Conversation(LEAVE))
    assert isinstance(error, starlette.websockets.WebSocketDisconnect)
    assert (error.code, error.reason) == (4001, "bored")


@pytest.mark.parametrize("failure", [OSError(), ConnectionResetError(), WebSocketDisconnect(detail="gone", code=1006)])
@pytest.mark.parametrize("act", SENDS)
def test_a_client_that_vanishes_raises_the_same_from_sends(act: Act, failure: Exception) -> None:
    talk = Conversation()

    async def failing(socket: AgentWebSocket) -> None:
        talk.failure = failure
        await act(socket)

    error = disconnect_of(failing, RECEIVES[0], failing, talk=talk)
    assert isinstance(error, starlette.websockets.WebSocketDisconnect)
    assert (error.code, error.reason) == (1006, "")


@pytest.mark.parametrize("message", [{"type": "websocket.disconnect"}, {**LEAVE, "code": None, "reason": None}])
def test_a_client_that_gives_no_code_left_with_1005(message: dict[str, Any]) -> None:
    error = disconnect_of(RECEIVES[0], talk=Conversation(message))
    assert (error.code, error.reason) == (1005, "")


@pytest.mark.usefixtures("without_starlette")
def test_where_starlette_is_not_loaded_the_exception_is_litestars() -> None:
    error = disconnect_of(RECEIVES[0], talk=Conversation(LEAVE))
    assert (error.code, error.reason) == (4001, "bored")
    assert not isinstance(error, starlette.websockets.WebSocketDisconnect)


def test_closing_is_done_once() -> None:
    async def handle(socket: AgentWebSocket) -> None:
        await socket.accept()
        await socket.close(4000, "done")
        await socket.close()
        with pytest.raises(RuntimeError, match=r"websocket\.send"):
            await socket.send_text("more")

    talk = Conversation()
    run(handle(talk.socket))
    assert talk.sent[1:] == [{"type": "websocket.close", "code": 4000, "reason": "done"}]


@pytest.mark.parametrize("failure", [None, OSError(), WebSocketDisconnect(detail="gone")])
def test_closing_after_the_client_left_is_silent(failure: Exception | None) -> None:
    async def handle(socket: AgentWebSocket) -> None:
        await socket.accept()
        if failure is None:
            with pytest.raises(WebSocketDisconnect):
                await socket.receive_text()
        talk.failure = failure
        await socket.close()
        await socket.close()

    talk = Conversation(LEAVE)
    run(handle(talk.socket))
    assert len(talk.sent) == (1 if failure is None else 2)


async def states_of(talk: Conversation) -> list[tuple[Any, Any]]:
    socket, seen = talk.socket, []

    def see() -> None:
        seen.append((socket.client_state, socket.application_state))

    see()
    await socket.receive()
    see()
    await socket.accept()
    see()
    await socket.receive_text()
    see()
    with pytest.raises(WebSocketDisconnect):
        await socket.receive_text()
    see()
    return seen


def expected_states(states: Any) -> list[tuple[Any, Any]]:
    return [
        (states.CONNECTING, states.CONNECTING),
        (states.CONNECTED, states.CONNECTING),
        (states.CONNECTED, states.CONNECTED),
        (states.CONNECTED, states.CONNECTED),
        (states.DISCONNECTED, states.CONNECTED),
    ]


def test_the_states_of_both_sides_are_starlettes() -> None:
    assert run(states_of(Conversation(text("a"), LEAVE))) == expected_states(STATES)


@pytest.mark.usefixtures("without_starlette")
def test_where_starlette_is_not_loaded_the_states_are_ours_of_the_same_names() -> None:
    assert run(states_of(Conversation(text("a"), LEAVE))) == expected_states(connections.WebSocketState)
    assert [(state.name, state.value) for state in connections.WebSocketState] == [
        (state.name, state.value) for state in STATES
    ]


def test_the_state_is_disconnected_once_the_handler_closed_or_the_client_vanished() -> None:
    async def handle(socket: AgentWebSocket) -> None:
        await socket.accept()
        await socket.close()

    talk = Conversation()
    run(handle(talk.socket))
    assert (talk.socket.client_state, talk.socket.application_state) == (STATES.CONNECTED, STATES.DISCONNECTED)

    vanished = Conversation()
    vanished.failure = OSError()
    with pytest.raises(WebSocketDisconnect):
        run(vanished.socket.accept())
    assert vanished.socket.client_state is STATES.DISCONNECTED


# What requests and WebSockets have in common


HEADERS = [(b"X-Twice", b"1"), (b"accept", b"*/*"), (b"x-twice", b"2")]


def request_of(request_class: Any = litestar.Request, left: bool = False) -> AgentRequest:
    app = litestar.Litestar(request_class=request_class, openapi_config=None, logging_config=None)
    scope: Any = {"type": "http", "method": "POST", "headers": HEADERS, "litestar_app": app}
    return agent_request(scope, lambda: left)


@pytest.mark.parametrize("connection", [request_of(), Conversation(headers=HEADERS).socket])
def test_headers_and_the_scope_are_read_as_starlettes(connection: Any) -> None:
    assert connection.headers.getlist("X-TWICE") == ["1", "2"]
    assert connection.headers.getlist("x-none") == []
    assert connection.headers.raw == HEADERS
    assert connection.headers["Accept"] == connection.headers.get("accept") == "*/*"
    assert connection["headers"] is connection.scope["headers"]
    assert set(connection) == set(connection.scope)
    assert "type" in connection
    with pytest.raises(KeyError):
        connection["nothing"]


@pytest.mark.parametrize("connection", [request_of(), Conversation(headers=HEADERS).socket])
def test_query_parameters_are_read_as_starlettes(connection: Any) -> None:
    connection.scope["query_string"] = b"a=1&b=2&a=3"
    assert connection.query_params.getlist("a") == ["1", "3"]
    assert connection.query_params.getlist("c") == []
    assert (connection.query_params["b"], connection.query_params.get("c")) == ("2", None)


def test_the_method_is_in_the_request() -> None:
    assert request_of()["method"] == "POST"


@pytest.mark.parametrize("left", [True, False])
def test_a_request_tells_whether_its_client_left(left: bool) -> None:
    assert asyncio.run(request_of(left=left).is_disconnected()) is left


def test_the_classes_that_an_application_chose_stay_and_win() -> None:
    class OwnRequest(litestar.Request[Any, Any, Any]):
        __slots__ = ("mark",)

        async def json(self) -> Any:
            return "own"

    class OwnSocket(litestar.WebSocket[Any, Any, Any]):
        async def receive_json(self, mode: Any = "text") -> Any:
            return ["own", await super().receive_json(mode)]

    request = request_of(OwnRequest)
    assert isinstance(request, OwnRequest)
    assert isinstance(request, AgentRequest)
    assert type(request).__name__ == "OwnRequest"
    assert asyncio.run(request.json()) == "own"
    assert type(request_of(OwnRequest)) is type(request)

    class OwnAgentRequest(AgentRequest):
        pass

    assert type(request_of(OwnAgentRequest)) is OwnAgentRequest
    assert type(request_of(type(request))) is type(request)

    talk = Conversation(text("[NaN]"), socket_class=OwnSocket)
    assert isinstance(talk.socket, OwnSocket)
    assert str(run(talk.socket.receive_json())) == "['own', [nan]]"


# In an application


def test_a_handler_with_starlettes_habits_works(app: BedrockAgentCoreApp, client: Client, log: LogLines) -> None:
    states, left_with = [], []
    ended = threading.Event()

    @app.websocket
    async def handler(websocket: Any, context: RequestContext) -> None:
        await websocket.accept(subprotocol="chat")
        try:
            while websocket.client_state == STATES.CONNECTED:
                try:
                    await websocket.send_json({"echo": await websocket.receive_json()})
                except json.JSONDecodeError:
                    await websocket.send_json({"error": "no JSON"})
        except starlette.websockets.WebSocketDisconnect as left:
            left_with.append(left.code)
        finally:
            await websocket.close()
            states.append(websocket.client_state)
            ended.set()

    with client.websocket_connect("/ws", subprotocols=["chat"]) as websocket:
        assert websocket.accepted_subprotocol == "chat"
        websocket.send_text("[1]")
        assert websocket.receive_json(timeout=60) == {"echo": [1]}
        websocket.send_text("{")
        assert websocket.receive_json(timeout=60) == {"error": "no JSON"}
    assert ended.wait(60)
    assert (left_with, states) == ([1000], [STATES.DISCONNECTED])
    assert [line for line in log.lines if line["level"] in {"WARNING", "ERROR"}] == []


def test_ids_and_custom_headers_may_come_in_the_query(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Any, context: RequestContext) -> None:
        await websocket.accept()
        headers = websocket.headers
        await websocket.send_json(
            [context.session_id, context.request_id, context.request_headers, headers.get(SESSION_ID)]
        )

    query = f"/ws?{SESSION_ID}=s-1&{REQUEST_ID.lower()}=r%2D1&{CUSTOM}Tenant=a%20b&qualifier=DEFAULT&X-Api-Key=k"
    with client.websocket_connect(query) as websocket:
        assert websocket.receive_json(timeout=60) == ["s-1", "r-1", {f"{CUSTOM}Tenant": "a b"}, "s-1"]
    with client.websocket_connect(query, headers={SESSION_ID: "header"}) as websocket:
        assert websocket.receive_json(timeout=60)[0] == "header"


def test_a_malformed_id_in_the_query_is_refused_as_one_in_a_header(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.websocket
    async def handler(websocket: Any, context: RequestContext) -> None:
        await websocket.accept()

    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect(f"/ws?{SESSION_ID}=a%20b") as websocket:
        websocket.receive(timeout=60)
    assert closed.value.code == 1008


def test_the_request_of_an_invocation_has_starlettes_habits(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    async def handler(payload: Any, context: RequestContext) -> Any:
        request = context.request
        return [request["method"], request.headers.getlist("X-Tenant"), len(request.headers.raw) > 1]

    assert client.post("/invocations", json={}, headers={"X-Tenant": "t"}).json() == ["POST", ["t"], True]


def test_a_context_is_changed_dumped_and_copied_in_a_handler(app: BedrockAgentCoreApp, client: Client) -> None:
    @app.entrypoint
    def handler(payload: Any, context: RequestContext) -> Any:
        context.session_id = "changed"
        other = context.model_copy(update={"request_id": "other"})
        return [context.model_dump(exclude={"request"}), other.model_dump_json(include={"request_id"})]

    assert client.post("/invocations", json={}, headers={REQUEST_ID: "r", SESSION_ID: "s"}).json() == [
        {"session_id": "changed", "request_id": "r", "request_headers": None},
        '{"request_id":"other"}',
    ]


def test_starlettes_websockets_are_not_loaded_for_any_of_this() -> None:
    program = """
import sys
from litestar.testing import TestClient
from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.websocket
async def handler(websocket, context):
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(f"{message} {websocket.client_state.name}")

with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
    websocket.send_text("hi")
    assert websocket.receive_text() == "hi CONNECTED"
assert "starlette.websockets" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
