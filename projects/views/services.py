"""A project's services: what each knows of it, and what can be done about that."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from accounts.permissions import Capability
from novastack.common.errors import PermissionDenied, Problem
from projects.services.project_services import service_action, services_of
from projects.views.common import project_for
from projects.views.detail import header_context

ICONS = {"auth": "shield-check", "realtime": "activity", "storage": "hard-drive"}


@login_required
@require_http_methods(["GET", "POST"])
def project_services(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """The three of them; a POST acts on one."""
    capability = Capability.PROJECT_VIEW if request.method == "GET" else Capability.PROJECT_CHANGE
    principal, project = project_for(request, project_id, capability)
    if request.method == "POST":
        try:
            service_action(
                principal=principal, project=project, service=request.POST.get("service", ""),
                action=request.POST.get("action", ""),
            )  # fmt: skip
        except PermissionDenied:
            raise
        except Problem as problem:
            messages.error(request, problem.detail)
        else:
            messages.info(request, "The service is being told.")
        return redirect("projects:services", project.pk)
    context = header_context(principal, project)
    context |= {"tab": "services", "services": services_of(project), "icons": ICONS}
    return render(request, "projects/services.html", context)
