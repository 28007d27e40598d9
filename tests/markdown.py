"""What the Markdown pages of this repository hold: links, anchors, and blocks of code."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]

PAGES = tuple(
    sorted(
        path.relative_to(ROOT)
        for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "grafana/*.md", "helm/agentcore/*.md")
        for path in ROOT.glob(pattern)
    )
)
"""The pages for people, relative to the root of the repository."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Args:
        language: What stands behind the fence.
        text: Its lines.
        line: The line of the page that the fence is on, from 1.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is to be saved as: ``# name.py`` on its first line says so."""
        named = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return named and named[1]


@cache
def _tokens(text: str) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(text))


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in their order."""
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in _tokens(text)
        if token.type == "fence" and token.map
    ]


def links(text: str) -> Iterator[str]:
    """Where the links and images of a page lead."""
    for token in _tokens(text):
        for child in token.children or ():
            target = child.attrGet({"link_open": "href", "image": "src"}.get(child.type, ""))
            if target is not None:
                yield str(target)


def anchors(text: str) -> set[str]:
    """The names of a page's headings in links, as GitHub and the site have them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    tokens = _tokens(text)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found
