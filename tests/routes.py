"""The routes of the URLconf, flattened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver


@dataclass(frozen=True)
class Route:
    path: str  # as in the URLconf: `api/v1/projects/<uuid:pk>/`
    name: str  # with its namespace: `projects:detail`
    parameters: frozenset[str]

    @property
    def is_api(self) -> bool:
        return self.path.startswith("api/")

    def __str__(self) -> str:
        return self.path or "/"


def walk(resolver: Any = None, path: str = "", namespace: str = "") -> Iterator[Route]:
    for entry in (resolver or get_resolver()).url_patterns:
        here = path + str(entry.pattern)
        if isinstance(entry, URLResolver):
            inside = f"{namespace}{entry.namespace}:" if entry.namespace else namespace
            yield from walk(entry, here, inside)
        elif isinstance(entry, URLPattern):
            parameters = frozenset(here.split("<")[1:])
            names = frozenset(part.split(">")[0].split(":")[-1] for part in parameters)
            yield Route(here, f"{namespace}{entry.name or ''}", names)
