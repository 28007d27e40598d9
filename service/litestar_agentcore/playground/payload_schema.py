"""The JSON schema of a handler's payload, from which the page makes a form."""

import contextlib
import sys
from typing import Any

import msgspec


def payload_schema(payload_type: Any) -> dict[str, Any] | None:
    """Describe a payload as the decoder of its type has it.

    Unlike the OpenAPI page this is there where an application has no such page, and it tells defaults.

    Args:
        payload_type: The annotation of a handler's payload.

    Returns:
        A JSON schema (2020-12); ``None`` where the type does not say what a payload is like.
    """
    foreign: list[type] = []

    def name(kind: type) -> dict[str, Any]:
        foreign.append(kind)
        return {"title": kind.__name__}

    try:
        schema = msgspec.json.schema(payload_type, schema_hook=name)
    except (TypeError, ValueError, NotImplementedError):
        schema = {}
    pydantic = sys.modules.get("pydantic")  # no type is pydantic's before pydantic is imported
    if pydantic is not None and (foreign or not schema):
        # Fails for a type of msgspec's with a model inside; then the form leaves that part to raw JSON.
        with contextlib.suppress(pydantic.errors.PydanticUserError):
            schema = pydantic.TypeAdapter(payload_type).json_schema()
    return schema or None
