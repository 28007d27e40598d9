"""What ``litestar agent doctor`` finds: lines for a person, JSON for machines, and nothing secret in either."""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

Level = Literal["ok", "warning", "failure"]

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}

_SECRET_NAME = re.compile(r"HEADER|KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s@]*@")
_QUERY_OF_URL = re.compile(r"(?<=[/\w])\?[^\s'\")]+")


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one check."""

    level: Level
    subject: str
    text: str
    """What was found, in one line."""
    advice: str = ""
    """What to do about it."""


class Setting(msgspec.Struct, frozen=True):
    """A variable of the environment, and what is in force."""

    variable: str
    value: str
    source: Literal["environment", "default"]


class Report(msgspec.Struct, frozen=True):
    """All that was found."""

    ok: bool
    checks: list[Finding]
    settings: list[Setting]

    @classmethod
    def of(cls, findings: Iterable[Finding], settings: list[Setting]) -> "Report":
        """Put findings together.

        Args:
            findings: The results of the checks.
            settings: What is in force.
        """
        checks = list(findings)
        return cls(all(finding.level != "failure" for finding in checks), checks, settings)

    def write(self, console: Console, with_defaults: bool) -> None:
        """Write it for a person.

        Args:
            console: Where to.
            with_defaults: Whether settings that have their default are shown too.
        """
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in self.checks:
            table.add_row(Text(finding.level, _STYLES[finding.level]), finding.subject, Text(finding.text))
            if finding.advice:
                table.add_row("", "", Text(finding.advice, "dim"))
        console.print(table)
        for source, title in (("environment", "From the environment"), ("default", "By default")):
            shown = [setting for setting in self.settings if setting.source == source]
            if shown and (with_defaults or source == "environment"):
                console.print(f"\n{title}:")
                width = max(len(setting.variable) for setting in shown)
                for setting in shown:  # without folding, which would cut names where the terminal is narrow
                    console.print(Text(f"{setting.variable:<{width}}  {setting.value}"), soft_wrap=True)
        counts = {level: sum(finding.level == level for finding in self.checks) for level in ("failure", "warning")}
        parts = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
        console.print()
        console.print(Text(", ".join(parts) or "All is well.", "bold" if parts else "bold green"))


def is_secret(name: str) -> bool:
    """Whether what a variable or an attribute of that name holds is not to be shown.

    Args:
        name: The name.
    """
    return _SECRET_NAME.search(name) is not None


def without_credentials(text: str) -> str:
    """A text without the users and the queries of the URLs in it.

    Args:
        text: The text.
    """
    return _QUERY_OF_URL.sub("", _USER_OF_URL.sub("", text))
