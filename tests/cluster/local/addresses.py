"""Where a cluster's parts are, as far as that is the same in every cluster that is made here."""

PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
DOMAIN = "cluster.local"
API_PORT = 6443


def pods_of(number: int) -> str:
    """The network of a node's pods."""
    return f"10.244.{number}.0/24"
