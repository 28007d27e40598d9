"""The loggers of this process, which a test and the apps that it makes may set up and must not leave so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored() -> Iterator[None]:
    """Undo what the block does to the loggers."""
    root = logging.getLogger()
    before = {
        logger: (
            logger.__class__,
            logger.level,
            logger.propagate,
            logger.disabled,
            logger.handlers[:],
            logger.filters[:],
        )
        for logger in loggers_of(root)
    }
    disabled = root.manager.disable
    yield
    root.manager.disable = disabled
    for logger in loggers_of(root):
        state = before.get(logger, (logging.Logger, logging.NOTSET, True, False, [], []))
        logger.__class__, level, logger.propagate, logger.disabled, logger.handlers[:], logger.filters[:] = state
        logger.setLevel(level)


def loggers_of(root: logging.Logger) -> list[logging.Logger]:
    """The root logger, and all that have been named."""
    named = root.manager.loggerDict.values()
    return [root, *(logger for logger in named if isinstance(logger, logging.Logger))]
