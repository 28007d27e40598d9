import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def settings_are_the_defaults() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AGENTCORE_"):
                patch.delenv(name)
        yield
