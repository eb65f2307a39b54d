"""Template context of the shell: the counts beside the navigation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest

from accounts.context import current_organization
from projects.models import Project

THEMES = (("light", "Light", "sun"), ("dark", "Dark", "moon"), ("system", "As the system", "monitor"))


class Navigation:
    """Lazy: an answer without the frame asks the database nothing."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    @cached_property
    def _counts(self) -> dict[str, int]:
        organization = current_organization(self._request)
        if organization is None:
            return {"projects": 0, "recycled": 0}
        return Project.objects.filter(organization=organization).aggregate(
            projects=Count("id", filter=Q(recycled_at=None)), recycled=Count("id", filter=Q(recycled_at__isnull=False))
        )

    @property
    def projects(self) -> int:
        return self._counts["projects"]

    @property
    def recycled(self) -> int:
        return self._counts["recycled"]


def shell(request: HttpRequest) -> dict[str, Any]:
    """`nav` and the themes in every template of a signed-in person."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    return {"nav": Navigation(request), "shell_themes": THEMES}
