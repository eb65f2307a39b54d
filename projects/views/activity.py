"""A project's activity: who did what to it, and its operations."""

from __future__ import annotations

from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.activity import feed
from accounts.models import AuditEvent
from accounts.permissions import Capability
from projects.models import Operation
from projects.views.common import project_for
from projects.views.detail import header_context


@login_required
@require_GET
def project_activity(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Its audit events for those who may read the log; its operations for every member."""
    principal, project = project_for(request, project_id)
    context = header_context(principal, project) | {"tab": "activity"}
    if Capability.AUDIT_VIEW in principal.capabilities_in(project.organization_id):
        events = AuditEvent.objects.for_principal(principal).filter(project_id=project.pk)
        context |= feed(events, before=request.GET.get("before", ""))
        if request.htmx:  # type: ignore[attr-defined]
            return render(request, "accounts/_activity_rows.html", context)
    context["operations"] = list(Operation.objects.filter(project_uuid=project.pk).with_steps()[:20])
    return render(request, "projects/activity.html", context)
