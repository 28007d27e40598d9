"""What an exception of the author's code comes to."""


def message_of(error: BaseException) -> str:
    """The text of an exception, even where its own ``__str__`` raises.

    Args:
        error: Whatever was raised.

    Returns:
        ``str(error)``, or the type's name where there is none to be had.
    """
    try:
        return str(error)
    except Exception:
        return type(error).__name__
