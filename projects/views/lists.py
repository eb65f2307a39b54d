"""The list of projects, the recycle bin, and the search palette."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, F, Q, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_GET

from accounts.context import current_organization
from accounts.models import Organization
from accounts.permissions import Capability, allows, principal_from
from projects import registry
from projects.models import DesiredStatus, Endpoint, Operation, Project, ProjectStatus, Region
from projects.services import usage_of
from projects.services.actions import allowed_actions
from projects.services.quotas import QUOTAS
from projects.views.common import UNFINISHED, page_of

PAGE_SIZE = 25
ORDERINGS = {
    "-created_at": ("Newest first", ("-created_at", "-id")),
    "name": ("Name", ("name", "id")),
    "-size_bytes": ("Size", (F("size_bytes").desc(nulls_last=True), "-id")),
}
ATTENTION = (ProjectStatus.FAILED, ProjectStatus.UNHEALTHY, ProjectStatus.NOT_AVAILABLE)


@login_required
@require_GET
def home(request: HttpRequest) -> HttpResponse:
    return redirect("projects:list")


@login_required
@require_GET
def project_list(request: HttpRequest) -> HttpResponse:
    """Figures, filters, one page of projects; with htmx the table alone."""
    principal = principal_from(request)
    organization = current_organization(request)
    if organization is None:
        return render(request, "projects/no_organization.html", {"section": "projects"})
    rows = Project.objects.for_principal(principal).filter(organization=organization)
    chosen = {name: request.GET.get(name, "") for name in ("search", "status", "engine", "region", "ordering")}
    narrowed = any(chosen[name] for name in ("search", "status", "engine", "region"))
    alone = request.htmx and not request.htmx.boosted  # type: ignore[attr-defined]
    figures = None if alone else _figures(rows, organization)
    filtered = _filtered(rows.live(), chosen)
    counted = figures["total"] if figures and not narrowed else None
    page, numbers = page_of(request, filtered.for_lists(), PAGE_SIZE, counted)
    may = {c.value: allows(principal, organization, c) for c in Capability}
    for project in page.object_list:
        decorate(project)
    context: dict[str, Any] = {
        "section": "projects", "page": page, "pages": numbers, "chosen": chosen, "may": may,
        "unfinished": any(project.status in UNFINISHED for project in page.object_list),
        "query": _query(chosen), "here": request.get_full_path(),
    }  # fmt: skip
    if figures is None:
        return render(request, "projects/_list_table.html", context)
    context |= {
        "figures": figures,
        "nav": {"projects": figures["total"], "recycled": figures["recycled"]},
        "statuses": [s for s in ProjectStatus.choices if s[0] != ProjectStatus.RECYCLED],
        "engines": [(e.name, e.title) for e in registry.engines().values()],
        "regions": list(
            Region.objects.filter(enabled=True).exclude(runtime="").order_by("name").values_list("slug", "name")
        ),
        "orderings": [(key, label) for key, (label, _) in ORDERINGS.items()],
    }
    return render(request, "projects/list.html", context)


def decorate(project: Project) -> None:
    """What a row shows besides its columns: share of the disk, actions that make sense now."""
    project.percent = percent(project.size_bytes, project.storage_bytes)  # type: ignore[attr-defined]
    project.actions = allowed_actions(project)  # type: ignore[attr-defined]


def percent(used: int | None, limit: int | None) -> int:
    return min(100, round(100 * used / limit)) if used is not None and limit else 0


def _filtered(rows: Any, chosen: dict[str, str]) -> Any:
    if chosen["search"]:
        text = chosen["search"].replace("\0", "")[:100]
        rows = rows.filter(Q(name__icontains=text) | Q(slug__icontains=text) | Q(description__icontains=text))
    if chosen["status"] in ProjectStatus.values:
        rows = rows.filter(status=chosen["status"])
    if chosen["engine"] in registry.engines():
        rows = rows.filter(engine=chosen["engine"])
    if chosen["region"]:
        rows = rows.filter(region__slug=chosen["region"].replace("\0", "")[:80])
    order: Any = ORDERINGS.get(chosen["ordering"], ORDERINGS["-created_at"])[1]
    return rows.order_by(*order)


def _query(chosen: dict[str, str]) -> str:
    kept = {name: value for name, value in chosen.items() if value}
    return urlencode(kept) + "&" if kept else ""


def _figures(rows: QuerySet[Project], organization: Organization) -> dict[str, Any]:
    live = Q(recycled_at=None)
    sums = rows.aggregate(
        total=Count("id", filter=live),
        recycled=Count("id", filter=~live),
        running=Count("id", filter=live & Q(status=ProjectStatus.RUNNING)),
        attention=Count("id", filter=live & Q(status__in=ATTENTION)),
        size=Sum("size_bytes", filter=live, default=0),
        connections=Sum("connections", filter=live, default=0),
        connections_limit=Sum("connections_limit", filter=live, default=0),
    )
    return sums | {"usage": usage_of(organization)}


@login_required
@require_GET
def usage(request: HttpRequest) -> HttpResponse:
    """The organization's quotas and what is used of them."""
    organization = current_organization(request)
    rows = [
        {
            "name": QUOTAS[name][1].capitalize(), **quota, "bytes": name.endswith("_bytes"),
            "percent": percent(quota["used"], quota["limit"]), "over": quota["used"] >= quota["limit"] > 0,
        }
        for name, quota in (usage_of(organization) if organization else {}).items()
    ]  # fmt: skip
    return render(request, "projects/usage.html", {"section": "projects", "organization": organization, "rows": rows})


