"""What a project promises about its backups, and the drills that try it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from accounts.permissions import Capability, Principal
from backups.forms import DrillForm, PolicyForm
from backups.models import BackupPolicy, Drill, Proof, ProofState
from backups.services.proofs import (
    drill_create,
    drill_delete,
    drill_run,
    drill_update,
    objective,
    policy_update,
)
from backups.views.common import question
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.models import Project
from projects.views.common import add_problem, project_for
from projects.views.detail import header_context

LIVE = (ProofState.QUEUED, ProofState.RUNNING)


def objective_card(principal: Principal, project: Project) -> dict[str, Any]:
    """`objective`, `drills` with their newest run, whether a proof is at work that will change them, and what may be
    changed."""
    changes = Capability.PROJECT_CHANGE in principal.capabilities_in(project.organization_id)
    return {
        "objective": objective(project),
        "drills": drills_of(project),
        "proving": Proof.objects.filter(backup__project_uuid=project.pk, state__in=LIVE).exists(),
        "can_promise": changes,
        "can_drill": changes,
    }


def drills_of(project: Project) -> list[Drill]:
    """Each with `last`, its newest run; two queries."""
    drills = list(Drill.objects.filter(project=project))
    newest = Proof.objects.filter(drill__in=drills).order_by("drill_id", "-created_at").distinct("drill_id")
    runs = {proof.drill_id: proof for proof in newest.select_related("backup")}
    for drill in drills:
        drill.last = runs.get(drill.pk)  # type: ignore[attr-defined]
    return drills


@login_required
@require_http_methods(["GET", "POST"])
def policy(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Objective, proofs, heartbeat."""
    principal, project = project_for(request, project_id, Capability.PROJECT_CHANGE)
    row = BackupPolicy.objects.filter(project=project).first()
    form = PolicyForm(request.POST if request.method == "POST" else None, initial=PolicyForm.values_of(row))
    if request.method == "POST" and form.is_valid():
        try:
            policy_update(principal=principal, project=project, changes=form.as_changes())
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _renamed(problem))
        else:
            messages.info(request, "Saved.")
            return redirect("backups:tab", project.pk)
    return question(request, "policy", header_context(principal, project) | {"form": form, "tab": "backups"})


@login_required
@require_http_methods(["GET", "POST"])
def drill_edit(request: HttpRequest, project_id: UUID, drill_id: UUID | None = None) -> HttpResponse:
    """A new drill, or another wording of one."""
    principal, project = project_for(request, project_id, Capability.PROJECT_CHANGE)
    drill = Drill.objects.filter(pk=drill_id, project=project).first() if drill_id else None
    if drill_id and drill is None:
        raise NotFound
    form = DrillForm(
        request.POST if request.method == "POST" else None,
        drill=drill,
        zone=getattr(request.user, "time_zone", "") or "UTC",
    )
    if request.method == "POST" and form.is_valid():
        fields = form.as_fields()
        try:
            if drill is None:
                drill_create(principal=principal, project=project, **fields)
            else:
                drill_update(principal=principal, drill=drill, changes=fields)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _asked(problem, form))
        else:
            messages.info(request, "Saved.")
            return redirect("backups:tab", project.pk)
    runs = list(Proof.objects.filter(drill=drill).select_related("backup")[:20]) if drill else []
    context = header_context(principal, project) | {
        "tab": "backups", "form": form, "drill": drill, "runs": runs, "running": any(run.state in LIVE for run in runs),
    }  # fmt: skip
    if drill is not None and request.htmx and request.method == "GET":  # type: ignore[attr-defined]
        return render(request, "backups/_drill_runs.html", context)
    return render(request, "backups/drill.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def drill_act(request: HttpRequest, project_id: UUID, drill_id: UUID, action: str) -> HttpResponse:
    """`run`, `pause`, `resume` or `delete`."""
    needed = Capability.PROJECT_ACT if action == "run" else Capability.PROJECT_CHANGE
    principal, project = project_for(request, project_id, needed)
    drill = Drill.objects.filter(pk=drill_id, project=project).first()
    if drill is None or action not in {"run", "pause", "resume", "delete"}:
        raise NotFound
    try:
        if action == "run":
            drill_run(principal=principal, drill=drill)
            messages.info(request, f"“{drill.name}” restores the newest backup and asks its questions.")
        elif action in {"pause", "resume"}:
            drill_update(principal=principal, drill=drill, changes={"enabled": action == "resume"})
            messages.info(request, f"“{drill.name}” {'is paused' if action == 'pause' else 'goes on'}.")
        else:
            drill_delete(principal=principal, drill=drill)
            messages.info(request, f"“{drill.name}” is removed.")
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    return redirect("backups:tab", project.pk)


def _renamed(problem: Problem) -> Problem:
    """The columns as this form calls them."""
    names = {"rpo_seconds": "rpo_hours", "rto_seconds": "rto_minutes"}
    errors = [type(e)(names.get(e.field, e.field), e.code, e.detail) for e in problem.errors]
    return Problem(problem.detail, code=problem.code, errors=errors)


def _asked(problem: Problem, form: DrillForm) -> Problem:
    """`assertions.1.sql` as this form calls it: the row that was the second with SQL in it."""
    errors = []
    for e in problem.errors:
        part = e.field.split(".")
        field = e.field
        if part[0] == "assertions" and len(part) > 1 and part[1].isdecimal() and int(part[1]) < len(form.sent):
            field = f"{part[2] if len(part) > 2 else 'sql'}_{form.sent[int(part[1])]}"
        errors.append(type(e)(field, e.code, e.detail))
    return Problem(problem.detail, code=problem.code, errors=errors)
