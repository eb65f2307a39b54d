"""TLS as every engine does it: what a server is given, whom our own sessions trust, what a server shows."""

from __future__ import annotations

import atexit
import functools
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from projects.domain import Endpoint, ServerNotReady, TlsNotTrusted

PAIR = "server.pem"  # a server's certificate and key, in one file: so that no crash leaves a pair that doesn't fit


@functools.lru_cache(maxsize=16)
def context(ca_pem: str) -> ssl.SSLContext:
    """For sessions of ours: TLS 1.2 or newer, with a server that proves its name by a certificate of `ca_pem`."""
    made = ssl.create_default_context(cadata=ca_pem)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def shown(endpoint: Endpoint, ask: Callable[[socket.socket], None], *, timeout_seconds: float) -> bytes:
    """The certificate (DER) that a server shows; nothing is checked. `ask` says what the product's protocol wants said
    before TLS begins, and raises `TlsNotTrusted` or `ServerNotReady` when the server declines."""
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    looking.check_hostname, looking.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout_seconds) as plain:
            ask(plain)
            with looking.wrap_socket(plain) as encrypted:
                return encrypted.getpeercert(binary_form=True) or b""
    except ssl.SSLError:
        raise TlsNotTrusted("the server speaks no TLS") from None
    except OSError as error:
        raise ServerNotReady(f"the server does not answer: {error.strerror or type(error).__name__}") from None


_kept: dict[str, tuple[int, tuple[int, int]]] = {}  # PEM → descriptor, and which file that is
_lock = threading.Lock()


def ca_file(pem: str) -> str:
    """A path at which this process, and what it forks, finds `pem`. It is in memory, so nobody else can change it."""
    with _lock:
        if pem not in _kept or not _is_still(*_kept[pem]):
            _kept[pem] = _make(pem)
        return f"/proc/self/fd/{_kept[pem][0]}" if _in_memory() else _paths[_kept[pem][0]]


def _make(pem: str) -> tuple[int, tuple[int, int]]:
    if _in_memory():
        descriptor = os.memfd_create("novastack-ca")
    else:
        descriptor, _paths[descriptor] = _temporary()
    os.write(descriptor, pem.encode())
    info = os.fstat(descriptor)
    return descriptor, (info.st_dev, info.st_ino)


def _is_still(descriptor: int, identity: tuple[int, int]) -> bool:
    """Somebody may have closed all descriptors, as daemons do; the number may be another file's by now."""
    try:
        info = os.fstat(descriptor)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == identity


def _in_memory() -> bool:
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


_paths: dict[int, str] = {}  # systems other than Linux: descriptor → path


def _temporary() -> tuple[int, str]:
    descriptor, path = tempfile.mkstemp(prefix="nvs-ca-", suffix=".pem")
    maker = os.getpid()
    atexit.register(lambda: Path(path).unlink(missing_ok=True) if os.getpid() == maker else None)
    return descriptor, path
