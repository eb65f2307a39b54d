"""What comes out of projects and the catalogue. The shapes of docs/api: tested against the OpenAPI schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.reverse import reverse

from accounts.permissions import principal_from
from projects.models import (
    DesiredStatus,
    Health,
    Operation,
    OperationState,
    Placement,
    Plan,
    Project,
    ProjectStatus,
    Region,
    WriteFence,
)


def live_operations(projects: Iterable[Project]) -> dict[UUID, Operation]:
    """project id → its live operation (of several, the one that holds the project), in one query."""
    found: dict[UUID, Operation] = {}
    ids = [project.pk for project in projects]
    rows = Operation.objects.live().holding().filter(project_uuid__in=ids) if ids else Operation.objects.none()
    for operation in rows.only("id", "kind", "state", "project_uuid", "created_at").order_by("created_at", "id"):
        if operation.project_uuid is not None:
            found.setdefault(operation.project_uuid, operation)
    return found


def operation_brief(operation: Operation | None, request: Request | None = None) -> dict[str, Any] | None:
    """`{id, kind, state, url}`, or None."""
    if operation is None:
        return None
    url = reverse("operation-detail", kwargs={"pk": operation.pk}, request=request)
    return {"id": str(operation.pk), "kind": operation.kind, "state": str(operation.state), "url": url}


class OperationBrief(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    kind = serializers.CharField(help_text="provision, start, stop, restart, rotate_password, resize, delete …")
    state = serializers.ChoiceField(choices=OperationState.choices)
    url = serializers.URLField(help_text="Ask it with `?wait=30`.")


class Limits(serializers.Serializer[Any]):
    memory_bytes = serializers.IntegerField(allow_null=True, help_text="Null on a pool: they are shared.")
    cpus = serializers.FloatField(allow_null=True, help_text="As above.")
    storage_bytes = serializers.IntegerField(help_text="Soft: measured at most 60 s late, then writers are fenced.")


class WriteFenceOutput(serializers.Serializer[Any]):
    """Sessions are read-only by default; null when they are not."""

    reason = serializers.ChoiceField(
        choices=WriteFence.choices, help_text="`storage`: the limit; `disk`: the region's."
    )
    since = serializers.DateTimeField()
    detail = serializers.CharField(help_text="What it means, for people.")


def write_fence_of(project: Project) -> dict[str, Any] | None:
    if not project.write_fence:
        return None
    return {
        "reason": project.write_fence, "since": project.write_fenced_at, "detail": project.write_fence_detail,
    }  # fmt: skip


class ProjectSerializer(serializers.ModelSerializer[Project]):
    """Give `context["operations"]` from `live_operations`: one query for all rows."""

    organization = serializers.SlugField(source="organization.slug", read_only=True)
    region = serializers.SlugField(source="region.slug", read_only=True)
    plan = serializers.SlugField(source="plan.slug", read_only=True)
    limits = serializers.SerializerMethodField()
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    write_fence = serializers.SerializerMethodField()
    operation = serializers.SerializerMethodField()
    created_by = serializers.EmailField(source="created_by.email", read_only=True, default=None, allow_null=True)

    class Meta:
        model = Project
        fields = [
            "id", "name", "slug", "description", "organization", "engine", "version", "region", "plan", "placement",
            "status", "desired_status", "status_detail", "limits", "labels", "exposure", "tls_required",
            "deletion_protection", "bootstrap_schema", "size_bytes", "write_fence", "operation", "created_by",
            "created_at", "updated_at", "recycle_until",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(Limits)
    def get_limits(self, project: Project) -> dict[str, Any]:
        return {
            "memory_bytes": None if project.placement == Placement.POOL else project.memory_bytes,
            "cpus": None if project.placement == Placement.POOL else float(project.cpus),
            "storage_bytes": project.storage_bytes,
        }

    @extend_schema_field(WriteFenceOutput(allow_null=True))
    def get_write_fence(self, project: Project) -> dict[str, Any] | None:
        return write_fence_of(project)

    @extend_schema_field(OperationBrief(allow_null=True))
    def get_operation(self, project: Project) -> dict[str, Any] | None:
        return operation_brief(self.context["operations"].get(project.pk), self.context.get("request"))


class RegionSerializer(serializers.ModelSerializer[Region]):
    available = serializers.SerializerMethodField(help_text="Projects can be made here.")
    reason = serializers.SerializerMethodField(help_text="Why not available, or what is wrong now.")

    class Meta:
        model = Region
        fields = ["id", "slug", "name", "runtime", "available", "reachable", "reason"]
        read_only_fields = fields

    def get_available(self, region: Region) -> bool:
        return region.available and region.has_room

    def get_reason(self, region: Region) -> str:
        if not region.available:
            return "No runtime is set up here yet."
        if not region.has_room:
            return f"{region.disk_problem[0].upper()}{region.disk_problem[1:]}."
        return region.reason_for(operator=principal_from(self.context["request"]).is_operator)


class PlanSerializer(serializers.ModelSerializer[Plan]):
    cpus = serializers.FloatField(read_only=True)

    class Meta:
        model = Plan
        fields = [
            "id", "slug", "name", "memory_bytes", "cpus", "storage_bytes", "connection_limit", "max_databases",
            "max_api_keys", "max_services", "recycle_days", "backup_keep_days", "placement", "is_default",
        ]  # fmt: skip
        read_only_fields = fields


class EngineVersionOutput(serializers.Serializer[Any]):
    version = serializers.CharField()
    end_of_life = serializers.DateField(
        allow_null=True, help_text="The last day on which its vendor publishes fixes; null if nobody names one."
    )
    ended = serializers.BooleanField(help_text="That day is over.")
    default = serializers.BooleanField()
    deprecated = serializers.BooleanField(help_text="Better choose another one for something new.")
    offered = serializers.BooleanField(help_text="New projects may have it. Projects that have it keep it in any case.")
    available = serializers.BooleanField(help_text="It is offered, and some region can run it.")
    image = serializers.CharField(help_text="What the operator pinned; empty: found in the usual order.")
    reason = serializers.CharField(help_text="Why it is not available.")


class EngineOutput(serializers.Serializer[Any]):
    name = serializers.CharField()
    title = serializers.CharField()
    versions = EngineVersionOutput(many=True)
    default_version = serializers.CharField(help_text="Empty if none is offered.")
    default_port = serializers.IntegerField()
    capabilities = serializers.ListField(child=serializers.CharField())
    runtimes = serializers.ListField(child=serializers.CharField(), help_text="That regions offer for it now.")
    limitations = serializers.ListField(child=serializers.CharField(), help_text="What it can't do.")
    minimum_memory_bytes = serializers.IntegerField(help_text="A plan or limit below is refused.")
    resize = serializers.CharField(help_text="What of new limits waits for a restart.")
    available = serializers.BooleanField(help_text="A project of this engine would be made at once.")
    reason = serializers.CharField(help_text="Why not.")


class ServerOutput(serializers.Serializer[Any]):
    runtime = serializers.CharField()
    name = serializers.CharField(allow_null=True, help_text="Null on a pool, but for operators; so are these:")
    image = serializers.CharField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    cpu_percent = serializers.FloatField(allow_null=True, help_text="100 is one full core.")
    memory_bytes = serializers.IntegerField(allow_null=True)
    memory_limit_bytes = serializers.IntegerField(allow_null=True)
    restart_pending = serializers.BooleanField(
        help_text="Its own sizes are still those of other limits; a restart makes them anew. See `resize` of its engine."
    )
    connections = serializers.IntegerField(allow_null=True)
    connections_limit = serializers.IntegerField(allow_null=True)
    size_bytes = serializers.IntegerField(allow_null=True)
    transactions_per_second = serializers.FloatField(
        allow_null=True,
        help_text="Since the look before; NovaStack's own are in it. Null where the engine counts none.",
    )
    queries_per_second = serializers.FloatField(allow_null=True, help_text="As above: statements or commands.")
    cache_hit_percent = serializers.FloatField(
        allow_null=True,
        help_text="Of the pages that the engine asked for since the look before; null if it asked for none.",
    )
    version = serializers.CharField(help_text="As the server says; empty before the first look.")
    measured_at = serializers.DateTimeField(
        allow_null=True, help_text="The last reading. CPU, memory and connections are null when it is not of now."
    )
    tls = serializers.BooleanField(help_text="It was started with TLS.")
    tls_not_after = serializers.DateTimeField(allow_null=True, help_text="Its certificate is renewed 30 days before.")
    tls_reason = serializers.CharField(help_text="Why it speaks no TLS.")


class StatusOutput(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=ProjectStatus.choices)
    desired_status = serializers.ChoiceField(choices=DesiredStatus.choices)
    observed_at = serializers.DateTimeField(allow_null=True)
    health = serializers.ChoiceField(choices=Health.choices)
    detail = serializers.CharField(help_text="Why it is so, for people.")
    write_fence = WriteFenceOutput(allow_null=True)
    operation = OperationBrief(allow_null=True)
    server = ServerOutput(allow_null=True)


class ConnectionOutput(serializers.Serializer[Any]):
    host = serializers.CharField()
    port = serializers.IntegerField()
    database = serializers.CharField()
    username = serializers.CharField()
    password = serializers.CharField()
    tls = serializers.BooleanField(help_text="The server speaks TLS; `uri` and snippets use it.")
    ca_url = serializers.URLField(allow_null=True, help_text="The CA's certificate, to verify the server with.")
    uri = serializers.CharField()
    jdbc_url = serializers.CharField()
    env = serializers.DictField(child=serializers.CharField())
    snippets = serializers.DictField(child=serializers.CharField())


class Quota(serializers.Serializer[Any]):
    limit = serializers.IntegerField()
    used = serializers.IntegerField()


class UsageOutput(serializers.Serializer[Any]):
    """Bytes are those of the projects' limits, not of disks. The recycle bin counts for storage only. `used` may be above a
    limit that was lowered since: then nothing more is made."""

    projects = Quota()
    memory_bytes = Quota()
    storage_bytes = Quota()
    backups = Quota()
    backup_bytes = Quota()


class ProjectQuotas(serializers.Serializer[Any]):
    """The plan's, of one project."""

    databases = Quota()
    api_keys = Quota()
    services = Quota()


