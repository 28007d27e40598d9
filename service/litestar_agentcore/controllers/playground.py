"""``GET /playground``, and what its page asks for."""

import inspect
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

import msgspec
from litestar import Controller, Response, Router, get, head
from litestar.handlers import BaseRouteHandler
from litestar.utils.path import join_paths, normalize_path

from litestar_agentcore.guards import require_authentication
from litestar_agentcore.playground.page import playground_page
from litestar_agentcore.playground.payload_schema import payload_schema
from litestar_agentcore.protocol.data_plane import LOCAL_ARN
from litestar_agentcore.protocol.models import PingAnswer, SessionState, TaskInfo
from litestar_agentcore.runtime.agent import Agent
from litestar_agentcore.runtime.sessions import Session

_HTML = "text/html"
_NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class PlaygroundState(msgspec.Struct, frozen=True):
    """The answer of ``GET /playground/state``."""

    ping: PingAnswer
    """What ``/ping`` says."""
    tasks: TaskInfo
    sessions: list[SessionState]
    """Of the process that answers alone, where there are several."""
    processes: int
    """How many worker processes serve the agent."""


class AgentDescription(msgspec.Struct, frozen=True):
    """The answer of ``GET /playground/agent``."""

    name: str
    description: str | None
    payload_schema: dict[str, Any] | None
    """The JSON schema of its payloads, or ``None`` for any JSON."""
    websocket: bool
    """Whether it has a handler of ``/ws``."""
    http: bool
    """Whether it has plain HTTP."""
    ag_ui_path: str | None
    """Where its runs of AG-UI are asked for, where it speaks that."""
    runtime_arn: str
    """The ARN that it is addressed with on ``/runtimes/{arn}/...``."""


def playground_controllers(agent: Agent, path: str) -> list[type[Controller]]:
    """Make the controllers of the playground.

    The page needs no credentials, and has nothing of the agent in it. What it asks for does, where ``/invocations``
    does.

    Args:
        agent: The agent that it calls.
        path: Where its page is.

    Returns:
        Litestar controllers.
    """
    page = playground_page(path)

    class PlaygroundController(Controller):
        include_in_schema = False

        @get(path, name="agentcore-playground")
        async def show(self) -> Response[bytes]:
            """The page."""
            return Response(page.body, headers=page.headers, media_type=_HTML)

        @head(path)
        async def show_head(self) -> Response[None]:
            """The page's headers."""
            headers = page.headers | {"content-length": str(len(page.body))}
            return Response(None, headers=headers, media_type=_HTML)

    class PlaygroundDataController(Controller):
        include_in_schema = False
        guards = (require_authentication,)

        @get(f"{path}/state", name="agentcore-playground-state")
        async def state(self) -> Response[PlaygroundState]:
            """What the agent does now."""
            return Response(await _state_of(agent), headers=_NO_STORE)

        @get(f"{path}/agent", name="agentcore-playground-agent")
        async def description(self) -> Response[AgentDescription]:
            """What the page must know of the agent to call it."""
            return Response(_description_of(agent), headers=_NO_STORE)

    return [PlaygroundController, PlaygroundDataController]


def declares_path(route_handlers: Iterable[Any], path: str) -> bool:
    """Tell whether an application has a route of its own where the page would be.

    Args:
        route_handlers: What it is made of: route handlers, controllers and routers.
        path: Where the page would be.
    """
    wanted = normalize_path(path)
    return any(declared == wanted for value in route_handlers for declared in _paths_of(value))


def _paths_of(value: Any) -> Iterator[str]:
    if isinstance(value, Router):
        yield from (route.path for route in value.routes)
    elif isinstance(value, BaseRouteHandler):
        yield from map(normalize_path, value.paths)
    elif inspect.isclass(value) and issubclass(value, Controller):
        prefix: Any = getattr(value, "path", "")  # a descriptor where the class does not set it
        for _, handler in inspect.getmembers(value, lambda member: isinstance(member, BaseRouteHandler)):
            yield from (join_paths([prefix if isinstance(prefix, str) else "", path]) for path in handler.paths)


async def _state_of(agent: Agent) -> PlaygroundState:
    now = monotonic()
    return PlaygroundState(
        ping=await agent.health.answer(),
        tasks=msgspec.convert(agent.tasks.info(), TaskInfo),
        sessions=[_session_state(session, now) for session in agent.sessions.list()],
        processes=agent.health.record.processes,
    )


def _session_state(session: Session, now: float) -> SessionState:
    return SessionState(
        session_id=session.id,
        age=max(0.0, now - session.began),
        idle=max(0.0, now - session.last_active),
        invocations=session.invocations,
        streams=session.streams,
        websockets=session.websockets,
        tasks=session.tasks,
    )


def _description_of(agent: Agent) -> AgentDescription:
    entrypoint = agent.entrypoint
    return AgentDescription(
        name=agent.telemetry.agent_name,
        description=entrypoint.description if entrypoint is not None else None,
        payload_schema=payload_schema(entrypoint.payload_type) if entrypoint is not None else None,
        websocket=agent.websocket_handler is not None,
        http="http" in agent.protocol_paths,
        ag_ui_path=agent.protocol_paths.get("ag-ui", (None,))[0],
        runtime_arn=agent.settings.runtime_arn or LOCAL_ARN,
    )
