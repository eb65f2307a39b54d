"""Servers, what is on them, and what is left of them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.admin import ReadOnlyAdmin
from accounts.services import record
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed
from projects.admin.acting import act_on, operator_of
from projects.models import (
    Allocation,
    BlankDatabase,
    BlockedPort,
    CertificateAuthority,
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Orphan,
    ServerKind,
)
from projects.models.servers import NOTED_KINDS
from projects.services.pools import pool_check, pool_drain


@admin.register(Endpoint)
class EndpointAdmin(ReadOnlyAdmin):
    list_display = ["__str__", "project", "region", "bind_address", "control_host", "control_port", "reserved_until"]
    list_filter = ["region"]
    list_select_related = ["project", "region"]
    search_fields = ["host", "=port", "project__name", "project__slug", "project_uuid"]
    date_hierarchy = "created_at"
    readonly_fields = ["project_uuid", "created_at", "updated_at"]


@admin.register(BlockedPort)
class BlockedPortAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Ports that somebody else holds. Deleting one tries it again at once."""

    list_display = ["port", "region", "until"]
    list_filter = ["region"]
    list_select_related = ["region"]
    search_fields = ["=port"]
    autocomplete_fields = ["region"]
    date_hierarchy = "until"


class DatabaseInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Database
    extra = 0
    can_delete = False
    fields: ClassVar[Any] = ["project", "name", "slot", "created_in_engine_at"]
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("project", "server")


@admin.register(DatabaseServer)
class DatabaseServerAdmin(ReadOnlyAdmin):
    """Servers. Only `reconcile` can be changed: off leaves this one alone."""

    list_display = ["__str__", "kind", "engine", "version", "region", "runtime", "observed_state", "desired_state",
                    "port", "cpu_percent", "memory_used_bytes", "reconcile", "started_at"]  # fmt: skip
    list_filter = ["observed_state", "desired_state", "kind", "engine", "version", "runtime", "region", "reconcile"]
    list_select_related = ["region"]
    search_fields = ["id", "name", "project_uuid", "=port", "runtime_ref", "image"]
    date_hierarchy = "created_at"
    actions = ["check_pools", "drain_pools"]
    show_full_result_count = False
    inlines = [DatabaseInline]
    fields: ClassVar[Any] = [
        "reconcile", "id", "kind", "region", "engine", "version", "runtime", "image", "image_digest", "incarnation",
        "runtime_ref", "project_uuid", "bind_address", "port", "control_host", "memory_bytes", "cpus",
        "max_connections", "max_databases", "system_identifier", "initialised_at", "desired_state", "observed_state",
        "observed_detail", "observed_at", "started_at", "recoveries", "recover_after", "cpu_percent",
        "memory_used_bytes", "usage_at", "standby_of", "standby_ready_at",
        "name", "plan", "pool_ready_at", "draining_at", "pool_health", "pool_health_detail", "pool_checked_at",
        "pool_size_bytes",
        "tls_enabled", "tls_reason", "tls_not_after", "tls_names", "tls_authority",
        "created_at", "updated_at",
    ]  # fmt: skip
    readonly_fields = fields[1:]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_change_permission(self, request, obj)

    def save_model(self, request: HttpRequest, obj: DatabaseServer, form: Any, change: bool) -> None:
        obj.save(update_fields=["reconcile", "updated_at"])
        record(operator_of(request), "server.reconcile_changed", project_id=obj.project_uuid, target=str(obj.pk),
               data={"reconcile": obj.reconcile})  # fmt: skip

    @admin.action(description="Pools: check health now")
    def check_pools(self, request: HttpRequest, rows: QuerySet[DatabaseServer]) -> None:
        act_on(request, rows, self._pool(pool_check), "Asked for", " What is found is on the pool in a few seconds.")

    @admin.action(description="Pools: drain, then remove")
    def drain_pools(self, request: HttpRequest, rows: QuerySet[DatabaseServer]) -> None:
        act_on(request, rows, self._pool(pool_drain), "Draining")

    @staticmethod
    def _pool(act: Any) -> Any:
        def one(operator: Any, row: DatabaseServer) -> None:
            if row.kind != ServerKind.POOL:
                raise ActionNotAllowed("This is no pool.")
            act(principal=operator, server=row)

        return one


