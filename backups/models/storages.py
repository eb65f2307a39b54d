"""Where backups are stored, and the keys that they are sealed and signed with."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.models import Organization
from backups.models.choices import StorageKind
from backups.querysets import StorageQuerySet
from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField


class StorageTarget(BaseModel):
    """A place for backups: an organization's own, or install-wide (`organization` empty), which operators keep.

    `config`, without secrets: filesystem `{"path"}` (relative to the operator's root); S3 `{"endpoint", "bucket", "region",
    "prefix", "path_style"}`. `secret`: JSON `{"access_key", "secret_key"}` of S3.
    """

    organization = models.ForeignKey(
        Organization, null=True, blank=True, on_delete=models.CASCADE, related_name="storages",
        help_text="Empty: for everybody on this install.",
    )  # fmt: skip
    name = models.CharField(max_length=63)
    kind = models.CharField(max_length=12, choices=StorageKind)
    config = models.JSONField(default=dict)
    secret = EncryptedField()
    encrypt = models.BooleanField(default=True)
    is_default = models.BooleanField(default=False)
    capacity_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text="As its owner says; shown only.")
    object_lock = models.BooleanField(default=False, help_text="The bucket keeps objects from being removed.")
    owner_epoch = models.CharField(max_length=64, blank=True, help_text="As written into its owner object (rule 30).")
    read_only_reason = models.CharField(max_length=300, blank=True, help_text="Why nothing is written there.")
    tested_at = models.DateTimeField(null=True, blank=True)
    test_ok = models.BooleanField(null=True)
    test_detail = models.CharField(max_length=500, blank=True)
    test_ms = models.PositiveIntegerField(null=True)

    objects = StorageQuerySet.as_manager()

    class Meta:
        ordering = ["name", "id"]
        constraints = [
            models.UniqueConstraint(fields=["organization", "name"], name="storage_name", nulls_distinct=False),
            models.UniqueConstraint(
                fields=["organization"], condition=Q(is_default=True), name="storage_one_default", nulls_distinct=False
            ),
        ]

    def __str__(self) -> str:
        return self.name


class BackupKey(BaseModel):
    """An organization's age identity. What an older one sealed stays readable, so none is removed while it has backups."""

    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="backup_keys")
    recipient = models.CharField(max_length=120, help_text="age1…")
    identity = EncryptedField()
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization"], condition=Q(retired_at=None), name="backup_key_one_current"
            )
        ]

    def __str__(self) -> str:
        return self.recipient


class OfflineKey(BaseModel):
    """The second recipient of every backup of an organization: its identity was given out in the recovery kit and is kept
    nowhere here. `fingerprint` of that kit is typed back by whoever saved it; until then the organization is not protected
    against the loss of this install (rule 30)."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="offline_keys")
    recipient = models.CharField(max_length=120)
    fingerprint = models.CharField(max_length=64)
    exported_by = models.CharField(max_length=254, blank=True)
    confirmed_at = models.DateTimeField(null=True, blank=True)
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.recipient


class SigningKey(BaseModel):
    """The install's Ed25519 key that signs manifests; older public keys stay known."""

    public_key = models.CharField(max_length=64, unique=True, help_text="base64 of the raw 32 bytes")
    private_key = EncryptedField()
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                models.Value(1), condition=Q(retired_at=None, private_key__isnull=False), name="signing_key_one_current"
            )
        ]

    def __str__(self) -> str:
        return self.public_key
