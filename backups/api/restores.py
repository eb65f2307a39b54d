"""Restores: what one would do, doing it, and the way back."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    extend_schema,
    extend_schema_field,
    extend_schema_view,
)
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.base import PrincipalMixin
from accounts.models import Scope
from accounts.permissions import Capability, require, require_scope
from backups.api.briefs import WithOperations, brief
from backups.models import Backup, Restore, RestoreStatus, RestoreTarget
from backups.services.parts import parts_of
from backups.services.restores import restore_create, restore_preflight, restore_undo
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import parsed
from projects.api.fields import Flag, Input, Text
from projects.api.filters import FILTERS
from projects.api.operation_outputs import OperationError
from projects.api.outputs import OperationBrief
from projects.models import Project

EXAMPLES = [
    OpenApiExample("What would happen", value={"target": "in_place", "dry_run": True}, request_only=True),
    OpenApiExample("Into a new project", value={"target": "new_project", "name": "Shop, Monday"}, request_only=True),
    OpenApiExample(
        "Two tables, beside what is there",
        value={"target": "in_place", "tables": ["orders", "billing.invoices"]},
        request_only=True,
    ),
    OpenApiExample("In place", value={"target": "in_place", "confirm": "shop"}, request_only=True),
]


class RestoreInput(Input):
    target = serializers.ChoiceField(choices=RestoreTarget.choices)
    name = Text(required=False, default="", max_length=200, help_text="`new_project`: what it is called.")
    region = Text(required=False, max_length=48, help_text="`new_project`. By default the source's.")
    plan = Text(required=False, max_length=48, help_text="`new_project`. By default the source's.")
    placement = Text(required=False, max_length=12, help_text="`new_project`: `dedicated` or `pool`.")
    version = Text(required=False, max_length=16, help_text="`new_project`: the backup's version or a newer one.")
    project = serializers.UUIDField(required=False, help_text="`project`: the one that the backup goes into.")
    confirm = Text(
        required=False, default="", max_length=80, help_text="The slug of the project that is restored over."
    )
    tables = serializers.ListField(
        child=Text(max_length=260), required=False, default=list,
        help_text="Only these (at most 200), beside what the project holds: `orders`, or `schema.orders`."
        " See `backups/{id}/tables`.",
    )  # fmt: skip
    schemas = serializers.ListField(
        child=Text(max_length=130), required=False, default=list,
        help_text="PostgreSQL: likewise, whole schemas, which have tables; at most 200.",
    )  # fmt: skip
    safety_backup = Flag(
        required=False, default=True,
        help_text="`false`: no safety backup is taken before a project is restored over, because its database can't be dumped.",
    )  # fmt: skip
    dry_run = Flag(required=False, default=False, help_text="Only say what would happen.")


class PreflightCheck(serializers.Serializer[Any]):
    name = serializers.CharField()
    passed = serializers.BooleanField()
    detail = serializers.CharField()


class PreflightProblem(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable.")
    detail = serializers.CharField()


class PreflightTable(serializers.Serializer[Any]):
    name = serializers.CharField()
    live_rows = serializers.IntegerField(allow_null=True, help_text="An estimate.")
    backup_rows = serializers.IntegerField(allow_null=True)
    change_rows = serializers.IntegerField(allow_null=True, help_text="Negative: rows that would be gone.")


class PreflightSerializer(serializers.Serializer[Any]):
    """What a restore would mean. Live counts are estimates of the engine's, as of `counted_at`."""

    target = serializers.ChoiceField(choices=RestoreTarget.choices)
    engine = serializers.CharField()
    backup_version = serializers.CharField()
    target_version = serializers.CharField()
    database_bytes = serializers.IntegerField(allow_null=True, help_text="When restored, roughly.")
    storage_limit_bytes = serializers.IntegerField()
    disk_free_bytes = serializers.IntegerField(allow_null=True)
    checks = PreflightCheck(many=True)
    problems = PreflightProblem(many=True, help_text="What stands in the way now. Empty: it can begin.")
    tables = PreflightTable(many=True, help_text="At most 200, those that change most first.")
    tables_total = serializers.IntegerField()
    counted_at = serializers.DateTimeField(allow_null=True)
    estimates = serializers.BooleanField()
    rows_live = serializers.IntegerField(allow_null=True)
    rows_in_backup = serializers.IntegerField(allow_null=True)
    rows_lost = serializers.IntegerField(allow_null=True, help_text="About: rows of now that the backup does not have.")
    open_connections = serializers.IntegerField(allow_null=True)
    safety_backup = serializers.BooleanField(help_text="One is taken before, pinned.")
    address_changes = serializers.BooleanField()
    confirm = serializers.CharField(allow_blank=True, help_text="What `confirm` must be.")
    expected_seconds = serializers.FloatField()
    measured = serializers.BooleanField(help_text="By the last restore of this backup; else an estimate by size.")
    expected_downtime_seconds = serializers.FloatField()
    kept_hours = serializers.FloatField(help_text="For how long the database from before is kept.")
    checked_at = serializers.DateTimeField(allow_null=True)


