"""What worker processes have in common: the server that started them, and the application that each imports."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import Any


def sockets_of_server() -> list[int] | None:
    """Find the sockets that this process was given as one of several workers of uvicorn's.

    Returns:
        Their inodes, which are the same in each of the workers and in no other server; ``None`` in any other process,
        a reloading server's included.
    """
    # What the supervisor has passed to this process is nowhere else to be had before the server has started.
    arguments: dict[str, Any] = getattr(multiprocessing.current_process(), "_kwargs", None) or {}
    config, sockets = arguments.get("config"), arguments.get("sockets")
    if getattr(config, "workers", 1) < 2 or getattr(config, "reload", False) or not isinstance(sockets, Sequence):
        return None
    try:
        return [os.fstat(each.fileno()).st_ino for each in sockets]
    except (AttributeError, OSError):  # Windows, where workers can share nothing anyway, which a warning says
        return []


def import_string(application: object) -> str | None:
    """Find the module and the variable that an application is to be had from, for the processes that uvicorn spawns.

    A script is found as well: each process runs it as ``__mp_main__``, and has it as ``__main__`` too.

    Args:
        application: The application.

    Returns:
        ``module:variable``; ``None`` where no imported module has it.
    """
    modules = sorted(sys.modules.items(), key=lambda item: item[0] != "__main__")
    for name, module in modules:
        for variable, value in list(getattr(module, "__dict__", {}).items()):
            if value is application and name != "__mp_main__":
                if name == "__main__" and _is_not_spawned(module):
                    continue
                return f"{name}:{variable}"
    return None


def _is_not_spawned(main: object) -> bool:
    """Whether a main module cannot be run anew: an interactive session, or ``python -c``."""
    return getattr(main, "__spec__", None) is None and getattr(main, "__file__", None) is None


def is_being_imported_by_worker() -> bool:
    """Whether this process is a worker that is just running the main script."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))
