"""JSON-RPC 2.0, which A2A and MCP are spoken in: what of an answer tells how a call ended."""

import msgspec


class _Error(msgspec.Struct):
    code: int


class _Answer(msgspec.Struct):
    jsonrpc: str
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Answer)


def error_code(body: bytes) -> int | None:
    """The code of the error that an answer is (JSON-RPC 2.0 Specification, 5.1).

    Args:
        body: The body of an answer; anything.

    Returns:
        ``None`` where it is no error, or no JSON-RPC.
    """
    if b'"error"' not in body:
        return None
    try:
        error = _decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if error is None else error.code
