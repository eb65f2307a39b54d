"""Template context of the shell: whose organization this is and what the navigation may offer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.http import HttpRequest

from accounts.models import Organization
from accounts.permissions import Capability, Principal, principal_from
from accounts.services.organizations import pick_organization


class Shell:
    """Lazy: a page that shows nothing of it asks the database nothing.

    `organizations`, `organization`, `role`, `can.<capability>` (such as `shell.can.member_manage`), `is_operator`.
    """

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    @cached_property
    def principal(self) -> Principal:
        return principal_from(self._request)

    @cached_property
    def organizations(self) -> list[Organization]:
        current_organization(self._request)  # reads them
        rows: list[Organization] = self._request._organizations  # type: ignore[attr-defined]
        return sorted(rows, key=lambda organization: (not organization.personal, organization.name.lower()))

    @cached_property
    def organization(self) -> Organization | None:
        return current_organization(self._request)

    @cached_property
    def role(self) -> str | None:
        return self.principal.role_in(self.organization.pk) if self.organization else None

    @cached_property
    def can(self) -> dict[str, bool]:
        allowed = self.principal.capabilities_in(self.organization.pk) if self.organization else frozenset()
        return {capability.value: capability in allowed for capability in Capability}

    @property
    def is_operator(self) -> bool:
        return self.principal.is_operator


def current_organization(request: HttpRequest) -> Organization | None:
    """The browser's chosen organization, else the user's default one; read once per request. None for strangers."""
    if not request.user.is_authenticated:
        return None
    if not hasattr(request, "_organizations"):
        principal = principal_from(request)
        visible = list(Organization.objects.for_principal(principal).order_by("created_at", "id"))
        request._organizations = visible  # type: ignore[attr-defined]
        if not hasattr(request, "_current_organization"):
            request._current_organization = pick_organization(principal, visible, request.session)  # type: ignore[attr-defined]
    found: Organization | None = request._current_organization  # type: ignore[attr-defined]
    return found


def show_organization(request: HttpRequest, organization: Organization) -> None:
    """A page about something of `organization` shows that one, whichever was chosen; for this request only."""
    request._current_organization = organization  # type: ignore[attr-defined]


def shell(request: HttpRequest) -> dict[str, Any]:
    """`shell` in every template of a signed-in person; absent for strangers."""
    user = getattr(request, "user", None)
    return {"shell": Shell(request)} if user is not None and user.is_authenticated else {}
