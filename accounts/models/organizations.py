"""Tenants, who belongs to them, and who was asked to."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower

from accounts.models.choices import Role
from accounts.models.quotas import QuotaDefaults
from accounts.querysets import OrganizationQuerySet
from novastack.common.clock import now
from novastack.common.models import BaseModel

QUOTAS = ("max_projects", "max_memory_bytes", "max_storage_bytes", "max_backups", "max_backup_bytes")


class Organization(BaseModel):
    """The tenant. The slug is for URLs and never changes; quotas are checked where things are made."""

    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=63, unique=True, editable=False, help_text="Immutable.")
    personal = models.BooleanField(default=False, editable=False, help_text="Made with its owner's account.")
    # Empty: that of `QuotaDefaults`.
    max_projects = models.PositiveIntegerField(null=True, blank=True)
    max_memory_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    max_storage_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    max_backups = models.PositiveIntegerField(null=True, blank=True)
    max_backup_bytes = models.PositiveBigIntegerField(null=True, blank=True)

    objects: ClassVar = OrganizationQuerySet.as_manager()

    class Meta:
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name

    def quotas(self, defaults: QuotaDefaults | None = None) -> dict[str, int]:
        """`max_projects` … → what counts: its own number, else the install's."""
        own = {name: getattr(self, name) for name in QUOTAS}
        if defaults is None and None in own.values():
            defaults = QuotaDefaults.load()
        return {name: getattr(defaults, name) if value is None else value for name, value in own.items()}


class Membership(BaseModel):
    """A user's role in an organization. The last owner stays: `services` see to that under a lock."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=8, choices=Role, default=Role.MEMBER)

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_unique"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="membership_role_known"),
        ]
        indexes = [
            models.Index(fields=["user", "organization"], name="membership_user"),
            models.Index(fields=["organization", "created_at", "id"], name="membership_org_created"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.role} of {self.organization_id}"


class Invitation(BaseModel):
    """Somebody was asked to join. The link's token is stored as a hash only; without SMTP its maker passes it on."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=8, choices=Role, default=Role.MEMBER)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                "organization",
                condition=Q(accepted_at=None, revoked_at=None),
                name="invitation_one_open_per_address",
            ),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="invitation_role_known"),
        ]
        indexes = [models.Index(fields=["organization", "-created_at", "-id"], name="invitation_org_created")]

    def __str__(self) -> str:
        return f"{self.email} to {self.organization_id}"

    @property
    def is_open(self) -> bool:
        return self.accepted_at is None and self.revoked_at is None and self.expires_at > now()
