"""What the workers of pytest-xdist need of every test."""

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape halves of surrogate pairs in what a test printed and logged: a worker cannot send them on, and ends."""
    report = yield
    report.sections[:] = [
        (name, text.encode(errors="backslashreplace").decode(errors="replace")) for name, text in report.sections
    ]
    return report
