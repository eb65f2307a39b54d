"""Schedules with their slots, objectives, drills."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnlyAdmin
from backups.models import BackupPolicy, Drill, Schedule, ScheduleRun
from backups.services.proofs import drill_run
from backups.services.schedules import schedule_run
from projects.admin.acting import act_on


@admin.register(Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    list_display = ["project", "cron", "time_zone", "enabled", "storage", "next_run_at", "last_slot_at",
                    "retention_paused_reason"]  # fmt: skip
    list_filter = ["enabled", "storage"]
    list_select_related = ["project", "storage"]
    search_fields = ["project__name", "project__slug", "cron"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    actions = ["run"]

    @admin.action(description="Back up now")
    def run(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(
            request, rows,
            lambda who, row: schedule_run(principal=who, schedule=row), "Backup begun",
        )  # fmt: skip


@admin.register(ScheduleRun)
class ScheduleRunAdmin(ReadOnlyAdmin):
    list_display = ["schedule", "due_at", "outcome", "detail", "backup_uuid"]
    list_filter = ["outcome"]
    list_select_related = ["schedule"]
    search_fields = ["schedule__project__name", "schedule__project__slug", "detail", "=backup_uuid"]
    date_hierarchy = "due_at"
    show_full_result_count = False


@admin.register(BackupPolicy)
class BackupPolicyAdmin(ReadOnlyAdmin):
    """A heartbeat's address is a secret of its owner: whoever knows it can call it."""

    list_display = ["project", "rpo_seconds", "rto_seconds", "verify_after_backup", "reverify_days", "heartbeat_at"]
    list_filter = ["verify_after_backup"]
    list_select_related = ["project"]
    search_fields = ["project__name", "project__slug"]
    date_hierarchy = "created_at"
    exclude = ["heartbeat_url"]


@admin.register(Drill)
class DrillAdmin(ReadOnlyAdmin):
    """What is asked in SQL is the tenant's."""

    list_display = ["name", "project", "cron", "time_zone", "enabled", "next_run_at", "stalled_since"]
    list_filter = ["enabled"]
    list_select_related = ["project"]
    search_fields = ["name", "project__name", "project__slug"]
    date_hierarchy = "created_at"
    fields: ClassVar[Any] = ["project", "name", "cron", "time_zone", "enabled", "next_run_at", "last_slot_at",
                             "stalled_since", "stalled_error"]  # fmt: skip
    actions = ["run"]

    @admin.action(description="Run now")
    def run(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, lambda who, row: drill_run(principal=who, drill=row), "Drill begun")
