"""All backups of an organization: also those whose project is gone."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode
from django.views.decorators.http import require_GET

from accounts.context import current_organization
from accounts.permissions import Capability, principal_from, require
from backups.models import Backup, BackupStatus
from backups.services import readings
from backups.views.common import rights
from backups.views.tab import PAGE_SIZE, decorate
from projects.models import Project
from projects.views.common import page_of

KEPT = {"": "Any project", "there": "Projects that are there", "gone": "Removed projects"}


@login_required
@require_GET
def backup_list(request: HttpRequest) -> HttpResponse:
    """Newest first, by status and by whether the project is still there."""
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        return render(request, "projects/no_organization.html", {"section": "backups"})
    require(principal, organization, Capability.PROJECT_VIEW)
    chosen = {name: request.GET.get(name, "") for name in ("status", "projects")}
    rows = Backup.objects.for_principal(principal).filter(organization_id=organization.pk)
    rows = rows.select_related("storage", "schedule")
    if chosen["status"] in BackupStatus.values:
        rows = rows.filter(status=chosen["status"])
    if chosen["projects"] in {"there", "gone"}:
        there = Project.objects.filter(organization=organization).values("pk")
        rows = (
            rows.filter(project_uuid__in=there)
            if chosen["projects"] == "there"
            else rows.exclude(project_uuid__in=there)
        )
    page, numbers = page_of(request, rows, PAGE_SIZE)
    may = rights(principal, organization.pk)
    decorate(page.object_list, may)
    kept = {name: value for name, value in chosen.items() if value}
    context = {
        "section": "backups", "page": page, "pages": numbers, "chosen": chosen, "narrowed": bool(kept), "may": may,
        "query": urlencode(kept) + "&" if kept else "", "here": request.get_full_path(), "next": request.get_full_path(),
        "busy": any(backup.status in readings.BUSY for backup in page.object_list), "no_figures": True,
        "statuses": BackupStatus.choices, "kinds": list(KEPT.items()),
        "kit_confirmed": readings.kit_confirmed(organization.pk) or not page.paginator.count,
    }  # fmt: skip
    alone = request.htmx and not request.htmx.boosted  # type: ignore[attr-defined]
    return render(request, "backups/_list.html" if alone else "backups/list.html", context)
