"""Certificates of this machine's own, for servers on loopback that speak TLS."""

import datetime as dt
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


def certificate(path: Path, *hosts: str) -> Path:
    """A certificate of loopback and `hosts`, which vouches for itself, and its key; both in one file."""
    key = _new_key()
    path.write_bytes(_private(key) + _signed(_name("loopback"), key, _name("loopback"), key, hosts))
    return path


@dataclass(frozen=True)
class Authority:
    """One that signs certificates. `path` holds its own."""

    path: Path
    name: x509.Name
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def at(cls, path: Path, name: str = "authority") -> "Authority":
        """A new one."""
        key = _new_key()
        path.write_bytes(_signed(_name(name), key, _name(name), key, None))
        return cls(path, _name(name), key)

    def pair(
        self, folder: Path, *hosts: str, password: str | None = None, name: str = "server"
    ) -> tuple[Path, Path]:
        """A certificate of loopback and `hosts`, and its key, in two files."""
        folder.mkdir(exist_ok=True)
        key, cert = _new_key(), folder / f"{name}.crt"
        cert.write_bytes(_signed(_name(name), key, self.name, self._key, hosts))
        private = folder / f"{name}.key"
        private.touch(0o600)
        private.write_bytes(_private(key, password))
        return cert, private


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: ec.EllipticCurvePrivateKey, password: str | None = None) -> bytes:
    hidden: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password.encode())
    )
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, hidden)


def _signed(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...] | None,
) -> bytes:
    """A certificate in PEM; without `hosts` it is an authority's."""
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )
    if hosts is None:
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    else:
        loopback = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
        names = [*loopback, *map(x509.DNSName, hosts)]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(signer, hashes.SHA256()).public_bytes(_PEM)
