"""What every test needs, whoever runs it: a shell in the background, or a worker of pytest-xdist."""

import signal
from collections.abc import Generator

import pytest


def pytest_configure() -> None:
    """Have what tests start end by Ctrl-C: a shell has its background ignore it, and that is handed on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape halves of surrogate pairs in what a test printed and logged: a worker cannot send them on, and ends."""
    report = yield
    report.sections[:] = [
        (name, text.encode(errors="backslashreplace").decode(errors="replace")) for name, text in report.sections
    ]
    return report
