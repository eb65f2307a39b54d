"""The one way into the audit log."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from accounts.models import AuditEvent, Organization
from accounts.permissions import Principal
from novastack.common.logs import current_request_id


def record(
    principal: Principal | None,
    action: str,
    *,
    organization: Organization | None = None,
    organization_id: UUID | None = None,
    organization_name: str = "",
    project_id: UUID | None = None,
    project_name: str = "",
    target: str = "",
    data: dict[str, Any] | None = None,
    ip: str | None = None,
    request_id: str = "",
) -> AuditEvent:
    """Write one event, in the caller's transaction. `principal=None` is the system itself.

    `action` is dotted (`project.created`); `data` is JSON and must hold no secret.
    """
    return AuditEvent.objects.create(
        organization_id=organization.pk if organization else organization_id,
        organization_name=(organization.name if organization else organization_name)[:80],
        project_id=project_id,
        project_name=project_name[:80],
        actor=principal.user if principal else None,
        actor_label=principal.user.email if principal else "system",
        token_prefix=principal.token.prefix if principal and principal.token else "",
        action=action,
        target=target[:254],
        ip=(principal.ip if principal else None) or ip,
        request_id=((principal.request_id if principal else "") or request_id or current_request_id())[:64],
        data=data or {},
    )
