"""Storage targets and keys. No secret is on these pages; where the targets are is for operators."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnlyAdmin
from accounts.permissions import OperatorPrincipal
from backups.models import BackupKey, OfflineKey, SigningKey, StorageTarget
from backups.services.storages import StorageTestFailed, storage_test
from projects.admin.acting import act_on


@admin.register(StorageTarget)
class StorageTargetAdmin(ReadOnlyAdmin):
    list_display = ["name", "organization", "kind", "is_default", "encrypt", "object_lock", "test_ok", "tested_at",
                    "read_only_reason"]  # fmt: skip
    list_filter = ["kind", "is_default", "test_ok", "encrypt"]
    list_select_related = ["organization"]
    search_fields = ["name", "organization__name", "organization__slug"]
    date_hierarchy = "created_at"
    exclude = ["secret"]
    actions = ["test"]

    @admin.action(description="Test now")
    def test(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows.select_related("organization"), _test, "Works", see="")


def _test(who: OperatorPrincipal, target: StorageTarget) -> None:
    failed = next((check for check in storage_test(principal=who, storage=target) if not check.passed), None)
    if failed is not None:
        raise StorageTestFailed(f"{failed.name}: {failed.detail}")


@admin.register(BackupKey)
class BackupKeyAdmin(ReadOnlyAdmin):
    list_display = ["recipient", "organization", "created_at", "retired_at"]
    list_filter = [("retired_at", admin.EmptyFieldListFilter)]
    list_select_related = ["organization"]
    search_fields = ["recipient", "organization__name", "organization__slug"]
    date_hierarchy = "created_at"
    exclude = ["identity"]


@admin.register(OfflineKey)
class OfflineKeyAdmin(ReadOnlyAdmin):
    """The fingerprint is typed back by whoever saved the kit: it is not shown to those who have not."""

    list_display = ["recipient", "organization", "exported_by", "confirmed_at", "retired_at"]
    list_filter = [("confirmed_at", admin.EmptyFieldListFilter), ("retired_at", admin.EmptyFieldListFilter)]
    list_select_related = ["organization"]
    search_fields = ["recipient", "organization__name", "organization__slug", "exported_by"]
    date_hierarchy = "created_at"
    exclude = ["fingerprint"]


@admin.register(SigningKey)
class SigningKeyAdmin(ReadOnlyAdmin):
    list_display = ["public_key", "created_at", "retired_at"]
    list_filter = [("retired_at", admin.EmptyFieldListFilter)]
    search_fields = ["public_key"]
    date_hierarchy = "created_at"
    exclude = ["private_key"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("private_key")