@admin.register(CertificateAuthority)
class CertificateAuthorityAdmin(ReadOnlyAdmin):
    """What clients trust. The key is never shown."""

    list_display = ["__str__", "active", "fingerprint", "created_at"]
    list_filter = ["active"]
    search_fields = ["id"]
    date_hierarchy = "created_at"
    fields = ["active", "fingerprint", "certificate", "not_after", "created_at"]


@admin.register(Database)
class DatabaseAdmin(ReadOnlyAdmin):
    list_display = ["name", "project", "slot", "server", "created_in_engine_at"]
    list_filter = ["slot", "server__engine", "server__region"]
    list_select_related = ["project", "server"]
    search_fields = ["name", "project__name", "project__slug", "server__id"]
    autocomplete_fields = ["project", "server"]
    date_hierarchy = "created_at"


@admin.register(DatabaseRole)
class DatabaseRoleAdmin(ReadOnlyAdmin):
    """Roles in the engines, without their passwords."""

    list_display = ["name", "kind", "database", "server", "connection_limit", "rotated_at"]
    list_filter = ["kind", "server__engine"]
    list_select_related = ["database", "server"]
    search_fields = ["name", "database__name", "database__project__name"]
    autocomplete_fields = ["database", "server"]
    date_hierarchy = "created_at"
    fields: ClassVar[Any] = ["id", "database", "server", "kind", "name", "connection_limit", "rotated_at", "created_at"]
    readonly_fields = fields


@admin.register(DataTombstone)
class DataTombstoneAdmin(ReadOnlyAdmin):
    """Data that was given up; the janitor deletes it when due."""

    list_display = ["__str__", "region", "project_name", "reason", "due_at", "deleted_at", "forgotten_at", "last_error"]
    list_filter = ["region", "reason", ("deleted_at", admin.EmptyFieldListFilter)]
    list_select_related = ["region"]
    search_fields = ["server_uuid", "project_uuid", "project_name"]
    date_hierarchy = "due_at"


@admin.register(Orphan)
class OrphanAdmin(ReadOnlyAdmin):
    """What exists in a runtime and is not known here. Reported, never touched."""

    list_display = ["name", "kind", "region", "first_seen_at", "forgotten_at", "resolved_at", "note"]
    list_filter = ["kind", "region", ("resolved_at", admin.EmptyFieldListFilter),
                   ("forgotten_at", admin.EmptyFieldListFilter)]  # fmt: skip
    list_select_related = ["region"]
    search_fields = ["name"]
    date_hierarchy = "first_seen_at"
    actions = ["settled"]

    @admin.action(description="Settled by hand")
    def settled(self, request: HttpRequest, rows: QuerySet[Orphan]) -> None:
        """Only for registrations that a service was left with: what runtimes hold is looked at, not declared."""
        number = rows.filter(kind__in=NOTED_KINDS, resolved_at=None).update(resolved_at=now())
        messages.success(request, f"Settled: {number}.")


@admin.register(BlankDatabase)
class BlankDatabaseAdmin(ReadOnlyAdmin):
    """Databases on pools that were made ahead and are nobody's yet."""

    list_display = ["name", "server", "ready_at", "created_at"]
    list_select_related = ["server"]
    search_fields = ["name", "server__name"]
    date_hierarchy = "created_at"


@admin.register(Allocation)
class AllocationAdmin(ReadOnlyAdmin):
    """Which project an `instance_id` was given."""

    list_display = ["instance_id", "organization", "project", "dedicated", "created_at"]
    list_select_related = ["organization", "project"]
    search_fields = ["instance_id", "project__name"]
    date_hierarchy = "created_at"
