"""One backup: what is in it, what proved it, and what may be done with it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.permissions import Capability
from backups.forms import DeleteForm
from backups.models import Backup, BackupStatus, Proof
from backups.operations.restore_sides import tables_of
from backups.services.backups import backup_create, backup_delete, backup_pin, backup_unpin
from backups.services.proofs import backup_verify
from backups.views.common import acts_of, back, backup_for, project_of, question, rights
from novastack.common.errors import NotFound, PermissionDenied, Problem
from projects.models import Operation
from projects.operations import base
from projects.services import operation_cancel
from projects.views.common import add_problem

PROOFS = 20
TABLES = 12
SAID = {
    "verify": "It is restored into a throw-away server and compared.",
    "pin": "Pinned: retention keeps it.",
    "unpin": "Unpinned: retention may remove it.",
    "cancel": "The backup is asked to stop. Nothing of it is kept.",
    "again": "A new backup is begun.",
}


@login_required
@require_GET
def backup_detail(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """As a dialog or as a page; it polls while something works on it."""
    principal, backup = backup_for(request, backup_id)
    may = rights(principal, backup.organization_id)
    proofs = list(Proof.objects.filter(backup=backup).select_related("drill")[:PROOFS])
    context = {
        "section": "projects", "backup": backup, "project": project_of(principal, backup), "may": may,
        "acts": acts_of(backup, may), "operation": _operation(backup, proofs), "proofs": proofs,
        "busy": backup.status in {BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.VERIFYING},
        "step_titles": base.titles(), **contents_of(backup),
    }  # fmt: skip
    return question(request, "detail", context)


@login_required
@require_POST
def backup_act(request: HttpRequest, backup_id: UUID, action: str) -> HttpResponse:
    """`verify`, `pin`, `unpin`, `cancel`, `again`. A refusal that belongs to the moment becomes a note, not a page."""
    principal, backup = backup_for(request, backup_id, Capability.PROJECT_ACT)
    if action not in SAID:
        raise NotFound
    try:
        if action == "verify":
            backup_verify(principal=principal, backup=backup)
        elif action == "cancel":
            _cancel(principal, backup)
        elif action == "again":
            project = project_of(principal, backup)
            if project is None:
                raise NotFound
            backup_create(principal, project, label=backup.label, storage=backup.storage)
        elif action == "pin":
            backup_pin(principal, backup)
        else:
            backup_unpin(principal, backup)
    except PermissionDenied:
        raise
    except Problem as problem:
        messages.error(request, problem.detail)
    else:
        messages.info(request, SAID[action])
    return back(request, "backups:tab", backup.project_uuid)


@login_required
@require_http_methods(["GET", "POST"])
def backup_remove(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """Asks first; a pinned one, or the last that is proven, says so."""
    principal, backup = backup_for(request, backup_id, Capability.PROJECT_DELETE)
    form = DeleteForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            backup_delete(principal, backup)
        except PermissionDenied:
            raise
        except Problem as problem:
            add_problem(form, problem)
        else:
            messages.info(request, "The backup is being removed from its storage.")
            project = project_of(principal, backup)
            return redirect("backups:tab", project.pk) if project else redirect("backups:list")
    newer = Backup.objects.filter(
        project_uuid=backup.project_uuid, created_at__gt=backup.created_at, verified_at__isnull=False,
        status__in=(BackupStatus.VERIFIED, BackupStatus.VERIFYING),
    ).exists()  # fmt: skip
    context = {
        "section": "projects",
        "backup": backup,
        "form": form,
        "last_proven": bool(backup.verified_at) and not newer,
    }
    return question(request, "delete", context)


def _operation(backup: Backup, proofs: list[Proof]) -> Operation | None:
    """What works on it: while it is verified, its proof."""
    proof = proofs[0] if proofs and backup.status == BackupStatus.VERIFYING else None
    pk = proof.operation_id if proof and proof.operation_id else backup.operation_id
    return Operation.objects.filter(pk=pk).with_steps().first() if pk else None


def _cancel(principal: Any, backup: Backup) -> None:
    operation = Operation.objects.filter(pk=backup.operation_id).first() if backup.operation_id else None
    if operation is None:
        raise NotFound
    operation_cancel(principal=principal, operation=operation)


def contents_of(backup: Backup) -> dict[str, Any]:
    """`largest`: the tables with most rows, as (name, rows); `tables_left`: how many more there are."""
    counted = sorted(tables_of(backup).items(), key=lambda pair: (-pair[1], pair[0]))
    return {"largest": counted[:TABLES], "tables_left": max(0, len(counted) - TABLES)}
