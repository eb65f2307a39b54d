"""API keys of a project: for its own services (seed 001). Not ours: nobody gets into NovaStack with one."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from novastack.common.clock import now
from novastack.common.models import BaseModel
from projects.models.projects import Project

DEFAULT_KEY_PREFIX = "pk"
KEY_PREFIX = re.compile(r"[a-z][a-z0-9]{0,15}")
KEY_FORMAT = re.compile(r"(?P<prefix>[a-z][a-z0-9]{0,15})_(?P<made>[0-9]{10,11})_(?P<random>[0-9a-f]{48})")
_RANDOM_BYTES = 24
_SHOWN = 6  # of the random part, in lists


class KeyScope(models.TextChoices):
    READ = "read", "Read"
    WRITE = "write", "Write"


def new_key(prefix: str) -> str:
    """`{prefix}_{seconds since 1970}_{48 hex digits}`: 192 random bits."""
    return f"{prefix}_{int(time.time())}_{secrets.token_hex(_RANDOM_BYTES)}"


def hash_key(clear: str) -> str:
    """SHA-256 in hex. Fit for random keys of 192 bits."""
    return hashlib.sha256(clear.encode()).hexdigest()


class ApiKey(BaseModel):
    """One key of a project, shown once. It works from `activated_at` on (a new project's: once that is provisioned, rule
    45) until it is revoked or has expired, and only while the project is in use. A control restore suspends it: until
    somebody says that it had not been revoked since."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=16, editable=False)
    start = models.CharField(max_length=40, editable=False, help_text="How it begins: to tell keys apart.")
    scopes: ClassVar = ArrayField(models.CharField(max_length=8, choices=KeyScope), size=2)
    activated_at = models.DateTimeField(null=True, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, editable=False, help_text="Written at most once a minute.")
    revoked_at = models.DateTimeField(null=True, editable=False)
    suspended_at = models.DateTimeField(
        null=True, editable=False, help_text="NovaStack was restored from a backup: works again once it is confirmed."
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(scopes__contained_by=KeyScope.values) & ~Q(scopes=[]), name="api_key_scopes_known"
            )
        ]
        indexes = [models.Index(fields=["project", "-created_at", "-id"], name="api_key_project_created")]

    def __str__(self) -> str:
        return f"{self.name} ({self.start}…)"

    @staticmethod
    def start_of(clear: str) -> str:
        return clear[: clear.rindex("_") + 1 + _SHOWN]

    @property
    def state(self) -> str:
        """`active`, `pending` (its project is not ready yet), `suspended` (by a control restore), `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now():
            return "expired"
        if self.suspended_at is not None:
            return "suspended"
        return "pending" if self.activated_at is None else "active"
