"""Error responses outside a handler, in the form of the contract: ``{"error": ...}``."""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from litestar_agentcore.protocol.context import current_request
from litestar_agentcore.protocol.headers import HeaderReader, RawHeader, response_headers, sendable_headers
from litestar_agentcore.protocol.models import ErrorAnswer, internal_error
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


def answer_exception_unexposed(request: ServiceRequest, error: Exception) -> Response[ErrorAnswer]:
    """As :func:`answer_exception`, with the request's id in the place of what was raised."""
    return answer_exception(request, error, expose_errors=False)


def answer_exception(request: ServiceRequest, error: Exception, *, expose_errors: bool = True) -> Response[ErrorAnswer]:
    """Answer an exception that Litestar or a route of the author's raised.

    Args:
        request: The request that failed.
        error: The exception; an HTTP exception of any framework has a ``status_code`` and a ``detail``.
        expose_errors: Whether the answer may tell what was raised, where that is no HTTP exception.

    Returns:
        The error in the form of the contract, with the ids of the request and the headers of the exception.
    """
    values = _reader.read(request.scope["headers"]).values
    token = current_request.set(values)
    try:
        status = status_of(error)
        path = request.scope["path"]
        if status is None:
            status = 500
            answer = ErrorAnswer(message_of(error)) if expose_errors else internal_error(values.request_id)
            logger.error("%s %s failed", request.method, path, exc_info=error)
        else:
            answer = ErrorAnswer(_detail_of(error, status))
            logger.warning("%s %s was answered with status %d", request.method, path, status)
        extra = headers_of(error)
    finally:
        current_request.reset(token)
    ids = response_headers(values.request_id or "", values.session_id)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in [*ids, *extra]}
    return Response(answer, status_code=status, headers=headers)


def exception_handlers(author: ExceptionHandlers | None, *, expose_errors: bool = True) -> dict[Any, ExceptionHandler]:
    """The exception handlers of an app: the author's, and the service's own for the rest.

    Args:
        author: The author's handlers, by exception class or status code; they win wherever they apply.
        expose_errors: Whether answers may tell what was raised.
    """
    handlers: dict[Any, ExceptionHandler] = {500: answer_exception if expose_errors else answer_exception_unexposed}
    with contextlib.suppress(ImportError):  # Litestar has a handler of its own for these, of another shape
        handlers[importlib.import_module("starlette.exceptions").HTTPException] = answer_exception
    if Exception not in (author or {}):  # ours is of a nearer class, and would win over the author's
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
    """Find the author's exception handler for what a handler raised.

    Litestar's rule: the status code of an HTTP exception first, then the classes of the exception, the nearest first;
    ``500`` stands for everything that is no HTTP exception.

    Args:
        error: The exception.
        handlers: The exception handlers that hold for the route.

    Returns:
        The author's handler, or ``None`` where only the service's own applies.
    """
    keys: list[Any] = [error.status_code] if isinstance(error, HTTPException) else []
    keys += type(error).__mro__
    if not isinstance(error, HTTPException):
        keys.append(500)
    found = next((handlers[key] for key in keys if key in handlers), None)
    is_default = found in (answer_exception, answer_exception_unexposed) or getattr(found, "__module__", "").startswith(
        "litestar."
    )
    return None if is_default else found


def status_of(error: BaseException) -> int | None:
    """The status of an HTTP exception of any framework.

    Args:
        error: The exception.

    Returns:
        Its ``status_code``, 200 to 599, if it has a ``detail`` too; else ``None``.
    """
    status = getattr(error, "status_code", None)
    if hasattr(error, "detail") and isinstance(status, int) and 200 <= status <= 599:
        return int(status)
    return None


def headers_of(error: BaseException) -> list[RawHeader]:
    """The response headers of an HTTP exception (``Allow``, ``Retry-After``).

    Those that HTTP cannot carry are left out, and named in the log.
    """
    headers = getattr(error, "headers", None)
    if not headers or not isinstance(headers, Mapping):
        return []
    return sendable_headers(headers.items())


def _detail_of(error: Exception, status: int) -> str:
    detail = getattr(error, "detail", None)
    return detail if isinstance(detail, str) and detail else HTTPStatus(status).phrase
