"""What kind of handler an author registered, found out once, so that nothing is asked again per request."""

import functools
import inspect
import logging
import typing
from collections.abc import Callable
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any, Literal

import msgspec

from litestar_agentcore.protocol.serialization import Decode, decode_body, payload_decoder

logger = logging.getLogger(__name__)

HandlerFunction = Callable[..., Any]


class HandlerKind(Enum):
    """Where a handler must run, and how its values come back."""

    COROUTINE = auto()
    """An ``async def`` that returns: runs on a worker loop."""

    ASYNC_GENERATOR = auto()
    """An ``async def`` that yields: is iterated on a worker loop."""

    PLAIN = auto()
    """A ``def``, with or without ``yield``: runs in a thread of the pool."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """An entrypoint, inspected.

    Its ``function`` is what the author registered; the rest says how to call it.
    """

    function: HandlerFunction
    call: Callable[[Any, Any], Any]
    """Calls the function with a payload and a ``RequestContext``, of which it passes on what the function takes.

    Where ``decode`` is set it takes the body in the payload's place, and decodes it first: types have validators of the
    author's, which are to run where the handler does. What does not fit is raised as a ``Refusal``.
    """
    name: str
    kind: HandlerKind
    context: Literal["positional", "keyword"] | None
    """How the request context is passed, or ``None`` where the handler does not ask for it."""
    payload_type: Any
    """The annotation of the payload, ``Any`` where it is taken as it is."""
    decode: Decode | None
    """Decodes and validates a body into ``payload_type``; ``None`` where the JSON is taken as it is."""
    description: str | None
    """The handler's docstring."""


def name_of(function: object) -> str:
    """The name by which people know a function, a partial or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def inspect_handler(function: HandlerFunction) -> Handler:
    """Inspect an entrypoint at its registration.

    Args:
        function: A function, generator function, ``functools.partial``, bound method or callable object.

    Returns:
        What is known of it.

    Raises:
        TypeError: The function cannot be called with a payload (and a context, where its second parameter is named so).
    """
    name = name_of(function)
    if not callable(function):
        raise TypeError(f"The entrypoint must be callable, and {function!r} is not")
    parameters = _parameters(function, name)
    context = _context_parameter(parameters)
    payload_type, decode = _payload_type(function, parameters, name)
    call, kind = _call_of(function, context), _kind(function)
    if decode is not None:
        call, kind = _decoding_call(call, decode, kind)
    return Handler(
        function=function,
        call=call,
        name=name,
        kind=kind,
        context=context,
        payload_type=payload_type,
        decode=decode,
        description=inspect.cleandoc(docstring) if (docstring := _code_of(function).__doc__) else None,
    )


def _call_of(function: HandlerFunction, context: Literal["positional", "keyword"] | None) -> Callable[[Any, Any], Any]:
    if context == "positional":
        return function
    if context == "keyword":
        return lambda payload, context: function(payload, context=context)
    return lambda payload, _: function(payload)


def _decoding_call(
    call: Callable[[Any, Any], Any], decode: Decode, kind: HandlerKind
) -> tuple[Callable[[Any, Any], Any], HandlerKind]:
    def decoding(body: Any, context: Any) -> Any:
        return call(decode_body(body, decode), context)

    async def decoding_there(body: Any, context: Any) -> Any:
        return call(decode_body(body, decode), context)

    # A generator cannot be had before its payload is, so one is returned by a coroutine in its place.
    if kind is HandlerKind.ASYNC_GENERATOR:
        return decoding_there, HandlerKind.COROUTINE
    return decoding, kind


def is_coroutine_function(function: object) -> bool:
    """Tell an ``async def``, a partial or wrapper of one, or an object whose ``__call__`` is one from anything else."""
    return inspect.iscoroutinefunction(inspect.unwrap(_code_of(function)))


def _code_of(function: object) -> Any:
    """The function whose code runs and whose annotations count: behind partials, methods and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type):
        return function
    return type(function).__call__ if callable(function) else function


def _kind(function: HandlerFunction) -> HandlerKind:
    code = _code_of(function)
    if inspect.isasyncgenfunction(code):
        return HandlerKind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(code):
        return HandlerKind.COROUTINE
    return HandlerKind.PLAIN


def _parameters(function: HandlerFunction, name: str) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without one: it is called with the payload alone
        return []
    parameters = list(signature.parameters.values())
    takes_context = _context_parameter(parameters) is not None
    try:
        signature.bind(None, **({"context": None} if takes_context else {}))
    except TypeError as error:
        raise TypeError(
            f"The entrypoint {name}{signature} must take (payload) or (payload, context): {error}"
        ) from None
    return parameters


def _context_parameter(parameters: list[inspect.Parameter]) -> Literal["positional", "keyword"] | None:
    if len(parameters) < 2 or parameters[1].name != "context":
        return None
    return "keyword" if parameters[1].kind is inspect.Parameter.KEYWORD_ONLY else "positional"


def _evaluated(annotation: Any, code: Any) -> Any:
    """An annotation without forward references. Of the payload alone: the others may name what only a checker sees."""
    namespace = getattr(inspect.unwrap(code), "__globals__", {})
    holder = SimpleNamespace(__annotations__={"payload": annotation})
    return typing.get_type_hints(holder, globalns=namespace, include_extras=True)["payload"]


def _payload_type(
    function: HandlerFunction, parameters: list[inspect.Parameter], name: str
) -> tuple[Any, Decode | None]:
    if not parameters or parameters[0].annotation is inspect.Parameter.empty:
        return Any, None
    if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return Any, None
    try:
        annotation = _evaluated(parameters[0].annotation, _code_of(function))
        decode = payload_decoder(annotation)
    except Exception as error:
        logger.warning(
            "The payload of %s is passed as plain JSON: its annotation %r cannot be used (%s)",
            name,
            parameters[0].annotation,
            error,
        )
        return Any, None
    return (Any, None) if decode is None else (annotation, decode)
