"""Children that a handler forks: one that comes back from the author's code into the server's is ended."""

import logging
import os
import threading
from typing import NoReturn

logger = logging.getLogger(__name__)

_forking_thread: int | None = None
"""In a forked process, the thread that forked it, which is its first; ``None`` elsewhere."""


def _remember() -> None:
    global _forking_thread
    _forking_thread = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)


def end_stray_child() -> None:
    """End this process where the current thread is the one that forked it: its server is its parent's.

    Called on a thread of the server, once the author's code has returned there. A child that went on would share the
    parent's sockets and selectors, and keep its clients' connections open.
    """
    if _forking_thread is not None and _forking_thread == threading.get_ident():
        end_child()


def end_child() -> NoReturn:
    """End a child that has come back into the server's code, without touching what it shares with its parent."""
    logger.error("A handler forked a process that did not end by itself, as os._exit() does; it is ended")
    os._exit(1)
