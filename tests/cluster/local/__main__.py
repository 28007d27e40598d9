"""A cluster for a person: ``python -m tests.cluster.local up``."""

import argparse
import signal
import sys
from pathlib import Path

from tests.cluster.local.build import binaries
from tests.cluster.local.cluster import Cluster, running
from tests.cluster.local.errors import ClusterError

COMMANDS = "build the programs, if they have not been; make a cluster; load an image into it; stop it"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.local", description=__doc__)
    parser.add_argument("command", choices=["build", "up", "load", "down"], help=COMMANDS)
    parser.add_argument("image", nargs="?", type=Path, help="the archive that is to be loaded")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/litestar-agentcore-cluster"), help="what it writes to")
    arguments = parser.parse_args()
    directory = arguments.dir.absolute()
    try:
        if arguments.command == "build":
            print(binaries())
        elif arguments.command == "up":
            with running(directory) as cluster:
                print(cluster.kubeconfig, flush=True)
                signal.pause()
        elif arguments.command == "load":
            if arguments.image is None:
                parser.error("which image?")
            Cluster(directory).load_image(arguments.image)
        else:
            Cluster(directory).stop()
    except ClusterError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
