"""Certificates for tests: an authority, and what it signs for loopback."""

import datetime as dt
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Certificates", "make_certificates"]


class Certificates(NamedTuple):
    """Paths of PEM files. `server` and `client` hold a private key and then its certificate."""

    authority: Path
    other_authority: Path
    server: Path
    client: Path


def make_certificates(folder: Path) -> Certificates:
    """Write an authority, one that signed nothing, and a server's and a client's certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(
        *(folder / f"{name}.pem" for name in ("authority", "other", "server", "client"))
    )
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Authority", key, None, key)
    made.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    other = ec.generate_private_key(ec.SECP256R1())
    stranger = _certificate("Stranger", other, None, other)
    made.other_authority.write_bytes(stranger.public_bytes(serialization.Encoding.PEM))
    for path in (made.server, made.client):
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(path.stem, own, authority.subject, key)
        private = own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return made


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name | None,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(signer, hashes.SHA256())
    )
