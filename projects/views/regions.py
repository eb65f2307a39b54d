"""For operators: regions as they are set up, and whether they work."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_http_methods, require_POST

from accounts.permissions import Principal, principal_from, require_operator
from novastack.common.errors import Problem
from projects.forms import RegionForm
from projects.models import Region
from projects.services.regions import region_check, region_enable, region_remove, region_save
from projects.views.common import render_secret


@login_required
@require_http_methods(["GET", "POST"])
def region_new(request: HttpRequest) -> HttpResponse:
    """Where servers may run as well: an engine here, behind TLS, behind SSH, or a Swarm."""
    principal = principal_from(request)
    require_operator(principal)
    form = RegionForm(request.POST or None)
    if request.method == "POST" and (region := _saved(request, principal, form)) is not None:
        return redirect("projects:region", region.slug)
    return render_secret(request, "projects/region.html", {"section": "operator", "form": form, "region": None})


@login_required
@require_http_methods(["GET", "POST"])
def region_detail(request: HttpRequest, region: str) -> HttpResponse:
    """One region: how it is reached, what the last check found, and the form to change it."""
    principal = principal_from(request)
    require_operator(principal)
    form = RegionForm(request.POST or None, instance=get_object_or_404(Region, slug=region))
    if request.method == "POST" and (saved := _saved(request, principal, form)) is not None:
        return redirect("projects:region", saved.slug)
    stored = Region.objects.get(slug=region)  # the form has put what was typed on the other one
    context = {
        "section": "operator", "form": form, "region": stored, "servers": stored.servers.count(),
        "has_key": stored.endpoint_key is not None,
        "checked_at": parse_datetime(stored.checked["at"]) if stored.checked else None,
        "lacking": [(engine, version, why) for engine, found in sorted(stored.lacks.items())
                    for version, why in sorted(found.items())],
    }  # fmt: skip
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, "projects/_region_check.html", context)
    return render_secret(request, "projects/region.html", context)


def _saved(request: HttpRequest, principal: Principal, form: RegionForm) -> Region | None:
    if not form.is_valid():
        return None
    try:
        region = region_save(principal=principal, region=form.save(commit=False), changed=form.changed_data)
    except ValidationError as error:
        form.add_error(None, error.messages)
    except Problem as problem:
        form.add_error(None, problem.detail)
    else:
        text = f"Saved. A worker looks whether {region.name} works." if region.runtime else "Saved."
        messages.success(request, text)
        return region
    return None


@login_required
@require_POST
def region_act(request: HttpRequest, region: str, action: str) -> HttpResponse:
    """`check`, `enable`, `disable` or `remove`."""
    principal = principal_from(request)
    require_operator(principal)
    row = get_object_or_404(Region, slug=region)
    acts: dict[str, Any] = {
        "check": lambda: region_check(principal=principal, region=row),
        "enable": lambda: region_enable(principal=principal, region=row, enabled=True),
        "disable": lambda: region_enable(principal=principal, region=row, enabled=False),
        "remove": lambda: region_remove(principal=principal, region=row),
    }
    if action not in acts:
        raise Http404
    try:
        acts[action]()
    except Problem as problem:
        messages.error(request, problem.detail)
        return redirect("projects:region", region)
    if action == "remove":
        messages.success(request, f"{row.name} was removed.")
        return redirect("projects:operator")
    return redirect("projects:region", region)
