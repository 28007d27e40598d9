"""Programs that tests run beside ours."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def executable(name: str, package: str) -> str:
    """Where a program is, beside the running Python or on the PATH.

    Args:
        name: Its name.
        package: What has it, for whoever lacks it.
    """
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.fail(f"`{name}` is not there: install {package}", pytrace=False)
    return found
