"""The reference runtime, in an environment that is made where it is not there yet."""

import pytest

from tests.e2e.environments import environment
from tests.e2e.runtimes import OURS, Runtime

pytest.register_assert_rewrite("tests.e2e.trace_promises")


@pytest.fixture(scope="session")
def reference() -> Runtime:
    return Runtime("reference", environment("peer") / "python")


@pytest.fixture(scope="session", params=["reference", "ours"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param == "ours":
        return OURS
    reference: Runtime = request.getfixturevalue("reference")
    return reference
