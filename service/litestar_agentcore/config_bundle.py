"""Configuration bundles: which one the caller of a request asks for, and the agent's part of it."""

import copy
import importlib
import logging
import os
from functools import lru_cache
from threading import Lock
from typing import Any
from urllib.parse import unquote

import msgspec

from litestar_agentcore.protocol.baggage import CONFIG_BUNDLE_ARN, CONFIG_BUNDLE_VERSION, baggage_members

logger = logging.getLogger(__name__)

CACHED_BUNDLES = 30
"""How many configurations are kept, the most recently used ones."""

SERVICE = "bedrock-agentcore-control"
"""boto3's name of the service that holds configuration bundles."""


class ConfigBundleRef(msgspec.Struct, frozen=True):
    """One version of a configuration bundle.

    Raises:
        ValueError: A field is empty, or the ARN does not end with ``/`` and a bundle id.
    """

    bundle_arn: str
    bundle_version: str

    def __post_init__(self) -> None:
        if not self.bundle_version:
            raise ValueError("bundle_version is empty")
        if "/" not in self.bundle_arn or not self.bundle_id:
            raise ValueError("bundle_arn does not end with '/' and a bundle id")

    @property
    def bundle_id(self) -> str:
        """The last segment of the ARN."""
        return self.bundle_arn.rpartition("/")[2]


@lru_cache(maxsize=CACHED_BUNDLES)
def ref_in_baggage(baggage: str) -> ConfigBundleRef | None:
    """The configuration bundle that a baggage header names.

    Args:
        baggage: The header's value.

    Returns:
        The bundle; ``None``, with a warning, where its ARN is malformed, and ``None`` where the header names no bundle
        or no version.
    """
    members = baggage_members(baggage)
    arn, version = members.get(CONFIG_BUNDLE_ARN), members.get(CONFIG_BUNDLE_VERSION)
    if arn is None or version is None:
        return None
    try:
        return ConfigBundleRef(arn, version)
    except ValueError as error:
        logger.warning("The configuration bundle in the baggage is ignored: %s", error)
        return None


class _Configuration:
    """A configuration, fetched once; a fetch that fails is repeated at the next call."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._value: Any = msgspec.UNSET

    def get(self, ref: ConfigBundleRef) -> Any:
        with self._lock:
            if self._value is msgspec.UNSET:
                self._value = _fetch(ref)
            return self._value


_cache_lock = Lock()  # lru_cache may make two values for one key when two threads ask at once


@lru_cache(maxsize=CACHED_BUNDLES)
def _cached(bundle_id: str, version: str) -> _Configuration:
    return _Configuration()


def configuration_of(ref: ConfigBundleRef) -> dict[str, Any]:
    """The agent's own configuration in a bundle. Blocks while it is fetched, once per bundle and version.

    Args:
        ref: The bundle.

    Returns:
        A copy of the configuration; ``{}`` where the bundle has none for this agent.

    Raises:
        ModuleNotFoundError: boto3 is not installed.
        Exception: Whatever the boto3 client raises.
    """
    with _cache_lock:
        configuration = _cached(ref.bundle_id, ref.bundle_version)
    value: dict[str, Any] = copy.deepcopy(configuration.get(ref))
    return value


def _fetch(ref: ConfigBundleRef) -> Any:
    environment = os.environ
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or _region_of(ref.bundle_arn)
    version = _client(region).get_configuration_bundle_version(bundleId=ref.bundle_id, versionId=ref.bundle_version)
    own_arn = _own_arn(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if own_arn is None:
        logger.warning("OTEL_RESOURCE_ATTRIBUTES has no cloud.resource_id, so no configuration is this agent's")
        return {}
    component = version.get("components", {}).get(own_arn)
    if component is None:
        logger.warning("The configuration bundle %s has no component for %s", ref.bundle_id, own_arn)
        return {}
    return component.get("configuration", {})


@lru_cache(maxsize=1)
def _client(region: str | None) -> Any:
    try:
        boto3 = importlib.import_module("boto3")
    except ModuleNotFoundError as error:
        if error.name != "boto3":
            raise
        message = "A configuration bundle is fetched with boto3, which is not installed: pip install boto3"
        raise ModuleNotFoundError(message, name="boto3") from None
    return boto3.Session().client(SERVICE, region_name=region)  # the default session is not thread-safe


def _region_of(arn: str) -> str | None:
    fields = arn.split(":")
    return (fields[3] or None) if len(fields) > 3 else None


def _own_arn(resource_attributes: str) -> str | None:
    """The ARN of the runtime; the platform may give that of one of its endpoints."""
    for attribute in resource_attributes.split(","):
        key, _, value = attribute.partition("=")
        if key.strip() == "cloud.resource_id":
            return unquote(value.strip()).partition("/runtime-endpoint/")[0]
    return None
