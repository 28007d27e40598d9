"""``BedrockAgentCoreApp``: an agent as an application of its own."""

import contextlib
import inspect
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import uvicorn
from litestar import Litestar
from litestar.openapi import OpenAPIConfig

from litestar_agentcore.authoring import AgentAuthoring, AnyFunction
from litestar_agentcore.controllers.invocations import PATH as INVOCATIONS
from litestar_agentcore.controllers.invocations import FastPath
from litestar_agentcore.errors import exception_handlers
from litestar_agentcore.lost_connections import client_send
from litestar_agentcore.plugin import APP_LOGGER, AgentCorePlugin
from litestar_agentcore.server import run_options
from litestar_agentcore.worker_processes import import_string, is_being_imported_by_worker

logger = logging.getLogger(__name__)

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class BedrockAgentCoreApp(AgentAuthoring, Litestar):
    """An agent, served as Amazon Bedrock AgentCore Runtime serves it. It is a ``litestar.Litestar``.

    An agent written for the reference runtime moves here by importing this class in the place of that one's.

    Args:
        debug: Whether payloads may ask for debug actions, and Litestar's debug mode is on.
        lifespan: An async context manager function of the app, as Starlette takes it, or a sequence of them, as
            Litestar does.
        middleware: Litestar middleware, or Starlette's ``Middleware(...)`` entries.
        **litestar_options: Whatever ``litestar.Litestar`` takes: ``route_handlers``, ``plugins``,
            ``exception_handlers``, ``openapi_config``, ``cors_config`` and so on.

    Raises:
        SettingsError: An ``AGENTCORE_*`` variable makes no sense.
    """

    _serves_http: ClassVar[bool] = True

    logger: logging.Logger
    """A logger for the author's own lines; they reach standard error whatever the root logger has."""

    def __init__(
        self,
        debug: bool = False,
        lifespan: Lifespan | Sequence[Any] | None = None,
        middleware: Sequence[Any] | None = None,
        **litestar_options: Any,
    ) -> None:
        self._lifespan_state: dict[str, Any] = {}
        self._fast_path: FastPath | None = None
        self._plugin = AgentCorePlugin(debug=debug, logging=True, http=self._serves_http)
        self.agent = self._plugin.agent
        options = dict(litestar_options)
        options["plugins"] = [self._plugin, *(options.get("plugins") or ())]
        options["exception_handlers"] = exception_handlers(
            options.get("exception_handlers"), expose_errors=self.agent.settings.expose_errors
        )
        options.setdefault("logging_config", None)  # Litestar's default would set up the host program's root logger
        options.setdefault("openapi_config", OpenAPIConfig(title="Agent", version="1"))
        super().__init__(
            debug=debug,
            lifespan=[self._keep_state(lifespan)] if callable(lifespan) else lifespan,
            middleware=[_litestar_middleware(entry) for entry in middleware or ()],
            **options,
        )
        if self.logging_config is None:
            self.get_logger = logging.getLogger
            self.logger = self._plugin.log_setup.configure_logger(APP_LOGGER, debug)

    @property
    def handlers(self) -> Mapping[str, Callable[..., Any]]:  # noqa: D102 - inherited
        return self._plugin.handlers

    handlers.__doc__ = AgentAuthoring.handlers.__doc__

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve as an ASGI application."""
        if not self._plugin.serves and scope["type"] != "lifespan":  # mounted in an application without our lifespan
            self._plugin.begin_to_serve()
        if self._lifespan_state:
            scope.setdefault("state", {}).update(self._lifespan_state)
        exchange = self._plugin.exchange
        if exchange is not None and scope.get("path") == INVOCATIONS and scope.get("method") == "POST":
            fast_path = self._fast_path
            if fast_path is None:
                fast_path = self._fast_path = FastPath(self, exchange)
            if fast_path.serves(scope):
                await fast_path.serve(scope, receive, send)
                return
        await super().__call__(scope, receive, client_send(send))

    def _keep_state(self, lifespan: Lifespan) -> Lifespan:
        """Have what the lifespan yields be in the state of each request, as the ASGI specification's lifespan state."""

        @asynccontextmanager
        async def keeping(app: Any) -> AsyncIterator[None]:
            async with lifespan(app) as state:
                self._lifespan_state = dict(state or {})
                yield

        return keeping

    def _register_entrypoint(self, function: AnyFunction, payload: Any) -> AnyFunction:
        self._plugin.entrypoint(function, payload=payload)
        # ``handler.run()`` starts the server. An object may have a ``run`` of its own, which is left alone.
        if inspect.isfunction(function) or not hasattr(function, "run"):
            with contextlib.suppress(AttributeError, TypeError):
                function.run = self._run_entrypoint  # type: ignore[attr-defined]
        return function

    if not TYPE_CHECKING:  # or a type checker would take any attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if (instead := _INSTEAD.get(name)) is not None:
                message += f": it is a Litestar application. Use {instead}"
            raise AttributeError(message, name=name, obj=self)

    def _run_entrypoint(self, port: int = 8080, host: str | None = None) -> None:
        self.run(port, host)

    def run(self, port: int = 8080, host: str | None = None, **kwargs: Any) -> None:
        """Serve the agent with uvicorn until the process is told to end.

        Args:
            port: The port to listen on.
            host: The address to listen on; by default ``0.0.0.0`` inside a container and ``127.0.0.1`` elsewhere.
            **kwargs: Options of ``uvicorn.run``, which win over the defaults. With ``workers``, or the variable
                ``WEB_CONCURRENCY``, above 1 each worker process imports the app anew, or runs the script that made it:
                so the app must be a variable of a module, and a script must call this under
                ``if __name__ == "__main__":``.

        Raises:
            ValueError: Several workers are asked for, and they could not import the app.
            RuntimeError: A worker process runs the script that calls this, and the call is not guarded.
        """
        address = {"host": host or default_host(), "port": port}
        options = run_options(self.agent.settings, self._plugin.log_setup, self.debug, address | kwargs)
        uvicorn.run(self._for_workers(options), **options)

    def _for_workers(self, options: dict[str, Any]) -> Any:
        """What to give to uvicorn: with several workers the app's import string."""
        workers = options.get("workers")
        if workers is None:
            text = os.environ.get("WEB_CONCURRENCY", "").strip()
            workers = int(text) if text.isdecimal() else 1
        if workers <= 1:
            return self
        if is_being_imported_by_worker():
            raise RuntimeError(
                "Each worker process runs this script anew, and must not start workers of its own: call app.run() under"
                ' `if __name__ == "__main__":`'
            )
        if (found := import_string(self)) is not None:
            return found
        reason = "each worker process imports the app, which must be a variable of a module or script for that"
        if options.get("workers") is not None:
            raise ValueError(f"app.run(workers={workers}) cannot work here: {reason}")
        logger.warning("WEB_CONCURRENCY=%s is not heeded: %s", workers, reason)
        options["workers"] = 1
        return self


