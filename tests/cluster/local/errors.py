"""What can go wrong with a cluster."""


class ClusterError(Exception):
    """A cluster cannot be made, or a part of it ended; the message says which and shows the end of its log."""
