"""What operators set up: regions, versions, plans, connectors, standbys."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from accounts.services import record
from novastack.common import outbound
from novastack.common.secrets import Sealed
from projects import connectors, registry
from projects.admin.acting import act_on, operator_of
from projects.forms import RegionForm
from projects.models import (
    EngineRelease,
    Plan,
    Region,
    ServiceConnector,
    StandbyTarget,
)
from projects.services import (
    region_check,
    region_declare_gone,
    region_remove,
    region_save,
)
from projects.services.standbys import version_problem


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
