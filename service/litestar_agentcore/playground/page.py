"""The playground's page: its parts put together, and the headers that let it do no more than it must."""

import base64
import hashlib
from html import escape
from importlib.resources import files

import msgspec

SCRIPTS = ("json_text.js", "payload_form.js", "calls.js", "threads.js", "page.js")
"""The parts of the script, in the order in which they need one another."""

_PARTS = files(__package__)


class Page(msgspec.Struct, frozen=True):
    """What a browser gets."""

    body: bytes
    """HTML in UTF-8, with style and script inside."""
    headers: dict[str, str]


def playground_page(path: str) -> Page:
    """Put the page together.

    Style and script are allowed by their hashes, and nothing else is: no other script, no image but those within the
    page, no connection but to where it came from, and no frame around it (Content Security Policy Level 3).

    Args:
        path: Where the application serves it. The page finds the agent from there, below whatever prefix it is mounted.

    Returns:
        The page and its headers.
    """
    style = _read("page.css")
    script = "\n".join(map(_read, SCRIPTS))
    body = _read("page.html").replace("{{path}}", escape(path))
    body = body.replace("{{style}}", style).replace("{{script}}", script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # so that the page cannot make markup of what an agent says
        "trusted-types": "'none'",
    }
    return Page(
        body.encode(),
        {
            "content-security-policy": "; ".join(f"{directive} {value}" for directive, value in policy.items()),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        },
    )


def _read(name: str) -> str:
    # Line ends as the HTML parser has them, or the hash would be another.
    return _PARTS.joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
