"""Backups: taken, listed, kept, downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.base import PrincipalMixin
from accounts.models import Scope
from accounts.permissions import Capability, require_scope
from backups.models import Backup, BackupStatus, BackupTrigger
from backups.services.backups import backup_create, backup_delete, backup_pin, backup_unpin
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import ProjectScoped, parsed
from projects.api.fields import Input, Text
from projects.api.filters import FILTERS, OrganizationFilter
from projects.api.operation_outputs import OperationError
from projects.api.outputs import OperationBrief, operation_brief
from projects.models import Operation

CREATE_EXAMPLES = [
    OpenApiExample("Now, to the default storage", value={}, request_only=True),
    OpenApiExample("Labelled, elsewhere", value={"label": "before 2.0", "storage": "offsite"}, request_only=True),
]


class BackupInput(Input):
    label = Text(required=False, default="", allow_blank=True, max_length=80)  # type: ignore[assignment]
    storage = Text(
        required=False, allow_null=True, default=None, max_length=100, help_text="Id or name; else the default."
    )


class PinInput(Input):
    reason = Text(required=False, default="", allow_blank=True, max_length=200)


class BackupStorageBrief(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    kind = serializers.CharField()


class BackupSerializer(serializers.ModelSerializer[Backup]):
    """Fetch with `storage`; operations are found for a whole page at once (`context["operations"]`)."""

    organization = serializers.UUIDField(source="organization_id", read_only=True)
    project = serializers.UUIDField(source="project_uuid", read_only=True)
    storage = BackupStorageBrief(read_only=True)
    storage_path = serializers.CharField(source="object_key", read_only=True, help_text="Relative to the storage.")
    operation = serializers.SerializerMethodField(help_text="That took it, or takes it now.")
    error = serializers.SerializerMethodField(
        help_text="Why it failed; or, of one that is stored, why its proof could not run."
    )
    notes = serializers.ListField(
        child=serializers.CharField(), read_only=True, help_text="What is not in it, or was not compared."
    )
    schedule = serializers.UUIDField(source="schedule_id", read_only=True, allow_null=True)
    duration_seconds = serializers.FloatField(read_only=True, allow_null=True)
    created_by = serializers.CharField(source="created_by_label", read_only=True)
    url = serializers.SerializerMethodField()

    class Meta:
        model = Backup
        fields = [
            "id", "organization", "project", "project_name", "project_slug", "engine", "version", "server_version", "trigger",
            "label", "status", "progress_bytes", "size_bytes", "dump_bytes", "database_bytes", "sha256", "encrypted",
            "compressed", "key_ids", "storage", "storage_path", "pinned", "pinned_reason", "trusted", "rows", "tables",
            "notes", "schedule", "operation", "created_by", "created_at", "started_at", "finished_at", "duration_seconds",
            "verified_at", "rto_seconds", "keep_until", "error", "url",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(OperationBrief(allow_null=True))
    def get_operation(self, backup: Backup) -> dict[str, Any] | None:
        return operation_brief(self.context["operations"].get(backup.operation_id), self.context["request"])

    @extend_schema_field(OperationError(allow_null=True))
    def get_error(self, backup: Backup) -> dict[str, Any] | None:
        return backup.error_body()

    @extend_schema_field(OpenApiTypes.URI)
    def get_url(self, backup: Backup) -> str:
        return reverse("backup-detail", kwargs={"pk": backup.pk}, request=self.context["request"])


def render_backups(rows: list[Backup], request: Request) -> list[dict[str, Any]]:
    """With their operations: two queries for any number."""
    wanted = [row.operation_id for row in rows if row.operation_id]
    found = Operation.objects.filter(pk__in=wanted) if wanted else ()
    context = {"request": request, "operations": {operation.pk: operation for operation in found}}
    return list(BackupSerializer(rows, many=True, context=context).data)


class BackupFilter(django_filters.FilterSet):
    status = django_filters.MultipleChoiceFilter(
        choices=BackupStatus.choices, distinct=False, help_text="May be repeated."
    )
    trigger = django_filters.MultipleChoiceFilter(
        choices=BackupTrigger.choices, distinct=False, help_text="May be repeated."
    )
    project = django_filters.UUIDFilter(field_name="project_uuid", help_text="Also of one that is gone.")
    engine = django_filters.CharFilter(field_name="engine")
    storage = django_filters.UUIDFilter(field_name="storage_id")
    pinned = django_filters.BooleanFilter(field_name="pinned")
    organization = OrganizationFilter(help_text="Slug or id.")

    class Meta:
        model = Backup
        fields: list[str] = []


class BackupScoped(PrincipalMixin):
    kwargs: dict[str, Any]

    def mine(self) -> QuerySet[Backup]:
        rows: QuerySet[Backup] = (
            Backup.objects.for_principal(self.principal).select_related("storage").defer("manifest")
        )
        return rows

    def backup(self) -> Backup:
        """By who asks: `NotFound` for outsiders."""
        found = self.mine().filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        return found

    def shown(self, request: Request, pk: UUID | str, status: int = 200, **more: Any) -> Response:
        found = self.mine().filter(pk=pk).first()
        if found is None:
            raise NotFound
        return Response(render_backups([found], request)[0], status=status, **more)

    def once(self, request: Request, backup: Backup, act: Callable[[], Any]) -> Response:
        """Do it once per `Idempotency-Key`, and answer 200 with the backup as it is then."""

        def make() -> tuple[int, dict[str, str]]:
            act()
            return 200, {"backup": str(backup.pk)}

        return idempotent(
            request, organization_id=backup.organization_id, effect=make,
            rebuild=lambda status, made: self.shown(request, made["backup"], status),
        )  # fmt: skip


class _List(BackupScoped, generics.ListAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = BackupSerializer
    filter_backends = FILTERS
    filterset_class = BackupFilter
    search_fields: ClassVar[list[str]] = ["label", "project_name", "project_slug"]
    ordering_fields: ClassVar[list[str]] = ["created_at", "finished_at", "size_bytes", "verified_at"]

    def rows(self) -> QuerySet[Backup]:
        return self.mine()

    def get_queryset(self) -> QuerySet[Backup]:
        if getattr(self, "swagger_fake_view", False):
            return Backup.objects.none()
        require_scope(self.principal, Scope.READ)
        return self.rows()

    def listed(self, request: Request) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        return self.get_paginated_response(render_backups(list(page), request))


@extend_schema(tags=["backups"])
class BackupListView(_List):
    @extend_schema(operation_id="backups_list", responses={200: BackupSerializer(many=True), **problems(400, 404)})
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Backups of all projects that the caller may see, and of those that are gone. Newest first."""
        return self.listed(request)


