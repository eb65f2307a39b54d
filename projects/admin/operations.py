"""Operations with their steps, and figures."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnlyAdmin
from projects.admin.acting import act_on
from projects.models import (
    MetricRollup,
    MetricSample,
    Operation,
    OperationEvent,
    OperationLock,
    OperationStep,
    TableSnapshot,
)
from projects.services import (
    operation_cancel,
    operation_retry,
)


class ReadOnlyInline(admin.TabularInline):  # type: ignore[type-arg]
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StepInline(ReadOnlyInline):
    model: type[Model] = OperationStep
    fields = ["position", "name", "title", "state", "attempt", "crashes", "detail", "error_code", "started_at",
              "finished_at"]  # fmt: skip


class LockInline(ReadOnlyInline):
    model: type[Model] = OperationLock


class EventInline(ReadOnlyInline):
    model: type[Model] = OperationEvent
    fields = ["at", "level", "message"]


@admin.register(Operation)
class OperationAdmin(ReadOnlyAdmin):
    list_display = ["id", "kind", "state", "project_name", "attempt", "created_by_label", "lease_owner",
                    "next_attempt_at", "created_at", "finished_at"]  # fmt: skip
    list_filter = ["state", "kind", "undoing"]
    list_select_related = ["created_by"]
    search_fields = ["id", "project_uuid", "project_name", "created_by_label", "request_id"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    inlines = [StepInline, LockInline, EventInline]
    actions = ["go_on", "cancel"]

    @admin.action(description="Retry")
    def go_on(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, lambda who, row: operation_retry(principal=who, operation=row), "Retried")

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, lambda who, row: operation_cancel(principal=who, operation=row), "Asked to cancel")


@admin.register(OperationStep)
class OperationStepAdmin(ReadOnlyAdmin):
    list_display = ["name", "operation", "state", "attempt", "crashes", "started_at", "finished_at"]
    list_filter = ["state", "name"]
    list_select_related = ["operation"]
    search_fields = ["=operation__id", "name", "error_code"]
    date_hierarchy = "created_at"
    show_full_result_count = False


@admin.register(OperationLock)
class OperationLockAdmin(ReadOnlyAdmin):
    list_display = ["subject", "mode", "granted", "operation", "created_at"]
    list_filter = ["mode", "granted"]
    list_select_related = ["operation"]
    search_fields = ["subject"]
    date_hierarchy = "created_at"


@admin.register(OperationEvent)
class OperationEventAdmin(ReadOnlyAdmin):
    list_display = ["at", "level", "operation", "message"]
    list_filter = ["level"]
    list_select_related = ["operation"]
    search_fields = ["message"]
    date_hierarchy = "at"
    show_full_result_count = False


@admin.register(MetricSample)
class MetricSampleAdmin(ReadOnlyAdmin):
    list_display = ["project", "at", "cpu_percent", "memory_bytes", "size_bytes", "connections"]
    list_filter = ["project__engine"]
    list_select_related = ["project"]
    search_fields = ["project__name", "project__slug"]
    date_hierarchy = "at"
    show_full_result_count = False


@admin.register(MetricRollup)
class MetricRollupAdmin(ReadOnlyAdmin):
    list_display = ["project", "at", "step", "cpu_max", "memory_max", "size_bytes", "connections_max"]
    list_filter = ["step"]
    list_select_related = ["project"]
    search_fields = ["project__name", "project__slug"]
    date_hierarchy = "at"
    show_full_result_count = False


@admin.register(TableSnapshot)
class TableSnapshotAdmin(ReadOnlyAdmin):
    """When, not what: names of tables are the tenant's."""

    list_display = ["project", "total", "at", "tried_at"]
    list_filter = ["project__engine"]
    list_select_related = ["project"]
    search_fields = ["project__name", "project__slug"]
    date_hierarchy = "tried_at"
    show_full_result_count = False
    fields: ClassVar[Any] = ["project", "total", "at", "tried_at"]
