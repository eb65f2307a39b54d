"""Choices stored in columns."""

from django.db.models import TextChoices


class BackupStatus(TextChoices):
    """`STORED` is whole and signed but unproven; only `VERIFIED` was restored and compared. `CORRUPT` is for a hash,
    decryption or content mismatch only (rule 51)."""

    QUEUED = "queued", "Queued"
    DUMPING = "dumping", "Dumping"
    STORED = "stored", "Stored"
    VERIFYING = "verifying", "Verifying"
    VERIFIED = "verified", "Verified"
    FAILED = "failed", "Failed"
    CORRUPT = "corrupt", "Corrupt"
    DELETING = "deleting", "Deleting"


class BackupTrigger(TextChoices):
    MANUAL = "manual", "By hand"
    SCHEDULE = "schedule", "Schedule"
    SAFETY = "safety", "Before a restore"
    FINAL = "final", "Before deletion"
    UPLOAD = "upload", "Uploaded"
    ADOPTED = "adopted", "Adopted"


class StorageKind(TextChoices):
    FILESYSTEM = "filesystem", "Filesystem"
    S3 = "s3", "S3 compatible"


class ProofKind(TextChoices):
    AFTER_BACKUP = "after_backup", "After the backup"
    MANUAL = "manual", "By hand"
    SCHEDULED = "scheduled", "Re-verification"
    DRILL = "drill", "Drill"


class ProofState(TextChoices):
    """`ERROR`: it could not run, which says nothing about the backup."""

    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    PASSED = "passed", "Passed"
    FAILED = "failed", "Failed"
    ERROR = "error", "Could not run"
    CANCELLED = "cancelled", "Cancelled"


class RestoreTarget(TextChoices):
    NEW_PROJECT = "new_project", "Into a new project"
    IN_PLACE = "in_place", "In place"
    PROJECT = "project", "Into another project"


class RestoreStatus(TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"
    UNDOING = "undoing", "Being undone"
    UNDONE = "undone", "Undone"


class RunOutcome(TextChoices):
    """Of one slot of a schedule."""

    STARTED = "started", "Started"
    SKIPPED = "skipped", "Skipped"
    FAILED = "failed", "Failed"