@extend_schema(tags=["backups"])
class ProjectBackupsView(ProjectScoped, _List):
    def rows(self) -> QuerySet[Backup]:
        return self.mine().filter(project_uuid=self.project().pk)

    @extend_schema(
        operation_id="projects_backups_list", responses={200: BackupSerializer(many=True), **problems(400, 404)}
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The project's backups, newest first."""
        return self.listed(request)

    @extend_schema(
        operation_id="projects_backups_create", parameters=[IDEMPOTENCY_KEY], request=BackupInput,
        examples=CREATE_EXAMPLES, responses={202: BackupSerializer, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Take a backup now, of one moment of the database, which goes on working. 202 with the backup and its `operation`;
        `operations/{id}/cancel/` ends it. A database that is stopped is refused (`action_not_allowed`): start it first."""
        project = self.project(Capability.PROJECT_ACT)
        wanted = parsed(BackupInput, request).validated_data

        def make() -> tuple[int, dict[str, str]]:
            backup = backup_create(self.principal, project, label=wanted["label"], storage=wanted["storage"] or None)
            return 202, {"backup": str(backup.pk), "operation": str(backup.operation_id)}

        def rebuild(status: int, made: dict[str, str]) -> Response:
            location = reverse("backup-detail", kwargs={"pk": made["backup"]}, request=request)
            return self.shown(request, made["backup"], status, headers={"Location": location})

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)


@extend_schema(tags=["backups"])
class BackupView(BackupScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = BackupSerializer

    @extend_schema(operation_id="backups_retrieve", responses={200: BackupSerializer, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One backup."""
        require_scope(self.principal, Scope.READ)
        return self.shown(request, self.backup().pk)

    @extend_schema(
        operation_id="backups_destroy", request=None, responses={202: BackupSerializer, **problems(403, 404, 409)}
    )
    def delete(self, request: Request, pk: UUID) -> Response:
        """Remove it: its objects from the storage first, then the backup itself, tried until it is gone. 202 with the backup
        and the `operation` that removes it. A pinned one is refused (`action_not_allowed`)."""
        backup = self.backup()
        operation = backup_delete(self.principal, backup)
        answer = self.shown(request, backup.pk, 202)
        answer.data["operation"] = operation_brief(operation, request)
        return answer


@extend_schema(tags=["backups"])
class BackupPinView(BackupScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = BackupSerializer

    @extend_schema(
        operation_id="backups_pin", parameters=[IDEMPOTENCY_KEY], request=PinInput,
        responses={200: BackupSerializer, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Keep it: no retention removes a pinned backup."""
        backup = self.backup()
        reason = parsed(PinInput, request).validated_data["reason"]
        return self.once(request, backup, lambda: backup_pin(self.principal, backup, reason=reason))


@extend_schema(tags=["backups"])
class BackupUnpinView(BackupScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = BackupSerializer

    @extend_schema(
        operation_id="backups_unpin", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={200: BackupSerializer, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Let retention remove it when its time has come."""
        backup = self.backup()
        return self.once(request, backup, lambda: backup_unpin(self.principal, backup))
