"""What an author writes: the decorators and methods that the app and the plugin have in common."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar, overload

from litestar_agentcore.protocol.models import PingStatus
from litestar_agentcore.runtime.agent import Agent, WebSocketHandler
from litestar_agentcore.runtime.health import PingFunction
from litestar_agentcore.runtime.sessions import SessionEndHook

P = ParamSpec("P")
R = TypeVar("R")
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
AnyPingFunction = TypeVar("AnyPingFunction", bound=PingFunction)
AnySessionEndHook = TypeVar("AnySessionEndHook", bound=SessionEndHook)
AnyWebSocketHandler = TypeVar("AnyWebSocketHandler", bound=WebSocketHandler)


_MISSING: Any = object()


class AgentAuthoring:
    """The decorators and methods with which an agent is written. Their names are the reference runtime's."""

    agent: Agent
    """What is registered and counted here."""

    @overload
    def entrypoint(self, function: AnyFunction, *, payload: Any = None) -> AnyFunction: ...

    @overload
    def entrypoint(self, *, payload: Any) -> Callable[[AnyFunction], AnyFunction]: ...

    def entrypoint(self, function: Any = _MISSING, *, payload: Any = None) -> Any:
        """Register the handler of ``POST /invocations``, as ``@app.entrypoint`` or ``@app.entrypoint(payload=Ask)``.

        It is called as ``handler(payload)``, or ``handler(payload, context)`` where its second parameter is named
        ``context``. Plain and async functions, generators, partials, bound methods and callable objects will do. Where
        the payload is annotated with a type that msgspec (or pydantic) decodes, the body is validated against it.

        Behind a ``functools.wraps`` decorator the payload is plain JSON unless ``payload`` says its type.

        Args:
            function: The handler.
            payload: The type of its payload, where an annotation cannot say it.

        Returns:
            The function, unchanged.

        Raises:
            TypeError: It cannot be called with a payload, or the payload's type cannot be decoded.
        """
        if function is _MISSING:
            return partial(self._register_entrypoint, payload=payload)
        return self._register_entrypoint(function, payload)

    def _register_entrypoint(self, function: AnyFunction, payload: Any) -> AnyFunction:
        self.agent.register_entrypoint(function, payload)
        return function

    @property
    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """What is registered: ``{"main": entrypoint}``, or nothing. It cannot be changed; see :meth:`entrypoint`."""
        entrypoint = self.agent.entrypoint
        return MappingProxyType({} if entrypoint is None else {"main": entrypoint.function})

    def ping(self, function: AnyPingFunction) -> AnyPingFunction:
        """Register a health function of the author's own.

        Args:
            function: A plain or async function without arguments that returns a :class:`PingStatus` or its string.

        Returns:
            The function, unchanged.

        Raises:
            TypeError: It is not callable.
        """
        self.agent.health.register(function)
        return function

    def websocket(self, function: AnyWebSocketHandler) -> AnyWebSocketHandler:
        """Register the handler of ``/ws``.

        Args:
            function: ``async def handler(websocket, context)``. It accepts, receives, sends and closes itself.

        Returns:
            The function, unchanged.

        Raises:
            TypeError: It is not async, or takes other arguments.
        """
        self.agent.register_websocket(function)
        return function

    def session_end(self, function: AnySessionEndHook) -> AnySessionEndHook:
        """Have a function called when a session has ended: idle for long enough, stopped, or at a shutdown.

        Args:
            function: A plain function (which runs in a thread) or an async one (on the agent's loop) of the session's
                id. What it raises is logged.

        Returns:
            The function, unchanged.

        Raises:
            TypeError: It cannot be called with one argument, or is a generator function.
        """
        self.agent.sessions.register_hook(function)
        return function

    def async_task(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Have an async function count as an active task while it runs, so that ``/ping`` says ``HealthyBusy``.

        Args:
            function: The async function.

        Returns:
            An async function of the same name, signature and docstring.

        Raises:
            ValueError: It is not async.
        """
        return self.agent.tasks.track(function)

    def add_async_task(self, name: str, metadata: Mapping[str, Any] | None = None) -> int:
        """Count a task as active, from any thread.

        Args:
            name: Its name in metrics, spans and the log.
            metadata: Whatever else is worth knowing of it.

        Returns:
            The id to complete it with.
        """
        return self.agent.tasks.add(name, metadata)

    def complete_async_task(self, task_id: int) -> bool:
        """Count a task as ended, from any thread.

        Args:
            task_id: What :meth:`add_async_task` returned.

        Returns:
            False, after a warning in the log, where no such task is active.
        """
        return self.agent.tasks.complete(task_id)

    def get_async_task_info(self) -> dict[str, Any]:
        """The active tasks.

        Returns:
            ``{"active_count": n, "running_jobs": [{"name": ..., "duration": seconds}]}``.
        """
        return self.agent.tasks.info()

    def get_current_ping_status(self) -> PingStatus:
        """The status that ``/ping`` gives: the forced one, else the custom function's, else the automatic one."""
        return self.agent.health.status()

    def force_ping_status(self, status: PingStatus) -> None:
        """Give this status, whatever the tasks and the custom function say.

        Args:
            status: The status, or its string.

        Raises:
            ValueError: There is no such status.
        """
        self.agent.health.force(status)

    def clear_forced_ping_status(self) -> None:
        """Give the custom or automatic status again."""
        self.agent.health.clear()
