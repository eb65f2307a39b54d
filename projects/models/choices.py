"""Choices stored in columns."""

from django.db.models import TextChoices


class ProjectStatus(TextChoices):
    QUEUED = "queued", "Queued"
    PROVISIONING = "provisioning", "Provisioning"
    RUNNING = "running", "Running"
    STOPPING = "stopping", "Stopping"
    STOPPED = "stopped", "Stopped"
    STARTING = "starting", "Starting"
    UNHEALTHY = "unhealthy", "Unhealthy"
    NOT_AVAILABLE = "not_available", "Not available"
    FAILED = "failed", "Failed"
    RESTORING = "restoring", "Restoring"
    MOVING = "moving", "Moving"
    UPGRADING = "upgrading", "Upgrading"
    DELETING = "deleting", "Deleting"
    RECYCLED = "recycled", "Recycled"


class DesiredStatus(TextChoices):
    RUNNING = "running", "Running"
    STOPPED = "stopped", "Stopped"
    RECYCLED = "recycled", "Recycled"
    ABSENT = "absent", "Absent"


class Placement(TextChoices):
    DEDICATED = "dedicated", "Dedicated"
    POOL = "pool", "Pool"
    EXTERNAL = "external", "External"


class Exposure(TextChoices):
    LOCAL = "local", "This host only"
    PUBLIC = "public", "Reachable from outside"


class Health(TextChoices):
    UNKNOWN = "unknown", "Unknown"
    HEALTHY = "healthy", "Healthy"
    UNHEALTHY = "unhealthy", "Unhealthy"


class WriteFence(TextChoices):
    """Why a project's sessions are read-only by default; none when empty."""

    STORAGE = "storage", "Storage limit"
    DISK = "disk", "Disk almost full"


class DiskLevel(TextChoices):
    """How full the disk of a region's data is (rule 16)."""

    OK = "ok", "Enough room"
    WARN = "warn", "Filling up"
    CLOSED = "closed", "Nothing new"
    FENCED = "fenced", "Writers fenced"


class ObservedState(TextChoices):
    UNKNOWN = "unknown", "Unknown"
    STARTING = "starting", "Starting"
    RUNNING = "running", "Running"
    STOPPED = "stopped", "Stopped"
    ABSENT = "absent", "Absent"
    UNREACHABLE = "unreachable", "Unreachable"


class DatabaseSlot(TextChoices):
    CURRENT = "current", "Current"
    PREVIOUS = "previous", "Previous"
    INCOMING = "incoming", "Incoming"


class RoleKind(TextChoices):
    OWNER = "owner", "Platform owner (no login)"
    GROUP = "group", "Tenant group (no login)"
    LOGIN = "login", "Tenant login"
    READ_ONLY = "read_only", "Read-only login"
    CONTROL = "control", "Platform login"


class OperationState(TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class StepState(TextChoices):
    PENDING = "pending", "Pending"
    RUNNING = "running", "Running"
    RETRYING = "retrying", "Retrying"
    WAITING = "waiting", "Waiting"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    SKIPPED = "skipped", "Skipped"
    UNDOING = "undoing", "Undoing"
    UNDONE = "undone", "Undone"


class OnGiveUp(TextChoices):
    UNDO = "undo", "Undo"
    ROLL_FORWARD = "roll_forward", "Roll forward"


class LockMode(TextChoices):
    SHARED = "shared", "Shared"
    EXCLUSIVE = "exclusive", "Exclusive"
