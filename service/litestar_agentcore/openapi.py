"""What ``/schema`` says of the endpoints: the handler's own payload type, both kinds of answer, headers, errors."""

import contextlib
import copy
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)
from litestar.plugins import OpenAPISchemaPlugin, OpenAPISchemaPluginProtocol
from litestar.typing import FieldDefinition

from litestar_agentcore.protocol import headers
from litestar_agentcore.protocol.aws_errors import AwsErrorBody
from litestar_agentcore.protocol.data_plane import LIMITS
from litestar_agentcore.protocol.models import ErrorAnswer, PingAnswer, ReadyAnswer
from litestar_agentcore.runtime.agent import Agent

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator


def _error(description: str) -> ResponseSpec:
    return ResponseSpec(ErrorAnswer, generate_examples=False, description=description)


INVOCATION_ERRORS = {
    400: _error("The body is not JSON in UTF-8, does not fit the payload type, or an id is malformed"),
    401: _error("The caller has not shown who it is"),
    403: _error("The caller may not invoke this agent"),
    408: _error("The body of the request made no progress, or took longer than the invocation may"),
    409: _error("The session was stopped while the invocation ran"),
    413: _error("The body is larger than the limit"),
    429: _error("Too many invocations run, and no more may wait"),
    431: _error("The headers of the request are too many or too large"),
    500: _error("The handler raised"),
    503: _error("The service is shutting down, or has no thread for the handler"),
    504: _error("The handler took longer than an invocation may"),
}

_SCHEMES = {
    "bearer": SecurityScheme("http", scheme="bearer", description="A token of the issuer, or an API key"),
    "api_key": SecurityScheme("apiKey", name="X-Api-Key", security_scheme_in="header", description="An API key"),
}
"""The ways in which callers may authenticate themselves."""


def security_requirements(api_keys: bool) -> list[dict[str, list[str]]]:
    """What an operation asks of its callers: one of these.

    Args:
        api_keys: Whether a key in a header of its own will do.
    """
    names = ["bearer", "api_key"] if api_keys else ["bearer"]
    return [{name: []} for name in names]


def with_security_schemes(config: OpenAPIConfig, api_keys: bool) -> OpenAPIConfig:
    """An application's OpenAPI configuration, with what :func:`security_requirements` speaks of.

    Args:
        config: The configuration.
        api_keys: As there.
    """
    names = [name for requirement in security_requirements(api_keys) for name in requirement]
    ours = Components(security_schemes={name: _SCHEMES[name] for name in names})
    theirs = config.components if isinstance(config.components, list) else [config.components]
    changed = copy.copy(config)  # which ``dataclasses.replace`` would warn of, in its own __post_init__
    changed.components = [*theirs, ours]
    return changed


_ID_SCHEMA = Schema(type=OpenAPIType.STRING, min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")
_TEXT = Schema(type=OpenAPIType.STRING)

_ERROR_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    required=["error"],
    properties={"error": Schema(description="The exception's detail")},
)

_PARAMETERS = [
    Parameter(
        headers.REQUEST_ID,
        "header",
        _ID_SCHEMA,
        "The id of the request; a fresh UUID4 where there is none",
        False,
    ),
    Parameter(headers.SESSION_ID, "header", _ID_SCHEMA, "The id of the session that the request belongs to", False),
    Parameter(
        headers.WORKLOAD_ACCESS_TOKEN,
        "header",
        _TEXT,
        "The workload access token of AgentCore Identity",
        False,
    ),
    Parameter(headers.OAUTH2_CALLBACK_URL, "header", _TEXT, "The URL that an OAuth2 flow returns to", False),
    Parameter("traceparent", "header", _TEXT, "The parent of the request's span (W3C Trace Context)", False),
    Parameter("tracestate", "header", _TEXT, "Vendor data of the trace (W3C Trace Context)", False),
    Parameter("baggage", "header", _TEXT, "Baggage of the trace (W3C Baggage)", False),
]
_RESPONSE_HEADERS = {
    headers.REQUEST_ID: OpenAPIHeader(schema=_ID_SCHEMA, description="The id of the request", required=True),
    headers.SESSION_ID: OpenAPIHeader(schema=_ID_SCHEMA, description="The id of the session, where there is one"),
}
_RETRY_AFTER = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.INTEGER, minimum=1),
    description="After how many seconds to try again",
    required=True,
)


