"""What every page of a project needs: the scoped fetch, problems as form errors, pages of a list."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.context import show_organization
from accounts.permissions import Capability, Principal, principal_from, require
from novastack.common.errors import NotFound, Problem
from projects.models import Project, ProjectStatus

UNFINISHED = frozenset(
    {
        ProjectStatus.QUEUED, ProjectStatus.PROVISIONING, ProjectStatus.STOPPING, ProjectStatus.STARTING,
        ProjectStatus.RESTORING, ProjectStatus.MOVING, ProjectStatus.UPGRADING, ProjectStatus.DELETING,
    }
)  # fmt: skip


def project_for(
    request: HttpRequest, project_id: UUID, capability: Capability = Capability.PROJECT_VIEW
) -> tuple[Principal, Project]:
    """The caller and their project; `NotFound` for outsiders, `PermissionDenied` for members without the right.

    The page then shows the project's organization, whichever one was chosen in the switcher.
    """
    principal = principal_from(request)
    project = Project.objects.for_principal(principal).for_lists().filter(pk=project_id).first()
    if project is None:
        raise NotFound
    require(principal, project.organization_id, capability)
    show_organization(request, project.organization)
    return principal, project


def add_problem(form: forms.Form, problem: Problem, *, field: str | None = None) -> None:
    """Put a service's refusal where its field is; what has none goes to `field`, or on top of the form."""
    placed = False
    for error in problem.errors:
        name = error.field if error.field in form.fields else None
        form.add_error(name, error.detail)
        placed = True
    if not placed:
        form.add_error(field if field in form.fields else None, problem.detail)


def page_of(request: HttpRequest, rows: Any, size: int, count: int | None = None) -> tuple[Page[Any], list[Any]]:
    """The asked page of a list and the page numbers to offer; a page that isn't there is the last one.

    `count`: how many there are, when somebody has counted already.
    """
    paginator = Paginator(rows, size)
    if count is not None:
        paginator.count = count
    page = paginator.get_page(request.GET.get("page"))
    return page, list(page.paginator.get_elided_page_range(page.number, on_each_side=1, on_ends=1))


def render_secret(request: HttpRequest, template: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """An answer that holds a secret: stored nowhere (rule 44)."""
    response = render(request, template, context, status=status)
    response["Cache-Control"] = "no-store, private"
    response["Pragma"] = "no-cache"
    return response
