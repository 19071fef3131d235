"""Certificates that a test makes for its servers and clients."""

import ipaddress
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Certificate:
    """Where a certificate and its key are, as PEM."""

    file: Path
    key: Path

    @property
    def parameters(self) -> str:
        """What names it in a URL."""
        return f"ssl_certfile={self.file}&ssl_keyfile={self.key}"


@dataclass(frozen=True)
class ServerTLS:
    """What a server shows, and whether it demands a certificate of `authority` from its clients."""

    certificate: Certificate
    authority: Path
    demands_certificate: bool = False


class Authority:
    """A CA of a test's own; its files are in `directory`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory, self._numbers = directory, itertools.count()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Conductor test {name}")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key, expired=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_SIGNS, critical=True)
        self.file = directory / f"{name}.pem"
        self._write(self.file, builder)

    def server(self, *hosts: str, expired: bool = False) -> Certificate:
        """A certificate for these host names and addresses."""
        return self._issue(ExtendedKeyUsageOID.SERVER_AUTH, hosts, expired=expired, password=None)

    def client(self, password: str | None = None) -> Certificate:
        """A certificate for a client; its key may have a password."""
        return self._issue(ExtendedKeyUsageOID.CLIENT_AUTH, ("client",), expired=False, password=password)

    def _issue(
        self, usage: x509.ObjectIdentifier, hosts: tuple[str, ...], *, expired: bool, password: str | None
    ) -> Certificate:
        key, name = ec.generate_private_key(ec.SECP256R1()), f"{self.file.stem}-{next(self._numbers)}"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        builder = self._builder(subject, key, expired=expired)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        self._write(made.file, builder)
        encryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password.encode())
        )
        made.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return made

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now - _DAY if expired else now + _DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer_key, critical=False)
        )

    def _write(self, file: Path, builder: x509.CertificateBuilder) -> None:
        file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
