"""The site: ``make docs`` builds it without a warning, and its pages ask nothing of anybody else."""

import re
import subprocess

import pytest

from tests.markdown import ROOT

SITE = ROOT / "build" / "docs"
BUILD_SECONDS = 600.0


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of the site, each with its HTML."""
    done = subprocess.run(
        ["make", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {str(path.relative_to(SITE)): path.read_text() for path in SITE.rglob("*.html")}


def test_every_page_is_there(pages: dict[str, str]) -> None:
    ours = {f"{path.relative_to(ROOT / 'docs').stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert {f"docs/{name}" for name in ours} <= pages.keys()
    assert {"index.html", "README.html", "grafana/README.html", "helm/agentcore/README.html"} <= pages.keys()


def test_nothing_is_fetched_from_elsewhere(pages: dict[str, str]) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\"")
    found = {first or second for html in pages.values() for first, second in fetched.findall(html)}
    assert found
    assert {address for address in found if re.match(r"(?:\w+:)?//", address)} == set()
    for sheet in (SITE / "_static").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_references_hold_what_the_code_says(pages: dict[str, str]) -> None:
    assert "AGENTCORE_MAX_BODY_BYTES" in pages["docs/settings.html"]
    for name in ("BedrockAgentCoreApp", "AgentCorePlugin", "RequestContext", "BedrockAgentCoreContext"):
        assert f'id="litestar_agentcore.{name}"' in pages["docs/api.html"]
    assert 'id="litestar_agentcore.authoring.AgentAuthoring.entrypoint"' in pages["docs/api.html"]
