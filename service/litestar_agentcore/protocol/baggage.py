"""Members of the W3C ``baggage`` header that the runtime itself reads."""

from urllib.parse import unquote

ROUTING_EXPERIMENT_ARN = "aws.agentcore.gateway.routing_experiment_arn"
ROUTING_EXPERIMENT_VARIANT = "aws.agentcore.gateway.routing_experiment_variant_name"
CONFIG_BUNDLE_ARN = "aws.agentcore.configbundle_arn"
CONFIG_BUNDLE_VERSION = "aws.agentcore.configbundle_version"


def baggage_members(baggage: str) -> dict[str, str]:
    """The members of a baggage header, properties left out.

    More lenient than a propagator, as the reference runtime is: a member that is malformed or empty is skipped, and the
    others count.

    Args:
        baggage: The header's value; several headers are joined with commas (RFC 9110, section 5.3).

    Returns:
        Percent-decoded values by key. Of a key that comes twice the first counts.
    """
    members: dict[str, str] = {}
    for member in baggage.split(","):
        key, separator, rest = member.partition("=")
        value = unquote(rest.partition(";")[0].strip())
        if separator and key.strip() and value:
            members.setdefault(key.strip(), value)
    return members


def routing_experiment(baggage: str) -> dict[str, str]:
    """The routing experiment's members of a baggage header, where there are any, by key."""
    if "routing_experiment" not in baggage:
        return {}
    members = baggage_members(baggage)
    return {key: members[key] for key in (ROUTING_EXPERIMENT_ARN, ROUTING_EXPERIMENT_VARIANT) if key in members}
