"""The kernel's rows in the Django admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from novastack.common.models import Heartbeat, IdempotencyRecord, Install


class NoAddNoDelete(admin.ModelAdmin):  # type: ignore[type-arg]
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Install)
class InstallAdmin(NoAddNoDelete):
    """To look at. Read-only mode is switched by `manage.py read_only`: lifting it writes a new epoch into every runtime
    first, so that another copy of this install stops (rule 11), and both ways are audited."""

    list_display = ["install_id", "read_only", "read_only_reason", "created_at"]
    readonly_fields = ["install_id", "epoch", "notes", "created_at"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Heartbeat)
class HeartbeatAdmin(NoAddNoDelete):
    list_display = ["name", "at"]
    search_fields = ["name"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(NoAddNoDelete):
    list_display = ["route", "key", "principal", "status_code", "created_at"]
    search_fields = ["route", "key", "principal"]
    date_hierarchy = "created_at"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
