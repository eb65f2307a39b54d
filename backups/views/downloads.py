"""A backup leaves the house: as it is stored, or decrypted."""

from __future__ import annotations

from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from accounts.permissions import Capability
from backups.views.common import backup_for, question
from novastack.common.errors import ActionNotAllowed


@login_required
@require_GET
def backup_download(request: HttpRequest, backup_id: UUID) -> HttpResponse:
    """Which form, and what opens it. The file itself comes from the API's address, with range requests."""
    _, backup = backup_for(request, backup_id, Capability.CONNECT)
    if not backup.usable:
        raise ActionNotAllowed("There is nothing to download of it.")
    return question(request, "download", {"section": "projects", "backup": backup})
