"""``BedrockAgentCoreContext``: the values of the current request, for code that has no ``context`` argument."""

from typing import Any

import msgspec

from litestar_agentcore.config_bundle import ConfigBundleRef, configuration_of, ref_in_baggage
from litestar_agentcore.protocol.baggage import ROUTING_EXPERIMENT_ARN, ROUTING_EXPERIMENT_VARIANT
from litestar_agentcore.protocol.context import current_request


class BedrockAgentCoreContext:
    """The values of the current request.

    They hold in plain and async handlers, in generators between two yields, and in tasks that a handler starts; another
    request never sees them. What a ``set_`` method sets holds from there on, for this request alone.
    """

    @classmethod
    def _set(cls, **values: Any) -> None:
        current_request.set(msgspec.structs.replace(current_request.get(), **values))

    @classmethod
    def set_request_context(cls, request_id: str, session_id: str | None = None) -> None:
        """Set the ids of the request."""
        cls._set(request_id=request_id, session_id=session_id)

    @classmethod
    def get_request_id(cls) -> str | None:
        """The id of the request, or ``None`` outside one."""
        return current_request.get().request_id

    @classmethod
    def get_session_id(cls) -> str | None:
        """The id of the session, or ``None`` where there is none."""
        return current_request.get().session_id

    @classmethod
    def set_workload_access_token(cls, token: str) -> None:
        """Set the workload access token, as AgentCore Identity issued it."""
        cls._set(workload_access_token=token)

    @classmethod
    def get_workload_access_token(cls) -> str | None:
        """The workload access token, or ``None``."""
        return current_request.get().workload_access_token

    @classmethod
    def set_oauth2_callback_url(cls, workload_callback_url: str) -> None:
        """Set the URL that an OAuth2 flow returns to."""
        cls._set(oauth2_callback_url=workload_callback_url)

    @classmethod
    def get_oauth2_callback_url(cls) -> str | None:
        """The URL that an OAuth2 flow returns to, or ``None``."""
        return current_request.get().oauth2_callback_url

    @classmethod
    def set_request_headers(cls, headers: dict[str, str]) -> None:
        """Set the headers that an agent may see."""
        cls._set(request_headers=headers)

    @classmethod
    def get_request_headers(cls) -> dict[str, str] | None:
        """The headers that an agent may see, or ``None`` where there is none."""
        return current_request.get().request_headers

    @classmethod
    def get_claims(cls) -> dict[str, Any] | None:
        """The claims of the caller's token, or ``{"api_key": name}``; ``None`` where authentication is off."""
        return current_request.get().claims

    @classmethod
    def set_routing_experiment(cls, arn: str | None, variant: str | None) -> None:
        """Set the routing experiment: attributes of the request's spans from here on.

        Args:
            arn: The experiment's ARN, or ``None``.
            variant: The name of the variant, or ``None``.
        """
        members = {ROUTING_EXPERIMENT_ARN: arn, ROUTING_EXPERIMENT_VARIANT: variant}
        cls._set(experiment={key: value for key, value in members.items() if value is not None})

    @classmethod
    def get_routing_experiment_arn(cls) -> str | None:
        """The ARN of the routing experiment that the request is part of, or ``None``."""
        return (current_request.get().experiment or {}).get(ROUTING_EXPERIMENT_ARN)

    @classmethod
    def get_routing_experiment_variant(cls) -> str | None:
        """The name of the routing experiment's variant that the request goes to, or ``None``."""
        return (current_request.get().experiment or {}).get(ROUTING_EXPERIMENT_VARIANT)

    @classmethod
    def set_config_bundle_ref(cls, ref: ConfigBundleRef | None) -> None:
        """Set the configuration bundle, in the place of the one that the request's baggage names.

        Args:
            ref: The bundle, or ``None`` for none.
        """
        cls._set(config_bundle_ref=ref)

    @classmethod
    def get_config_bundle_ref(cls) -> ConfigBundleRef | None:
        """The configuration bundle that the request asks for, or ``None``; a malformed one is ``None``, and logged."""
        values = current_request.get()
        if values.config_bundle_ref is not msgspec.UNSET:
            ref: ConfigBundleRef | None = values.config_bundle_ref
            return ref
        return None if values.baggage is None else ref_in_baggage(values.baggage)

    @classmethod
    def get_config_bundle(cls) -> dict[str, Any]:
        """The agent's own configuration in the configuration bundle that the request asks for.

        Fetched with boto3, once for each bundle and version; that call blocks (``await asyncio.to_thread(...)``).

        Returns:
            The configuration, a copy; ``{}`` where the request asks for no bundle, or the bundle has nothing for the
            agent whose ARN is the ``cloud.resource_id`` in ``OTEL_RESOURCE_ATTRIBUTES``.

        Raises:
            ModuleNotFoundError: boto3 is not installed.
            Exception: Whatever the boto3 client raises.
        """
        ref = cls.get_config_bundle_ref()
        return {} if ref is None else configuration_of(ref)