class SelectionSerializer(serializers.Serializer[Any]):
    tables = serializers.ListField(child=serializers.CharField())
    schemas = serializers.ListField(child=serializers.CharField())


class MovedTable(serializers.Serializer[Any]):
    name = serializers.CharField(help_text="In the backup.")
    now = serializers.CharField(help_text="In the database that it went to.")


class OutcomeSerializer(serializers.Serializer[Any]):
    """Where a part of a backup went. Counted and compared there."""

    places = serializers.ListField(child=serializers.CharField(), help_text="Schemas, or tables.")
    tables = MovedTable(many=True)
    notes = serializers.ListField(child=serializers.CharField(), help_text="What was left out.")
    rows = serializers.IntegerField()
    bytes = serializers.IntegerField()


class BackupTableSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(help_text="As `tables` of a restore takes it.")
    schema = serializers.CharField(allow_blank=True)
    rows = serializers.IntegerField(allow_null=True, help_text="Null: a partitioned table; its partitions have them.")
    live_bytes = serializers.IntegerField(
        allow_null=True, help_text="What the table of that name takes in the project now, when that is known."
    )


class RestoreSerializer(serializers.ModelSerializer[Restore]):
    backup = serializers.UUIDField(source="backup_uuid", read_only=True)
    organization = serializers.UUIDField(source="organization_id", read_only=True)
    source_project = serializers.UUIDField(source="source_project_uuid", read_only=True)
    project = serializers.UUIDField(source="project_uuid", read_only=True, allow_null=True, help_text="Where it went.")
    operation = serializers.SerializerMethodField(help_text="That restores. Null: it is no longer kept.")
    undo_operation = serializers.SerializerMethodField(help_text="That undoes it, or did.")
    safety_backup = serializers.UUIDField(source="safety_backup_id", read_only=True, allow_null=True)
    duration_seconds = serializers.FloatField(read_only=True, allow_null=True)
    preflight = serializers.SerializerMethodField()
    selection = serializers.SerializerMethodField(help_text="Which part of the backup. Null: all of it.")
    outcome = serializers.SerializerMethodField(help_text="Of a part, once it is there: where. Else null.")
    error = serializers.SerializerMethodField()
    created_by = serializers.CharField(source="created_by_label", read_only=True)
    url = serializers.SerializerMethodField()
    operation_columns = ("operation_id", "undo_operation_id")

    class Meta:
        model = Restore
        list_serializer_class = WithOperations
        fields = [
            "id", "backup", "organization", "target", "source_project", "project", "project_name", "status", "operation",
            "undo_operation", "safety_backup", "preflight", "selection", "outcome", "undo_until", "undone_at",
            "duration_seconds", "error", "created_by", "created_at", "started_at", "finished_at", "url",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(OperationBrief(allow_null=True))
    def get_operation(self, restore: Restore) -> dict[str, Any] | None:
        return brief(self.context, restore.operation_id)

    @extend_schema_field(OperationBrief(allow_null=True))
    def get_undo_operation(self, restore: Restore) -> dict[str, Any] | None:
        return brief(self.context, restore.undo_operation_id)

    @extend_schema_field(PreflightSerializer)
    def get_preflight(self, restore: Restore) -> dict[str, Any]:
        return dict(restore.preflight)

    @extend_schema_field(SelectionSerializer(allow_null=True))
    def get_selection(self, restore: Restore) -> dict[str, Any] | None:
        return dict(restore.selection) or None

    @extend_schema_field(OutcomeSerializer(allow_null=True))
    def get_outcome(self, restore: Restore) -> dict[str, Any] | None:
        if not restore.outcome:
            return None
        tables = [{"name": before, "now": after} for before, after in restore.outcome["tables"].items()]
        return {**restore.outcome, "tables": tables}

    @extend_schema_field(OperationError(allow_null=True))
    def get_error(self, restore: Restore) -> dict[str, Any] | None:
        error: dict[str, Any] | None = restore.error
        return error

    @extend_schema_field(OpenApiTypes.URI)
    def get_url(self, restore: Restore) -> str:
        return reverse("restore-detail", kwargs={"pk": restore.pk}, request=self.context["request"])


class RestoreFilter(django_filters.FilterSet):
    status = django_filters.MultipleChoiceFilter(
        choices=RestoreStatus.choices, distinct=False, help_text="May be repeated."
    )
    project = django_filters.UUIDFilter(field_name="project_uuid", help_text="Where it went.")
    backup = django_filters.UUIDFilter(field_name="backup_uuid")

    class Meta:
        model = Restore
        fields: list[str] = []


class RestoreScoped(PrincipalMixin):
    kwargs: dict[str, Any]

    def mine(self) -> QuerySet[Restore]:
        rows: QuerySet[Restore] = Restore.objects.for_principal(self.principal)
        return rows

    def restore(self) -> Restore:
        require_scope(self.principal, Scope.READ)
        found = self.mine().filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        return found

    def answer(self, request: Request, pk: UUID | str, status: int) -> Response:
        found = self.mine().filter(pk=pk).first()
        if found is None:
            raise NotFound
        return Response(RestoreSerializer(found, context={"request": request}).data, status=status)


@extend_schema(tags=["backups"])
class BackupRestoreView(RestoreScoped, generics.GenericAPIView[Restore]):
    queryset = Restore.objects.none()
    serializer_class = RestoreSerializer

    @extend_schema(
        operation_id="backups_restore", parameters=[IDEMPOTENCY_KEY], request=RestoreInput, examples=EXAMPLES,
        responses={200: PreflightSerializer, 202: RestoreSerializer, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Restore into a new project, in place, or into another project. With `tables` or `schemas` only these come, beside
        what the project holds and never over it: in a schema `restored_<date>_<n>`, or as `<table>__restored_<date>_<n>`;
        `outcome` says where. With `dry_run` 200 and what it would mean, and
        `problems`; else 202 with the restore. Over a project that lives `confirm` is its slug; a safety backup is taken first,
        what is restored is compared with the backup before anybody sees it, and the database from before is kept, so that
        `restores/{id}/undo` brings it back."""
        backup = Backup.objects.for_principal(self.principal).select_related("storage").filter(pk=pk).first()
        if backup is None:
            raise NotFound
        require(self.principal, backup.organization_id, Capability.PROJECT_CHANGE)
        wanted = dict(parsed(RestoreInput, request).validated_data)
        project = self._project(wanted.pop("project", None))
        dry_run, confirm = wanted.pop("dry_run"), wanted.pop("confirm")
        if dry_run:
            wanted.pop("safety_backup")
            seen = restore_preflight(self.principal, backup, project=project, **wanted)
            return Response(seen.as_json())

        def make() -> tuple[int, dict[str, str]]:
            made = restore_create(self.principal, backup, project=project, confirm=confirm, **wanted)
            return 202, {"restore": str(made.pk), "operation": str(made.operation_id)}

        return idempotent(
            request, organization_id=backup.organization_id, effect=make,
            rebuild=lambda status, made: self.answer(request, made["restore"], status),
        )  # fmt: skip

    def _project(self, pk: UUID | None) -> Project | None:
        if pk is None:
            return None
        found: Project | None = Project.objects.for_principal(self.principal).filter(pk=pk).first()
        if found is None:
            raise NotFound.field("project", "There is no such project here.")
        return found


@extend_schema(tags=["backups"])
class BackupTablesView(RestoreScoped, generics.GenericAPIView[Restore]):
    queryset = Restore.objects.none()
    serializer_class = BackupTableSerializer

    @extend_schema(
        operation_id="backups_tables", filters=False,
        parameters=[OpenApiParameter("search", str, description="A part of the name.")],
        responses={200: BackupTableSerializer(many=True), **problems(404)},
    )  # fmt: skip
    def get(self, request: Request, pk: UUID) -> Response:
        """The backup's tables, as its manifest has them, by name."""
        require_scope(self.principal, Scope.READ)
        backup = Backup.objects.for_principal(self.principal).filter(pk=pk).first()
        if backup is None:
            raise NotFound
        project = Project.objects.for_principal(self.principal).filter(pk=backup.project_uuid).first()
        wanted = request.query_params.get("search", "").casefold()
        found = [part for part in parts_of(backup, project) if wanted in part.name.casefold()]
        page = self.paginate_queryset(found)  # type: ignore[arg-type]
        return self.get_paginated_response(BackupTableSerializer(page, many=True).data)


@extend_schema_view(
    get=extend_schema(
        tags=["backups"], operation_id="restores_list",
        responses={200: RestoreSerializer(many=True), **problems(400, 404)},
    )
)  # fmt: skip
class RestoreListView(RestoreScoped, generics.ListAPIView[Restore]):
    """Restores of the caller's organizations, newest first; also into projects that are gone."""

    queryset = Restore.objects.none()
    serializer_class = RestoreSerializer
    filter_backends = FILTERS
    filterset_class = RestoreFilter
    search_fields: ClassVar[list[str]] = ["project_name", "created_by_label"]
    ordering_fields: ClassVar[list[str]] = ["created_at", "finished_at", "status"]

    def get_queryset(self) -> QuerySet[Restore]:
        if getattr(self, "swagger_fake_view", False):
            return Restore.objects.none()
        require_scope(self.principal, Scope.READ)
        return self.mine()


@extend_schema(tags=["backups"])
class RestoreView(RestoreScoped, generics.GenericAPIView[Restore]):
    queryset = Restore.objects.none()
    serializer_class = RestoreSerializer

    @extend_schema(operation_id="restores_retrieve", responses={200: RestoreSerializer, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One restore."""
        return self.answer(request, self.restore().pk, 200)


class UndoInput(Input):
    confirm = Text(
        required=False, default="", max_length=80, help_text="The project's slug; looked at when it is given."
    )


@extend_schema(tags=["backups"])
class RestoreUndoView(RestoreScoped, generics.GenericAPIView[Restore]):
    queryset = Restore.objects.none()
    serializer_class = RestoreSerializer

    @extend_schema(
        operation_id="restores_undo", parameters=[IDEMPOTENCY_KEY], request=UndoInput,
        responses={202: RestoreSerializer, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Swap the database from before back, with what was written to it until the restore. What was restored is kept aside
        as long. Until `undo_until`, and only while nothing else took its place."""
        restore = self.restore()
        require(self.principal, restore.organization_id, Capability.PROJECT_CHANGE)
        wanted = parsed(UndoInput, request).validated_data

        def make() -> tuple[int, dict[str, str]]:
            made = restore_undo(self.principal, restore, confirm=wanted["confirm"])
            return 202, {"restore": str(made.pk), "operation": str(made.undo_operation_id)}

        return idempotent(
            request, organization_id=restore.organization_id, effect=make,
            rebuild=lambda status, made: self.answer(request, made["restore"], status),
        )  # fmt: skip
