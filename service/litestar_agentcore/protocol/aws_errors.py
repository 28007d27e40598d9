"""Errors in the form of AWS's JSON services, with the names of the service model ``bedrock-agentcore``.

A status, a header with the name of the exception, and ``{"message": ...}``: by that clients raise the exception of that
name (Smithy, "AWS restJson1 protocol", operation error serialization).
"""

from typing import Literal

import msgspec

from litestar_agentcore.protocol.headers import RawHeader
from litestar_agentcore.protocol.models import ErrorAnswer, Refusal

ErrorName = Literal[
    "AccessDeniedException",
    "ConflictException",
    "InternalServerException",
    "MethodNotAllowedException",
    "ResourceNotFoundException",
    "RuntimeClientError",
    "ThrottlingException",
    "UnauthorizedException",
    "ValidationException",
]
Reason = Literal["CannotParse", "FieldValidationFailed", "IdempotentParameterMismatchException"]
"""Those of the model's reasons of a ValidationException that are given here."""

MAX_TEXT = 16 * 1024
"""How many characters of an agent's text a message has at the most."""

STATUS: dict[ErrorName, int] = {
    "ValidationException": 400,
    "UnauthorizedException": 401,
    "AccessDeniedException": 403,
    "ResourceNotFoundException": 404,
    "MethodNotAllowedException": 405,  # which is not in the model
    "ConflictException": 409,
    "RuntimeClientError": 424,
    "ThrottlingException": 429,
    "InternalServerException": 500,
}


class ErrorField(msgspec.Struct, frozen=True):
    """A member of a request that is wrong."""

    name: str
    message: str


class AwsErrorBody(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The body of an error."""

    message: str
    """What went wrong."""
    reason: Reason | msgspec.UnsetType = msgspec.UNSET
    """Of a ValidationException alone."""
    field_list: tuple[ErrorField, ...] | msgspec.UnsetType = msgspec.UNSET
    """Of a ValidationException alone: which members of the request are wrong, and how."""


class AwsError(msgspec.Struct, frozen=True):
    """An error as a client of AWS reads it."""

    name: ErrorName
    """The exception that it raises."""
    content: AwsErrorBody

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.name]

    @property
    def body(self) -> bytes:
        """The body, as JSON."""
        return msgspec.json.encode(self.content)

    @property
    def header(self) -> RawHeader:
        """The header that names the exception."""
        return ERROR_TYPE, self.name.encode()


ERROR_TYPE = b"x-amzn-errortype"


class InvalidFieldError(Refusal):
    """The refusal of a request with a member that makes no sense (status 400).

    Args:
        field: The member's name in the model.
        message: What is wrong with it.
        problem: The model's reason.
    """

    def __init__(self, field: str, message: str, problem: Reason = "FieldValidationFailed") -> None:
        super().__init__(400, f"Invalid {field}", message)
        self.field = field
        self.problem: Reason = problem


_NAMES: dict[int, ErrorName] = {
    400: "ValidationException",
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    408: "ValidationException",
    409: "ConflictException",  # and not the retryable one: the session would begin anew
    413: "ValidationException",
    429: "ThrottlingException",
    431: "ValidationException",
    503: "ThrottlingException",  # for want of a place, or at a shutdown: clients try again
    504: "RuntimeClientError",  # not a 500, which clients send again
}
"""The exception for a refusal, by its status on ``/invocations``; InternalServerException for any other."""

_CANNOT_PARSE = frozenset({"Invalid JSON", "Invalid encoding"})


def error_of(refusal: Refusal, *, unauthorized: bool = False) -> AwsError:
    """Say a refusal in AWS's form.

    Args:
        refusal: The refusal.
        unauthorized: Whether the operation has an exception for callers that are not authenticated.
    """
    name = _NAMES.get(refusal.status, "InternalServerException")
    if refusal.status == 401 and unauthorized:
        name = "UnauthorizedException"
    message = _text_of(refusal.answer)
    if name != "ValidationException":
        return AwsError(name, AwsErrorBody(message))
    reason: Reason = "FieldValidationFailed"
    if isinstance(refusal, InvalidFieldError):
        field, reason = refusal.field, refusal.problem
    elif refusal.error == "Invalid request context":
        field = "runtimeSessionId" if "session_id" in (refusal.details or "") else "requestId"
    elif refusal.status == 431:
        field = "headers"
    else:
        field = "payload"
        if refusal.error in _CANNOT_PARSE or refusal.status == 408:
            reason = "CannotParse"
    return AwsError(name, AwsErrorBody(message, reason, (ErrorField(field, refusal.details or refusal.error),)))


def agent_error(status: int, body: bytes) -> AwsError:
    """Say what an agent answered beyond 2xx in AWS's form: a RuntimeClientError with its text.

    Args:
        status: The status of its answer.
        body: The body of its answer.
    """
    try:
        text = _text_of(msgspec.json.decode(body, type=ErrorAnswer))
    except (msgspec.ValidationError, msgspec.DecodeError):
        text = body.decode(errors="replace")
    message = f"Received error ({status}) from runtime"
    if text.strip():
        message += f": {text[:MAX_TEXT]}"
    return AwsError("RuntimeClientError", AwsErrorBody(message))


def _text_of(answer: ErrorAnswer) -> str:
    text = answer.error if answer.details is None else f"{answer.error}: {answer.details}"
    return text if answer.request_id is None else f"{text} (request {answer.request_id})"
