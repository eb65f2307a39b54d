"""Servers, the databases on them, and their roles."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import Q

from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField
from projects import domain
from projects.models.catalogue import Plan, Region
from projects.models.certificates import CertificateAuthority
from projects.models.choices import DatabaseSlot, Health, ObservedState, RoleKind
from projects.models.projects import Project
from projects.models.standbys import StandbyTarget


class ServerKind(models.TextChoices):
    DEDICATED = "dedicated", "Dedicated"
    POOL = "pool", "Pool"
    EXTERNAL = "external", "External"
    STANDBY = "standby", "Warm standby"  # initialised ahead, nobody's yet
    SCRATCH = "scratch", "Scratch"  # thrown away: a backup is restored into it and compared (rule 26)


class ServerDesired(models.TextChoices):
    RUNNING = "running", "Running"
    STOPPED = "stopped", "Stopped"
    ABSENT = "absent", "Absent"


class DatabaseServer(BaseModel):
    """A database server process. Image and runtime are chosen once (rule 12); a name (id + incarnation) is used once."""

    kind = models.CharField(max_length=12, choices=ServerKind, default=ServerKind.DEDICATED)
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="servers")
    engine = models.CharField(max_length=16)
    version = models.CharField(max_length=16)
    runtime = models.CharField(max_length=16, blank=True)
    image = models.CharField(max_length=255, blank=True)
    image_digest = models.CharField(max_length=255, blank=True)
    incarnation = models.PositiveIntegerField(default=1)
    runtime_ref = models.CharField(max_length=255, blank=True, help_text="Container id, or pid and start time.")
    project_uuid = models.UUIDField(null=True, blank=True, help_text="Whose it is, when dedicated.")
    bind_address = models.CharField(max_length=64, default="127.0.0.1")
    port = models.PositiveIntegerField(null=True, help_text="On the runtime's host.")
    control_host = models.CharField(max_length=255, default="127.0.0.1")
    memory_bytes = models.BigIntegerField()
    cpus = models.DecimalField(max_digits=5, decimal_places=2)
    sized_for_bytes = models.BigIntegerField(null=True, help_text="Memory that its own settings were last made for.")
    max_connections = models.PositiveSmallIntegerField(default=40)
    max_databases = models.PositiveSmallIntegerField(default=1)

    admin_username = models.CharField(max_length=63)
    admin_secret = EncryptedField()
    admin_pending_secret = EncryptedField()
    tls_authority = models.ForeignKey(CertificateAuthority, null=True, on_delete=models.PROTECT, related_name="servers")
    tls_certificate = models.TextField(blank=True, help_text="PEM; shown from the next start or reload on.")
    tls_key = EncryptedField()
    tls_not_after = models.DateTimeField(null=True)
    tls_names = models.JSONField(default=list, blank=True, help_text="What the certificate is for.")
    tls_enabled = models.BooleanField(default=False, help_text="It was last started with TLS.")
    tls_reason = models.CharField(max_length=200, blank=True, help_text="Why it speaks no TLS.")
    system_identifier = models.CharField(max_length=64, blank=True)
    initialised_at = models.DateTimeField(null=True, help_text="From then on data must exist (rule 9).")

    desired_state = models.CharField(max_length=12, choices=ServerDesired, default=ServerDesired.RUNNING)
    observed_state = models.CharField(max_length=12, choices=ObservedState, default=ObservedState.UNKNOWN)
    observed_detail = models.CharField(max_length=500, blank=True)
    observed_at = models.DateTimeField(null=True, help_text="When the state was last seen to change or confirmed.")
    started_at = models.DateTimeField(null=True)
    reconcile = models.BooleanField(default=True)
    recoveries = models.PositiveSmallIntegerField(default=0, help_text="Starts by the reconciler since it was well.")
    recover_after = models.DateTimeField(null=True, blank=True)
    cpu_percent = models.FloatField(null=True)
    memory_used_bytes = models.BigIntegerField(null=True)
    usage_at = models.DateTimeField(null=True)
    standby_of = models.ForeignKey(
        StandbyTarget, null=True, blank=True, on_delete=models.SET_NULL, related_name="servers",
        help_text="For whom it was made, while it is a standby.",
    )  # fmt: skip
    standby_ready_at = models.DateTimeField(null=True, blank=True, help_text="From then on it may be claimed.")
    # Of pools.
    name = models.CharField(max_length=63, blank=True, help_text="A pool's, for operators.")
    plan = models.ForeignKey(
        Plan, null=True, blank=True, on_delete=models.PROTECT, related_name="pools",
        help_text="A pool's, when it takes projects of one plan only.",
    )  # fmt: skip
    pool_ready_at = models.DateTimeField(null=True, blank=True, help_text="From then on projects are placed on it.")
    draining_at = models.DateTimeField(
        null=True, blank=True, help_text="Nothing new is placed on it, and all move out."
    )
    pool_health = models.CharField(max_length=12, choices=Health, default=Health.UNKNOWN)
    pool_health_detail = models.CharField(max_length=500, blank=True)
    pool_checked_at = models.DateTimeField(null=True, blank=True)
    pool_size_bytes = models.BigIntegerField(null=True, blank=True, help_text="Of all its databases, as last measured.")

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["project_uuid"],
                condition=Q(kind="dedicated", desired_state__in=["running", "stopped"]),
                name="server_one_dedicated",
            ),
            models.UniqueConstraint(fields=["name"], condition=Q(kind="pool"), name="server_pool_name"),
            models.CheckConstraint(condition=Q(kind="dedicated") | Q(project_uuid=None), name="server_owner"),
        ]
        indexes = [
            models.Index(fields=["tls_not_after"], name="server_certificate", condition=Q(tls_enabled=True)),
            models.Index(fields=["region", "desired_state"], name="server_region_desired"),
            models.Index(fields=["kind", "engine", "version", "region"], name="server_pools"),
            models.Index(fields=["region"], name="server_standbys", condition=Q(kind="standby")),
        ]

    def __str__(self) -> str:
        return self.name or self.handle.name

    @property
    def handle(self) -> domain.Handle:
        return domain.Handle(str(self.id), self.incarnation, self.runtime_ref)

    @property
    def restart_pending(self) -> bool:
        """Its limits have changed since it made its settings: a restart makes them anew."""
        return self.sized_for_bytes not in {None, self.memory_bytes} and self.observed_state == ObservedState.RUNNING

    @property
    def control_endpoint(self) -> domain.Endpoint:
        """For our own sessions: with TLS they refuse everything but this very server."""
        if not self.tls_enabled or self.tls_authority_id is None:
            return domain.Endpoint(self.control_host, self.port or 0)
        trusted = CertificateAuthority.bundle(self.tls_authority_id)
        return domain.Endpoint(self.control_host, self.port or 0, self.tls_name, trusted)

    @property
    def tls_name(self) -> str:
        """A name that no other server has; it is in its certificate and in no name service."""
        return f"{self.pk}.server.novastack.internal"


class Database(BaseModel):
    """A project's database on a server; exactly one is current."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="databases")
    server = models.ForeignKey(DatabaseServer, on_delete=models.PROTECT, related_name="databases")
    slot = models.CharField("role", max_length=10, choices=DatabaseSlot, default=DatabaseSlot.CURRENT, db_column="role")
    name = models.CharField(max_length=63)
    created_in_engine_at = models.DateTimeField(null=True)
    # On pools, where a server's own state says nothing about one of its databases.
    made_of = models.CharField(max_length=63, blank=True, help_text="The blank that it is made of, until that is done.")
    locked_at = models.DateTimeField(null=True, blank=True, help_text="Since then its logins are refused (rule 22).")
    drop_due_at = models.DateTimeField(null=True, blank=True, help_text="Given up: the janitor drops it, not before.")
    drop_error = models.CharField(max_length=500, blank=True)
    recoveries = models.PositiveSmallIntegerField(default=0, help_text="Tries of the reconciler in a row.")
    recover_after = models.DateTimeField(null=True, blank=True)
    keep_until = models.DateTimeField(null=True, blank=True, help_text="Of a previous one: it is removed after.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project"], condition=Q(slot="current"), name="database_one_current"),
            models.UniqueConstraint(fields=["server", "name"], name="database_name_on_server"),
        ]
        indexes = [
            models.Index(fields=["drop_due_at"], name="database_drop_due", condition=Q(drop_due_at__isnull=False))
        ]

    def __str__(self) -> str:
        return self.name


