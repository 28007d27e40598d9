"""How the exporter over HTTP sends: it trusts whom it is told to, and takes a redirect for a failure.

Imported where spans are exported over HTTP: ``requests`` takes its time to load.
"""

from typing import Any

import requests


class ExportSession(requests.Session):
    """A session for the SDK's OTLP exporter over HTTP.

    ``requests`` prefers ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE`` to what its session was told
    (https://requests.readthedocs.io/en/latest/user/advanced/#ssl-cert-verification), so that on a machine where one of
    them is set ``OTEL_EXPORTER_OTLP_CERTIFICATE`` would be without effect. And the exporter takes each status below 400
    for success, so that what is redirected (to ``https``, say) would be lost and not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hooks["response"].append(_refuse_redirect)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Have what the session was told to trust go before what the environment says."""
        verify = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def _refuse_redirect(response: requests.Response, **_: Any) -> None:
    if 300 <= response.status_code < 400:
        response.close()
        location = response.headers.get("location", "nowhere")
        raise requests.TooManyRedirects(f"{response.status_code}: it redirects to {location}", response=response)