def invocation_operation(agent: Agent) -> type[Operation]:
    """Make the OpenAPI operation of ``POST /invocations``.

    Args:
        agent: The agent whose entrypoint is described, as it is when the page is asked for.

    Returns:
        A class for Litestar's ``operation_class``.
    """

    @dataclass
    class InvocationOperation(Operation):
        def __post_init__(self) -> None:
            entrypoint = agent.entrypoint
            if entrypoint is not None:
                self.summary = entrypoint.name.replace("_", " ").capitalize()
                self.description = entrypoint.description
                self._document_payload(entrypoint.payload_type)
            self.parameters = [*_PARAMETERS, *(self.parameters or ())]
            responses = self.responses = dict(self.responses or {})
            responses["200"] = OpenAPIResponse(
                description="What the handler returned, or a stream of what it yields",
                content={
                    "application/json": OpenAPIMediaType(schema=Schema(description="The handler's answer, as JSON")),
                    "text/event-stream": OpenAPIMediaType(
                        schema=Schema(
                            description="One server-sent event for each value: `data: <json>` and a blank line. "
                            "In a silence, comments (`: keep-alive`) come between them, which are no events",
                        )
                    ),
                },
            )
            responses["default"] = OpenAPIResponse(
                description="The handler raised an HTTP exception: its status and its detail",
                content={"application/json": OpenAPIMediaType(schema=_ERROR_SCHEMA)},
            )
            refused = responses.get("429")
            if isinstance(refused, OpenAPIResponse):
                refused.headers = {**(refused.headers or {}), "Retry-After": _RETRY_AFTER}
            for response in responses.values():
                if isinstance(response, OpenAPIResponse):
                    response.headers = {**(response.headers or {}), **_RESPONSE_HEADERS}

        def _document_payload(self, payload_type: Any) -> None:
            if not isinstance(self.request_body, RequestBody):
                return
            self.request_body.description = "The payload of the handler"
            inline = _inline_schema(payload_type)
            for media_type in self.request_body.content.values():
                media_type.examples = _examples(payload_type) or None
                if inline is not None:
                    media_type.schema = inline

    return InvocationOperation


_ARN = Schema(
    type=OpenAPIType.STRING,
    pattern=r"^([a-zA-Z0-9_-]{1,256}|arn:aws[a-z-]*:bedrock-agentcore:[a-z0-9-]+:[0-9]{12}:runtime/[a-zA-Z0-9_-]+)$",
    description="The ARN of the runtime, percent-encoded, or an agent's id",
)
_ACCOUNT_ID = Schema(type=OpenAPIType.STRING, pattern="^[0-9]{12}$")
_SESSION_SCHEMA = Schema(type=OpenAPIType.STRING, min_length=33, max_length=256, pattern=r"^[\x21-\x7e]+$")
_QUALIFIER = Parameter("qualifier", "query", _TEXT, "The runtime's endpoint, of which there is one here", False)
_ACCOUNT = Parameter("accountId", "query", _ACCOUNT_ID, "The account, where an agent's id stands for the ARN", False)


def _limited_headers() -> list[Parameter]:
    """The headers that the service model limits, but for the session's id."""
    return [
        Parameter(
            name.decode(),
            "header",
            Schema(type=OpenAPIType.STRING, min_length=least or None, max_length=most),
            f"{member} in the service model",
            False,
        )
        for name, (member, least, most) in LIMITS.items()
        if name not in {headers.SESSION_ID.lower().encode(), b"content-type", b"accept"}
    ]


