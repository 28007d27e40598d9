"""``litestar-agent``: the commands of ``litestar agent`` without Litestar, which imports an application before each."""

from litestar_agentcore.cli.group import main
from litestar_agentcore.cli.sdk_imports import serve_sdk_imports
from litestar_agentcore.worker_processes import is_being_imported_by_worker

if is_being_imported_by_worker():
    # A process that the server or the agent spawns runs this script anew, and then imports the agent's file.
    serve_sdk_imports()

__all__ = ["main"]

if __name__ == "__main__":
    main()
