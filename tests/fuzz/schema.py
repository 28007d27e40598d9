"""Schemathesis on ``/schema``, with every check. ``python -m tests.fuzz.schema`` runs the long form."""

import argparse
import subprocess
import sys

from tests.e2e.test_schema import tool
from tests.integration.server import free_port, run


def main() -> int:
    """Run the long form.

    Returns:
        What schemathesis returns: 0 where every check held.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5000, help="for each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    port = free_port()
    with run([tool("litestar"), "run", "--port", str(port)], port):
        page = f"http://127.0.0.1:{port}/schema/openapi.json"
        command = [tool("schemathesis"), "run", page, "--checks", "all", "--workers", "2"]
        command += ["--max-examples", str(options.examples), "--seed", str(options.seed)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