_DATA_PLANE_ERRORS = {
    400: "ValidationException: the payload, an id or a header makes no sense, or the payload is too large",
    401: "UnauthorizedException: the caller has not shown who it is",
    403: "AccessDeniedException: the caller is not let in",
    404: "ResourceNotFoundException: it is another runtime's ARN, or there is no such session",
    409: "ConflictException: the session was stopped while the invocation ran",
    424: "RuntimeClientError: the agent answered with an error, or took too long",
    429: "ThrottlingException: there is no place for it, or the service is shutting down",
    500: "InternalServerException: anything else",
}
_STOP_ERRORS = frozenset({400, 401, 403, 404, 500})
_INVOKE_ERRORS = _DATA_PLANE_ERRORS.keys() - {401}


def data_plane_responses(*, stop: bool = False) -> dict[int, ResponseSpec]:
    """What the OpenAPI page says of the errors of AWS's data plane.

    Args:
        stop: Whether the operation is StopRuntimeSession.
    """
    return {
        status: ResponseSpec(AwsErrorBody, generate_examples=False, description=_DATA_PLANE_ERRORS[status])
        for status in sorted(_STOP_ERRORS if stop else _INVOKE_ERRORS)
    }


def _add_data_plane(operation: Operation, parameters: list[Parameter]) -> None:
    own = [Parameter("arn", "path", _ARN, required=True), _QUALIFIER, *parameters]
    named = {parameter.name.lower() for parameter in own}
    others = [each for each in operation.parameters or () if isinstance(each, Parameter)]
    operation.parameters = [*own, *(each for each in others if each.name.lower() not in named)]
    kind = OpenAPIHeader(schema=_TEXT, description="The name of the exception", required=True)
    for status, response in (operation.responses or {}).items():
        if isinstance(response, OpenAPIResponse):
            response.headers = {**(response.headers or {}), **_RESPONSE_HEADERS}
            if not status.startswith("2"):
                response.headers["x-amzn-errortype"] = kind


def data_plane_invocation_operation(agent: Agent) -> type[Operation]:
    """Make the OpenAPI operation of InvokeAgentRuntime.

    Args:
        agent: The agent whose entrypoint is described, as it is when the page is asked for.

    Returns:
        A class for Litestar's ``operation_class``.
    """
    plain = invocation_operation(agent)
    session = Parameter(headers.SESSION_ID, "header", _SESSION_SCHEMA, "The session; a fresh UUID4 if absent", False)

    @dataclass
    class DataPlaneInvocationOperation(plain):  # type: ignore[misc, valid-type]
        def __post_init__(self) -> None:
            super().__post_init__()
            self.summary = "InvokeAgentRuntime"
            del self.responses["default"]  # an agent's error is a 424
            _add_data_plane(self, [_ACCOUNT, session, *_limited_headers()])

    return DataPlaneInvocationOperation


