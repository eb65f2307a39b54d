"""System checks of the projects app."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from projects.operations import pool_sizes
from projects.registry import RUNTIMES


@register()
def runtime_is_known(**_: Any) -> list[CheckMessage]:
    if settings.NOVASTACK_RUNTIME != "auto" and settings.NOVASTACK_RUNTIME not in RUNTIMES:
        return [
            Error(
                f"NOVASTACK_RUNTIME is {settings.NOVASTACK_RUNTIME!r}",
                hint=f"Use auto or one of: {', '.join(sorted(RUNTIMES))}.",
                id="projects.E001",
            )
        ]
    return []


@register()
def pools_can_be_made(**_: Any) -> list[CheckMessage]:
    return [
        Error(problem, hint="See “Pools” in docs/operations.md.", id="projects.E002")
        for problem in pool_sizes.problems()
    ]
