"""A backup comes back: into a new project, in place, or into another project; its progress, and how it is undone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.context import show_organization
from accounts.models import Organization
from accounts.permissions import Capability, Principal, principal_from, require
from backups.forms import DeleteForm, RestoreForm
from backups.models import Backup, Restore, RestoreStatus, RestoreTarget
from backups.services import parts, readings
from backups.services.restores import restore_create, restore_preflight
from backups.services.restores import restore_undo as undo_begin
from backups.views.common import backup_for, project_of, question, rights
from backups.views.preflights import shown, spoken
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid, NameTaken, NotFound, PermissionDenied, Problem
from projects.models import Operation, Plan, Project, ProjectStatus, Region
from projects.operations.cancelling import may_be_cancelled
from projects.views.common import add_problem
from projects.views.detail import left_alone

OTHERS = 200
LIVE = (RestoreStatus.QUEUED, RestoreStatus.RUNNING, RestoreStatus.UNDOING)


@login_required
@require_http_methods(["GET", "POST"])
def restore(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """Where to; what it would do there; then it is done."""
    principal, backup = backup_for(request, backup_id, Capability.PROJECT_ACT)
    if not backup.usable:
        raise ActionNotAllowed("There is nothing to restore from it.")
    source = project_of(principal, backup)
    form = RestoreForm(request.POST if request.method == "POST" else None, initial=_initial(request, backup, source))
    if request.method == "POST" and form.is_valid():
        try:
            made = _begin(principal, backup, source, form.cleaned_data)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field=_place(problem, form.cleaned_data["target"]))
        else:
            messages.info(request, "The restore is on its way.")
            if made.target == RestoreTarget.NEW_PROJECT and made.project_uuid:
                return redirect("projects:detail", made.project_uuid)
            return redirect("backups:restore-progress", made.pk)
    status = 400 if form.errors else 200
    template = "backups/_restore_form.html" if request.htmx and request.method == "GET" else "backups/restore.html"  # type: ignore[attr-defined]
    return render(request, template, _context(principal, backup, source, form), status=status)


@login_required
@require_POST
def preflight(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """What a restore over a live database would do, looked up now."""
    principal, backup = backup_for(request, backup_id, Capability.PROJECT_ACT)
    form = RestoreForm(request.POST)
    form.is_valid()
    target = form.cleaned_data.get("target", "")
    source = project_of(principal, backup)
    into = source if target == RestoreTarget.IN_PLACE else _other(principal, backup, form.cleaned_data.get("project"))
    if into is None:
        raise Invalid.field("target", "invalid", "Choose where it goes first.")
    context: dict[str, Any] = {"backup": backup, "target": target, "into": into, "checked_at": now(), "form": form}
    form.errors.clear()
    try:
        told = restore_preflight(
            principal, backup, target=target, project=into if target == RestoreTarget.PROJECT else None
        )
    except PermissionDenied:
        raise
    except Problem as problem:
        context["refused"] = " ".join(error.detail for error in problem.errors) or problem.detail
        context["spoken"] = f"it can’t be restored there now. {context['refused']}"
    else:
        context["preflight"] = shown(told, into)
        context["spoken"] = spoken(context["preflight"])
    return render(request, "backups/_preflight.html", context)


@login_required
@require_GET
def restore_progress(request: HttpRequest, restore_id: UUID) -> HttpResponse:
    """Its steps while it works, then what became of it."""
    principal, row = _restore_for(request, restore_id)
    pk = row.undo_operation_id or row.operation_id
    operation = Operation.objects.filter(pk=pk).with_steps().first() if pk else None
    into = Project.objects.for_principal(principal).for_lists().filter(pk=row.project_uuid).first()
    steps = list(operation.steps.all()) if operation else []
    may = rights(principal, row.organization_id)
    context = {
        "section": "projects", "restore": row, "operation": operation, "project": into, "live": row.status in LIVE,
        "cancellable": into is not None and may["project_act"] and operation is not None and may_be_cancelled(operation),
        "worker_away": left_alone(operation),
        "steps_done": sum(step.state == "succeeded" for step in steps), "steps_all": len(steps),
        "may": may,
        "can_undo": into is not None and row.status == RestoreStatus.SUCCEEDED and readings.undoable(into) == row,
        "seconds": (row.finished_at - row.started_at).total_seconds() if row.finished_at and row.started_at else None,
    }  # fmt: skip
    template = "backups/_restore_progress.html" if request.htmx else "backups/restore_progress.html"  # type: ignore[attr-defined]
    return render(request, template, context)


@login_required
@require_http_methods(["GET", "POST"])
def restore_undo(request: HttpRequest, restore_id: UUID) -> HttpResponse:
    """Asks, then swaps the database from before back."""
    principal, row = _restore_for(request, restore_id, Capability.PROJECT_ACT)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            undo_begin(principal, row)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(request, "The database from before is being swapped back.")
            return redirect("backups:restore-progress", row.pk)
    into = Project.objects.for_principal(principal).for_lists().filter(pk=row.project_uuid).first()
    return question(request, "undo", {"section": "projects", "restore": row, "project": into, "form": form})


def _restore_for(
    request: HttpRequest, restore_id: UUID, capability: Capability = Capability.PROJECT_VIEW
) -> tuple[Principal, Restore]:
    principal = principal_from(request)
    row = Restore.objects.filter(pk=restore_id, organization_id__in=principal.organization_ids()).first()
    if row is None:
        raise NotFound
    require(principal, row.organization_id, capability)
    show_organization(request, Organization.objects.get(pk=row.organization_id))
    return principal, row


def _initial(request: HttpRequest, backup: Backup, source: Project | None) -> dict[str, Any]:
    wanted = request.GET.get("target", "")
    targets = {RestoreTarget.NEW_PROJECT, RestoreTarget.PROJECT} | ({RestoreTarget.IN_PLACE} if source else set())
    return {
        "target": wanted if wanted in targets else RestoreTarget.NEW_PROJECT,
        "name": f"{backup.project_name[:54]}-restored",
        "region": source.region.slug if source else "", "plan": source.plan.slug if source else "",
        "project": request.GET.get("project", "")[:36],
    }  # fmt: skip


def _begin(principal: Principal, backup: Backup, source: Project | None, sent: dict[str, Any]) -> Restore:
    target = sent["target"]
    extra: dict[str, Any] = {"confirm": sent["confirm"], "safety_backup": not sent["no_safety"]}
    if target == RestoreTarget.NEW_PROJECT:
        extra = {"name": sent["name"], "region": sent["region"] or None, "plan": sent["plan"] or None}
    elif target == RestoreTarget.PROJECT:
        into = _other(principal, backup, sent["project"])
        if into is None:
            raise NotFound.field("project", "Choose a project of the same engine.")
        extra["project"] = into
    return restore_create(principal, backup, target=target, **extra)


def _others(principal: Principal, backup: Backup) -> Any:
    """Other projects of the organization that could take it."""
    return (
        Project.objects.for_principal(principal)
        .for_lists()
        .filter(organization_id=backup.organization_id, engine=backup.engine, recycled_at=None)
        .filter(status__in=(ProjectStatus.RUNNING, ProjectStatus.UNHEALTHY))
        .exclude(pk=backup.project_uuid)
        .order_by("name")
    )


def _other(principal: Principal, backup: Backup, project_id: UUID | None) -> Project | None:
    found: Project | None = _others(principal, backup).filter(pk=project_id).first() if project_id else None
    return found


def _context(principal: Principal, backup: Backup, source: Project | None, form: RestoreForm) -> dict[str, Any]:
    target = str(form["target"].value())
    others = list(_others(principal, backup)[:OTHERS])
    chosen = next((other for other in others if str(other.pk) == str(form["project"].value())), None)
    regions = [region for region in Region.objects.filter(enabled=True).order_by("created_at") if region.available]
    return {
        "section": "projects", "backup": backup, "source": source, "form": form, "target": target,
        "into": source if target == RestoreTarget.IN_PLACE else chosen, "others": others,
        "parts": parts.supported(backup.engine),
        "regions": regions, "plans": list(Plan.objects.filter(enabled=True)),
        "may": rights(principal, backup.organization_id),
    }  # fmt: skip


def _place(problem: Problem, target: str) -> str | None:
    """The field of a refusal without one."""
    if isinstance(problem, NameTaken):
        return "name"
    return "confirm" if problem.code.startswith("confirm_") and target != RestoreTarget.NEW_PROJECT else None
