"""What every page of backups needs: the scoped fetch, questions as dialogs, what may be done with a backup."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme

from accounts.context import show_organization
from accounts.models import Organization
from accounts.permissions import Capability, Principal, principal_from, require
from backups.models import Backup, BackupStatus, BackupTrigger
from novastack.common.errors import NotFound
from projects.models import Project

NO_OBJECT = (BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.FAILED, BackupStatus.DELETING)


def backup_for(
    request: HttpRequest, backup_id: UUID, capability: Capability = Capability.PROJECT_VIEW
) -> tuple[Principal, Backup]:
    """The caller and a backup of their organization; `NotFound` for outsiders, `PermissionDenied` without the right.

    A backup outlives its project: nothing here needs that one.
    """
    principal = principal_from(request)
    rows = Backup.objects.for_principal(principal).select_related("storage", "schedule")
    backup: Backup | None = rows.filter(pk=backup_id).first()
    if backup is None:
        raise NotFound
    require(principal, backup.organization_id, capability)
    show_organization(request, Organization.objects.get(pk=backup.organization_id))
    return principal, backup


def project_of(principal: Principal, backup: Backup) -> Project | None:
    """The project that it was taken of, while there is one."""
    found: Project | None = Project.objects.for_principal(principal).for_lists().filter(pk=backup.project_uuid).first()
    return found


def rights(principal: Principal, organization_id: UUID) -> dict[str, bool]:
    """Capability by name → whether the caller has it there."""
    may = principal.capabilities_in(organization_id)
    return {capability.value: capability in may for capability in Capability}


def acts_of(backup: Backup, may: dict[str, bool]) -> frozenset[str]:
    """What the caller may do with it now; a page shows no more than these."""
    acts = set[str]()
    if may["project_act"]:
        if backup.status in {BackupStatus.QUEUED, BackupStatus.DUMPING} and backup.operation_id:
            acts.add("cancel")
        if backup.status in {BackupStatus.STORED, BackupStatus.VERIFIED, BackupStatus.CORRUPT}:
            acts.add("verify")
        if backup.status == BackupStatus.FAILED and backup.trigger != BackupTrigger.UPLOAD:  # whose file is gone
            acts.add("again")
        if backup.status not in NO_OBJECT:
            acts.add("unpin" if backup.pinned else "pin")
    if backup.usable and not backup.missing and (may["project_create"] or may["project_act"]):
        acts.add("restore")
    if may["connect"] and backup.usable and not backup.missing:
        acts.add("download")
    if may["project_delete"] and backup.status not in {
        BackupStatus.QUEUED, BackupStatus.DUMPING, BackupStatus.VERIFYING, BackupStatus.DELETING,
    }:  # fmt: skip
        acts.add("delete")
    return frozenset(acts)


def question(request: HttpRequest, name: str, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """The same question as a dialog (htmx) or as a page."""
    form = context.get("form")
    status = 400 if form is not None and form.errors else status
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, f"backups/_{name}.html", context, status=status)
    return render(request, "backups/question.html", context | {"question": f"backups/_{name}.html"}, status=status)


def back(request: HttpRequest, otherwise: str, *args: Any) -> HttpResponse:
    """To where the form was, if that is a page of ours."""
    here = request.POST.get("next", "")
    if here and url_has_allowed_host_and_scheme(here, {request.get_host()}, require_https=request.is_secure()):
        return redirect(here)
    return redirect(otherwise, *args)
