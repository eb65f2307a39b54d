"""A backup leaves the house: as it is stored, decrypted, or some tables of it as SQL."""

from __future__ import annotations

from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from accounts.permissions import Capability
from backups.services import downloads
from backups.services.backups import backup_download as record
from backups.services.parts import supported
from backups.services.sql import sql_download
from backups.views.common import backup_for, project_of, question
from backups.views.parts import MOST, listed
from novastack.common.errors import ActionNotAllowed, PermissionDenied, Problem
from novastack.common.streaming import attachment


@login_required
@require_GET
def backup_download(request: HttpRequest, backup_id: UUID) -> HttpResponseBase:
    """Which form, and what opens it; with `as` the file, or the same question with what stands in the way: a browser that
    saves an error as a file, or says nothing but “failed”, tells nobody what to do."""
    principal, backup = backup_for(request, backup_id, Capability.CONNECT)
    if not backup.usable:
        raise ActionNotAllowed("There is nothing to download of it.")
    context = {"section": "projects", "backup": backup, "sql": supported(backup.engine)}
    form = request.GET.get("as")
    if form not in {"stored", "decrypted"}:
        return question(request, "download", context)
    try:
        if form == "stored":
            downloads.stored(backup, length=min(1, backup.size_bytes or 0)).close()
            return redirect(f"/api/v1/backups/{backup.pk}/download/?as=stored")  # which can be resumed
        download = record(principal, backup, lambda: downloads.decrypted(backup), decrypted=True)
        return attachment(download.pieces, downloads.name_of(backup, ".dump"), download.size_bytes)
    except PermissionDenied:
        raise
    except Problem as problem:
        response = question(
            request, "download", context | {"refused": problem.detail, "code": problem.code}, problem.status
        )
        if problem.retry_after_seconds is not None:
            response["Retry-After"] = str(problem.retry_after_seconds)
        return response


@login_required
@require_http_methods(["GET", "POST"])
def tables_download(request: HttpRequest, backup_id: UUID) -> HttpResponseBase:
    """Which tables, or schemas; a POST answers with the file."""
    principal, backup = backup_for(request, backup_id, Capability.CONNECT)
    if not backup.usable or not supported(backup.engine):
        raise ActionNotAllowed("There is nothing to download of it.")
    sent = request.POST if request.method == "POST" else request.GET
    tables = [name[:260] for name in sent.getlist("tables")[: MOST + 1]]
    schemas = [name[:130] for name in sent.getlist("schemas")[: MOST + 1]]
    refused, packed = "", sent.get("packed") == "on"
    status, later = 200, None
    if request.method == "POST":
        try:
            download, name = sql_download(principal, backup, tables, schemas, packed=packed)
        except PermissionDenied:
            raise
        except Problem as problem:
            refused = " ".join(error.detail for error in problem.errors) or problem.detail
            status, later = problem.status, problem.retry_after_seconds
        else:
            return attachment(download.pieces, name, download.size_bytes)
    source = project_of(principal, backup)
    context = {
        "section": "projects", "backup": backup, "source": source, "refused": refused, "packed": packed,
        **listed(backup, source, tables, schemas, sent.get("search", "")),
    }  # fmt: skip
    template = "backups/_parts.html" if request.htmx else "backups/sql.html"  # type: ignore[attr-defined]
    response = render(request, template, context, status=status)
    if later is not None:
        response["Retry-After"] = str(later)
    return response
