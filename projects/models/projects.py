"""A project, and the address that belongs to it rather than to a server (rule 13)."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Concat, Lower

from novastack.common.models import BaseModel
from projects.models.catalogue import Plan, Region
from projects.models.choices import DesiredStatus, Exposure, Health, Placement, ProjectStatus, WriteFence
from projects.querysets import EndpointQuerySet, ProjectQuerySet

HARD_FACTOR = 2  # above this many times its storage limit nothing is left of "soft"


class Project(BaseModel):
    """One database of one engine, version, region and plan.

    `desired_status` is what people asked for; what was observed stands on the server. `status` is stored, and written
    by `projects.operations.status.derive` only (rule 42).
    """

    organization = models.ForeignKey("accounts.Organization", on_delete=models.PROTECT, related_name="projects")
    name = models.CharField(max_length=63)
    slug = models.SlugField(max_length=63, editable=False, help_text="Immutable; typed to confirm.")
    description = models.CharField(max_length=500, blank=True)
    search_text = models.GeneratedField(  # one comparison a row instead of three, each with a change of case
        expression=Lower(Concat("name", Value(" "), "slug", Value(" "), "description", output_field=models.TextField())),
        output_field=models.TextField(), db_persist=True, editable=False,
    )  # fmt: skip
    labels = models.JSONField(default=dict, blank=True)
    engine = models.CharField(max_length=16)
    version = models.CharField(max_length=16)
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="projects")
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="projects")
    placement = models.CharField(max_length=12, choices=Placement, default=Placement.DEDICATED)
    memory_bytes = models.BigIntegerField()
    cpus = models.DecimalField(max_digits=5, decimal_places=2)
    storage_bytes = models.BigIntegerField()
    exposure = models.CharField(max_length=8, choices=Exposure, default=Exposure.LOCAL)
    tls_required = models.BooleanField(default=False)
    deletion_protection = models.BooleanField(default=False)
    bootstrap_schema = models.BooleanField(
        default=False, editable=False, help_text="Its database begins with NovaStack's tables."
    )

    desired_status = models.CharField(max_length=12, choices=DesiredStatus, default=DesiredStatus.RUNNING)
    status = models.CharField(max_length=16, choices=ProjectStatus, default=ProjectStatus.QUEUED, editable=False)
    status_detail = models.CharField(max_length=500, blank=True, editable=False)
    failure = models.JSONField(null=True, blank=True, editable=False, help_text="{code, detail, retryable} or null")
    generation = models.PositiveIntegerField(default=1, editable=False)
    ready_at = models.DateTimeField(null=True, editable=False, help_text="First proven by a real login.")
    credentials_shown_at = models.DateTimeField(null=True, editable=False, help_text="From then on no undo destroys.")
    purging_at = models.DateTimeField(null=True, editable=False, help_text="Final; set before the first destruction.")
    recycled_at = models.DateTimeField(null=True, editable=False)
    recycle_until = models.DateTimeField(null=True, editable=False)

    health = models.CharField(max_length=12, choices=Health, default=Health.UNKNOWN, editable=False)
    health_detail = models.CharField(max_length=500, blank=True, editable=False)
    health_checked_at = models.DateTimeField(null=True, editable=False)
    size_bytes = models.BigIntegerField(null=True, editable=False)
    connections = models.PositiveIntegerField(null=True, editable=False)
    connections_limit = models.PositiveIntegerField(null=True, editable=False)
    write_fence = models.CharField(
        max_length=8,
        choices=WriteFence,
        blank=True,
        editable=False,
        help_text="Why its writers are fenced, if they are.",
    )
    write_fenced_at = models.DateTimeField(null=True, editable=False)
    write_fence_applied = models.BooleanField(default=False, editable=False, help_text="The engine was told so.")
    stats_at = models.DateTimeField(null=True, editable=False, help_text="When the engine's figures were last read.")
    server_version = models.CharField(max_length=40, blank=True, editable=False, help_text="As the server says.")
    transactions_per_second = models.FloatField(null=True, editable=False)
    queries_per_second = models.FloatField(null=True, editable=False)
    cache_hit_percent = models.FloatField(null=True, editable=False)
    counters = models.JSONField(default=dict, editable=False, help_text="The engine's own, as last read.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                Lower("name"),
                "organization",
                condition=Q(recycled_at=None),
                name="project_name_unique",
            ),
            models.UniqueConstraint(fields=["organization", "slug"], name="project_slug_unique"),
            models.CheckConstraint(
                condition=Q(recycled_at=None) | Q(desired_status__in=["recycled", "absent"]),
                name="project_recycled_is_wanted",
            ),
            models.CheckConstraint(condition=Q(memory_bytes__gt=0, cpus__gt=0), name="project_limits_positive"),
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at", "-id"], name="project_org_created"),
            models.Index(fields=["organization", "status"], name="project_org_status"),
            models.Index(fields=["organization", "name", "id"], name="project_org_name"),
            models.Index(fields=["region"], name="project_region_live", condition=Q(recycled_at=None)),
            models.Index(fields=["recycle_until"], name="project_bin", condition=Q(recycled_at__isnull=False)),
            models.Index(fields=["health_checked_at"], name="project_health_due"),
            models.Index(
                fields=["region"], name="project_fences", condition=~Q(write_fence="") | Q(write_fence_applied=True)
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def write_fence_detail(self) -> str:
        """What the fence means, for people; empty without one."""
        if self.write_fence == WriteFence.DISK:
            return f"The disk of {self.region.name} is almost full. Sessions are read-only until there is room again."
        if self.write_fence == WriteFence.STORAGE:
            return "The database is larger than its storage limit. Sessions are read-only by default until it is not."
        return ""

    @property
    def write_fence_hard(self) -> bool:
        """So far above its storage limit that sessions are ended in the middle of writing."""
        above = self.storage_bytes > 0 and (self.size_bytes or 0) > HARD_FACTOR * self.storage_bytes
        return self.write_fence == WriteFence.STORAGE and above

    @property
    def recycled(self) -> bool:
        return self.recycled_at is not None


class Endpoint(BaseModel):
    """The project's address. Moves, restores and upgrades keep it. It stays reserved after a purge (rule 14)."""

    project = models.OneToOneField(Project, null=True, on_delete=models.SET_NULL, related_name="endpoint")
    project_uuid = models.UUIDField(editable=False, help_text="Outlives the project.")
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="endpoints")
    host = models.CharField(max_length=255, help_text="What clients connect to.")
    port = models.PositiveIntegerField()
    control_host = models.CharField(max_length=255, help_text="What workers and tools connect to.")
    control_port = models.PositiveIntegerField()
    bind_address = models.CharField(max_length=64, default="127.0.0.1")
    tls_name = models.CharField(max_length=255, blank=True)
    allow_list = models.JSONField(default=list, blank=True)
    reserved_until = models.DateTimeField(null=True, blank=True, help_text="Set when the project is gone.")
    shared = models.BooleanField(default=False, help_text="A pool's port: other projects have the same one.")

    objects = EndpointQuerySet.as_manager()

    class Meta:
        ordering = ["region", "port"]
        constraints = [
            models.UniqueConstraint(fields=["region", "port"], condition=Q(shared=False), name="endpoint_port_unique")
        ]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class BlockedPort(models.Model):
    """A port of a region that somebody else holds: seen when a start failed on it, tried again after an hour."""

    region = models.ForeignKey(Region, on_delete=models.CASCADE, related_name="blocked_ports")
    port = models.PositiveIntegerField()
    until = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["region", "port"], name="blocked_port_unique")]

    def __str__(self) -> str:
        return str(self.port)