_CLIENT_TOKEN = Schema(type=OpenAPIType.STRING, min_length=33, max_length=256, pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$")


def stop_operation() -> type[Operation]:
    """Make the OpenAPI operation of StopRuntimeSession.

    Returns:
        A class for Litestar's ``operation_class``.
    """
    body = Schema(type=OpenAPIType.OBJECT, properties={"clientToken": _CLIENT_TOKEN})

    @dataclass
    class StopOperation(Operation):
        def __post_init__(self) -> None:
            self.summary = "StopRuntimeSession"
            session = Parameter(headers.SESSION_ID, "header", _SESSION_SCHEMA, "The session to stop", required=True)
            content = OpenAPIMediaType(schema=body)
            self.request_body = RequestBody({"application/json": content}, "By what a repeat of the call is known")
            _add_data_plane(self, [session])

    return StopOperation


def _inline_schema(payload_type: Any) -> Any:
    """The schema of a type without classes of its own (``Annotated[int, Meta(ge=1)]``), as msgspec decodes it."""
    try:
        (schema,), components = msgspec.json.schema_components((payload_type,))
    except TypeError:
        return None
    return None if components else schema


def _examples(payload_type: Any) -> dict[str, Any]:
    """The examples of a ``typing.Annotated[..., msgspec.Meta(examples=[...])]`` payload."""
    metadata = (meta for meta in getattr(payload_type, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    values = [value for meta in metadata for value in meta.examples or ()]
    return {f"example {number}": Example(value=value) for number, value in enumerate(values, start=1)}


def document_payload(handler: HTTPRouteHandler, payload_type: Any) -> None:
    """Have the OpenAPI page describe this type as the body of a route that reads its body itself.

    Args:
        handler: A route handler that is registered already, so that Litestar will not decode a body for it.
        payload_type: The type of the payload.
    """
    handler.parsed_fn_signature.parameters["data"] = FieldDefinition.from_annotation(payload_type, name="data")


class PayloadSchemaPlugin(OpenAPISchemaPlugin):
    """Adds to the schemas of an agent's payload types what Litestar's own generator leaves out.

    That is the docstring of a class, and that a ``msgspec.Struct`` forbids unknown fields.
    """

    def __init__(self) -> None:
        self._types = _classes(ErrorAnswer) | _classes(PingAnswer) | _classes(ReadyAnswer)

    def describe_payload(self, payload_type: Any) -> None:
        """Take charge of the classes of a payload type.

        Args:
            payload_type: The annotation of a handler's payload.
        """
        self._types |= _classes(payload_type)

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Tell whether a field's type is one of the payload's classes."""
        kind = field_definition.annotation
        return isinstance(kind, type) and kind in self._types

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: "SchemaCreator") -> Any:
        """Create the schema that another plugin would, and add to it."""
        kind = field_definition.annotation
        plugins = (plugin for plugin in schema_creator.plugins if plugin is not self)
        plugin = next(plugin for plugin in plugins if _supports(plugin, field_definition))
        schema: Schema | Reference = plugin.to_openapi_schema(field_definition, schema_creator)
        registry = schema_creator.schema_registry
        target = registry.from_reference(schema).schema if isinstance(schema, Reference) else schema
        documentation: str | None = vars(kind).get("__doc__")
        if documentation and not target.description and not documentation.startswith(f"{kind.__name__}("):
            target.description = cleandoc(documentation)
        config = getattr(kind, "__struct_config__", None)
        if getattr(config, "forbid_unknown_fields", False) or _forbids_extra(kind):
            target.additional_properties = False
        if getattr(config, "array_like", False):
            _make_array_like(target)
        return schema


def _forbids_extra(kind: type) -> bool:
    """Tell a pydantic model that refuses fields that it does not declare."""
    config = getattr(kind, "model_config", None)
    return isinstance(config, dict) and config.get("extra") == "forbid"


def _make_array_like(schema: Schema) -> None:
    """Say that a struct is written as an array of its fields, of which the tag is the first."""
    fields = dict(schema.properties or {})
    tags = {name: fields.pop(name) for name, field in list(fields.items()) if isinstance(field, Schema) and field.const}
    schema.type = OpenAPIType.ARRAY
    schema.prefix_items = [*tags.values(), *fields.values()]
    schema.min_items = len(schema.required or ())
    schema.properties = schema.required = schema.additional_properties = None


def _supports(plugin: OpenAPISchemaPluginProtocol, field_definition: FieldDefinition) -> bool:
    if isinstance(plugin, OpenAPISchemaPlugin):
        return plugin.is_plugin_supported_field(field_definition)
    return plugin.is_plugin_supported_type(field_definition.annotation)


_FIELD_MARKS = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "__total__", "model_fields")
"""What structs, dataclasses, attrs classes, typed dicts and pydantic models are known by."""


def _classes(annotation: Any) -> set[type]:
    """The classes with fields that a payload type is made of."""
    found: set[type] = set()
    pending: list[Any] = [annotation]
    while pending:
        current: Any = pending.pop()
        pending += get_args(current)
        origin: Any = get_origin(current)
        if origin is not None:
            pending.append(origin)
        if isinstance(current, type) and current not in found and any(hasattr(current, mark) for mark in _FIELD_MARKS):
            found.add(current)
            with contextlib.suppress(NameError, TypeError):
                pending += get_type_hints(current).values()
    return found