_REGISTER = "BedrockAgentCoreApp(route_handlers=[...]) or app.register(...), with a Litestar route handler"
_MIDDLEWARE = "BedrockAgentCoreApp(middleware=[Middleware(...)])"
_EXCEPTION_HANDLERS = "BedrockAgentCoreApp(exception_handlers={...})"
_LIFESPAN = "BedrockAgentCoreApp(lifespan=...), or on_startup=[...] and on_shutdown=[...]"
_MOUNT = 'app.register(litestar.asgi("/path", is_static=True, copy_scope=True)(application))'
_WEBSOCKET = 'app.register(litestar.websocket("/path")(handler))'
_INSTEAD = {
    "add_api_route": _REGISTER,
    "add_api_websocket_route": _WEBSOCKET,
    "add_event_handler": _LIFESPAN,
    "add_exception_handler": _EXCEPTION_HANDLERS,
    "add_middleware": _MIDDLEWARE,
    "add_route": _REGISTER,
    "add_websocket_route": _WEBSOCKET,
    "api_route": _REGISTER,
    "build_middleware_stack": _MIDDLEWARE,
    "exception_handler": _EXCEPTION_HANDLERS,
    "host": f"{_MOUNT} behind a proxy that maps hosts to paths",
    "include_router": _REGISTER,
    "max_body_size": "AGENTCORE_MAX_BODY_BYTES, an environment variable",
    "middleware_stack": _MIDDLEWARE,
    "mount": _MOUNT,
    "on_event": _LIFESPAN,
    "route": _REGISTER,
    "router": "app.routes to read routes, and to add one " + _REGISTER,
    "url_path_for": "app.route_reverse(name)",
    "user_middleware": _MIDDLEWARE,
    "websocket_route": _WEBSOCKET,
}
"""What to use in the place of attributes that applications of Starlette and FastAPI have."""


def default_host() -> str:
    """The address to listen on where none is given.

    Returns:
        ``0.0.0.0`` inside a container, where only the platform can reach it; ``127.0.0.1`` elsewhere.
    """
    variables = ("DOCKER_CONTAINER", "KUBERNETES_SERVICE_HOST")
    inside = Path("/.dockerenv").exists() or any(os.environ.get(variable) for variable in variables)
    if inside:
        return "0.0.0.0"  # noqa: S104 - a container's port is of no use otherwise  # nosec B104
    return "127.0.0.1"


def _litestar_middleware(entry: Any) -> Any:
    """Litestar's form of a Starlette ``Middleware(cls, *args, **kwargs)``; anything else as it is."""
    if not callable(entry) and hasattr(entry, "cls") and hasattr(entry, "kwargs"):
        return lambda app: entry.cls(app, *getattr(entry, "args", ()), **entry.kwargs)
    return entry
