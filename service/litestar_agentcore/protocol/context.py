"""The current request: the ``context`` argument of handlers, and the values behind :class:`BedrockAgentCoreContext`."""

import copy
from collections.abc import Container, Mapping
from contextvars import ContextVar, Token
from typing import Annotated, Any

import msgspec

from litestar_agentcore.protocol.baggage import routing_experiment

VISIBLE_ASCII = r"^[\x21-\x7e]+\Z"

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=VISIBLE_ASCII)]

FieldSelection = Container[str] | Mapping[str, Any]
"""Fields as pydantic's ``include`` and ``exclude`` take them: a set, or a dict with ``True`` or a selection of the
field's own keys for each."""


class Identifiers(msgspec.Struct, frozen=True):
    """The ids of a request, with the rule that they are validated against."""

    request_id: Identifier
    session_id: Identifier | None = None


class RequestContext(msgspec.Struct, kw_only=True, dict=True):
    """The ``context`` argument of a handler.

    The reference runtime's is a pydantic model, so the methods that agents call on it are here too.
    """

    session_id: str | None = None
    """The session's id, or ``None`` where the request belongs to no session."""

    request_id: str = ""
    """The request's id: the caller's, or a fresh UUID4."""

    request_headers: dict[str, str] | None = None
    """The headers that an agent may see, or ``None`` where there is none. ``Authorization`` has exactly that name."""

    request: Any = None
    """The Litestar ``Request``; in a WebSocket handler, the ``WebSocket``."""

    claims: dict[str, Any] | None = None
    """The claims of the caller's token, or ``{"api_key": name}``; ``None`` where callers are not authenticated."""

    def model_dump(
        self, *, include: FieldSelection | None = None, exclude: FieldSelection | None = None
    ) -> dict[str, Any]:
        """The fields as a dict; without ``claims`` where there are none, as the reference runtime has no such field.

        Args:
            include: The fields to keep; all by default.
            exclude: Fields to leave out.
        """
        fields = msgspec.structs.asdict(self)
        if self.claims is None:
            del fields["claims"]
        return _selected(fields, include, exclude)

    def model_dump_json(
        self,
        *,
        indent: int | None = None,
        include: FieldSelection | None = None,
        exclude: FieldSelection | None = None,
    ) -> str:
        """The fields as JSON.

        Args:
            indent: Spaces for each level; all in one line by default.
            include: The fields to keep; all by default.
            exclude: Fields to leave out.

        Raises:
            ValueError: A field cannot be JSON. The request cannot: ``exclude={"request"}``.
        """
        fields = self.model_dump(include=include, exclude=exclude)
        try:
            encoded = msgspec.json.encode(fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"RequestContext cannot be JSON, leave out the field with exclude=: {error}") from None
        return (encoded if indent is None else msgspec.json.format(encoded, indent=indent)).decode()

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> "RequestContext":
        """A shallow copy, in which some values are others.

        Args:
            update: The other values by name, not validated. Names that are no field become attributes of the copy.
        """
        copied = copy.copy(self)
        for name, value in (vars(self) | dict(update or {})).items():
            setattr(copied, name, value)
        return copied


def _selected(fields: Mapping[str, Any], include: Any, exclude: Any) -> dict[str, Any]:
    selected = {}
    for name, value in fields.items():
        if include is not None and name not in include:
            continue
        dropped = False if exclude is None or name not in exclude else _entry(exclude, name)
        if dropped is True or dropped is ...:
            continue
        if isinstance(value, dict):
            value = _selected(value, _inside(_entry(include, name)), _inside(dropped))
        selected[name] = value
    return selected


def _entry(selection: Any, name: str) -> Any:
    return selection[name] if isinstance(selection, Mapping) else True


def _inside(entry: Any) -> Any:
    """The selection of a field's own keys, where there is one."""
    return entry if isinstance(entry, Container) else None


class RequestValues(msgspec.Struct, frozen=True):
    """The values of one request, kept in one context variable: a single write enters a request."""

    request_id: str | None = None
    session_id: str | None = None
    workload_access_token: str | None = None
    oauth2_callback_url: str | None = None
    request_headers: dict[str, str] | None = None
    baggage: str | None = None
    """The ``baggage`` header."""
    experiment: dict[str, str] | None = None
    """The routing experiment: attributes of the request's spans, by baggage key."""
    config_bundle_ref: Any = msgspec.UNSET
    """A configuration bundle that was set by hand; ``UNSET`` where the baggage decides."""
    claims: dict[str, Any] | None = None
    """The claims of an authenticated caller."""
    conversation_id: str | None = None
    """What a protocol's own body says which conversation it belongs to; the session's id, where there is one, wins."""

    def context(self, request: Any) -> RequestContext:
        """The ``context`` argument of a handler.

        Args:
            request: The Litestar request, or the WebSocket.
        """
        return RequestContext(
            session_id=self.session_id,
            request_id=self.request_id or "",
            request_headers=self.request_headers,
            request=request,
            claims=self.claims,
        )


_NO_VALUES = RequestValues()
current_request: ContextVar[RequestValues] = ContextVar("agentcore_request", default=_NO_VALUES)


def enter_request(values: RequestValues, experiment: dict[str, str] | None = None) -> Token[RequestValues]:
    """Make these the values of the current request.

    A token or a callback URL that was set outside of any request (at import, say, for local development) holds in
    requests that bring none, as on the reference runtime.

    Args:
        values: What the request's headers say.
        experiment: The routing experiment that a propagator found, for a request whose header has none.

    Returns:
        What :data:`current_request` is reset with.
    """
    outside = current_request.get()
    if outside is not _NO_VALUES and outside.request_id is None:
        values = msgspec.structs.replace(
            values,
            workload_access_token=values.workload_access_token or outside.workload_access_token,
            oauth2_callback_url=values.oauth2_callback_url or outside.oauth2_callback_url,
        )
    if values.baggage is not None:
        experiment = routing_experiment(values.baggage) or experiment
    return current_request.set(msgspec.structs.replace(values, experiment=experiment) if experiment else values)


def span_attributes() -> dict[str, str]:
    """The attributes that every span of the current request carries; none outside a request."""
    values = current_request.get()
    if values.request_id is None:
        return {}
    attributes = {"request.id": values.request_id}
    if values.session_id is not None:
        attributes["session.id"] = attributes["gen_ai.conversation.id"] = values.session_id
    elif values.conversation_id is not None:
        attributes["gen_ai.conversation.id"] = values.conversation_id
    if values.experiment:
        attributes.update(values.experiment)
    return attributes
