"""A project's settings: name, description, labels, limits, TLS, protection; the danger zone comes last."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from accounts.permissions import Capability, Principal
from novastack.common.errors import NameTaken, PermissionDenied, Problem
from projects.forms import LimitsForm, MoveForm, ProjectSettingsForm, ProtectionForm, TlsForm
from projects.models import Project
from projects.operations import moving
from projects.services import plan_change, project_move, project_update
from projects.services.changes import tls_fixed, tls_restarts, tls_unavailable
from projects.services.moving import Preview, preview
from projects.services.readings import server_of
from projects.views.common import add_problem, project_for
from projects.views.detail import header_context


@login_required
@require_http_methods(["GET", "POST"])
def project_settings(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Small forms on one page; `form` in the body says which one was sent."""
    capability = Capability.PROJECT_VIEW if request.method == "GET" else Capability.PROJECT_CHANGE
    principal, project = project_for(request, project_id, capability)
    sent = request.POST.get("form", "") if request.method == "POST" else ""
    general = ProjectSettingsForm(
        request.POST if sent == "general" else None, initial=ProjectSettingsForm.values_of(project)
    )
    limits = LimitsForm(request.POST if sent == "limits" else None, initial=LimitsForm.values_of(project))
    protection = ProtectionForm(request.POST if sent == "protection" else None)
    tls = TlsForm(request.POST if sent == "tls" else None)
    sheets: dict[str, forms.Form] = {"general": general, "limits": limits, "tls": tls, "protection": protection}
    form = sheets.get(sent)
    if form is not None and form.is_valid():
        try:
            _, operation = project_update(principal=principal, project=project, changes=_changes(sent, form))
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _named(problem), field="name" if isinstance(problem, NameTaken) else None)
        else:
            messages.info(request, "Saved. It is being applied." if operation else "Saved.")
            return redirect("projects:settings", project.pk)
    move = MoveForm(request.POST if sent == "move" else None, project=project)
    seen: Preview | None = None
    if sent == "move" and move.is_valid():
        form = move
        try:
            if request.POST.get("go") == "apply":
                _begin(principal, project, move)
                messages.info(request, "It is on its way.")
                return redirect("projects:detail", project.pk)
            seen = preview(principal, project, target=move.target(), move=_is_move(move))
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(move, problem)
    context = header_context(principal, project) | {
        "move": move, "preview": seen, "copies": moving.kept(project),
        "tab": "settings", "general": general, "limits": limits, "protection": protection, "tls": tls,
        "tls_reason": tls_fixed(project) or tls_unavailable(project), "tls_fixed": bool(tls_fixed(project)),
        "tls_restarts": tls_restarts(project),
        "server": server_of(project),
        "can_change": Capability.PROJECT_CHANGE in principal.capabilities_in(project.organization_id),
        "labels": sorted(project.labels.items()),
    }  # fmt: skip
    return render(request, "projects/settings.html", context, status=400 if form is not None and form.errors else 200)


def _is_move(form: MoveForm) -> bool:
    """Nothing chosen, or a place: then another server is wanted; a plan alone goes the short way if there is one."""
    return set(form.target()) != {"plan"}


def _begin(principal: Principal, project: Project, form: MoveForm) -> None:
    if _is_move(form):
        project_move(principal=principal, project=project, target=form.target())
    else:
        plan_change(principal=principal, project=project, plan=form.target()["plan"])


def _changes(sent: str, form: forms.Form) -> dict[str, Any]:
    if sent == "limits":
        assert isinstance(form, LimitsForm)  # noqa: S101
        return {"limits": form.as_limits()}
    return dict(form.cleaned_data)


def _named(problem: Problem) -> Problem:
    """The API's names of the limits, as this form calls them."""
    names = {"limits.memory_bytes": "memory_mb", "limits.cpus": "cpus"}
    renamed = [type(e)(names.get(e.field, e.field), e.code, e.detail) for e in problem.errors]
    return Problem(problem.detail, code=problem.code, errors=renamed)
