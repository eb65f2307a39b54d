"""What was changed or revealed, by whom. Written once; the database itself refuses to change or delete a row."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, NoReturn

from django.conf import settings
from django.db import models

from accounts.querysets import AuditEventQuerySet
from novastack.common.clock import now
from novastack.common.ids import uuid7


class AuditEventsAreImmutable(TypeError):
    """Somebody tried to change or delete an audit event."""


class AuditEvent(models.Model):
    """Organization and project are plain values: the event outlives both. `id` is a sequence, for forward-polled feeds."""

    event_id: models.UUIDField[Any, uuid.UUID] = models.UUIDField(default=uuid7, unique=True, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    organization_id: models.UUIDField[Any, Any] = models.UUIDField(null=True, editable=False)
    organization_name = models.CharField(max_length=80, blank=True, editable=False)
    project_id: models.UUIDField[Any, Any] = models.UUIDField(null=True, editable=False)
    project_name = models.CharField(max_length=80, blank=True, editable=False)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    actor_label = models.CharField(max_length=254, blank=True, editable=False, help_text="Email, or `system`.")
    token_prefix = models.CharField(max_length=12, blank=True, editable=False)
    action = models.CharField(max_length=64, editable=False, help_text="Dotted, such as project.created.")
    target = models.CharField(max_length=254, blank=True, editable=False)
    ip = models.GenericIPAddressField(null=True, editable=False)
    request_id = models.CharField(max_length=64, blank=True, editable=False)
    data = models.JSONField(default=dict, blank=True, editable=False, help_text="Never holds secrets.")

    objects: ClassVar = AuditEventQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["organization_id", "-id"], name="audit_organization"),
            models.Index(fields=["project_id", "-id"], name="audit_project"),
            models.Index(fields=["action", "-id"], name="audit_action"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}".strip()

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AuditEventsAreImmutable("an audit event is written once")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AuditEventsAreImmutable("audit events are never deleted")
