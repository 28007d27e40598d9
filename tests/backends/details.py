"""All that a span may have, for the agent that records it and the test that looks for it."""

TRACE_STATE = "vendor=1"

ATTRIBUTES: dict[str, bool | int | float | str | list[str] | list[int]] = {
    "text": "größer als 日本語",
    "long": "x" * 10_000,
    "empty": "",
    "negative": -(2**53) - 1,
    "greatest": 2**63 - 1,
    "real": 0.1,
    "flag": False,
    "texts": ["a", "b"],
    "numbers": [1, -2],
}

MESSAGE = "größer"

LINKED = (0x5759E988BD862E3FE1BE46A994272793, 0x53995C3F42CD8AD8)
"""The ids of another trace and its span."""
