"""API tokens, and the families of refresh tokens (rule 48)."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models

from accounts.models.choices import Scope
from accounts.models.organizations import Organization
from novastack.common.clock import now
from novastack.common.models import BaseModel
from novastack.common.secrets import random_password

TOKEN_MARK = "nvs_"  # noqa: S105  (what every token starts with; no secret)
PREFIX_LENGTH = 12
REVOKED_BY_RESTORE = "control_restore"  # nobody's act: the install was restored, later revocations are unknown


def hash_token(clear: str) -> str:
    """SHA-256 in hex. Fit for random tokens of 238 bits; passwords take argon2."""
    return hashlib.sha256(clear.encode()).hexdigest()


class ApiToken(BaseModel):
    """A user's token: `nvs_` and 40 letters and digits, shown once. Its right is the user's role ∩ its scopes."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    organization = models.ForeignKey(
        Organization, null=True, blank=True, on_delete=models.CASCADE, related_name="api_tokens",
        help_text="When set, the token sees nothing but this organization.",
    )  # fmt: skip
    name = models.CharField(max_length=80)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=PREFIX_LENGTH, editable=False)
    scopes: ClassVar = ArrayField(models.CharField(max_length=8, choices=Scope), size=4)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, editable=False, help_text="Written at most once a minute.")
    revoked_at = models.DateTimeField(null=True, editable=False)
    revoked_reason = models.CharField(max_length=32, blank=True, editable=False, help_text="Empty: by a person.")

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(scopes__contained_by=Scope.values) & ~models.Q(scopes=[]),
                name="api_token_scopes_known",
            )
        ]
        indexes = [models.Index(fields=["user", "-created_at", "-id"], name="api_token_user_created")]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @staticmethod
    def new_clear() -> str:
        return TOKEN_MARK + random_password(40)

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())


class RefreshFamily(BaseModel):
    """One sign-in through the API. Only `current_jti` refreshes; `previous_jti` is forgiven for a few seconds.

    Access tokens name their family: ending it ends them too.
    """

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="refresh_families")
    current_jti = models.CharField(max_length=64)
    previous_jti = models.CharField(max_length=64, blank=True)
    rotated_at = models.DateTimeField(default=now)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_reason = models.CharField(max_length=32, blank=True)
    ip = models.GenericIPAddressField(null=True, blank=True)
    user_agent = models.CharField(max_length=200, blank=True)

    class Meta:
        verbose_name_plural = "refresh families"
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="refresh_family_user"),
            models.Index(fields=["expires_at"], name="refresh_family_expires"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} since {self.created_at:%Y-%m-%d %H:%M}"
