"""For operators: regions and the servers in them. Infrastructure only, never a tenant's data."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_GET, require_http_methods

from accounts.permissions import principal_from, require_operator
from novastack.common.errors import ActionNotAllowed
from novastack.common.models import Heartbeat, Install
from projects.domain import EngineVersion
from projects.models import DatabaseServer, EngineRelease, Orphan, Region
from projects.operations.catalogue import everything
from projects.services import doctoring
from projects.services.catalogue import shipped_versions
from projects.services.fleet import control_disk_problem
from projects.services.fleet import standbys as fleet_standbys
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
        "section": "operator", "regions": sorted(regions, key=lambda region: not region.runtime),
        "page": page, "pages": numbers, "query": "",
        "orphans": list(Orphan.objects.filter(resolved_at=None).select_related("region")[:20]),
        "heartbeats": list(Heartbeat.objects.all()), "install": Install.load(),
        "control_disk_problem": control_disk_problem(), "standbys": fleet_standbys(),
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


@login_required
@require_GET
def versions(request: HttpRequest) -> HttpResponse:
    """Which versions of which engine there are, how many servers have them, and where each is changed."""
    require_operator(principal_from(request))
    own = {(row.engine, row.version): row.pk for row in EngineRelease.objects.all()}
    in_use: dict[tuple[str, str], int] = {
        (row["engine"], row["version"]): row["count"]
        for row in DatabaseServer.objects.exclude(desired_state="absent")
        .order_by()
        .values("engine", "version")
        .annotate(count=Count("pk"))
    }
    shipped, today = shipped_versions(), timezone.now().date()
    rows: list[dict[str, Any]] = []
    for name, found in everything().items():
        for entry in found.entries:
            key = (name, entry.version)
            rows.append({
                "title": found.engine.title, "entry": entry, "ended": entry.ended(today), "offered": entry.offered(today),
                "image": found.image_of(entry.version), "servers": in_use.pop(key, 0), "own": key in own,
                "shipped": key in shipped, "url": _change_url(key, own.get(key), entry),
            })  # fmt: skip
    unknown = [{"engine": engine, "version": version, "servers": n} for (engine, version), n in sorted(in_use.items())]
    context = {"section": "operator", "rows": rows, "unknown": unknown}
    return render(request, "projects/operator_versions.html", context)


def _change_url(key: tuple[str, str], own: Any, entry: EngineVersion) -> str:
    """The admin's form: of the operator's entry, or of a new one that begins as what is shipped."""
    if own is not None:
        return reverse("admin:projects_enginerelease_change", args=[own])
    values = {
        "engine": key[0], "version": key[1], "image": entry.image, "digest": entry.digest,
        "end_of_life": entry.end_of_life or "", "offer": str(entry.offer),
        **({"deprecated": "1"} if entry.deprecated else {}),
    }  # fmt: skip
    return f"{reverse('admin:projects_enginerelease_add')}?{urlencode(values)}"