class DatabaseRole(BaseModel):
    """A role in the engine (rule 17). A new password is pending until a login proved it (rule 20)."""

    database = models.ForeignKey(Database, on_delete=models.CASCADE, related_name="roles")
    server = models.ForeignKey(DatabaseServer, on_delete=models.PROTECT, related_name="roles")
    kind = models.CharField(max_length=10, choices=RoleKind)
    name = models.CharField(max_length=63)
    connection_limit = models.PositiveSmallIntegerField(default=20)
    secret = EncryptedField()
    pending_secret = EncryptedField()
    rotated_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["server", "name"], name="role_name_on_server"),
            models.UniqueConstraint(
                fields=["database", "kind"],
                condition=Q(kind__in=["owner", "group", "control"]),
                name="role_one_of_kind",
            ),
        ]
        indexes = [models.Index(fields=["database", "kind"], name="role_database_kind")]

    def __str__(self) -> str:
        return self.name


class DataTombstone(BaseModel):
    """Data that was given up. Only the janitor deletes it, not before `due_at` (rule 3); the row stays as a record."""

    server_uuid = models.UUIDField()
    incarnation = models.PositiveIntegerField()
    runtime_ref = models.CharField(max_length=255, blank=True)
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="tombstones")
    organization_id = models.UUIDField(null=True)
    project_uuid = models.UUIDField(null=True)
    project_name = models.CharField(max_length=63, blank=True)
    reason = models.CharField(max_length=80)
    due_at = models.DateTimeField()
    deleted_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=500, blank=True)
    forgotten_at = models.DateTimeField(
        null=True, help_text="Its runtime was given up: from then on the data is an orphan, and the janitor's no more."
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["server_uuid", "incarnation"], name="tombstone_once")]
        indexes = [models.Index(fields=["due_at"], name="tombstone_due", condition=Q(deleted_at=None))]

    def __str__(self) -> str:
        return self.handle.name

    @property
    def handle(self) -> domain.Handle:
        return domain.Handle(str(self.server_uuid), self.incarnation, self.runtime_ref)

    def describe(self) -> dict[str, Any]:
        return {"server": str(self.server_uuid), "incarnation": self.incarnation, "due_at": self.due_at.isoformat()}


LEFT_BY_UNDO = "undo"
NOTED_KINDS = ("service", "database", LEFT_BY_UNDO)  # of orphans: written down by operations, not found in a runtime


class Orphan(BaseModel):
    """Something that exists in a runtime and is not known here, or that may exist in one that was given up (`forgotten_at`
    with a `note`). Reported, never touched (rule 11)."""

    region = models.ForeignKey(Region, on_delete=models.CASCADE, related_name="orphans")
    name = models.CharField(max_length=255)
    kind = models.CharField(max_length=16, default="server")
    first_seen_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True)
    forgotten_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=500, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["region", "kind", "name"], name="orphan_once")]

    def __str__(self) -> str:
        return self.name
