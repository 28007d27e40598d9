"""An issuer of tokens on the loopback interface: OpenID configuration, keys, and whatever a bad one may do."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

WELL_KNOWN = "/.well-known/openid-configuration"

_MAKERS: dict[str, Callable[[], Any]] = {
    "RS": lambda: rsa.generate_private_key(65537, 2048),
    "PS": lambda: rsa.generate_private_key(65537, 2048),
    "ES": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed": ed25519.Ed25519PrivateKey.generate,
}
_PUBLISHERS: dict[str, Any] = {"RS": RSAAlgorithm, "PS": RSAAlgorithm, "ES": ECAlgorithm, "Ed": OKPAlgorithm}


class Key:
    """A key pair of an issuer."""

    def __init__(self, key_id: str, algorithm: str = "ES256", private: Any = None) -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self.private = private or _MAKERS[algorithm[:2]]()

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a JSON Web Key."""
        jwk: dict[str, Any] = json.loads(_PUBLISHERS[self.algorithm[:2]].to_jwk(self.private.public_key()))
        return jwk | {"kid": self.key_id, "use": "sig", "alg": self.algorithm}


class Issuer:
    """What a test may change is read at each request."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.keys = [Key("first")]
        self.requests: list[str] = []
        self.configuration: dict[str, Any] = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        """What is to be done instead, by path."""

    @property
    def discovery_url(self) -> str:
        return self.url + WELL_KNOWN

    @property
    def fetches(self) -> int:
        """How often its configuration was asked for."""
        return self.requests.count(WELL_KNOWN)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good token; ``None`` leaves one out."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": "ann", "aud": "agent", "iat": now, "exp": now + 600} | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: Key | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token, signed with the first key unless another is given."""
        key = key or self.keys[0]
        headers = {"kid": key.key_id} | (header or {})
        return jwt.encode(self.claims(**claims), key.private, key.algorithm, headers)

    def document(self, path: str) -> Any:
        return self.configuration if path == WELL_KNOWN else {"keys": [key.public for key in self.keys]}


def segment(value: Any) -> str:
    """A part of a token."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@contextmanager
def issuing(port: int = 0) -> Iterator[Issuer]:
    """Run an issuer until the test is through with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append(self.path)
            if (answer := issuer.answers.get(self.path)) is not None:
                answer(self)
                return
            body = json.dumps(issuer.document(self.path)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = False  # and closing it waits for them
    issuer = Issuer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
