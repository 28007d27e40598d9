"""The OpenAPI page and the service agree: schemathesis reads the one and tries the other."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.server import free_port, run


def tool(name: str) -> str:
    found = shutil.which(name, path=Path(sys.executable).parent)
    assert found is not None, f"{name} is not installed beside {sys.executable}"
    return found


def test_what_the_page_says_holds_for_good_and_bad_requests() -> None:
    port = free_port()
    with run([tool("litestar"), "run", "--port", str(port)], port):
        page = f"http://127.0.0.1:{port}/schema/openapi.json"
        command = [tool("schemathesis"), "run", page, "--max-examples", "25", "--seed", "1"]
        tried = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
    assert tried.returncode == 0, tried.stdout
