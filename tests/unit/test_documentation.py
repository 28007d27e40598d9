"""The pages: links that lead somewhere, samples that are Python, references that are current, and no page forgotten."""

import ast
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import litestar_agentcore
import pytest

from docs.settings_reference import PAGE, page
from tests.markdown import PAGES, ROOT, Block, anchors, blocks, links

NAMES = [str(path) for path in PAGES]


def faults(page: Path, text: str) -> list[str]:
    """What is wrong with the links of a page: no such file or heading, or an address that cannot be one."""
    found = []
    for link in links(text):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            local = parts.hostname in ("localhost", "127.0.0.1")
            if not (parts.scheme == "https" and "." in (parts.hostname or "")) and not local:
                found.append(f"{link}: neither an https address nor on this machine")
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_file():
            found.append(f"{link}: no such file")
        elif parts.fragment and target.suffix == ".md" and parts.fragment not in anchors(target.read_text()):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    assert faults(ROOT / name, (ROOT / name).read_text()) == []


def test_links_that_lead_nowhere_are_found() -> None:
    wrong = [
        "missing.md",
        "settings.md#nothing",
        "#nothing",
        "../grafana",
        "http://example.com",
        "https://nowhere",
        "missing.png",
    ]
    text = "# Here\n" + "\n".join(f"[text]({link})" for link in wrong[:-1]) + f"\n![image]({wrong[-1]})\n"
    assert [fault.split(": ")[0] for fault in faults(ROOT / "docs" / "x.md", text)] == wrong
    right = (
        "# A `b`: c\n[x](settings.md) [x](settings.md#settings) [x](#a-b-c) [x](https://example.com/) [x](../app.py)\n"
    )
    page = ROOT / "docs" / "x.md"
    assert [fault for fault in faults(page, right) if "#a-b-c" not in fault] == []
    assert anchors(right) == {"a-b-c"}


def test_every_page_of_the_documentation_is_in_its_navigation() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {
        line.rpartition("<")[2].rstrip(">")
        for block in blocks(index)
        if block.language == "{toctree}"
        for line in block.text.splitlines()
        if line and not line.startswith(":")
    }
    in_navigation = {((ROOT / "docs" / f"{name}.md").resolve()) for name in listed}
    documentation = {ROOT / path for path in PAGES if path.parts[0] != "examples"}
    assert documentation - in_navigation == {ROOT / "docs" / "index.md"}
    assert [path for path in in_navigation if not path.exists()] == []


def test_the_reference_of_the_settings_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make reference`"


def test_the_reference_of_the_api_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    named = {line.split()[-1].rpartition(".")[2] for line in text.splitlines() if line.startswith(".. auto")}
    assert set(litestar_agentcore.__all__) <= named


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 95


SAMPLES = [(name, block) for name in NAMES for block in blocks((ROOT / name).read_text()) if block.language == "python"]


@pytest.mark.parametrize(("name", "block"), SAMPLES, ids=[f"{name}:{block.line}" for name, block in SAMPLES])
def test_every_sample_is_python(name: str, block: Block) -> None:
    compile(block.text, f"{name}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_every_sample_that_makes_an_application_can_be_imported(tmp_path: Path) -> None:
    """Those with the name of a file are run by the end-to-end tests, with the commands beside them."""
    whole = [(name, block) for name, block in SAMPLES if block.file is None and "\napp = " in f"\n{block.text}"]
    assert len(whole) >= 5
    for name, block in whole:
        (tmp_path / f"{name.replace('/', '-')}-{block.line}.py").write_text(block.text)
    run_each = (
        "import pathlib, runpy\nfor path in sorted(pathlib.Path().glob('*.py')): print(path); runpy.run_path(path)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", run_each],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
