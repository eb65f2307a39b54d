"""A project's page: while it is made, when that failed, and when it runs. The parts poll until nothing moves."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.permissions import Capability, Principal
from novastack.common.clock import now
from novastack.common.errors import NotFound, Problem
from novastack.common.health import fresh_heartbeats
from projects import charts, registry
from projects.models import (
    Operation,
    OperationEvent,
    Project,
    ProjectStatus,
)
from projects.operations.cancelling import may_be_cancelled
from projects.operations.catalogue import versions_of
from projects.services.actions import allowed_actions
from projects.services.connections import connection_masked
from projects.services.readings import figures_of, metrics_of, server_of, tables_of
from projects.views.common import page_of, project_for
from projects.views.lists import percent

LOG_LINES = 300
THROUGHPUT = {"transactions_per_second": "Transactions per second", "queries_per_second": "Queries per second"}
PATIENCE = timedelta(seconds=20)


@login_required
@require_GET
def project_detail(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Overview, or the provisioning view while the database has not been proven once."""
    principal, project = project_for(request, project_id)
    context = _facts(principal, project) | {"tab": "overview"}
    if _making(project):
        return render(request, "projects/provisioning.html", context | _log(context["operation"]))
    context |= _overview(principal, project)
    return render(request, "projects/overview.html", context)


@login_required
@require_GET
def project_live(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """Header, steps and figures of one layout; asks for the whole page when another layout is due."""
    principal, project = project_for(request, project_id)
    layout = request.GET.get("layout", "overview")
    making = _making(project)
    if (layout == "provisioning") != making:
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    context = _facts(principal, project) | {"tab": "overview"}
    ended = request.GET.get("moving") == "1" and not context["moving"]
    if ended or (request.GET.get("state", project.status) != project.status and not context["moving"]):
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})  # it came to rest: the buttons change too
    return render(request, "projects/_live_provisioning.html" if making else "projects/_live.html", context)


@login_required
@require_GET
def project_tables(request: HttpRequest, project_id: UUID) -> HttpResponse:
    """The largest tables, as the engine estimates them."""
    principal, project = project_for(request, project_id)
    tables = tables_of(project)
    page, numbers = page_of(request, tables.rows, 25)
    engine = registry.engine(project.engine)
    context = header_context(principal, project) | {
        "tab": "tables", "tables": tables, "page": page, "pages": numbers, "query": "", "engine": engine,
        "noun": engine.tables_title.lower(),
    }  # fmt: skip
    return render(request, "projects/tables.html", context)


@login_required
@require_GET
def operation_log(request: HttpRequest, project_id: UUID, operation_id: UUID) -> HttpResponse:
    """The lines after a cursor, and a new cursor while the operation lives; `download`: all of it as text."""
    _, project = project_for(request, project_id)
    operation = Operation.objects.filter(pk=operation_id, project_uuid=project.pk).first()
    if operation is None:
        raise NotFound
    if "download" in request.GET:
        rows = OperationEvent.objects.filter(operation=operation).iterator(chunk_size=500)
        lines = (f"{row.at:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + f"Z {row.level.upper()} {row.message}\n" for row in rows)
        response = HttpResponse("".join(lines), content_type="text/plain; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="{project.slug}-{operation.kind}.log"'
        return response
    after = request.GET.get("after", "0")
    cursor = int(after) if after.isdecimal() and len(after) < 19 else 0
    context = {"project": project, **_log(operation, cursor)}
    return render(request, "projects/_log_lines.html", context)


def _making(project: Project) -> bool:
    """Not yet proven by a first login, and wanted."""
    return project.ready_at is None and project.status != ProjectStatus.RECYCLED


def _facts(principal: Principal, project: Project) -> dict[str, Any]:
    """What header and live parts show."""
    recent = list(Operation.objects.filter(project_uuid=project.pk).with_steps().order_by("-created_at", "-id")[:6])
    live = [operation for operation in recent if operation.live]
    operation = live[-1] if live else (recent[0] if recent else None)
    may = principal.capabilities_in(project.organization_id)
    server = server_of(project)
    return header_context(principal, project) | {
        "operation": operation,
        "moving": bool(live),
        "recent": recent,
        "cancellable": Capability.PROJECT_ACT in may and operation is not None and may_be_cancelled(operation),
        "worker_away": left_alone(operation),
        "steps_done": sum(s.state == "succeeded" for s in operation.steps.all()) if operation else 0,
        "steps_all": len(operation.steps.all()) if operation else 0,
        "server": server,
        "figures": figures_of(project, server),
        "size_percent": percent(project.size_bytes, project.storage_bytes),
        "uptime_seconds": (now() - server.started_at).total_seconds()
        if server and server.started_at and project.status in {ProjectStatus.RUNNING, ProjectStatus.UNHEALTHY}
        else None,
    }  # fmt: skip


def left_alone(operation: Operation | None) -> bool:
    """Nobody works on it, though somebody should have begun, and no worker shows a sign of life."""
    if operation is None or not operation.live:
        return False
    moment = now()
    waits = operation.next_attempt_at is not None and operation.next_attempt_at > moment
    leased = operation.lease_until is not None and operation.lease_until > moment
    if waits or leased or moment - operation.created_at < PATIENCE:
        return False
    return not fresh_heartbeats("worker:")


def header_context(principal: Principal, project: Project) -> dict[str, Any]:
    """What the header of every tab needs."""
    may = principal.capabilities_in(project.organization_id)
    return {
        "section": "projects",
        "project": project,
        "may": {capability.value: capability in may for capability in Capability},
        "actions": allowed_actions(project),
        "can_connect": project.ready_at is not None and project.desired_status in {"running", "stopped"},
    }


def _log(operation: Operation | None, after: int = 0) -> dict[str, Any]:
    lines: list[OperationEvent] = []
    if operation is not None:
        newest = OperationEvent.objects.filter(operation=operation, id__gt=after).order_by("-id")[:LOG_LINES]
        lines = list(reversed(newest))
    return {"operation": operation, "lines": lines, "cursor": lines[-1].pk if lines else after}


def _overview(principal: Principal, project: Project) -> dict[str, Any]:
    end = now()
    start = end - charts.DAY
    release = versions_of(registry.engine(project.engine)).find(project.version)
    points = metrics_of(project, "24h").points
    counted = any(p["transactions_per_second"] is not None for p in points)
    rate = "transactions_per_second" if counted else "queries_per_second"
    connection = None
    if Capability.CONNECT in principal.capabilities_in(project.organization_id):
        with contextlib.suppress(Problem, LookupError):
            connection = connection_masked(project)
    return {
        "connections_chart": charts.chart(
            ((p["at"], p["connections"]) for p in points),
            start=start,
            end=end,
            top=float(project.connections_limit or 0),
        ),
        "cpu_chart": charts.chart(
            ((p["at"], p["cpu_percent"]) for p in points), start=start, end=end, top=100.0 * float(project.cpus)
        ),
        "throughput_chart": charts.chart(((p["at"], p[rate]) for p in points), start=start, end=end),
        "throughput_label": THROUGHPUT[rate],
        "cache_chart": charts.chart(
            ((p["at"], p["cache_hit_percent"]) for p in points), start=start, end=end, top=100.0
        )
        if any(p["cache_hit_percent"] is not None for p in points)
        else None,
        "tables": tables_of(project),
        "chart_start": start,
        "chart_middle": start + charts.DAY / 2,
        "chart_end": end,
        "connection": connection,
        "release": release,
        "release_ended": release is not None and release.ended(end.date()),
    }
