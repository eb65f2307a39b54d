"""For operators: pools, and who lives on them. Names of projects, never what is in a database."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.permissions import principal_from, require_operator
from novastack.common.errors import Problem
from projects.forms import PoolForm
from projects.services.pools import (
    PoolRequest,
    describe,
    pool_check,
    pool_create,
    pool_drain,
    pool_drain_end,
    pool_get,
    pool_rows,
    pool_stats,
)
from projects.views.common import add_problem, page_of

PAGE_SIZE = 50


@login_required
@require_GET
def pool_list(request: HttpRequest) -> HttpResponse:
    """Every pool with its fill, health and use; it looks again while something works on one of them."""
    require_operator(principal_from(request))
    page, numbers = page_of(request, pool_rows().order_by("region__name", "engine", "version", "name"), PAGE_SIZE)
    pools = describe(list(page.object_list))
    context = {
        "section": "operator", "pools": pools, "page": page, "pages": numbers, "query": "", "stats": pool_stats(),
        "busy": any(pool.busy for pool in pools),
    }  # fmt: skip
    return render(request, "projects/_pools.html" if request.htmx else "projects/pools.html", context)  # type: ignore[attr-defined]


@login_required
@require_http_methods(["GET", "POST"])
def pool_new(request: HttpRequest) -> HttpResponse:
    """One by hand; the next one is made by itself when the others fill up."""
    principal = principal_from(request)
    require_operator(principal)
    form = PoolForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            server = pool_create(principal=principal, request=PoolRequest(**form.values()))
        except Problem as problem:
            add_problem(form, problem)
        else:
            return redirect("projects:pool", server.pk)
    return render(request, "projects/pool_new.html", {"section": "operator", "form": form})


@login_required
@require_GET
def pool_detail(request: HttpRequest, pool_id: UUID) -> HttpResponse:
    """One pool: what it is, how it does, what works on it, and who lives there."""
    require_operator(principal_from(request))
    pool = describe([_found(pool_id)], members=True)[0]
    steps = list(pool.operation.steps.all()) if pool.operation else []
    context = {"section": "operator", "pool": pool, "server": pool.server, "steps": steps}
    return render(request, "projects/_pool.html" if request.htmx else "projects/pool.html", context)  # type: ignore[attr-defined]


@login_required
@require_POST
def pool_act(request: HttpRequest, pool_id: UUID, action: str) -> HttpResponse:
    """`check`, `drain` or `drain-end`."""
    principal = principal_from(request)
    require_operator(principal)
    server = _found(pool_id)
    acts: dict[str, tuple[Any, str]] = {
        "check": (pool_check, "A worker looks at it; what it finds is here in a few seconds."),
        "drain": (pool_drain, f"{server.name} takes no more projects. Once everybody has moved, it is removed."),
        "drain-end": (pool_drain_end, f"{server.name} takes projects again."),
    }
    if action not in acts:
        raise Http404
    act, done = acts[action]
    try:
        act(principal=principal, server=server)
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        messages.success(request, done)
    return redirect("projects:pool", pool_id)


def _found(pool_id: UUID) -> Any:
    try:
        return pool_get(pool_id)
    except Problem as problem:
        raise Http404 from problem
