"""The connection to a Docker engine: one client per thread and process, and errors that are ours."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from projects.domain import (
    CapacityExhausted,
    ImageMissing,
    LimitTooSmall,
    NovaStackRuntimeError,
    PortTaken,
    RuntimeEndpoint,
    RuntimeUnreachable,
)
from projects.runtimes.endpoints import Address, BadEndpoint, check
from projects.runtimes.ssh_tunnel import Tunnel
from projects.runtimes.tls_client import MemoryTLS, context_of, refusal

DEFAULT_URL = "unix:///var/run/docker.sock"
TIMEOUT_SECONDS = 12  # below the lease of 20 s
PULL_STALL_SECONDS = 60  # a pull that says nothing for so long is given up; one that goes on may take any time
REGISTRY_TIMEOUT_SECONDS = 6
_VERSION_SECONDS = 60.0  # an engine may be replaced by one that speaks another

# The last part of a path tells what is wrong; where the host keeps it is not for tenants.
_FOLDERS = re.compile(r"(?<![\w:.…/])/(?:[\w.@+-]+/)+")
_PORT = re.compile(
    r"port is already allocated|address already in use|Ports are not available|host-mode port already in use"
)
_CAPACITY = re.compile(
    r"no space left on device|could not find an available,? non-overlapping|no available IPv4|cannot allocate memory"
    r"|all predefined address pools|insufficient resources",
    re.IGNORECASE,
)
_NO_SWARM = re.compile(
    r"not a swarm manager|swarm does not have a leader|swarm is encrypted and needs to be unlocked", re.I
)
_BUSY = re.compile(
    r"memory\.(?:limit_in_bytes|memsw\.limit_in_bytes|max).*device or resource busy|unable to set memory limit"
)
_IMAGE = re.compile(r"No such image|manifest unknown|pull access denied|repository .* not found|not found: manifest")


_CLOSED = "it closed the connection"
_WHY = (
    (r"ostname mismatch|IP address mismatch|doesn't match", "its certificate was not made for this address"),
    (r"unable to get (local )?issuer|self.signed certificate|unknown ca", "its certificate is not of the CA given"),
    (r"certificate has expired", "its certificate has ended"),
    (r"certificate is not yet valid", "its certificate is not valid yet: look at both clocks"),
    (r"(?i)alert|CERTIFICATE_REQUIRED", "it refuses our client certificate"),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER", "it does not speak TLS there"),
    (r"HTTP request to an HTTPS server", "it wants TLS there"),
    (r"(?i)timed? ?out", "no answer in time"),
    (r"Connection refused", "nothing listens there"),
    (r"No such file or directory|FileNotFoundError", "there is no such socket"),
    (r"Permission ?(denied|Error)", "this account may not use its socket"),
    (r"(?i)name or service not known|failure in name resolution|no address associated", "the name is not known"),
    (r"No route to host|unreachable", "there is no way to that address"),
    (r"Remote end closed|Connection aborted|reset by peer|EOF occurred", _CLOSED),
)
_UNANSWERED = (
    requests.exceptions.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException, OSError,
)  # fmt: skip


class _StreamClient(docker.APIClient):
    """docker-py waits for ever where an answer is a stream (pull, events): a registry or an engine that hangs would keep
    the worker."""

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout
        return kwargs


class DockerClients:
    """Gives each thread its client: `requests` sessions are not shared between threads, nor across a fork."""

    def __init__(self, endpoint: RuntimeEndpoint) -> None:
        """Nothing is contacted. What can't be used as an address is told at the first call, as unreachable."""
        self._endpoint = endpoint
        self._problem = ""
        self._context: ssl.SSLContext | None = None
        self._tunnel: Tunnel | None = None
        self._local = threading.local()
        self._version: tuple[str, float] | None = None  # of the API, and when the engine said so
        try:
            address = check(endpoint)
        except BadEndpoint as error:
            address, self._problem = Address("none"), str(error)
        self._address = address
        if address.kind == "ssh":
            self._tunnel = Tunnel(address, endpoint)
        elif address.kind == "tcp" and endpoint.ca:
            self._context = context_of(endpoint)

    @property
    def base_url(self) -> str:
        return self._endpoint.url or DEFAULT_URL

    @property
    def local(self) -> bool:
        """The engine runs on this machine: its cgroup files can be read."""
        return self._address.kind in {"here", "unix"}

    @property
    def half_close(self) -> bool:
        """Closing the write side of an attached stream arrives (not over TLS, rule 24: tools get a connection of its own)."""
        return self._context is None

    def get(self) -> docker.APIClient:
        if self._tunnel is not None:
            self._tunnel.ensure()
        kept: tuple[int, docker.APIClient] | None = getattr(self._local, "kept", None)
        told = self._version
        if kept is None or kept[0] != os.getpid() or (told is not None and kept[1].api_version != told[0]):
            kept = (os.getpid(), self.new(TIMEOUT_SECONDS))
            self._local.kept = kept
        return kept[1]

    def hello(self) -> None:
        """One call, to which an engine that can be used answers with its version; this thread's client is a new one."""
        self._version = None
        self._local.kept = (os.getpid(), self.new(TIMEOUT_SECONDS))

    def new(self, timeout_seconds: float, *, streams: bool = False) -> docker.APIClient:
        """`streams`: the timeout also holds between two bytes of an answer that is a stream. The engine is asked for its
        version if nobody did of late: far away that is as long as any other call, and most threads live for one question."""
        kind = _StreamClient if streams else docker.APIClient
        if self._problem:
            raise RuntimeUnreachable(self._problem)
        url = self.base_url
        if self._tunnel is not None:
            url = self._tunnel.ensure()
        elif self._address.kind == "tcp":
            url = f"tcp://{self._address.netloc}"
        tls = MemoryTLS(self._context) if self._context is not None else False
        told = self._version
        version = told[0] if told is not None and time.monotonic() - told[1] < _VERSION_SECONDS else "auto"
        try:
            with mapped():
                client = kind(base_url=url, version=version, timeout=int(timeout_seconds), tls=tls)
            if version == "auto":
                self._version = (client.api_version, time.monotonic())
            return client
        except RuntimeUnreachable as error:
            if self._tunnel is not None and (words := self._tunnel.why()):
                raise RuntimeUnreachable(f"the SSH connection stands, but {words}") from error
            if self._context is not None and _CLOSED in str(error):
                said = refusal(self._context, self._address.host, self._address.port)
                if said is not None:
                    raise RuntimeUnreachable(f"the Docker engine does not answer: {why(said)}") from error
            raise

    def close(self) -> None:
        """End what was opened for it; for an endpoint that is used no more."""
        if self._tunnel is not None:
            self._tunnel.close()


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Errors of the Docker engine leave as ours; their text is the engine's explanation, which holds no secret."""
    try:
        yield
    except docker.errors.APIError as error:
        raise translate(error) from error
    except _UNANSWERED as error:
        raise RuntimeUnreachable(f"the Docker engine does not answer: {why(error)}") from error


def why(error: BaseException) -> str:
    """What a connection failed of, for operators."""
    text = str(error)
    return next((words for pattern, words in _WHY if re.search(pattern, text)), type(error).__name__)


def translate(error: docker.errors.APIError) -> NovaStackRuntimeError:
    text = " ".join(str(error.explanation or error).split())
    if _NO_SWARM.search(text):
        return RuntimeUnreachable(text[:300])
    return meaning_of(text)


def meaning_of(text: str) -> NovaStackRuntimeError:
    """What the engine's words about a failed start stand for."""
    text = _FOLDERS.sub("…/", text)
    if _PORT.search(text):
        return PortTaken("its port is taken by another program of the host")
    if _CAPACITY.search(text):
        return CapacityExhausted(text[:300])
    if _BUSY.search(text):
        return LimitTooSmall("the server uses more memory than that")
    if _IMAGE.search(text):
        return ImageMissing(text[:300])
    return NovaStackRuntimeError(text[:300])
