"""Which image a server runs on: chosen once, in a fixed order, and known by its digest from then on (rule 12)."""

from __future__ import annotations

import math
import time

import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.utils import parse_repository_tag

from projects.domain import ImageMissing, ImageRef, NovaStackRuntimeError, RuntimeUnreachable
from projects.runtimes.docker_client import PULL_STALL_SECONDS, REGISTRY_TIMEOUT_SECONDS, DockerClients, mapped

ASK_AGAIN_SECONDS = 3600.0  # a registry that has it
ASK_SOON_SECONDS = 300.0  # one that has not, or did not answer
_asked: dict[tuple[str, str], tuple[float, bool]] = {}  # (engine, image) → when, and what the registry said


class Images:
    def __init__(self, clients: DockerClients) -> None:
        self._clients = clients

    def resolve(self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False) -> ImageRef:
        """Override; official on the host; ours on the host; official pulled. `ImageMissing` says what to do."""
        tagged = _tagged(official, version)
        candidates = [override] if override else [tagged, f"novastack-{engine}:{version}"]
        for candidate in candidates:
            found = self._image(candidate)
            if found is not None:
                return found
        if not pull:
            raise ImageMissing(
                f"none of these images is on the host: {', '.join(candidates)}. Pull one, build ours with"
                " `make images`, or name one in NOVASTACK_IMAGES"
            )
        return self._pulled(candidates[0])

    def can_pull(self, official: str, version: str, override: str = "") -> bool:
        """Whether the registry answers that it has the image."""
        client = self._clients.new(REGISTRY_TIMEOUT_SECONDS)
        try:
            with mapped():
                client.inspect_distribution(override or _tagged(official, version))  # type: ignore[no-untyped-call]
        except NovaStackRuntimeError:
            return False
        return True

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        """Why the image can't be had; empty if it is here or could be pulled. A registry's answer is kept for a while."""
        try:
            self.resolve(engine, version, official, override)
        except ImageMissing:
            wanted = override or _tagged(official, version)
            key = (self._clients.base_url, wanted)
            at, there = _asked.get(key, (-math.inf, False))
            if time.monotonic() - at > (ASK_AGAIN_SECONDS if there else ASK_SOON_SECONDS):
                there = self.can_pull(official, version, override)
                _asked[key] = (time.monotonic(), there)
            return "" if there else f"the image {wanted} is neither on the host nor can it be pulled"
        return ""

    def _image(self, name: str) -> ImageRef | None:
        with mapped():
            try:
                found = self._clients.get().inspect_image(name)  # type: ignore[no-untyped-call]
            except docker.errors.NotFound:
                return None
        if "@" in name:
            return ImageRef(name, name)  # that very one was asked for
        # A repository digest can be pulled again elsewhere; an image that was built here only has its id.
        digests = found.get("RepoDigests") or []
        return ImageRef(name, str(digests[0] if digests else found["Id"]))

    def _pulled(self, name: str) -> ImageRef:
        client = self._clients.new(PULL_STALL_SECONDS, streams=True)
        repository, tag = parse_repository_tag(name)
        try:
            with mapped():
                for event in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
                    if "error" in event:
                        raise ImageMissing(f"{name} could not be pulled: {str(event['error'])[:200]}")
        except ImageMissing:
            raise
        except (RuntimeUnreachable, urllib3.exceptions.HTTPError) as error:
            with mapped():
                self._clients.get().ping()  # the engine itself is away: nothing is known about the image
            stalled = f"nothing has come for {PULL_STALL_SECONDS} s" if _timed_out(error) else "the answer was cut off"
            raise ImageMissing(f"{name} could not be pulled: {stalled}") from error
        except NovaStackRuntimeError as error:
            raise ImageMissing(f"{name} could not be pulled: {error}") from error
        found = self._image(name)
        if found is None:
            raise ImageMissing(f"{name} is not there after pulling it")
        return found


def _timed_out(error: BaseException | None) -> bool:
    """Whether a time-out is the reason, however deep."""
    while error is not None:
        if isinstance(error, TimeoutError | requests.exceptions.Timeout | urllib3.exceptions.TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tagged(official: str, version: str) -> str:
    return official if ":" in official.rpartition("/")[2] else f"{official}:{version}"
