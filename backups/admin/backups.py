"""Backups with their proofs, and restores."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnlyAdmin
from accounts.permissions import OperatorPrincipal
from backups.admin.links import linked
from backups.models import Backup, Proof, Restore
from backups.operations.queueing import subject_of
from backups.services.backups import backup_create
from backups.services.proofs import backup_verify
from novastack.common.errors import ActionNotAllowed, NotFound
from projects.admin.acting import act_on
from projects.admin.operations import ReadOnlyInline
from projects.admin.projects import ProjectAdmin
from projects.models import Operation, Project
from projects.services import operation_cancel, operation_retry


def _verify(who: OperatorPrincipal, backup: Backup) -> Any:
    return backup_verify(principal=who, backup=backup)


def _back_up(who: OperatorPrincipal, project: Project) -> Any:
    return backup_create(who, project)


def _cancel(who: OperatorPrincipal, row: Backup | Restore) -> Any:
    """What works on it now: the backup or restore itself, or the last thing that was begun with it."""
    return operation_cancel(principal=who, operation=_operation(row))


def _go_on(who: OperatorPrincipal, row: Backup | Restore) -> Any:
    """What waits to be tried again is tried at once; what has failed for good is not begun anew."""
    operation = _operation(row)
    if not operation.live:
        raise ActionNotAllowed(f"Its operation has {operation.get_state_display().lower()}; begin a new one.")
    return operation_retry(principal=who, operation=operation)


def _operation(row: Backup | Restore) -> Operation:
    """The live one if there is any, else the newest. `NotFound` when none is kept."""
    wanted = Q(pk__in=[pk for pk in (row.operation_id, getattr(row, "undo_operation_id", None)) if pk])
    if isinstance(row, Backup):
        wanted |= Q(locks__subject=subject_of(row))
    operations = Operation.objects.filter(wanted).distinct()
    live = operations.live().order_by("-created_at").first()
    found: Operation | None = live or operations.order_by("-created_at").first()
    if found is None:
        raise NotFound("Its operation is no longer kept.")
    return found


def _back_up_again(who: OperatorPrincipal, backup: Backup) -> Any:
    project = Project.objects.filter(pk=backup.project_uuid).first()
    if project is None:
        raise NotFound("Its project was removed for good.")
    return _back_up(who, project)


class ProofInline(ReadOnlyInline):
    model: type[Model] = Proof
    fields = ["created_at", "kind", "state", "restore_seconds", "compare_seconds", "tables", "rows", "error"]
    readonly_fields = ["created_at"]


@admin.register(Backup)
class BackupAdmin(ReadOnlyAdmin):
    """`manifest` is left out: names of tables are the tenant's."""

    list_display = ["project_slug", "created_at", "trigger", "status", "size_bytes", "storage", "verified_at", "pinned",
                    "created_by_label"]  # fmt: skip
    list_filter = ["status", "trigger", "engine", "pinned", "encrypted", "trusted",
                   ("verified_at", admin.EmptyFieldListFilter), "storage"]  # fmt: skip
    list_select_related = ["storage", "schedule"]
    search_fields = ["=id", "=project_uuid", "project_name", "project_slug", "label", "=sha256", "object_key"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    exclude = ["manifest", "notes", "upload_id"]
    readonly_fields: ClassVar[Any] = ["project_link", "operation_link"]
    inlines = [ProofInline]
    actions = ["verify", "back_up_again", "go_on", "cancel"]

    @admin.display(description="project")
    def project_link(self, row: Backup) -> str:
        return linked(Project, row.project_uuid, row.project_name)

    @admin.display(description="operation")
    def operation_link(self, row: Backup) -> str:
        return linked(Operation, row.operation_id)

    @admin.action(description="Verify now")
    def verify(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, _verify, "Verification begun")

    @admin.action(description="Back up now: the projects of these")
    def back_up_again(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        one_each = {row.project_uuid: row for row in rows}
        act_on(request, rows.filter(pk__in=[row.pk for row in one_each.values()]), _back_up_again, "Backup begun")

    @admin.action(description="Retry at once what waits")
    def go_on(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, _go_on, "Retried")

    @admin.action(description="Cancel what works on it")
    def cancel(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, _cancel, "Asked to cancel")


@admin.action(description="Back up now")
def project_back_up(modeladmin: Any, request: HttpRequest, rows: QuerySet[Any]) -> None:
    act_on(request, rows, _back_up, "Backup begun")


ProjectAdmin.actions = [*(ProjectAdmin.actions or ()), project_back_up]


@admin.register(Proof)
class ProofAdmin(ReadOnlyAdmin):
    list_display = [
        "backup",
        "kind",
        "state",
        "restore_seconds",
        "compare_seconds",
        "rows",
        "created_at",
        "finished_at",
    ]
    list_filter = ["state", "kind"]
    list_select_related = ["backup", "drill"]
    search_fields = ["=backup__id", "backup__project_slug", "backup__project_name"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    fields: ClassVar[Any] = ["backup", "drill", "kind", "state", "operation_id", "started_at", "finished_at",
                             "restore_seconds", "compare_seconds", "tables", "rows", "error", "operation_link"]  # fmt: skip
    readonly_fields: ClassVar[Any] = ["operation_link"]

    @admin.display(description="operation")
    def operation_link(self, row: Proof) -> str:
        return linked(Operation, row.operation_id)


@admin.register(Restore)
class RestoreAdmin(ReadOnlyAdmin):
    """`preflight` is left out for the same reason as a manifest."""

    list_display = ["project_name", "target", "status", "backup", "undo_until", "created_by_label", "created_at",
                    "finished_at"]  # fmt: skip
    list_filter = ["status", "target"]
    list_select_related = ["backup"]
    search_fields = ["=id", "=backup_uuid", "=project_uuid", "project_name", "created_by_label"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    exclude = ["preflight"]
    readonly_fields: ClassVar[Any] = ["project_link", "operation_link", "undo_link"]
    actions = ["go_on", "cancel"]

    @admin.display(description="project")
    def project_link(self, row: Restore) -> str:
        return linked(Project, row.project_uuid, row.project_name)

    @admin.display(description="operation")
    def operation_link(self, row: Restore) -> str:
        return linked(Operation, row.operation_id)

    @admin.display(description="undo")
    def undo_link(self, row: Restore) -> str:
        return linked(Operation, row.undo_operation_id)

    @admin.action(description="Retry at once what waits")
    def go_on(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, _go_on, "Retried")

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows, _cancel, "Asked to cancel")
