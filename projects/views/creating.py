"""A person asks for a database: one page, then straight to the project."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import Organization
from accounts.permissions import Capability, principal_from
from accounts.services import organization_for
from novastack.common.errors import NameTaken, Problem
from projects import registry
from projects.forms import NewProjectForm
from projects.models import Placement, Plan, Region
from projects.operations.catalogue import Versions, everything
from projects.services import ProjectRequest, project_create, slug_preview, usage_of
from projects.services.creation import backups_lack, name_is_free, version_for
from projects.services.validation import suggest_identifier
from projects.views.common import add_problem
from projects.views.lists import percent

SOON = timedelta(days=183)  # before its end of life a version says when that is


@login_required
@require_http_methods(["GET", "POST"])
def project_new(request: HttpRequest) -> HttpResponse:
    """The form; a refused one comes back with what was typed and the reason at its field."""
    principal = principal_from(request)
    organization = organization_for(principal, capability=Capability.PROJECT_CREATE, session=request.session)
    form = NewProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            project = project_create(
                principal=principal, organization=organization, request=ProjectRequest(**form.as_request())
            )
        except Problem as problem:
            add_problem(form, problem, field="name" if isinstance(problem, NameTaken) else None)
        else:
            return redirect("projects:detail", project.pk)
    status = 400 if form.errors else 200
    return render(request, "projects/new.html", _context(form, organization), status=status)


@login_required
@require_GET
def project_new_preview(request: HttpRequest) -> HttpResponse:
    """While somebody types: is the name free, what would be made. Swaps hint, versions and summary."""
    principal = principal_from(request)
    organization = organization_for(principal, capability=Capability.PROJECT_CREATE, session=request.session)
    form = NewProjectForm(request.GET)
    form.is_valid()
    form.errors.clear()  # nothing is wrong while it is being typed
    return render(request, "projects/_new_preview.html", _context(form, organization))


def _context(form: NewProjectForm, organization: Organization) -> dict[str, Any]:
    enabled = list(Region.objects.filter(enabled=True).order_by("created_at"))
    regions = [region for region in enabled if region.available]
    plans = list(Plan.objects.filter(enabled=True))
    usage = usage_of(organization)
    chosen = _chosen(form, regions, plans)
    engines = [_engine(versions, chosen["region"]) for versions in chosen["catalogue"].values()]
    _judge_plans(plans, usage, chosen)
    return {
        "section": "projects", "form": form, "organization": organization, "engines": engines, "regions": regions,
        "others": [region.name for region in enabled if not region.available],
        "plans": plans, "chosen": chosen, "versions": _versions(chosen), **_name(chosen, organization),
        "can_publish": bool(chosen["region"] and chosen["region"].public_address), "usage": usage,
        "after": _after(usage, chosen["plan"]), "backups_lack": backups_lack(organization, chosen["engine"].name),
        "tls_only": ", ".join(engine.title for engine in registry.engines().values() if engine.tls_only),
    }  # fmt: skip


def _engine(versions: Versions, region: Region | None) -> dict[str, Any]:
    """An engine's tile; without a version that the region can run, why."""
    engine, offered = versions.engine, versions.offered
    lacking = [region.reason_against(engine.name, v.version) if region else "" for v in offered]
    names = [v.version for v, reason in zip(offered, lacking, strict=True) if not reason]
    hint = f"Versions {', '.join(names)}" if len(names) > 1 else f"Version {''.join(names)}"
    return {
        "name": engine.name, "title": engine.title, "short": engine.short.capitalize(), "available": bool(names),
        "hint": hint if names else f"Not here: {lacking[0] if lacking else 'no version is offered'}",
    }  # fmt: skip


def _versions(chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that are offered, marked: the default, deprecated ones, those at or near the end of their lives."""
    region, today = chosen["region"], timezone.now().date()
    return [
        {
            "version": v.version, "default": v.default, "deprecated": v.deprecated, "end_of_life": v.end_of_life,
            "ended": v.ended(today), "ends_soon": v.ended(today + SOON) or v.deprecated,
            "lacking": bool(region and region.reason_against(chosen["engine"].name, v.version)),
        }
        for v in chosen["catalogue"][chosen["engine"].name].offered
    ]  # fmt: skip


def _chosen(form: NewProjectForm, regions: list[Region], plans: list[Plan]) -> dict[str, Any]:
    def value(name: str) -> str:
        return str(form.data.get(name, "")).replace("\0", "") if form.is_bound else ""

    engine = registry.engines().get(value("engine")) or registry.engine(registry.DEFAULT_ENGINE)
    known = everything()
    offered = {v.version for v in known[engine.name].offered}
    usable = [region for region in regions if region.available and region.has_room]
    region = next((r for r in usable if r.slug == value("region")), usable[0] if usable else None)
    plan = next((p for p in plans if p.slug == value("plan")), None) or next(
        (p for p in plans if p.is_default), plans[0] if plans else None
    )
    return {
        "engine": engine,
        "catalogue": known,
        "version": value("version") if value("version") in offered else version_for(known[engine.name], region),
        "region": region,
        "plan": plan,
        "placement": value("placement") or (plan.placement if plan else Placement.DEDICATED),
        "name": value("name").strip()[:200],
        "public": bool(value("public")),
        "tls_required": bool(value("tls_required")),
        "deletion_protection": bool(value("deletion_protection")),
        "bootstrap_schema": bool(value("bootstrap_schema")) or not form.is_bound,
        # What can't be switched on is not off for good: another engine may have it.
        "backups": bool(value("backups") or value("no_backups_here")) or not form.is_bound,
        "description": value("description"),
        "database_name": value("database_name"),
        "username": value("username"),
    }


def _name(chosen: dict[str, Any], organization: Organization) -> dict[str, Any]:
    """The address that the name would get, and the names inside the engine."""
    name = chosen["name"]
    slug = slug_preview(organization, name) if name else ""
    engine = chosen["engine"]
    return {
        "slug": slug,
        "name_free": bool(name) and len(name) <= 63 and name_is_free(organization, name),
        "database_default": suggest_identifier(engine, slug) if slug else "",
        "username_default": suggest_identifier(engine, slug, suffix="_user") if slug else "",
    }


def _judge_plans(plans: list[Plan], usage: dict[str, dict[str, Any]], chosen: dict[str, Any]) -> None:
    for plan in plans:
        left = {name: quota["limit"] - quota["used"] for name, quota in usage.items()}
        own = chosen["placement"] != Placement.POOL
        plan.over = (own and plan.memory_bytes > left["memory_bytes"]) or plan.storage_bytes > left["storage_bytes"]  # type: ignore[attr-defined]


def _after(usage: dict[str, dict[str, Any]], plan: Plan | None) -> dict[str, Any]:
    storage, projects = usage["storage_bytes"], usage["projects"]
    wanted = storage["used"] + (plan.storage_bytes if plan else 0)
    return {
        "storage": wanted, "storage_limit": storage["limit"], "storage_percent": percent(wanted, storage["limit"]),
        "projects": projects["used"] + 1, "projects_limit": projects["limit"],
        "projects_percent": percent(projects["used"] + 1, projects["limit"]),
    }  # fmt: skip
