"""The connection to a Docker engine: one client per thread and process, and errors that are ours."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.tls import TLSConfig

from projects.domain import (
    CapacityExhausted,
    ImageMissing,
    NovaStackRuntimeError,
    PortTaken,
    RuntimeUnreachable,
)

DEFAULT_URL = "unix:///var/run/docker.sock"
TIMEOUT_SECONDS = 12  # below the lease of 20 s
PULL_TIMEOUT_SECONDS = 600
REGISTRY_TIMEOUT_SECONDS = 6

_PORT = re.compile(r"port is already allocated|address already in use|Ports are not available")
_CAPACITY = re.compile(
    r"no space left on device|could not find an available,? non-overlapping|no available IPv4|cannot allocate memory"
    r"|all predefined address pools",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"No such image|manifest unknown|pull access denied|repository .* not found|not found: manifest")


_UNANSWERED = (
    requests.exceptions.RequestException, urllib3.exceptions.HTTPError, docker.errors.DockerException, OSError,
)  # fmt: skip


class DockerClients:
    """Gives each thread its client: `requests` sessions are not shared between threads, nor across a fork."""

    def __init__(self, base_url: str, tls: TLSConfig | None = None) -> None:
        self.base_url = base_url or DEFAULT_URL
        self._tls = tls
        self._local = threading.local()

    @property
    def local(self) -> bool:
        """The engine runs on this machine: its cgroup files can be read."""
        return self.base_url.startswith(("unix:", "/"))

    @property
    def half_close(self) -> bool:
        """Closing the write side of an attached stream arrives (not over TLS, rule 24)."""
        return self._tls is None

    def get(self) -> docker.APIClient:
        kept: tuple[int, docker.APIClient] | None = getattr(self._local, "kept", None)
        if kept is None or kept[0] != os.getpid():
            kept = (os.getpid(), self.new(TIMEOUT_SECONDS))
            self._local.kept = kept
        return kept[1]

    def new(self, timeout_seconds: float) -> docker.APIClient:
        with mapped():
            return docker.APIClient(
                base_url=self.base_url, version="auto", timeout=int(timeout_seconds), tls=self._tls or False
            )


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Errors of the Docker engine leave as ours; their text is the engine's explanation, which holds no secret."""
    try:
        yield
    except docker.errors.APIError as error:
        raise translate(error) from error
    except _UNANSWERED as error:
        raise RuntimeUnreachable(f"the Docker engine does not answer ({type(error).__name__})") from error


def translate(error: docker.errors.APIError) -> NovaStackRuntimeError:
    text = " ".join(str(error.explanation or error).split())[:300]
    if _PORT.search(text):
        return PortTaken("the port is taken by another program")
    if _CAPACITY.search(text):
        return CapacityExhausted(text)
    if _IMAGE.search(text):
        return ImageMissing(text)
    return NovaStackRuntimeError(text)
