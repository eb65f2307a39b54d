"""Addresses of runtimes and what goes with them: read, and refused with a reason, before anything is contacted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from projects.domain import RuntimeEndpoint

TLS_PORT = 2376
SSH_PORT = 22
ENGINE_SOCKET = "/var/run/docker.sock"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_PATH = re.compile(r"/[A-Za-z0-9_./-]{1,100}")
_HOST_KEY = re.compile(
    r"(?:(?P<host>\S+)\s+)?(?P<key>(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521))\s+[A-Za-z0-9+/=]{40,})(?:\s.*)?"
)


class BadEndpoint(ValueError):
    """What is wrong with one field: `url`, `ca`, `certificate`, `key` or `host_keys`."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, slots=True)
class Address:
    """`kind` is `here`, `unix`, `tcp` or `ssh`. `path` is the engine's socket: here for `unix`, there for `ssh`."""

    kind: str
    host: str = ""
    port: int = 0
    user: str = ""
    path: str = ""

    @property
    def loopback(self) -> bool:
        """Nobody but this machine is on the way."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(url: str) -> Address:
    """The parts of an address; `BadEndpoint` says what is wrong with it."""
    if not url:
        return Address("here")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadEndpoint("url", "The port is a number from 1 to 65535.") from error
    if parts.query or parts.fragment or parts.password is not None:
        raise BadEndpoint("url", "The address has a host and a port and nothing else; no password.")
    if parts.scheme == "unix":
        if parts.netloc or not _PATH.fullmatch(parts.path):
            raise BadEndpoint("url", "A socket is named by its whole path: unix:///var/run/docker.sock.")
        return Address("unix", path=parts.path)
    if parts.scheme not in {"tcp", "ssh"}:
        raise BadEndpoint("url", "Use unix:///path, tcp://host:port or ssh://user@host:port.")
    if not (_HOST.fullmatch(host) or _is_ip(host)):
        raise BadEndpoint("url", "There is no host name or IP address in it.")
    if port == 0:
        raise BadEndpoint("url", "The port is a number from 1 to 65535.")
    if parts.scheme == "tcp":
        if parts.path not in {"", "/"} or parts.username:
            raise BadEndpoint("url", "An address by TCP has a host and a port and nothing else: tcp://host:2376.")
        return Address("tcp", host, port or TLS_PORT)
    if not _USER.fullmatch(parts.username or ""):
        raise BadEndpoint("url", "Name the user to log in as: ssh://user@host.")
    path = parts.path if parts.path not in {"", "/"} else ENGINE_SOCKET
    if not _PATH.fullmatch(path):
        raise BadEndpoint("url", "What follows the host is the whole path of the engine's socket there.")
    return Address("ssh", host, port or SSH_PORT, parts.username or "", path)


def check(endpoint: RuntimeEndpoint, *, at: datetime | None = None) -> Address:
    """The address, when everything that belongs to it is there and fits together; else `BadEndpoint`."""
    address = parse(endpoint.url)
    if address.kind == "tcp":
        given = [name for name in ("ca", "certificate", "key") if getattr(endpoint, name)]
        if not given and not (address.loopback or endpoint.plain):
            raise BadEndpoint(
                "ca",
                "Without TLS whoever reaches that port owns the machine: give the CA, and a client certificate with its"
                " key. Plain TCP is for this machine only (127.0.0.1).",
            )
        for name in ("ca", "certificate", "key"):
            if given and name not in given:
                raise BadEndpoint(name, "TLS needs all three: the engine's CA, our certificate, and its key.")
        if given:
            _check_tls(endpoint, at or datetime.now(UTC))
    if address.kind == "ssh":
        if not endpoint.key:
            raise BadEndpoint("key", "SSH needs a private key; there are no passwords here.")
        _ssh_key(endpoint.key)
        if not list(host_keys(endpoint.host_keys)):
            raise BadEndpoint("host_keys", "Give the host's key, as `ssh-keyscan` or its /etc/ssh/*.pub say it.")
    return address


def host_keys(text: str) -> Iterator[str]:
    """`<type> <key>` of each line, as in `known_hosts` (names are ignored: the keys are this host's) or a `.pub` file."""
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        match = _HOST_KEY.fullmatch(line)
        try:
            if match is None:
                raise ValueError
            serialization.load_ssh_public_key(match["key"].encode())
        except (ValueError, UnsupportedAlgorithm):
            raise BadEndpoint("host_keys", f"This is no host key: {line[:40]}") from None
        yield " ".join(match["key"].split())


def _check_tls(endpoint: RuntimeEndpoint, at: datetime) -> None:
    authorities = _certificates("ca", endpoint.ca)
    for found in authorities:
        if found.not_valid_after_utc < at:
            raise BadEndpoint("ca", f"It ended on {found.not_valid_after_utc:%-d %B %Y}.")
    ours = _certificates("certificate", endpoint.certificate)[0]
    if ours.not_valid_after_utc < at:
        raise BadEndpoint("certificate", f"It ended on {ours.not_valid_after_utc:%-d %B %Y}.")
    try:
        key = serialization.load_pem_private_key(endpoint.key.encode(), None)
    except TypeError:
        raise BadEndpoint("key", "It has a passphrase; give it without one. It is kept encrypted here.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadEndpoint("key", "This is no private key in PEM.") from None
    public = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*public) != ours.public_key().public_bytes(*public):
        raise BadEndpoint("key", "It does not belong to the client certificate.")


def _certificates(name: str, text: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        raise BadEndpoint(name, "This is no certificate in PEM (-----BEGIN CERTIFICATE-----).") from None


def _ssh_key(text: str) -> None:
    for load in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
        try:
            load(text.encode(), None)
        except (TypeError, ValueError, UnsupportedAlgorithm) as error:
            if isinstance(error, TypeError) or "encrypted" in str(error) or "assword" in str(error):
                raise BadEndpoint(
                    "key", "It has a passphrase; give it without one. It is kept encrypted here."
                ) from None
        else:
            return
    raise BadEndpoint("key", "This is no private key of SSH (-----BEGIN OPENSSH PRIVATE KEY-----).")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
