"""When backups are taken, how long they are kept, and what a project promises about them."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from backups.models.choices import RunOutcome
from backups.models.storages import StorageTarget
from novastack.common.models import BaseModel
from projects.models import Project


class Schedule(BaseModel):
    """A cron expression with a zone, and what is kept of what it made. Due ones are found by `next_run_at`."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="schedules")
    organization_id = models.UUIDField()
    cron = models.CharField(max_length=100)
    time_zone = models.CharField(max_length=64, default="UTC")
    enabled = models.BooleanField(default=True)
    storage = models.ForeignKey(
        StorageTarget, null=True, blank=True, on_delete=models.PROTECT, related_name="schedules"
    )
    spread_seconds = models.PositiveIntegerField(
        default=0, help_text="Later than the slot, so that not all begin at once."
    )
    next_slot_at = models.DateTimeField(null=True, blank=True)
    next_run_at = models.DateTimeField(null=True, blank=True, help_text="The slot and its spread; none while paused.")
    last_slot_at = models.DateTimeField(null=True, blank=True)

    keep_last = models.PositiveIntegerField(null=True, blank=True)
    keep_days = models.PositiveIntegerField(null=True, blank=True)
    keep_daily = models.PositiveIntegerField(null=True, blank=True)
    keep_weekly = models.PositiveIntegerField(null=True, blank=True)
    keep_monthly = models.PositiveIntegerField(null=True, blank=True)
    max_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    retention_at = models.DateTimeField(null=True, blank=True, help_text="When the clock last removed what was due.")
    retention_paused_reason = models.CharField(max_length=300, blank=True, help_text="Rule 33; empty: it goes on.")

    class Meta:
        ordering = ["created_at", "id"]
        indexes = [
            models.Index(fields=["next_run_at"], name="schedule_due", condition=Q(next_run_at__isnull=False)),
            models.Index(fields=["organization_id"], name="schedule_org"),
        ]

    def __str__(self) -> str:
        return f"{self.cron} {self.time_zone}"


class ScheduleRun(BaseModel):
    """One slot of a schedule: it is run once, whoever looks and however often."""

    schedule = models.ForeignKey(Schedule, on_delete=models.CASCADE, related_name="runs")
    due_at = models.DateTimeField()
    outcome = models.CharField(max_length=10, choices=RunOutcome)
    detail = models.CharField(max_length=300, blank=True)
    backup_uuid = models.UUIDField(null=True)
    missed = models.PositiveIntegerField(
        default=0, db_default=0,  # also in the database: workers of before write rows during an upgrade
        help_text="Slots before it that nobody was there to look at; this run stands for them.",
    )  # fmt: skip

    class Meta:
        ordering = ["-due_at"]
        constraints = [models.UniqueConstraint(fields=["schedule", "due_at"], name="run_once_per_slot")]

    def __str__(self) -> str:
        return f"{self.due_at:%Y-%m-%d %H:%M} {self.outcome}"


class BackupPolicy(BaseModel):
    """What a project promises about its backups: objective, proofs, and who is told."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="backup_policy")
    organization_id = models.UUIDField()
    verify_after_backup = models.BooleanField(default=True)
    reverify_days = models.PositiveSmallIntegerField(default=30, help_text="0: never again by itself.")
    rpo_seconds = models.PositiveIntegerField(
        null=True, blank=True, help_text="How old the last verified backup may be."
    )
    rto_seconds = models.PositiveIntegerField(null=True, blank=True, help_text="How long a restore may take.")
    heartbeat_url = models.CharField(max_length=500, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    heartbeat_error = models.CharField(max_length=300, blank=True)

    def __str__(self) -> str:
        return str(self.project_id)


class Drill(BaseModel):
    """A fire drill: on a schedule the newest backup is restored and the user's own SQL is asked of it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="drills")
    organization_id = models.UUIDField()
    name = models.CharField(max_length=63)
    cron = models.CharField(max_length=100, blank=True, help_text="Empty: by hand only.")
    time_zone = models.CharField(max_length=64, default="UTC")
    enabled = models.BooleanField(default=True)
    assertions = models.JSONField(default=list, help_text="[{name, sql, expect}]")
    next_run_at = models.DateTimeField(null=True, blank=True)
    last_slot_at = models.DateTimeField(null=True, blank=True)
    stalled_since = models.DateTimeField(null=True, blank=True, help_text="It could not run since; none: it can.")
    stalled_error = models.JSONField(null=True, blank=True, help_text="Why, the last time: {code, detail, retryable}.")

    class Meta:
        ordering = ["name", "id"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="drill_name")]
        indexes = [models.Index(fields=["next_run_at"], name="drill_due", condition=Q(next_run_at__isnull=False))]

    def __str__(self) -> str:
        return self.name
