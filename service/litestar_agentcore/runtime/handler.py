"""What kind of handler an author registered, found out once, so that nothing is asked again per request."""

import dis
import functools
import inspect
import typing
from collections.abc import Callable
from enum import Enum
from types import CodeType, SimpleNamespace
from typing import Any, Literal

import msgspec

from litestar_agentcore.protocol.serialization import Decode, decode_body, payload_decoder

HandlerFunction = Callable[..., Any]


class HandlerKind(Enum):
    """Where a handler must run, and how its values come back."""

    COROUTINE = "async, on the agent's loop"
    """An ``async def`` that returns."""

    ONE_STEP = "async without await, in a thread for each call"
    """An ``async def`` that returns and cannot wait: its own code has no ``await``, ``async for`` or ``async with``."""

    ASYNC_GENERATOR = "async generator, on the agent's loop"
    """An ``async def`` that yields."""

    PLAIN = "plain, in a thread for each call"
    """A ``def``."""

    PLAIN_GENERATOR = "plain generator, in a thread for each call"
    """A ``def`` that yields."""


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
    remark: str | None = None
    """What its author should be told when the service starts."""


def name_of(function: object) -> str:
    """The name of a function, a partial or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def inspect_handler(function: HandlerFunction, payload_type: Any = None) -> Handler:
    """Inspect an entrypoint at its registration.

    Args:
        function: A function, generator function, ``functools.partial``, bound method or callable object.
        payload_type: The type of its payload; by default the annotation of its first parameter. Behind a
            ``functools.wraps`` decorator an annotation does not count, since the wrapper may pass on something else.

    Returns:
        The inspected handler.

    Raises:
        TypeError: The function cannot be called with a payload (and a context, where its second parameter is named so),
            or the payload type is none that can be decoded.
    """
    name = name_of(function)
    if not callable(function):
        raise TypeError(f"The entrypoint must be callable, and {function!r} is not")
    parameters = _parameters(function)
    context = _context_parameter(parameters)
    _check_call(function, name, context)
    remark = None
    if payload_type is not None:
        decode = _decoder_of(payload_type, name)
    else:
        payload_type, decode, remark = _annotated_payload(function, parameters, name)
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
        remark=remark,
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
        return HandlerKind.ONE_STEP if _has_one_step(code) else HandlerKind.COROUTINE
    return HandlerKind.PLAIN_GENERATOR if inspect.isgeneratorfunction(code) else HandlerKind.PLAIN


def _has_one_step(function: Any) -> bool:
    """Tell whether a coroutine of this function ends without ever having waited.

    Code that asks for its task is left out: asyncio keeps one current task for each loop (before Python 3.14), and in a
    thread that would be another session's.

    What waits (``await``, ``async for``, ``async with``) compiles to the instruction ``SEND`` in Python 3.11 to 3.14.
    """
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or not code.co_flags & inspect.CO_COROUTINE:
        return False
    if _ASKING_FOR_THE_TASK.intersection(code.co_names):
        return False
    return all(instruction.opname != "SEND" for instruction in dis.get_instructions(code))


_ASKING_FOR_THE_TASK = frozenset({"current_task", "get_current_task", "CancelScope", "move_on_after", "fail_after"})
"""Names of asyncio's and anyio's."""


def _parameters(function: HandlerFunction) -> list[inspect.Parameter]:
    """The parameters of the function, or of the one that ``functools.wraps`` decorators stand around."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without one: it is called with the payload alone
        return []


def _check_call(function: HandlerFunction, name: str, context: Literal["positional", "keyword"] | None) -> None:
    """Check that a function, or the decorator around it, takes what it will be called with."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    arguments = (None, None) if context == "positional" else (None,)
    try:
        signature.bind(*arguments, **({"context": None} if context == "keyword" else {}))
    except TypeError as error:
        raise TypeError(
            f"The entrypoint {name}{signature} must take (payload) or (payload, context): {error}"
        ) from None


def _context_parameter(parameters: list[inspect.Parameter]) -> Literal["positional", "keyword"] | None:
    if len(parameters) < 2 or parameters[1].name != "context":
        return None
    return "keyword" if parameters[1].kind is inspect.Parameter.KEYWORD_ONLY else "positional"


def _evaluated(annotation: Any, code: Any) -> Any:
    """An annotation without forward references. Of the payload alone: the others may name what only a checker sees."""
    namespace = getattr(inspect.unwrap(code), "__globals__", {})
    holder = SimpleNamespace(__annotations__={"payload": annotation})
    return typing.get_type_hints(holder, globalns=namespace, include_extras=True)["payload"]


def _decoder_of(payload_type: Any, name: str) -> Decode | None:
    try:
        return payload_decoder(payload_type)
    except Exception as error:
        raise TypeError(f"The payload type {payload_type!r} of {name} cannot be decoded: {error}") from error


def _annotated_payload(
    function: HandlerFunction, parameters: list[inspect.Parameter], name: str
) -> tuple[Any, Decode | None, str | None]:
    """The payload's type, its decoder, and the warning about an annotation that is not used."""
    first = parameters[0] if parameters else None
    if first is None or first.annotation is first.empty or first.kind is first.VAR_POSITIONAL:
        return Any, None, None
    not_used = f"The payload of {name} is passed as plain JSON: its annotation {first.annotation!r} "
    try:
        annotation = _evaluated(first.annotation, _code_of(function))
        decode = payload_decoder(annotation)
    except Exception as error:
        return Any, None, f"{not_used}cannot be used ({error})"
    if decode is None:
        return Any, None, None
    if _is_wrapped(function):
        remark = "is behind a decorator, which may pass on something else. @app.entrypoint(payload=...) says the type"
        return Any, None, not_used + remark
    return annotation, decode, None


def _is_wrapped(function: object) -> bool:
    while isinstance(function, functools.partial) and not hasattr(function, "__wrapped__"):
        function = function.func
    return hasattr(function, "__wrapped__")
