"""A project's API keys: made once in clear, listed, revoked."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST

from accounts.permissions import Capability
from novastack.common.errors import ActionNotAllowed, NotFound, PermissionDenied, Problem
from projects.forms import KeyForm
from projects.models import ApiKey, KeyScope
from projects.services import key_confirm, key_create, key_revoke
from projects.views.common import add_problem, page_of, project_for, render_secret
from projects.views.detail import header_context

PAGE = 50


@login_required
@require_http_methods(["GET", "POST"])
def project_keys(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """The list and the form; after a POST the new key's value, in that one answer only."""
    capability = Capability.PROJECT_VIEW if request.method == "GET" else Capability.API_KEY_MANAGE
    principal, project = project_for(request, project_id, capability)
    form = KeyForm(request.POST or None)
    made: ApiKey | None = None
    clear = ""
    if request.method == "POST" and form.is_valid():
        try:
            made, clear = key_create(principal=principal, project=project, **form.as_fields())
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, _named(problem), field="name")
        else:
            form = KeyForm()
    page, numbers = page_of(request, ApiKey.objects.filter(project=project).select_related("created_by"), PAGE)
    context = header_context(principal, project) | {
        "tab": "keys", "form": form, "page": page, "pages": numbers, "made": made, "clear": clear,
        "scopes": KeyScope.choices,
        "suspended": ApiKey.objects.filter(project=project, revoked_at=None, suspended_at__isnull=False).exists(),
        "chosen": form.data.getlist("scopes") if form.is_bound else KeyScope.values,  # type: ignore[attr-defined]
    }  # fmt: skip
    return render_secret(request, "projects/keys.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def project_key_revoke(request: HttpRequest, project_id: UUID, key_id: UUID) -> HttpResponse:
    principal, project = project_for(request, project_id, Capability.API_KEY_MANAGE)
    key = ApiKey.objects.filter(project=project, pk=key_id).select_related("project").first()
    if key is None:
        raise NotFound
    key_revoke(principal=principal, key=key)
    messages.info(request, f"Key “{key.name}” is revoked. It stopped working at once.")
    return redirect("projects:keys", project.pk)


@login_required
@require_POST
def project_key_confirm(request: HttpRequest, project_id: UUID, key_id: UUID) -> HttpResponse:
    """A key that a control restore has suspended works again."""
    principal, project = project_for(request, project_id, Capability.API_KEY_MANAGE)
    key = ApiKey.objects.filter(project=project, pk=key_id).select_related("project").first()
    if key is None:
        raise NotFound
    try:
        key_confirm(principal=principal, key=key)
    except ActionNotAllowed as problem:
        messages.error(request, problem.detail)
    else:
        messages.success(request, f"Key “{key.name}” works again.")
    return redirect("projects:keys", project.pk)


def _named(problem: Problem) -> Problem:
    """The API's `prefix` as this form calls it: Django's forms have a `prefix` of their own."""
    errors = [type(e)("begins_with" if e.field == "prefix" else e.field, e.code, e.detail) for e in problem.errors]
    return Problem(problem.detail, code=problem.code, errors=errors)
