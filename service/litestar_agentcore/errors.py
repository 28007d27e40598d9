"""Answers to what went wrong outside a handler, in the shape of the contract: ``{"error": ...}``."""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.protocol.headers import HeaderReader, response_headers
from litestar_agentcore.protocol.models import ErrorAnswer
from litestar_agentcore.runtime.failure import message_of

logger = logging.getLogger(__name__)

ServiceRequest = Request[Any, Any, Any]
ExceptionHandler = Callable[[ServiceRequest, Any], Response[Any]]
ExceptionHandlers = Mapping[Any, ExceptionHandler]
"""Exception handlers by exception class or status code, as Litestar takes them."""

_reader = HeaderReader(())

HOOKED_LOGGERS = ("litestar_agentcore.answer", "litestar_agentcore.errors")
"""The loggers whose lines at ERROR are on failures that the application's ``after_exception`` hooks are told of too."""


class BrokenResponseError(RuntimeError):
    """A response that had begun failed, and the server is to close the connection."""

    is_logged = True
    """The failure is in the log: the server's line on it is left out (``agentcore_telemetry.log_handlers``)."""


def answer_exception(request: ServiceRequest, error: Exception) -> Response[ErrorAnswer]:
    """Answer what Litestar or a route of the author's raised.

    Args:
        request: The request that failed.
        error: What was raised; an HTTP exception of any framework has a ``status_code`` and a ``detail``.

    Returns:
        The error in the shape of the contract, with the ids of the request and the headers of the exception.
    """
    values = _reader.read(request.scope["headers"]).values
    token = current_request.set(values)
    try:
        status = status_of(error)
        path = request.scope["path"]
        if status is None:
            status, answer = 500, ErrorAnswer(message_of(error))
            logger.error("%s %s failed", request.method, path, exc_info=error)
        else:
            answer = ErrorAnswer(_words(error, status))
            logger.warning("%s %s was answered with status %d", request.method, path, status)
    finally:
        current_request.reset(token)
    ids = response_headers(values.request_id or "", values.session_id)
    headers = {name.decode(): value.decode() for name, value in ids}
    headers.update(headers_of(error))
    return Response(answer, status_code=status, headers=headers)


def exception_handlers(author: ExceptionHandlers | None) -> dict[Any, ExceptionHandler]:
    """The exception handlers of an app: the author's, and for the rest the service's own.

    Args:
        author: What the author registered, by exception class or status code.

    Returns:
        Handlers for all exceptions, of which the author's win wherever they apply.
    """
    handlers: dict[Any, ExceptionHandler] = {500: answer_exception}
    with contextlib.suppress(ImportError):  # Litestar has a handler of its own for these, of another shape
        handlers[importlib.import_module("starlette.exceptions").HTTPException] = answer_exception
    if Exception not in (author or {}):  # the author's would have to stand back behind a nearer class
        handlers[HTTPException] = answer_exception
    return handlers | dict(author or {})


def report_once(hooks: Iterable[object]) -> None:
    """Have Sentry, where its Litestar integration is on, not report the log lines on what its hook reports already.

    The integration does the same with Litestar's own lines. Its hook runs in a thread, so that Sentry cannot see by
    itself that the two are one.

    Args:
        hooks: The application's ``after_exception`` hooks.
    """
    if any((getattr(hook, "__module__", None) or "").startswith("sentry_sdk.") for hook in hooks):
        sentry_logging = importlib.import_module("sentry_sdk.integrations.logging")
        for name in HOOKED_LOGGERS:
            sentry_logging.ignore_logger(name)


def author_exception_handler(error: BaseException, handlers: ExceptionHandlers) -> ExceptionHandler | None:
    """Find the exception handler that the author gave the application for what a handler raised.

    Litestar's own rule: the status code of an HTTP exception first, then the classes of the exception, the nearest
    first; ``500`` stands for everything that is no HTTP exception.

    Args:
        error: What was raised.
        handlers: The exception handlers that hold for the route.

    Returns:
        The author's handler, or ``None`` where only the service's own applies.
    """
    keys: list[Any] = [error.status_code] if isinstance(error, HTTPException) else []
    keys += type(error).__mro__
    if not isinstance(error, HTTPException):
        keys.append(500)
    found = next((handlers[key] for key in keys if key in handlers), None)
    is_default = found is answer_exception or getattr(found, "__module__", "").startswith("litestar.")
    return None if is_default else found


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception asks for, where it is an HTTP exception of any framework.

    Args:
        error: What was raised.

    Returns:
        Its ``status_code``, 200 to 599, if it has a ``detail`` too; else ``None``.
    """
    status = getattr(error, "status_code", None)
    if hasattr(error, "detail") and isinstance(status, int) and 200 <= status <= 599:
        return int(status)
    return None


def headers_of(error: BaseException) -> dict[str, str]:
    """The response headers that an HTTP exception brings (``Allow``, ``Retry-After``), by name."""
    headers = getattr(error, "headers", None)
    return {str(name): str(value) for name, value in headers.items()} if isinstance(headers, Mapping) else {}


def _words(error: Exception, status: int) -> str:
    detail = getattr(error, "detail", None)
    return detail if isinstance(detail, str) and detail else HTTPStatus(status).phrase
