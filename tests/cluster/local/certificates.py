"""The certificates of a cluster, and kubeconfigs that carry them."""

import base64
import datetime as dt
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = dt.timedelta(days=30)


class Authority:
    """A certificate authority, with what it issued in one directory.

    Args:
        directory: Where ``ca.crt`` and the others are written.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, mode=0o700)
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, directory.name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        signed = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.certificate.write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, user: str, group: str | None = None, hosts: Sequence[str] = ()) -> tuple[Path, Path]:
        """Issue a certificate that a client and a server can show.

        Args:
            user: The common name, which Kubernetes takes for the user.
            group: The organization, which it takes for the user's group.
            hosts: The names and addresses of the server.

        Returns:
            The files of the certificate and of its key.
        """
        names = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        if group:
            names.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        builder = self._builder(x509.Name(names), key).add_extension(usage, critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([*map(_name, hosts)]), critical=False)
        base = user.replace(":", "-")
        certificate, secret = self.directory / f"{base}.crt", self.directory / f"{base}.key"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        _write_key(key, secret)
        return certificate, secret

    def kubeconfig(self, path: Path, server: str, user: str, group: str | None = None) -> Path:
        """Write a kubeconfig that needs no other file.

        Args:
            path: Where to.
            server: The URL of the API server.
            user: As whom it authenticates.
            group: The user's group.

        Returns:
            ``path``.
        """
        certificate, key = self.issue(user, group)
        entry = {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)}
        cluster = {"server": server, "certificate-authority-data": _encoded(self.certificate)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": user, "user": entry}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
            "current-context": "local",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(content, indent=1))
        return path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + VALID)
        )


def signing_keys(directory: Path) -> tuple[Path, Path]:
    """Make the pair of keys that sign service accounts' tokens: the files of the private and of the public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "service-accounts.key", directory / "service-accounts.pub"
    _write_key(key, private)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
