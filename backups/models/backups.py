"""A backup, the proofs of it, and restores. Organization and project are plain values: backups outlive projects (rule 13)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Q

from backups.models.choices import (
    BackupStatus,
    BackupTrigger,
    ProofKind,
    ProofState,
    RestoreStatus,
    RestoreTarget,
)
from backups.models.schedules import Drill, Schedule
from backups.models.storages import StorageTarget
from backups.querysets import OwnedQuerySet
from novastack.common.models import BaseModel

USABLE = (BackupStatus.STORED, BackupStatus.VERIFYING, BackupStatus.VERIFIED)
# Its last proof found no object. A key transform on a null is null, which no `exclude` gets right: so there are both.
ADOPTED = "adopted"  # who made the row of one that was found in a storage
MISSED = "object_missing"
MISSING = Q(verify_error__code=MISSED)
THERE = Q(verify_error__isnull=True) | ~MISSING


class Backup(BaseModel):
    """One stored copy of one database. Sizes in bytes. `object_key` is written before anything is uploaded (rule 29)."""

    organization_id = models.UUIDField()
    project_uuid = models.UUIDField()
    project_name = models.CharField(max_length=63)
    project_slug = models.CharField(max_length=63)
    engine = models.CharField(max_length=16)
    version = models.CharField(max_length=16, help_text="Of the server as it was asked for.")
    server_version = models.CharField(max_length=64, blank=True, help_text="As the server told it.")
    trigger = models.CharField(max_length=12, choices=BackupTrigger, default=BackupTrigger.MANUAL)
    label = models.CharField(max_length=80, blank=True)
    status = models.CharField(max_length=12, choices=BackupStatus, default=BackupStatus.QUEUED)
    schedule = models.ForeignKey(Schedule, null=True, blank=True, on_delete=models.SET_NULL, related_name="backups")

    storage = models.ForeignKey(StorageTarget, on_delete=models.PROTECT, related_name="backups")
    object_key = models.CharField(max_length=255, blank=True, help_text="<install>/<organization>/<backup>/<attempt>")
    attempt = models.PositiveSmallIntegerField(default=0)
    upload_id = models.CharField(max_length=1024, blank=True, help_text="Of a multipart upload that is under way.")
    encrypted = models.BooleanField(default=True)
    compressed = models.BooleanField(default=True)
    key_ids = models.JSONField(default=list, blank=True, help_text="Recipients that can open it.")

    progress_bytes = models.PositiveBigIntegerField(default=0, help_text="Taken from the dump tool so far.")
    size_bytes = models.PositiveBigIntegerField(null=True, help_text="As stored.")
    dump_bytes = models.PositiveBigIntegerField(null=True, help_text="Of the engine's archive.")
    database_bytes = models.PositiveBigIntegerField(null=True, help_text="Of the database when it was taken.")
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of what is stored.")
    rows = models.PositiveBigIntegerField(null=True)
    tables = models.PositiveIntegerField(null=True)
    manifest = models.JSONField(default=dict, blank=True, help_text="As `backups.manifest` makes it.")
    notes = models.JSONField(default=list, blank=True, help_text="What is not in it, or not compared; for people.")
    upload = models.JSONField(
        default=dict,
        blank=True,
        help_text="Of one that was uploaded: {filename, format, sha256, bytes, unpacked_bytes, key}.",
    )

    pinned = models.BooleanField(default=False, help_text="Retention keeps it.")
    pinned_reason = models.CharField(max_length=200, blank=True)
    trusted = models.BooleanField(default=True, help_text="Not: it came from outside, without our signature.")
    error = models.JSONField(null=True, blank=True, help_text="{code, detail, retryable}")
    operation_id = models.UUIDField(null=True, help_text="That takes it.")
    created_by_label = models.CharField(max_length=254, blank=True)

    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True, help_text="Stored, or failed.")
    verified_at = models.DateTimeField(null=True, blank=True, help_text="When it was last proven.")
    verify_error = models.JSONField(null=True, blank=True, help_text="Why the last proof could not run.")
    reverify_at = models.DateTimeField(null=True, blank=True, help_text="When it is to be proven again.")
    rto_seconds = models.FloatField(null=True, help_text="What its last restore took, from storage to compared.")
    delete_requested_at = models.DateTimeField(null=True, blank=True)
    keep_until = models.DateTimeField(null=True, blank=True, help_text="Of a removed project: it goes after that.")
    due_since = models.DateTimeField(
        null=True, blank=True, help_text="Since when nothing keeps it; a second daily look removes it (rule 8)."
    )
    compared_at = models.DateTimeField(
        null=True, blank=True, help_text="When its size was compared with the one before (rule 33)."
    )

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["organization_id", "-created_at", "-id"], name="backup_org"),
            models.Index(fields=["project_uuid", "-created_at", "-id"], name="backup_project"),
            models.Index(fields=["project_uuid", "-verified_at"], name="backup_verified", condition=Q(status="verified")),
            models.Index(fields=["storage"], name="backup_storage"),
            models.Index(fields=["reverify_at"], name="backup_reverify", condition=Q(reverify_at__isnull=False)),
            models.Index(fields=["keep_until"], name="backup_keep", condition=Q(keep_until__isnull=False)),
            models.Index(
                fields=["created_at"], name="backup_live",
                condition=Q(status__in=["queued", "dumping", "verifying", "deleting"]),
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.project_slug} {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def missing(self) -> bool:
        """Its last proof found no object: whatever it was, nothing can be restored from it."""
        return (self.verify_error or {}).get("code") == MISSED

    @property
    def usable(self) -> bool:
        """There is a whole object to restore from."""
        return self.status in USABLE

    @property
    def manifest_key(self) -> str:
        return f"{self.object_key}.manifest"

    @property
    def duration_seconds(self) -> float | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    def error_body(self) -> dict[str, Any] | None:
        return self.error or self.verify_error


class Proof(BaseModel):
    """One attempt to restore a backup into a throw-away server and compare it: the history of a backup's proofs and of
    drills."""

    backup = models.ForeignKey(Backup, on_delete=models.CASCADE, related_name="proofs")
    drill = models.ForeignKey(Drill, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs")
    kind = models.CharField(max_length=14, choices=ProofKind)
    state = models.CharField(max_length=10, choices=ProofState, default=ProofState.QUEUED)
    operation_id = models.UUIDField(null=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    restore_seconds = models.FloatField(null=True)
    compare_seconds = models.FloatField(null=True)
    tables = models.PositiveIntegerField(null=True)
    rows = models.PositiveBigIntegerField(null=True)
    differences = models.JSONField(default=list, blank=True)
    assertions = models.JSONField(default=list, blank=True, help_text="[{name, passed, detail}] of a drill")
    notes = models.JSONField(default=list, blank=True, help_text="Under what other circumstances than the source's.")
    error = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["backup", "-created_at"], name="proof_backup")]

    def __str__(self) -> str:
        return f"{self.kind} {self.state}"


class Restore(BaseModel):
    """A backup brought back into a project."""

    organization_id = models.UUIDField()
    backup = models.ForeignKey(Backup, null=True, on_delete=models.SET_NULL, related_name="restores")
    backup_uuid = models.UUIDField()
    target = models.CharField(max_length=12, choices=RestoreTarget)
    source_project_uuid = models.UUIDField()
    project_uuid = models.UUIDField(null=True, help_text="Where it went.")
    project_name = models.CharField(max_length=63, blank=True)
    status = models.CharField(max_length=10, choices=RestoreStatus, default=RestoreStatus.QUEUED)
    operation_id = models.UUIDField(null=True)
    undo_operation_id = models.UUIDField(null=True)
    safety_backup = models.ForeignKey(Backup, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    preflight = models.JSONField(default=dict, blank=True)
    selection = models.JSONField(default=dict, blank=True, help_text="{tables, schemas}; empty: all of it.")
    outcome = models.JSONField(
        default=dict, blank=True, help_text="Of a part: {places, tables, notes, rows, bytes}, once it is there."
    )
    undo_until = models.DateTimeField(null=True, blank=True)
    undone_at = models.DateTimeField(null=True, blank=True)
    generation = models.PositiveBigIntegerField(null=True, help_text="Of the project, after it (rule 32).")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)
    created_by_label = models.CharField(max_length=254, blank=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["organization_id", "-created_at", "-id"], name="restore_org"),
            models.Index(fields=["project_uuid", "-created_at"], name="restore_project"),
        ]

    def __str__(self) -> str:
        return f"{self.target} {self.status}"

    @property
    def duration_seconds(self) -> float | None:
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    def undoable(self, moment: datetime) -> bool:
        return self.status == RestoreStatus.SUCCEEDED and self.undo_until is not None and moment < self.undo_until
