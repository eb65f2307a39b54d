"""Some tables of a backup, or a schema, come back beside what a project holds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from accounts.permissions import Capability, Principal
from backups.models import Backup, RestoreTarget
from backups.services.parts import parts_of, schemas_of, supported
from backups.services.restores import restore_create
from backups.views.common import backup_for, project_of
from novastack.common.errors import ActionNotAllowed, PermissionDenied, Problem
from projects.models import Project, ProjectStatus

SHOWN = 100
MOST = 200
OTHERS = 200


@login_required
@require_http_methods(["GET", "POST"])
def restore_parts(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """What the backup has, by name; what was chosen stays on top while one looks for more."""
    principal, backup = backup_for(request, backup_id, Capability.PROJECT_CHANGE)
    if not backup.usable or not supported(backup.engine):
        raise ActionNotAllowed("There is nothing to restore from it.")
    source = project_of(principal, backup)
    sent = request.POST if request.method == "POST" else request.GET
    tables = [name[:260] for name in sent.getlist("tables")[:MOST]]
    schemas = [name[:130] for name in sent.getlist("schemas")[:MOST]]
    into = sent.get("project", "")[:36]
    refused = ""
    if request.method == "POST":
        try:
            return _begin(request, principal, backup, tables, schemas, into)
        except PermissionDenied:
            raise
        except Problem as problem:
            refused = " ".join(error.detail for error in problem.errors) or problem.detail
    context = {
        "section": "projects", "backup": backup, "source": source, "into": into, "refused": refused,
        "places": _places(principal, backup, source), **listed(backup, source, tables, schemas, sent.get("search", "")),
    }  # fmt: skip
    template = "backups/_parts.html" if request.htmx else "backups/parts.html"  # type: ignore[attr-defined]
    return render(request, template, context, status=400 if refused else 200)


def _begin(
    request: HttpRequest, principal: Principal, backup: Backup, tables: list[str], schemas: list[str], into: str
) -> HttpResponse:
    if not tables and not schemas:
        raise ActionNotAllowed("Choose a table first.")
    project = next(
        (each for each in _places(principal, backup, project_of(principal, backup)) if str(each.pk) == into), None
    )
    if project is None:
        raise ActionNotAllowed("Choose the project that they go into.")
    here = project.pk == backup.project_uuid
    made = restore_create(
        principal, backup, target=RestoreTarget.IN_PLACE if here else RestoreTarget.PROJECT,
        project=None if here else project, tables=tables, schemas=schemas,
    )  # fmt: skip
    messages.info(request, "The tables are on their way.")
    return redirect("backups:restore-progress", made.pk)


def _places(principal: Principal, backup: Backup, source: Project | None) -> list[Project]:
    """Projects of its organization that could take them, its own first."""
    rows = (
        Project.objects.for_principal(principal)
        .for_lists()
        .filter(organization_id=backup.organization_id, engine=backup.engine, recycled_at=None)
        .filter(status__in=(ProjectStatus.RUNNING, ProjectStatus.UNHEALTHY))
        .order_by("name")
    )
    return sorted(rows[:OTHERS], key=lambda project: project.pk != backup.project_uuid)


def listed(
    backup: Backup, source: Project | None, tables: list[str], schemas: list[str], search: str
) -> dict[str, Any]:
    parts, wanted = parts_of(backup, source), search[:100].casefold()
    chosen = [part for part in parts if part.name in tables]
    found = [part for part in parts if part.name not in tables and wanted in part.name.casefold()]
    return {
        "chosen": chosen, "found": found[:SHOWN], "more": max(0, len(found) - SHOWN), "all": len(parts),
        "search": search[:100], "schemas": [(name, name in schemas) for name in schemas_of(backup)],
    }  # fmt: skip
