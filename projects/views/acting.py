"""Actions on a project: each is a POST that works without JavaScript; the dangerous ones ask first."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_http_methods, require_POST

from accounts.permissions import Capability
from novastack.common.errors import NameTaken, NotFound, PermissionDenied, Problem
from projects.forms import ConfirmForm, UndeleteForm
from projects.models import Operation, Project
from projects.services import operation_cancel, operation_retry, project_action, project_delete, project_purge
from projects.views.common import add_problem, project_for
from projects.views.detail import header_context

SAID = {
    "start": "{} is starting.",
    "stop": "{} is stopping. Its data stays.",
    "restart": "{} is restarting. Open connections end.",
    "rotate_password": "A new password for {} is on its way. The old one is refused as soon as a login has proven it.",
    "retry": "{} is tried again.",
    "undelete": "{} is coming back.",
}


def _back(request: HttpRequest, project: Project) -> HttpResponse:
    here = request.POST.get("next", "")
    if here and url_has_allowed_host_and_scheme(here, {request.get_host()}, require_https=request.is_secure()):
        return redirect(here)
    return redirect("projects:detail", project.pk)


@login_required
@require_POST
def project_act(request: HttpRequest, project_id: UUID, action: str) -> HttpResponse:
    """Start, stop, restart, rotate_password, retry. A refusal that belongs to the moment becomes a note, not a page."""
    needed = Capability.PROJECT_DELETE if action == "undelete" else Capability.PROJECT_ACT
    principal, project = project_for(request, project_id, needed)
    if action not in SAID:
        raise NotFound
    try:
        project_action(
            principal=principal, project=project, action=action,
            end_sessions=action == "rotate_password" and bool(request.POST.get("end_sessions")),
        )  # fmt: skip
    except PermissionDenied:
        raise
    except NameTaken:
        return redirect("projects:undelete", project.pk)
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        messages.info(request, SAID[action].format(project.name))
    return _back(request, project)


@login_required
@require_http_methods(["GET", "POST"])
def project_rotate(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Ask before rotating: new logins need the new password."""
    if request.method == "POST":
        return project_act(request, project_id, "rotate_password")
    principal, project = project_for(request, project_id, Capability.PROJECT_ACT)
    return _dialog(request, "rotate", header_context(principal, project))


@login_required
@require_http_methods(["GET", "POST"])
def project_remove(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Into the recycle bin, with the typed slug."""
    principal, project = project_for(request, project_id, Capability.PROJECT_DELETE)
    form = ConfirmForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        if form.cleaned_data["confirm"] != project.slug:
            form.add_error("confirm", f"Type {project.slug} to delete this project.")
        else:
            try:
                project_delete(principal=principal, project=project, final_backup=form.final_backup())
            except PermissionDenied:
                raise
            except Problem as problem:
                add_problem(form, problem)
            else:
                messages.info(request, f"{project.name} is in the recycle bin.")
                return redirect("projects:bin")
    context = header_context(principal, project) | {"form": form, "days": project.plan.recycle_days}
    return _dialog(request, "delete", context)


@login_required
@require_http_methods(["GET", "POST"])
def project_purge_now(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Server and data for good, with the typed slug."""
    principal, project = project_for(request, project_id, Capability.PROJECT_PURGE)
    form = ConfirmForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            project_purge(
                principal=principal, project=project, confirm=form.cleaned_data["confirm"],
                final_backup=form.final_backup(),
            )  # fmt: skip
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="confirm")
        else:
            messages.info(request, f"{project.name} is being removed for good.")
            return redirect("projects:bin")
    grace_minutes = round(settings.NOVASTACK_DATA_GRACE_SECONDS / 60)
    return _dialog(
        request, "purge", header_context(principal, project) | {"form": form, "grace_minutes": grace_minutes}
    )


@login_required
@require_http_methods(["GET", "POST"])
def project_undelete(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Back from the bin; asks for a new name when the old one was given to another project since."""
    principal, project = project_for(request, project_id, Capability.PROJECT_DELETE)
    form = UndeleteForm(request.POST or None, initial={"name": project.name})
    if request.method == "POST" and form.is_valid():
        try:
            project_action(principal=principal, project=project, action="undelete", new_name=form.cleaned_data["name"])
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem, field="name")
        else:
            messages.info(request, SAID["undelete"].format(form.cleaned_data["name"]))
            return redirect("projects:detail", project.pk)
    return _dialog(request, "undelete", header_context(principal, project) | {"form": form})


def _dialog(request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
    """The same question as a dialog (htmx) or as a page."""
    form = context.get("form")
    status = 400 if form is not None and form.errors else 200
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, f"projects/_{name}.html", context, status=status)
    return render(request, "projects/question.html", context | {"question": f"projects/_{name}.html"}, status=status)


@login_required
@require_POST
def operation_act(request: HttpRequest, project_id: UUID, operation_id: UUID, action: str) -> HttpResponse:
    """Cancel or retry an operation of the project."""
    principal, project = project_for(request, project_id, Capability.PROJECT_ACT)
    operation = Operation.objects.filter(pk=operation_id, project_uuid=project.pk).first()
    if operation is None or action not in {"cancel", "retry"}:
        raise NotFound
    try:
        if action == "cancel":
            operation_cancel(principal=principal, operation=operation)
            messages.info(request, "The operation is asked to stop. What it did is undone.")
        else:
            operation_retry(principal=principal, operation=operation)
            messages.info(request, "It is tried again now.")
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    return _back(request, project)