class Sample(serializers.Serializer[Any]):
    """Means and peaks (`_max`) of one bucket; null where nothing was measured. The size is the largest."""

    at = serializers.DateTimeField()
    cpu_percent = serializers.FloatField(allow_null=True)
    cpu_percent_max = serializers.FloatField(allow_null=True)
    memory_bytes = serializers.IntegerField(allow_null=True)
    memory_bytes_max = serializers.IntegerField(allow_null=True)
    size_bytes = serializers.IntegerField(allow_null=True)
    connections = serializers.IntegerField(allow_null=True)
    connections_max = serializers.IntegerField(allow_null=True)
    transactions_per_second = serializers.FloatField(allow_null=True)
    transactions_per_second_max = serializers.FloatField(allow_null=True)
    queries_per_second = serializers.FloatField(allow_null=True)
    queries_per_second_max = serializers.FloatField(allow_null=True)
    cache_hit_percent = serializers.FloatField(allow_null=True)


class MetricsOutput(serializers.Serializer[Any]):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    range = serializers.CharField()
    bucket_seconds = serializers.IntegerField()
    results = Sample(many=True)


class TableOutput(serializers.Serializer[Any]):
    """The engine's estimates: no row was read for them. Null where it can't tell."""

    name = serializers.CharField(help_text="With its schema, if that is not `public`.")
    rows = serializers.IntegerField(allow_null=True)
    size_bytes = serializers.IntegerField(allow_null=True, help_text="With its indexes.")


class TablesOutput(serializers.Serializer[Any]):
    """Largest first; at most the 200 largest."""

    count = serializers.IntegerField(help_text="Of those that are listed here.")
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    total = serializers.IntegerField(help_text="How many the database has.")
    estimated = serializers.BooleanField(help_text="Always true.")
    measured_at = serializers.DateTimeField(allow_null=True, help_text="Every five minutes while it runs; null before.")
    results = TableOutput(many=True)


class LogLine(serializers.Serializer[Any]):
    message = serializers.CharField()


class LogsOutput(serializers.Serializer[Any]):
    """Oldest first."""

    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    results = LogLine(many=True)
    cursor = serializers.CharField(help_text="Give it back to get what is logged after these lines; opaque.")
    gap = serializers.BooleanField(help_text="Lines between the cursor that was given and these were left out.")
    running = serializers.BooleanField(help_text="The server runs: more may come.")
