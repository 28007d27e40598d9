"""Takes the picture of the playground for the documentation: ``python -m tests.e2e.playground_picture``."""

import os
import shutil
import subprocess
import sys

from tests.e2e.environments import environment
from tests.e2e.runtimes import ROOT
from tests.e2e.served import served

PICTURE = ROOT / "docs" / "images" / "playground.png"


def main() -> None:
    """Serve the agent of the tests and have the camera look at its playground."""
    chromium = shutil.which("chromium") or sys.exit("chromium is not on the PATH")
    with served("tests.e2e.playground_agent:app", AGENTCORE_PLAYGROUND="true") as server:
        command = [
            str(environment("browser") / "python"),
            "-m",
            "tests.e2e.playground_camera",
            server.url,
            str(PICTURE),
        ]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PLAYGROUND_CHROMIUM": chromium})


if __name__ == "__main__":
    main()
