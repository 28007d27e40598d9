"""Every command of the pages that a newcomer follows does what they say, and every agent in them runs."""

import re
from pathlib import Path

import pytest

from tests.e2e import pages
from tests.e2e.pages import Page, agrees, workshop
from tests.markdown import ROOT

FOLLOWED = {
    "README.md": "litestar-agentcore",
    "docs/quick-start.md": "litestar-agentcore",
    "docs/handlers.md": "my-agent",
    "docs/streaming.md": "my-agent",
    "docs/background-tasks.md": "my-agent",
    "docs/deploying.md": "litestar-agentcore",
    "docs/observability.md": "litestar-agentcore",
    "docs/securing.md": "litestar-agentcore",
}
"""The pages, each with the directory in which its reader begins."""


def read(name: str) -> Page:
    return Page((ROOT / name).read_text(), name)


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_page_is_right(name: str, tmp_path: Path) -> None:
    page = read(name)
    assert any(not command.elsewhere for command in page.commands)
    faults = page.follow(workshop(tmp_path), FOLLOWED[name])
    assert not faults, "\n\n".join(faults)


WRONG = """
```console
$ echo one && echo two \\
    three  # and a comment
one
two three
$ echo one
two
$ false
$ cat missing.py
$ cd /tmp; cd - >/dev/null; where=there
$ echo $where
there
```

```python
# missing.py
print("never said")
```

```console
$ python missing.py
said
$ exit
$ echo never
```
"""


def test_a_page_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    faults = Page(WRONG, "page.md").follow(workshop(tmp_path), "my-agent")
    lines = {int(fault.split(":")[1]): fault.splitlines()[0].split(": ")[1] for fault in faults}
    assert lines == {
        7: "`echo one` printed",
        9: "`false` failed",
        10: "`cat missing.py` failed",
        22: "`python missing.py` printed",
        24: "`exit` was never reached, or never ended",
        25: "`echo never` was never reached, or never ended",
    }


def test_what_a_page_shows_stands_for_what_is_printed() -> None:
    assert agrees('{"time": 1767225600}', '{"time": 1795604815}\n')
    assert agrees("one\n...\nlast", "one\ntwo\n\nthree\nlast")
    assert agrees("one\n...", "one\ntwo\n")
    assert agrees("in 0.1... s", "in 0.1234 s")
    assert not agrees("one...", "one\ntwo")
    assert not agrees("one", "one two")
    assert not agrees("a.c", "abc")
    assert not agrees('{"time": 17}', '{"time": 18}')


def test_every_reason_not_to_run_a_command_here_is_needed() -> None:
    texts = [part for name in FOLLOWED for command in read(name).commands for part in command.text.split(" && ")]
    unneeded = [pattern for pattern in pages.ELSEWHERE if not any(re.fullmatch(pattern, text) for text in texts)]
    assert unneeded == []
