"""Deploy checks: production refuses to start with what would betray its users (design.md, security 10)."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register


def production_problems() -> list[CheckMessage]:
    """What must not be so in production mode; empty when it may start."""
    found: list[CheckMessage] = []
    if settings.DEBUG:
        found.append(Error("DEBUG is on", hint="Unset DEBUG.", id="novastack.E001"))
    if settings.SECRET_KEY.startswith("insecure-") or len(settings.SECRET_KEY) < 40:
        found.append(Error("SECRET_KEY is the default or too short", hint="Set SECRET_KEY_FILE.", id="novastack.E002"))
    if not settings.NOVASTACK_SECRET_KEYS or set(settings.NOVASTACK_SECRET_KEYS) & set(settings.INSECURE_SECRET_KEYS):
        found.append(
            Error("NOVASTACK_SECRET_KEYS is the default or empty", hint="See .env.example.", id="novastack.E003")
        )
    if settings.NOVASTACK_RUNTIME in {"process", "memory", "auto"}:
        found.append(
            Error(
                f"NOVASTACK_RUNTIME is {settings.NOVASTACK_RUNTIME}",
                hint="Production runs databases on `docker` or `swarm`: processes of one host share one trust domain.",
                id="novastack.E004",
            )
        )
    if settings.ALLOWED_HOSTS in ([], ["*"]):
        found.append(Error("ALLOWED_HOSTS is empty or *", hint="Name the hosts you serve.", id="novastack.E005"))
    return found


@register(Tags.security)
def production_check(**_: Any) -> list[CheckMessage]:
    return production_problems() if settings.NOVASTACK_MODE == "production" else []
