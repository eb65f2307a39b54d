"""Projects, and acting on them through the same services as everybody (audited)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse

from accounts.admin import ReadOnlyAdmin
from accounts.permissions import OperatorPrincipal
from accounts.services import record
from projects.admin.acting import act_on, operator_of
from projects.forms import LimitsForm, PlanForm
from projects.models import (
    ApiKey,
    Project,
    ProjectService,
)
from projects.services import (
    plan_change,
    project_action,
    project_delete,
    project_forget,
    project_update,
)
from projects.services.moving import preview


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


@admin.action(description="Change the plan…")
def change_plan(model_admin: Any, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
    """Asks for the plan, shows what it will mean for each, then changes it: in place, or by the move that it implies."""
    projects = list(rows.select_related("organization", "plan", "region"))
    form = PlanForm(request.POST if "plan" in request.POST else None)
    if not form.is_valid() or "confirmed" not in request.POST:
        who = operator_of(request)
        target = {"plan": form.cleaned_data["plan"].slug} if form.is_valid() else None
        seen = [(project, preview(who, project, target=target)) for project in projects] if target else []
        context = {**model_admin.admin_site.each_context(request), "opts": model_admin.model._meta,
                   "title": "Change the plan", "projects": projects, "form": form, "seen": seen}  # fmt: skip
        return TemplateResponse(request, "projects/admin_plan.html", context)

    def act(operator: OperatorPrincipal, project: Project) -> None:
        operation = plan_change(principal=operator, project=project, plan=form.cleaned_data["plan"].slug)
        record(
            operator, "operator.acted", organization=project.organization, project_id=project.pk,
            project_name=project.name, target=project.slug,
            data={"action": "change_plan", "operation": str(operation.pk) if operation else ""},
        )  # fmt: skip

    act_on(request, rows.select_related("organization"), act, "Plan is being changed")
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
        change_plan,
        project_acts("retry", "Retry what failed"),
        project_acts("delete", "Delete into the recycle bin"),
        project_acts("undelete", "Undelete"),
        forget,
    ]

    @admin.display(ordering="size_bytes")
    def size(self, project: Project) -> str:
        return "" if project.size_bytes is None else str(filesizeformat(project.size_bytes))


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys of projects, for their own services: how they begin, and when they were used."""

    list_display = ["name", "start", "project", "scopes", "state", "expires_at", "last_used_at", "revoked_at"]
    list_filter = [
        ("revoked_at", admin.EmptyFieldListFilter), ("activated_at", admin.EmptyFieldListFilter),
        ("suspended_at", admin.EmptyFieldListFilter),
    ]  # fmt: skip
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
