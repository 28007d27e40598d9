"""What is known of the request that is being served: as an argument, and from anywhere in the handler's code."""

import sys
from contextvars import ContextVar, Token
from typing import Annotated, Any

import msgspec

VISIBLE_ASCII = r"^[\x21-\x7e]+\Z"

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=VISIBLE_ASCII)]


class Identifiers(msgspec.Struct, frozen=True):
    """The ids that a request carries, with the rule that they must meet."""

    request_id: Identifier
    session_id: Identifier | None = None


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler is told of its request, in its ``context`` argument."""

    session_id: str | None = None
    """The session's id, or ``None`` where the request belongs to none."""

    request_id: str = ""
    """The request's id: the caller's, or a fresh UUID4."""

    request_headers: dict[str, str] | None = None
    """The headers that an agent may see, or ``None`` where there is none. ``Authorization`` has exactly that name."""

    request: Any = None
    """The Litestar ``Request``; in a WebSocket handler, the Litestar ``WebSocket``."""


class RequestValues(msgspec.Struct, frozen=True):
    """Everything that holds for one request, kept in one context variable: one write makes a request's context."""

    request_id: str | None = None
    session_id: str | None = None
    workload_access_token: str | None = None
    oauth2_callback_url: str | None = None
    request_headers: dict[str, str] | None = None
    experiment: dict[str, str] | None = None
    """Attributes for the spans of the request, from its baggage."""

    def context(self, request: Any) -> RequestContext:
        """What a handler is told.

        Args:
            request: The Litestar request, or the WebSocket.
        """
        return RequestContext(
            session_id=self.session_id,
            request_id=self.request_id or "",
            request_headers=self.request_headers,
            request=request,
        )


_NOTHING = RequestValues()
current_request: ContextVar[RequestValues] = ContextVar("agentcore_request", default=_NOTHING)


def enter_request(values: RequestValues, experiment: dict[str, str] | None = None) -> Token[RequestValues]:
    """Have these values hold from here on.

    Where a program has the reference SDK loaded besides, for its identity or memory clients, these ask the reference's
    own context for the token; so it is told too.

    Args:
        values: What is known of the request.
        experiment: Attributes for its spans, from its baggage.

    Returns:
        What :data:`current_request` is reset with.
    """
    if (reference := sys.modules.get("bedrock_agentcore.runtime.context")) is not None:
        theirs = reference.BedrockAgentCoreContext
        theirs.set_request_context(values.request_id, values.session_id)
        if values.workload_access_token is not None:
            theirs.set_workload_access_token(values.workload_access_token)
        if values.oauth2_callback_url is not None:
            theirs.set_oauth2_callback_url(values.oauth2_callback_url)
        if values.request_headers is not None:
            theirs.set_request_headers(values.request_headers)
    return current_request.set(msgspec.structs.replace(values, experiment=experiment) if experiment else values)


def span_attributes() -> dict[str, str]:
    """The attributes that every span of the current request is to carry; none outside a request."""
    values = current_request.get()
    if values.request_id is None:
        return {}
    attributes = {"request.id": values.request_id}
    if values.session_id is not None:
        attributes["session.id"] = attributes["gen_ai.conversation.id"] = values.session_id
    if values.experiment:
        attributes.update(values.experiment)
    return attributes


class BedrockAgentCoreContext:
    """The values of the current request, for code that has no ``context`` argument at hand.

    They hold in plain and async handlers, in generators between two yields, and in tasks that a handler starts; another
    request never sees them. What a ``set_`` method sets holds from there on, for this request alone.
    """

    @classmethod
    def _replace(cls, **values: Any) -> None:
        current_request.set(msgspec.structs.replace(current_request.get(), **values))

    @classmethod
    def set_request_context(cls, request_id: str, session_id: str | None = None) -> None:
        """Set the ids of the request.

        Args:
            request_id: The request's id.
            session_id: The session's id, or ``None``.
        """
        cls._replace(request_id=request_id, session_id=session_id)

    @classmethod
    def get_request_id(cls) -> str | None:
        """The id of the current request, or ``None`` outside one."""
        return current_request.get().request_id

    @classmethod
    def get_session_id(cls) -> str | None:
        """The id of the current session, or ``None`` where there is none."""
        return current_request.get().session_id

    @classmethod
    def set_workload_access_token(cls, token: str) -> None:
        """Set the workload access token.

        Args:
            token: The token, as AgentCore Identity issued it.
        """
        cls._replace(workload_access_token=token)

    @classmethod
    def get_workload_access_token(cls) -> str | None:
        """The workload access token that came with the request, or ``None``."""
        return current_request.get().workload_access_token

    @classmethod
    def set_oauth2_callback_url(cls, workload_callback_url: str) -> None:
        """Set the OAuth2 callback URL.

        Args:
            workload_callback_url: The URL that an OAuth2 flow returns to.
        """
        cls._replace(oauth2_callback_url=workload_callback_url)

    @classmethod
    def get_oauth2_callback_url(cls) -> str | None:
        """The OAuth2 callback URL that came with the request, or ``None``."""
        return current_request.get().oauth2_callback_url

    @classmethod
    def set_request_headers(cls, headers: dict[str, str]) -> None:
        """Set the headers that an agent may see.

        Args:
            headers: Names and values.
        """
        cls._replace(request_headers=headers)

    @classmethod
    def get_request_headers(cls) -> dict[str, str] | None:
        """The headers of the request that an agent may see, or ``None`` where there is none."""
        return current_request.get().request_headers
