"""Projects in the Django admin: to look at, and to act through the same services as everybody (audited).

State is read-only, secrets are never shown, and nothing is deleted here: that is deprovisioning's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse

from accounts.admin import ReadOnlyAdmin
from accounts.models import User
from accounts.permissions import OperatorPrincipal, client_ip
from accounts.services import record
from novastack.common import outbound
from novastack.common.clock import now
from novastack.common.errors import Problem
from novastack.common.secrets import Sealed
from projects import connectors, registry
from projects.forms import LimitsForm, RegionForm
from projects.models import (
    ApiKey,
    BlockedPort,
    CertificateAuthority,
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    EngineRelease,
    MetricRollup,
    MetricSample,
    Operation,
    OperationEvent,
    OperationLock,
    OperationStep,
    Orphan,
    Plan,
    Project,
    ProjectService,
    Region,
    ServiceConnector,
    StandbyTarget,
    TableSnapshot,
)
from projects.services import (
    operation_cancel,
    operation_retry,
    project_action,
    project_delete,
    project_forget,
    project_update,
    region_check,
    region_declare_gone,
    region_remove,
    region_save,
)
from projects.services.standbys import version_problem


def operator_of(request: HttpRequest) -> OperatorPrincipal:
    """Who acts here. `PermissionDenied` for anybody but an operator."""
    assert isinstance(request.user, User)  # noqa: S101  (the admin lets in nobody else)
    return OperatorPrincipal(user=request.user, ip=client_ip(request), request_id=getattr(request, "request_id", ""))


def act_on(request: HttpRequest, rows: QuerySet[Any], act: Callable[[OperatorPrincipal, Any], Any], done: str,
           see: str = " See Operations.") -> None:  # fmt: skip
    """One after the other; a refusal of one is said and does not stop the others."""
    operator, made = operator_of(request), 0
    for row in rows:
        try:
            act(operator, row)
        except Problem as problem:
            messages.warning(request, f"{row}: {problem.detail}")
        else:
            made += 1
    if made:
        messages.success(request, f"{done}: {made}.{see}")


class CatalogueAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What operators set up. What is in use stays: the database refuses."""

    readonly_fields: ClassVar[Any] = ["id", "created_at", "updated_at"]


@admin.register(Region)
class RegionAdmin(CatalogueAdmin):
    list_display = ["name", "slug", "runtime", "enabled", "reconcile", "reachable", "reason", "disk_used",
                    "observed_at", "gone_at"]  # fmt: skip
    list_filter = ["runtime", "enabled", "reachable", "reconcile", ("gone_at", admin.EmptyFieldListFilter)]
    form = RegionForm
    search_fields = ["name", "slug"]
    date_hierarchy = "created_at"
    readonly_fields = [*CatalogueAdmin.readonly_fields, "reachable", "reason", "checked", "observed_at", "unreachable_since",
                       "gone_at", "disk"]  # fmt: skip
    actions = ["check_connection", "declare_gone", "not_gone"]

    @admin.action(description="Declare gone: its runtime will not come back")
    def declare_gone(self, request: HttpRequest, rows: QuerySet[Region]) -> None:
        act_on(request, rows, lambda who, row: region_declare_gone(principal=who, region=row, gone=True), "Gone", "")

    @admin.action(description="Not gone after all")
    def not_gone(self, request: HttpRequest, rows: QuerySet[Region]) -> None:
        act_on(request, rows, lambda who, row: region_declare_gone(principal=who, region=row, gone=False), "Back", "")

    @admin.display(description="disk")
    def disk_used(self, region: Region) -> str:
        used = region.disk_used_percent
        return "–" if used is None else region.disk_problem or f"{used:.0f} % full"

    @admin.action(description="Check the connection")
    def check_connection(self, request: HttpRequest, rows: QuerySet[Region]) -> None:
        act_on(request, rows, lambda who, row: region_check(principal=who, region=row), "Being checked by a worker", "")

    def save_model(self, request: HttpRequest, obj: Region, form: Any, change: bool) -> None:
        region_save(principal=operator_of(request), region=obj, changed=form.changed_data)

    def delete_model(self, request: HttpRequest, obj: Region) -> None:
        region_remove(principal=operator_of(request), region=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Region]) -> None:
        for region in queryset:
            self.delete_model(request, region)

    def has_delete_permission(self, request: HttpRequest, obj: Region | None = None) -> bool:
        return obj is not None and not obj.servers.exists() and super().has_delete_permission(request, obj)