@login_required
@require_GET
def recycle_bin(request: HttpRequest) -> HttpResponse:
    """Deleted projects, with the days that are left."""
    principal = principal_from(request)
    organization = current_organization(request)
    rows = Project.objects.none()
    if organization is not None:
        going = Q(recycled_at__isnull=False) | Q(desired_status__in=[DesiredStatus.RECYCLED, DesiredStatus.ABSENT])
        rows = Project.objects.for_principal(principal).filter(going, organization=organization)
    page, numbers = page_of(
        request, rows.for_lists().order_by(F("recycle_until").asc(nulls_first=True), "id"), PAGE_SIZE
    )
    deleted_by = _deleted_by([project.pk for project in page.object_list])
    for project in page.object_list:
        project.deleted_by = deleted_by.get(project.pk, "")
        project.going = project.desired_status == DesiredStatus.ABSENT
        project.actions = allowed_actions(project)
    context = {
        "section": "bin", "page": page, "pages": numbers, "query": "",
        "held_bytes": sum(project.storage_bytes for project in page.object_list),
        "unfinished": any(project.status in UNFINISHED for project in page.object_list),
        "may_undelete": organization is not None and allows(principal, organization, Capability.PROJECT_DELETE),
        "may_purge": organization is not None and allows(principal, organization, Capability.PROJECT_PURGE),
    }  # fmt: skip
    template = "projects/_bin_table.html" if request.htmx else "projects/bin.html"  # type: ignore[attr-defined]
    return render(request, template, context)


def _deleted_by(project_ids: list[Any]) -> dict[Any, str]:
    rows = Operation.objects.filter(project_uuid__in=project_ids, kind="delete").order_by("created_at")
    return dict(rows.values_list("project_uuid", "created_by_label"))


PAGES = (
    ("Projects", "projects:list", "database", Capability.PROJECT_VIEW),
    ("New project", "projects:new", "plus", Capability.PROJECT_CREATE),
    ("Recycle bin", "projects:bin", "trash-2", Capability.PROJECT_VIEW),
    ("Activity", "accounts:activity", "activity", Capability.AUDIT_VIEW),
    ("Members", "accounts:members", "users", Capability.MEMBER_VIEW),
    ("API tokens", "accounts:tokens", "key-round", Capability.TOKEN_MANAGE),
    ("Profile", "accounts:profile", "user", None),
    ("Sign-in and security", "mfa_index", "shield-check", None),
)


@login_required
@require_GET
def search(request: HttpRequest) -> HttpResponse:
    """The palette: projects of all the caller's organizations, and pages. Without JavaScript a page of its own."""
    principal = principal_from(request)
    organization = current_organization(request)
    text = request.GET.get("q", "").replace("\0", "").strip()[:100]
    rows = Project.objects.for_principal(principal).live().for_lists()
    if text:
        endpoints = (
            Endpoint.objects.filter(port=int(text)).values("project_id") if text.isdecimal() and len(text) < 6 else []
        )
        rows = rows.filter(Q(name__icontains=text) | Q(slug__icontains=text) | Q(pk__in=endpoints))
    may = principal.capabilities_in(organization.pk if organization else None)
    pages = [
        (label, reverse(route), symbol)
        for label, route, symbol, needed in PAGES
        if text.lower() in label.lower() and (needed is None or needed in may)
    ]
    context = {"found": list(rows.order_by("-updated_at")[:8]), "found_pages": pages, "q": text}
    template = "projects/_search.html" if request.htmx else "projects/search.html"  # type: ignore[attr-defined]
    return render(request, template, context)
