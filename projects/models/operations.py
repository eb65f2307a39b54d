"""Durable jobs. The row is the truth; a message is only a hint. Organization and project are plain values: operations
outlive them (rule 13)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models import Q

from novastack.common.models import BaseModel
from projects.models.choices import LockMode, OnGiveUp, OperationState, StepState
from projects.querysets import OperationQuerySet

LIVE = [OperationState.QUEUED, OperationState.RUNNING]


class Operation(BaseModel):
    """One durable job with named steps. `fence` grows with every claim: who holds an older one may act no more."""

    kind = models.CharField(max_length=32)
    definition_version = models.PositiveSmallIntegerField(default=1)
    variant = models.CharField(
        max_length=12, blank=True, help_text="How it is done where the project lives: pool, or empty."
    )
    on_give_up = models.CharField(max_length=16, choices=OnGiveUp)
    state = models.CharField(max_length=12, choices=OperationState, default=OperationState.QUEUED)
    organization_id = models.UUIDField(null=True)
    project_uuid = models.UUIDField(null=True)
    project_name = models.CharField(max_length=63, blank=True)
    server_uuid = models.UUIDField(null=True)
    params = models.JSONField(default=dict, blank=True, help_text="No secrets.")
    result = models.JSONField(default=dict, blank=True, help_text="What came of it, for people. No secrets.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_by_label = models.CharField(max_length=254, blank=True)
    request_id = models.CharField(max_length=64, blank=True)

    attempt = models.PositiveSmallIntegerField(default=1)
    undoing = models.BooleanField(default=False)
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True, help_text="{code, detail, retryable}")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    lease_owner = models.CharField(max_length=80, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    fence = models.PositiveBigIntegerField(default=0)
    hinted_at = models.DateTimeField(null=True, blank=True)

    objects = OperationQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["organization_id", "-created_at", "-id"], name="operation_org"),
            models.Index(fields=["project_uuid", "-created_at", "-id"], name="operation_project"),
            models.Index(fields=["next_attempt_at"], name="operation_live", condition=Q(state__in=LIVE)),
            models.Index(fields=["finished_at"], name="operation_finished"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def project_key(self) -> UUID:
        """The project's id, of an operation about one."""
        if self.project_uuid is None:
            raise ValueError("this operation is about no project")
        return self.project_uuid

    @property
    def server_key(self) -> UUID:
        """The server's id, of an operation about a server that is no project's."""
        if self.server_uuid is None:
            raise ValueError("this operation names no server")
        return self.server_uuid

    def error_body(self) -> dict[str, Any] | None:
        return self.error


class OperationStep(BaseModel):
    """One named, idempotent step. A retry reuses the row. `data` is what the step recorded for later ones: no secrets."""

    operation = models.ForeignKey(Operation, on_delete=models.CASCADE, related_name="steps")
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=40)
    title = models.CharField(max_length=80)
    state = models.CharField(max_length=12, choices=StepState, default=StepState.PENDING)
    attempt = models.PositiveSmallIntegerField(default=0)
    retries = models.PositiveIntegerField(default=0, help_text="Tries after a failure, in all; `attempt` begins anew.")
    crashes = models.PositiveSmallIntegerField(default=0)
    detail = models.CharField(max_length=500, blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    data = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["operation", "name"], name="step_name_unique"),
            models.UniqueConstraint(fields=["operation", "position"], name="step_position_unique"),
        ]

    def __str__(self) -> str:
        return self.name


class OperationLock(models.Model):
    """What a live operation holds (rule 5). `granted` is false while it queues behind another one."""

    operation = models.ForeignKey(Operation, on_delete=models.CASCADE, related_name="locks")
    subject = models.CharField(max_length=64, help_text="project:<id> or server:<id>")
    mode = models.CharField(max_length=10, choices=LockMode, default=LockMode.EXCLUSIVE)
    granted = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["subject"], condition=Q(mode="exclusive", granted=True), name="lock_exclusive_once"
            ),
            models.UniqueConstraint(fields=["operation", "subject"], name="lock_once_per_operation"),
        ]
        indexes = [models.Index(fields=["subject"], name="lock_subject")]

    def __str__(self) -> str:
        return f"{self.subject} {self.mode}"


class OperationEvent(models.Model):
    """A line of an operation's log, as shown live. No secrets; the id is the cursor of a forward poll."""

    operation = models.ForeignKey(Operation, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    level = models.CharField(max_length=8, default="info")
    message = models.CharField(max_length=500)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["operation", "id"], name="event_operation")]

    def __str__(self) -> str:
        return self.message
