"""Base models, and the few rows that belong to the whole install."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models
from django.db.models import F, Func, Value

from novastack.common.clock import now
from novastack.common.ids import uuid7


class BaseModel(models.Model):
    """UUIDv7 primary key and timestamps (UTC)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        abstract = True


class Install(models.Model):
    """This install: one row. Its epoch is held by the runtimes as well; a mismatch makes it read-only (rule 11)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    install_id = models.UUIDField(default=uuid.uuid4, editable=False)
    epoch = models.UUIDField(default=uuid.uuid4)
    read_only = models.BooleanField(default=False, help_text="Stops every write to runtimes.")
    read_only_reason = models.CharField(max_length=500, blank=True)
    notes = models.JSONField(default=dict, blank=True, help_text="What start-up found: runtime chosen and why.")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="install_single_row")]

    def __str__(self) -> str:
        return str(self.install_id)

    @classmethod
    def load(cls) -> Install:
        """The one row; made on first use."""
        return cls.objects.get_or_create(id=1)[0]

    @classmethod
    def merge_notes(cls, **notes: Any) -> None:
        """Set these notes and leave the others: one UPDATE, so that two writers at once lose nothing of each other.

        The values are what JSON knows. The only way to write notes: `save()` would bring back what others changed since.
        """
        cls.load()
        merged = Func(F("notes"), Value(notes, models.JSONField()), template="(%(expressions)s)", arg_joiner=" || ")
        cls.objects.filter(id=1).update(notes=merged)


class IdempotencyRecord(BaseModel):
    """One `Idempotency-Key` (rule 44): who, where, which key; a hash of the body; the answer's status and resource.

    Holds no secrets: a replay is authorised again and rebuilt from the resource.
    """

    principal = models.CharField(max_length=80)
    organization_id = models.UUIDField(null=True)
    route = models.CharField(max_length=200)
    key = models.CharField(max_length=255)
    body_hash = models.CharField(max_length=64)
    claimed_at = models.DateTimeField(default=now)
    status_code = models.PositiveSmallIntegerField(null=True)
    resource = models.JSONField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["principal", "organization_id", "route", "key"], name="idempotency_unique", nulls_distinct=False
            )
        ]
        indexes = [models.Index(fields=["created_at"], name="idempotency_created")]

    def __str__(self) -> str:
        return f"{self.route} {self.key}"


class Heartbeat(models.Model):
    """When a process of this install (`worker:<queue>`, `beat`) was last seen; `readyz` and health read it."""

    name = models.CharField(max_length=80, primary_key=True)
    at = models.DateTimeField(default=now)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def touch(cls, name: str, **detail: object) -> None:
        """I live. One statement; cheap enough for every tick."""
        cls.objects.update_or_create(name=name, defaults={"at": now(), "detail": detail})
