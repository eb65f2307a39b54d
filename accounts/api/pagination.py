"""Feeds that grow without end."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request

from novastack.common.api import CursorPagination


class AuditEventPagination(CursorPagination):
    """Newest first; oldest first when polling forward with `?after=<sequence>`."""

    def get_ordering(self, request: Request, queryset: Any, view: Any) -> tuple[str, ...]:
        return ("id",) if request.query_params.get("after") else ("-id",)