@admin.register(EngineRelease)
class EngineReleaseAdmin(CatalogueAdmin):
    """What the operator says about versions; what is shipped holds for all others (`catalogue export` shows both)."""

    list_display = ["engine", "version", "image", "digest", "default", "deprecated", "end_of_life", "offer"]
    list_filter = ["engine", "default", "deprecated", "offer"]
    search_fields = ["engine", "version", "image", "digest"]
    date_hierarchy = "end_of_life"
    fields = ["engine", "version", "image", "digest", "default", "deprecated", "end_of_life", "offer",
              *CatalogueAdmin.readonly_fields]  # fmt: skip

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "engine":
            return forms.ChoiceField(choices=[(e.name, e.title) for e in registry.engines().values()])
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: EngineRelease, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        record(operator_of(request), "catalogue.changed", data={"changed" if change else "added": [str(obj)]})

    def delete_model(self, request: HttpRequest, obj: EngineRelease) -> None:
        record(operator_of(request), "catalogue.changed", data={"removed": [str(obj)]})
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        record(operator_of(request), "catalogue.changed", data={"removed": [str(row) for row in queryset]})
        super().delete_queryset(request, queryset)


class ConnectorForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = ServiceConnector
        fields = ["region", "service_type", "url", "timeout_seconds", "enabled"]

    def clean_url(self) -> str:
        try:
            return outbound.check_url(self.cleaned_data["url"])
        except outbound.OutboundError as error:
            raise forms.ValidationError(error.detail) from None


@admin.register(ServiceConnector)
class ServiceConnectorAdmin(CatalogueAdmin):
    """Where a region's services take registrations. The signing secret is made here and shown once."""

    form = ConnectorForm
    list_display = ["service_type", "region", "url", "enabled", "healthy", "health_detail", "checked_at"]
    list_filter = ["service_type", "enabled", "healthy", "region"]
    search_fields = ["url"]
    date_hierarchy = "created_at"
    list_select_related = ["region"]
    readonly_fields = [*CatalogueAdmin.readonly_fields, "healthy", "health_detail", "checked_at"]
    actions = ["new_secret"]

    def save_model(self, request: HttpRequest, obj: ServiceConnector, form: Any, change: bool) -> None:
        made = None
        if obj.signing_secret is None:
            made = connectors.new_secret()
            obj.signing_secret = Sealed.of(made)
        super().save_model(request, obj, form, change)
        record(
            operator_of(request), "connector.changed", target=str(obj), data={"url": obj.url, "enabled": obj.enabled}
        )
        if made:
            messages.warning(request, f"The signing secret of {obj}, shown only now: {made}")

    @admin.action(description="Make a new signing secret (the old one ends at once)")
    def new_secret(self, request: HttpRequest, rows: QuerySet[ServiceConnector]) -> None:
        for row in rows:
            made = connectors.new_secret()
            row.signing_secret = Sealed.of(made)
            row.save(update_fields=["signing_secret", "updated_at"])
            record(operator_of(request), "connector.changed", target=str(row), data={"secret": "new"})
            messages.warning(request, f"The signing secret of {row}, shown only now: {made}")


@admin.register(Plan)
class PlanAdmin(CatalogueAdmin):
    list_display = ["name", "slug", "memory", "cpus", "storage", "connection_limit", "recycle_days", "is_default",
                    "enabled"]  # fmt: skip
    list_filter = ["enabled", "is_default"]
    search_fields = ["name", "slug"]
    date_hierarchy = "created_at"

    @admin.display(ordering="memory_bytes")
    def memory(self, plan: Plan) -> str:
        return str(filesizeformat(plan.memory_bytes))

    @admin.display(ordering="storage_bytes")
    def storage(self, plan: Plan) -> str:
        return str(filesizeformat(plan.storage_bytes))

    def has_delete_permission(self, request: HttpRequest, obj: Plan | None = None) -> bool:
        return obj is not None and not obj.projects.exists() and super().has_delete_permission(request, obj)


class StandbyTargetForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean(self) -> Any:
        values = super().clean() or self.cleaned_data
        problem = version_problem(values.get("engine", ""), values.get("version", ""))
        if problem and values.get("engine") in registry.engines():
            self.add_error("version", problem)
        return values


@admin.register(StandbyTarget)
class StandbyTargetAdmin(CatalogueAdmin):
    """How many servers are kept initialised ahead. The upkeep makes and removes them one by one."""

    list_display = ["region", "engine", "version", "plan", "count", "ready", "problem"]
    list_filter = ["region", "engine"]
    list_select_related = ["region", "plan"]
    search_fields = ["engine", "version", "region__slug", "plan__slug"]
    date_hierarchy = "created_at"
    autocomplete_fields = ["region", "plan"]
    form = StandbyTargetForm
    fields: ClassVar[Any] = ["region", "engine", "version", "plan", "count", "problem", "retry_after", "id",
                             "created_at", "updated_at"]  # fmt: skip
    readonly_fields: ClassVar[Any] = ["problem", "retry_after", "id", "created_at", "updated_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).annotate(
            ready_count=Count("servers", filter=Q(servers__standby_ready_at__isnull=False, servers__kind="standby"))
        )  # fmt: skip

    @admin.display(ordering="ready_count")
    def ready(self, target: StandbyTarget) -> int:
        return int(getattr(target, "ready_count", 0))

    def save_model(self, request: HttpRequest, obj: StandbyTarget, form: Any, change: bool) -> None:
        obj.retry_after = None  # whoever changes it wants it tried now
        obj.save()
        record(operator_of(request), "standbys.changed", target=str(obj)[:200], data={"count": obj.count})

    def delete_model(self, request: HttpRequest, obj: StandbyTarget) -> None:
        record(operator_of(request), "standbys.changed", target=str(obj)[:200], data={"count": 0})
        obj.delete()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for target in queryset:
            self.delete_model(request, target)


def project_acts(action: str, title: str) -> Callable[[Any, HttpRequest, QuerySet[Any]], None]:
    """An admin action that is one of `project_action`'s, or `delete`."""

    def act(operator: OperatorPrincipal, project: Project) -> None:
        if action == "delete":
            operation = project_delete(principal=operator, project=project)
        else:
            operation = project_action(principal=operator, project=project, action=action)
        record(
            operator, "operator.acted", organization=project.organization, project_id=project.pk,
            project_name=project.name, target=project.slug, data={"action": action, "operation": str(operation.pk)},
        )  # fmt: skip

    @admin.action(description=title)
    def run(_model_admin: Any, request: HttpRequest, rows: QuerySet[Any]) -> None:
        act_on(request, rows.select_related("organization"), act, title)

    run.__name__ = f"project_{action}"
    return run


