"""What the tests of all backends share."""

import pytest

from tests.certificates import Certificates, certificates

pytest.register_assert_rewrite("tests.e2e.trace_promises")


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))
