import os
from collections.abc import Iterator

import pytest

from tests import loggers


@pytest.fixture(autouse=True, scope="session")
def settings_are_the_defaults() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AGENTCORE_"):
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True, scope="module")
def logging_as_it_was() -> Iterator[None]:
    """Undo what the apps of a module, which this process serves, do to its loggers."""
    with loggers.restored():
        yield
