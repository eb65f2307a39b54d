"""TLS to an engine with certificates from memory: the key is on no disk, and only the given CA is trusted."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any

import docker
from docker.tls import TLSConfig
from requests.adapters import HTTPAdapter

from projects.domain import RuntimeEndpoint

PROBE_SECONDS = 2


def context_of(endpoint: RuntimeEndpoint) -> ssl.SSLContext:
    """Checks the engine's name and certificate against the CA given, and against nothing else."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=endpoint.ca)
    # OpenSSL reads a key from files only: this one has no name, and is gone with its descriptor.
    descriptor = os.memfd_create("client-key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(f"{endpoint.certificate.strip()}\n{endpoint.key.strip()}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def refusal(context: ssl.SSLContext, host: str, port: int) -> ssl.SSLError | None:
    """What the other side objects to; None if it does not say. With TLS 1.3 it refuses a client's certificate after the
    handshake, when a request is on its way: that request only sees the connection closed."""
    try:
        with (
            socket.create_connection((host, port), PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            wrapped.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


class _Adapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """The context does it. The base class would add the CAs that browsers trust."""
        conn.cert_reqs = "CERT_REQUIRED"


class MemoryTLS(TLSConfig):  # type: ignore[misc]
    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def configure_client(self, client: docker.APIClient) -> None:
        client.trust_env = False  # no proxy, no CA bundle of the environment
        client.verify, client.cert = True, None
        client.mount("https://", _Adapter(self._context))
