"""A certification authority of one's own: makes its certificate, and certificates of servers. ECDSA P-256, PEM.

Nothing is stored here. Times are UTC and given by the caller. About a millisecond per certificate.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
SERVER_DAYS = 396  # with the hour before: below the 398 days beyond which clients begin to refuse
_SKEW = timedelta(hours=1)  # a client's clock may be behind


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key (PKCS #8), both PEM. Valid until `not_after`."""

    certificate: str
    key: str = field(repr=False)
    not_after: datetime


def make_authority(name: str, *, at: datetime) -> Issued:
    """A self-signed CA for `CA_DAYS` that may sign servers' certificates and no further CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    built = (
        _builder(subject, key, issuer=subject, at=at, until=at + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(built, key, key)


def make_server_certificate(
    authority: Issued, names: Sequence[str], *, at: datetime, days: int = SERVER_DAYS
) -> Issued:
    """A certificate for a server that is reached by `names` (host names and IP addresses; the first is its subject).

    Never outlives the CA. `ValueError` for what is no host name.
    """
    return _issue(authority, names, ExtendedKeyUsageOID.SERVER_AUTH, at, days)


def make_client_certificate(authority: Issued, name: str, *, at: datetime, days: int = SERVER_DAYS) -> Issued:
    """A certificate with which a client of that name logs in. Never outlives the CA."""
    return _issue(authority, [name], ExtendedKeyUsageOID.CLIENT_AUTH, at, days)


def _issue(authority: Issued, names: Sequence[str], usage: x509.ObjectIdentifier, at: datetime, days: int) -> Issued:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not one that was made here")
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(at + timedelta(days=days), issuer.not_valid_after_utc)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    built = (
        _builder(_subject(names[0]), key, issuer=issuer.subject, at=at, until=until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return _signed(built, key, issuer_key)


def not_after(certificate: str) -> datetime:
    """When a certificate (PEM) ends."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def der_of(certificate: str) -> bytes:
    """The same certificate as servers show it."""
    return x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate (PEM) as `AB:CD:…`, for people to compare."""
    digest = x509.load_pem_x509_certificate(certificate.encode()).fingerprint(hashes.SHA256())
    return ":".join(f"{byte:02X}" for byte in digest)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        text = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"not a host name: {name[:80]!r}") from error
    if not text or any(letter.isspace() for letter in text):
        raise ValueError(f"not a host name: {name[:80]!r}")
    return x509.DNSName(text)


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, issuer: x509.Name, at: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Issued:
    certificate = builder.sign(signer, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode(), certificate.not_valid_after_utc
    )