@admin.action(description="Forget without its runtime…")
def forget(model_admin: Any, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
    """Asks for the slug of each first; then removes their rows. Nothing is done to a runtime."""
    projects = list(rows.select_related("organization", "region"))
    if "confirmed" not in request.POST:
        context = {**model_admin.admin_site.each_context(request), "opts": model_admin.model._meta,
                   "title": "Forget without the runtime", "projects": projects}  # fmt: skip
        return TemplateResponse(request, "projects/admin_forget.html", context)
    act_on(
        request, rows.select_related("organization", "region"),
        lambda who, row: project_forget(principal=who, project=row, confirm=request.POST.get(f"confirm-{row.pk}", "")),
        "Forgotten; no data was deleted", " See Orphans for what may still exist.",
    )  # fmt: skip
    return None


@admin.action(description="Change limits…")
def change_limits(model_admin: Any, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
    """Asks for memory and CPU first; then changes them as their owners would, within plan and engine."""
    projects = list(rows.select_related("organization", "plan"))
    form = LimitsForm(
        request.POST if "confirmed" in request.POST else None,
        initial=LimitsForm.values_of(projects[0]) if len(projects) == 1 else None,
    )
    if not form.is_valid():
        context = {**model_admin.admin_site.each_context(request), "opts": model_admin.model._meta,
                   "title": "Change limits", "projects": projects, "form": form}  # fmt: skip
        return TemplateResponse(request, "projects/admin_limits.html", context)

    def act(operator: OperatorPrincipal, project: Project) -> None:
        _, operation = project_update(principal=operator, project=project, changes={"limits": form.as_limits()})
        record(
            operator, "operator.acted", organization=project.organization, project_id=project.pk,
            project_name=project.name, target=project.slug,
            data={"action": "resize", "operation": str(operation.pk) if operation else ""},
        )  # fmt: skip

    act_on(request, rows.select_related("organization"), act, "Limits changed")
    return None


@admin.register(Project)
class ProjectAdmin(ReadOnlyAdmin):
    list_display = ["name", "organization", "engine", "version", "status", "desired_status", "health", "region", "plan",
                    "size", "created_at"]  # fmt: skip
    list_filter = [
        "status",
        "desired_status",
        "health",
        "write_fence",
        "engine",
        "version",
        "region",
        "plan",
        "placement",
    ]
    list_select_related = ["organization", "region", "plan"]
    search_fields = ["name", "slug", "organization__name", "organization__slug", "id"]
    autocomplete_fields = ["organization", "region", "plan", "created_by"]
    date_hierarchy = "created_at"
    ordering = ["-created_at", "-id"]
    show_full_result_count = False
    readonly_fields = [
        "id", "slug", "status", "status_detail", "failure", "generation", "ready_at", "credentials_shown_at",
        "purging_at", "recycled_at", "recycle_until", "health", "health_detail", "health_checked_at", "size_bytes",
        "connections", "connections_limit", "stats_at", "write_fence", "write_fenced_at", "write_fence_applied",
        "created_at", "updated_at",
    ]  # fmt: skip
    actions = [
        project_acts("start", "Start"),
        project_acts("stop", "Stop"),
        project_acts("restart", "Restart"),
        project_acts("rotate_password", "Rotate the password"),
        change_limits,
        project_acts("retry", "Retry what failed"),
        project_acts("delete", "Delete into the recycle bin"),
        project_acts("undelete", "Undelete"),
        forget,
    ]

    @admin.display(ordering="size_bytes")
    def size(self, project: Project) -> str:
        return "" if project.size_bytes is None else str(filesizeformat(project.size_bytes))


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
    search_fields = ["id", "project_uuid", "=port", "runtime_ref", "image"]
    date_hierarchy = "created_at"
    show_full_result_count = False
    inlines = [DatabaseInline]
    fields: ClassVar[Any] = [
        "reconcile", "id", "kind", "region", "engine", "version", "runtime", "image", "image_digest", "incarnation",
        "runtime_ref", "project_uuid", "bind_address", "port", "control_host", "memory_bytes", "cpus",
        "max_connections", "max_databases", "system_identifier", "initialised_at", "desired_state", "observed_state",
        "observed_detail", "observed_at", "started_at", "recoveries", "recover_after", "cpu_percent",
        "memory_used_bytes", "usage_at", "standby_of", "standby_ready_at",
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


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys of projects, for their own services: how they begin, and when they were used."""

    list_display = ["name", "start", "project", "scopes", "state", "expires_at", "last_used_at", "revoked_at"]
    list_filter = [("revoked_at", admin.EmptyFieldListFilter), ("activated_at", admin.EmptyFieldListFilter)]
    list_select_related = ["project"]
    search_fields = ["name", "start"]
    date_hierarchy = "created_at"
    exclude = ["key_hash"]


@admin.register(ProjectService)
class ProjectServiceAdmin(ReadOnlyAdmin):
    """What services know of projects. Their `config` is the tenants' matter."""

    list_display = ["project", "service_type", "status", "reason", "service_id", "registered_at"]
    list_filter = ["service_type", "status"]
    list_select_related = ["project"]
    search_fields = ["service_id", "reason"]
    date_hierarchy = "created_at"
    exclude = ["config"]


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

    @admin.action(description="Settled: the service was told by hand")
    def settled(self, request: HttpRequest, rows: QuerySet[Orphan]) -> None:
        """Only for registrations that a service was left with: what runtimes hold is looked at, not declared."""
        number = rows.filter(kind="service", resolved_at=None).update(resolved_at=now())
        messages.success(request, f"Settled: {number}.")


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
