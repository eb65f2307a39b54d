"""System checks of the projects app."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

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
