"""For operators: regions and the servers in them. Infrastructure only, never a tenant's data."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_GET, require_http_methods

from accounts.permissions import principal_from, require_operator
from novastack.common.errors import ActionNotAllowed
from novastack.common.models import Heartbeat, Install
from projects.models import DatabaseServer, Orphan, Region
from projects.services import doctoring
from projects.services.fleet import control_disk_problem
from projects.views.common import page_of


@login_required
@require_GET
def operator(request: HttpRequest) -> HttpResponse:
    """How the runtimes are, what runs in them, and what nobody knows."""
    require_operator(principal_from(request))
    wanted = ~Q(servers__desired_state="absent")
    regions = Region.objects.annotate(
        server_count=Count("servers", filter=wanted),
        memory=Sum("servers__memory_bytes", filter=wanted, default=0),
    ).order_by("name")
    servers = DatabaseServer.objects.exclude(desired_state="absent").select_related("region")
    page, numbers = page_of(request, servers.defer("admin_secret", "admin_pending_secret"), 50)
    context = {
        "section": "operator", "regions": regions, "page": page, "pages": numbers, "query": "",
        "orphans": list(Orphan.objects.filter(resolved_at=None).select_related("region")[:20]),
        "heartbeats": list(Heartbeat.objects.all()), "install": Install.load(),
        "control_disk_problem": control_disk_problem(),
    }  # fmt: skip
    return render(request, "projects/operator.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def doctor(request: HttpRequest) -> HttpResponse:
    """What the last look of the doctor found; a POST has a worker look again."""
    principal = principal_from(request)
    require_operator(principal)
    if request.method == "POST":
        try:
            doctoring.look_again(principal=principal)
        except ActionNotAllowed as problem:
            messages.error(request, problem.detail)
        else:
            messages.info(request, "A worker is looking; what it finds is here in a few seconds.")
        return redirect("projects:operator-doctor")
    report = doctoring.last_report()
    at = parse_datetime(report["at"]) if report else None
    return render(request, "projects/operator_doctor.html", {"section": "operator", "report": report, "at": at})
