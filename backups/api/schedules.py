"""Schedules of a project: when backups are taken, and what is kept of them."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.base import PrincipalMixin
from accounts.permissions import Capability, require
from backups.models import Backup, RunOutcome, Schedule, ScheduleRun
from backups.operations.retaining import Look
from backups.operations.schedules import PRESETS
from backups.services import schedules as services
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.filters import Ordering
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import ProjectScoped, parsed
from projects.api.fields import Flag, Input, Text, Whole
from projects.api.operation_outputs import OperationError
from projects.models import Project

LONG = 200
EXAMPLES = [
    OpenApiExample("Every day", value={"preset": "daily", "time_zone": "Europe/Berlin"}, request_only=True),
    OpenApiExample(
        "Every four hours", request_only=True,
        value={
            "cron": "0 */4 * * *", "time_zone": "Europe/Berlin",
            "retention": {"keep_last": 12, "keep_daily": 14, "keep_weekly": 8, "keep_monthly": 12},
        },
    ),
    OpenApiExample("What it would mean", value={"cron": "30 2 * * 1-5", "dry_run": True}, request_only=True),
]  # fmt: skip


class RetentionInput(Input):
    """A backup is kept when any rule wants it. Null or 0: no such rule. No rule at all: nothing goes by itself."""

    keep_last = Whole(required=False, allow_null=True, help_text="The latest ones.")
    keep_days = Whole(required=False, allow_null=True, help_text="All of the last days.")
    keep_daily = Whole(required=False, allow_null=True, help_text="One of each of the last days that have any.")
    keep_weekly = Whole(required=False, allow_null=True, help_text="One of each of the last weeks.")
    keep_monthly = Whole(required=False, allow_null=True, help_text="One of each of the last months.")
    max_bytes = Whole(required=False, allow_null=True, help_text="In all, of what is kept: the oldest go first.")


class ScheduleInput(Input):
    cron = Text(required=False, max_length=LONG, help_text="Five fields. Either this or `preset`.")
    preset = Text(required=False, max_length=LONG, help_text=f"One of: {', '.join(PRESETS)}.")
    time_zone = Text(required=False, default="UTC", max_length=LONG, help_text="Of the tz database.")
    enabled = Flag(required=False, default=True)
    storage = serializers.UUIDField(required=False, allow_null=True, help_text="Missing or null: the default one.")
    retention = RetentionInput(required=False, help_text="Missing with a `preset`: the preset's.")
    dry_run = Flag(required=False, default=False, help_text="Only say what it means and when it would run.")


class ScheduleChange(Input):
    cron = Text(required=False, max_length=LONG)
    preset = Text(required=False, max_length=LONG)
    time_zone = Text(required=False, max_length=LONG)
    enabled = Flag(required=False)
    storage = serializers.UUIDField(required=False, allow_null=True)
    retention = RetentionInput(required=False, help_text="Rules that are left out stay; null takes one away.")
    retention_paused = Flag(required=False, help_text="Only `false`: retention goes on after it was stopped.")


class RetentionOutput(serializers.Serializer[Any]):
    keep_last = serializers.IntegerField(allow_null=True)
    keep_days = serializers.IntegerField(allow_null=True)
    keep_daily = serializers.IntegerField(allow_null=True)
    keep_weekly = serializers.IntegerField(allow_null=True)
    keep_monthly = serializers.IntegerField(allow_null=True)
    max_bytes = serializers.IntegerField(allow_null=True)


class RunOutput(serializers.ModelSerializer[ScheduleRun]):
    outcome = serializers.ChoiceField(choices=RunOutcome.choices)
    detail = serializers.CharField(help_text="Why it was skipped or failed; how many slots were missed before.")
    backup = serializers.UUIDField(source="backup_uuid", allow_null=True)

    class Meta:
        model = ScheduleRun
        fields = ["due_at", "outcome", "detail", "backup", "created_at"]
        read_only_fields = fields


class SchedulePreview(serializers.Serializer[Any]):
    cron = serializers.CharField()
    time_zone = serializers.CharField()
    description = serializers.CharField(help_text="In plain English.")
    next_runs = serializers.ListField(child=serializers.DateTimeField(), help_text="The coming five slots.")


class ScheduleOutput(serializers.ModelSerializer[Schedule]):
    project = serializers.UUIDField(source="project_id")
    storage = serializers.UUIDField(source="storage_id", allow_null=True, help_text="Null: the default one.")
    retention = serializers.SerializerMethodField()
    description = serializers.SerializerMethodField(help_text="In plain English.")
    next_runs = serializers.SerializerMethodField(help_text="The coming five slots.")
    next_run_at = serializers.DateTimeField(
        allow_null=True, help_text="When the next one really begins: within the hour after its slot."
    )
    last_run = serializers.SerializerMethodField()
    paused_reason = serializers.SerializerMethodField(help_text="Why slots pass without a backup. Empty: they don't.")
    retention_paused_reason = serializers.CharField(help_text="Why the clock removes nothing. Empty: it does.")

    class Meta:
        model = Schedule
        fields = [
            "id", "project", "cron", "time_zone", "description", "enabled", "storage", "retention", "next_runs",
            "next_run_at", "last_run", "paused_reason", "retention_paused_reason", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(RetentionOutput)
    def get_retention(self, schedule: Schedule) -> dict[str, int | None]:
        return {name: getattr(schedule, name) for name in services.RETENTION}

    def get_description(self, schedule: Schedule) -> str:
        return services.describe(schedule.cron, schedule.time_zone)

    @extend_schema_field(serializers.ListField(child=serializers.DateTimeField()))
    def get_next_runs(self, schedule: Schedule) -> list[Any]:
        if not schedule.enabled:
            return []
        field = serializers.DateTimeField()
        return [field.to_representation(at) for at in services.next_runs(schedule.cron, schedule.time_zone)]

    @extend_schema_field(RunOutput(allow_null=True))
    def get_last_run(self, schedule: Schedule) -> dict[str, Any] | None:
        runs = self.context.get("last_runs")
        run = runs.get(schedule.pk) if runs is not None else schedule.runs.first()
        return None if run is None else dict(RunOutput(run).data)

    def get_paused_reason(self, schedule: Schedule) -> str:
        return services.paused_reason(schedule)


class ScheduleBackup(serializers.ModelSerializer[Backup]):
    """The backup that was begun."""

    project = serializers.UUIDField(source="project_uuid")
    storage = serializers.UUIDField(source="storage_id")
    operation = serializers.UUIDField(source="operation_id", allow_null=True)
    error = OperationError(source="error_body", allow_null=True)

    class Meta:
        model = Backup
        fields = [
            "id",
            "project",
            "engine",
            "version",
            "trigger",
            "status",
            "storage",
            "operation",
            "error",
            "created_at",
        ]
        read_only_fields = fields


class RetentionTry(Input):
    dry_run = Flag(required=False, default=False, help_text="Only say what would be removed.")
    retention = RetentionInput(required=False, help_text="With `dry_run`: rules to try instead.")


class RetentionVerdict(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    created_at = serializers.DateTimeField()
    status = serializers.CharField()
    size_bytes = serializers.IntegerField(allow_null=True)
    keep = serializers.BooleanField()
    why = serializers.ListField(child=serializers.CharField())
    due_since = serializers.DateTimeField(
        allow_null=True, help_text="Since when nothing keeps it; it goes at a daily look 20 hours later."
    )


class RetentionLook(serializers.Serializer[Any]):
    keep = serializers.IntegerField()
    remove = serializers.IntegerField()
    remove_bytes = serializers.IntegerField()
    removed = serializers.ListField(child=serializers.UUIDField(), help_text="What is being removed by this call.")
    backups = RetentionVerdict(many=True, help_text="Newest first.")


def look_body(found: Look) -> dict[str, Any]:
    going = found.going
    return {
        "keep": len(found.verdicts) - len(going), "remove": len(going),
        "remove_bytes": sum(row.size_bytes or 0 for row in going), "removed": [row.pk for row in found.removed],
        "backups": [
            {
                "id": v.item.id, "created_at": v.item.at, "status": found.rows[v.item.id].status,
                "size_bytes": found.rows[v.item.id].size_bytes, "keep": v.keep, "why": v.why,
                "due_since": found.rows[v.item.id].due_since,
            }
            for v in found.verdicts
        ],
    }  # fmt: skip


@extend_schema(tags=["schedules"])
class ScheduleListView(ProjectScoped, generics.GenericAPIView[Schedule]):
    queryset = Schedule.objects.none()
    serializer_class = ScheduleOutput
    filter_backends: list[Any] = [Ordering]
    ordering_fields: ClassVar[list[str]] = ["created_at", "next_run_at"]

    def get_queryset(self) -> QuerySet[Schedule]:
        if getattr(self, "swagger_fake_view", False):
            return Schedule.objects.none()
        return Schedule.objects.filter(project=self.project()).select_related("project")

    @extend_schema(operation_id="schedules_list", responses={200: ScheduleOutput(many=True), **problems(400, 404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """The project's schedules, oldest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        keys = [schedule.pk for schedule in page]
        newest = (
            ScheduleRun.objects.filter(schedule__in=keys).order_by("schedule_id", "-due_at").distinct("schedule_id")
        )
        context = {"request": request, "last_runs": {run.schedule_id: run for run in newest}}
        return self.get_paginated_response(ScheduleOutput(page, many=True, context=context).data)

    @extend_schema(
        operation_id="schedules_create", parameters=[IDEMPOTENCY_KEY], request=ScheduleInput, examples=EXAMPLES,
        responses={200: SchedulePreview, 201: ScheduleOutput, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Make one. With `dry_run` 200 with what it means, in words and in the next five slots."""
        project: Project = self.project(Capability.PROJECT_CHANGE)
        wanted = dict(parsed(ScheduleInput, request).validated_data)
        if wanted.pop("dry_run"):
            return Response(self._preview(wanted))

        def make() -> tuple[int, dict[str, str]]:
            schedule = services.schedule_create(principal=self.principal, project=project, **wanted)
            return 201, {"schedule": str(schedule.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            schedule = (
                Schedule.objects.select_related("project").filter(project=project, pk=resource["schedule"]).first()
            )
            if schedule is None:
                raise NotFound
            location = reverse("schedule-detail", kwargs={"pk": schedule.pk}, request=request)
            return Response(ScheduleOutput(schedule).data, status=status, headers={"Location": location})

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)

    def _preview(self, wanted: dict[str, Any]) -> dict[str, Any]:
        cron, zone = services.cron_of(wanted.get("cron"), wanted.get("preset")), wanted["time_zone"]
        services.clean_retention(wanted.get("retention") or {})
        shown = {
            "cron": cron, "time_zone": zone, "description": services.describe(cron, zone),
            "next_runs": services.next_runs(cron, zone),
        }  # fmt: skip
        return dict(SchedulePreview(shown).data)


class ScheduleScoped(PrincipalMixin):
    """Views below `schedules/{id}/`."""

    kwargs: dict[str, Any]

    def schedule(self, capability: Capability = Capability.PROJECT_VIEW) -> Schedule:
        rows = Schedule.objects.filter(organization_id__in=self.principal.organization_ids())
        found = rows.select_related("project").filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        require(self.principal, found.organization_id, capability)
        return found


@extend_schema(tags=["schedules"])
class ScheduleView(ScheduleScoped, generics.GenericAPIView[Schedule]):
    queryset = Schedule.objects.none()
    serializer_class = ScheduleOutput

    @extend_schema(operation_id="schedules_retrieve", responses={200: ScheduleOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One schedule."""
        return Response(ScheduleOutput(self.schedule()).data)

    @extend_schema(
        operation_id="schedules_update", request=ScheduleChange,
        examples=[OpenApiExample("Pause", value={"enabled": False}, request_only=True)],
        responses={200: ScheduleOutput, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def patch(self, request: Request, pk: UUID) -> Response:
        """Change some of it. `retention_paused: false` lets retention go on after it was stopped."""
        schedule = self.schedule(Capability.PROJECT_CHANGE)
        changes = dict(parsed(ScheduleChange, request).validated_data)
        found = services.schedule_update(principal=self.principal, schedule=schedule, changes=changes)
        return Response(ScheduleOutput(found).data)

    @extend_schema(operation_id="schedules_delete", responses={204: None, **problems(403, 404)})
    def delete(self, request: Request, pk: UUID) -> Response:
        """No further runs. The backups that it made stay, until somebody removes them."""
        services.schedule_delete(principal=self.principal, schedule=self.schedule(Capability.PROJECT_CHANGE))
        return Response(status=204)


@extend_schema(tags=["schedules"])
class ScheduleRunView(ScheduleScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = ScheduleBackup

    @extend_schema(
        operation_id="schedules_run", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={202: ScheduleBackup, **problems(403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Take a backup now, as the schedule would. Its slots stay as they are."""
        schedule = self.schedule(Capability.PROJECT_ACT)

        def make() -> tuple[int, dict[str, str]]:
            return 202, {"backup": str(services.schedule_run(principal=self.principal, schedule=schedule).pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            backup = Backup.objects.for_principal(self.principal).filter(pk=resource["backup"]).first()
            if backup is None:
                raise NotFound
            return Response(ScheduleBackup(backup).data, status=status)

        return idempotent(request, organization_id=schedule.organization_id, effect=make, rebuild=rebuild)


@extend_schema(tags=["schedules"])
class ScheduleRunsView(ScheduleScoped, generics.GenericAPIView[ScheduleRun]):
    queryset = ScheduleRun.objects.none()
    serializer_class = RunOutput
    filter_backends: list[Any] = []

    @extend_schema(operation_id="schedules_runs", responses={200: RunOutput(many=True), **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """Its slots so far, newest first: what was begun, and what was skipped and why."""
        page = self.paginate_queryset(ScheduleRun.objects.filter(schedule=self.schedule())) or []
        return self.get_paginated_response(RunOutput(page, many=True).data)


@extend_schema(tags=["schedules"])
class RetentionView(ScheduleScoped, generics.GenericAPIView[Schedule]):
    queryset = Schedule.objects.none()
    serializer_class = RetentionLook

    @extend_schema(
        operation_id="schedules_retention", parameters=[IDEMPOTENCY_KEY], request=RetentionTry,
        examples=[
            OpenApiExample(
                "Try other rules", value={"dry_run": True, "retention": {"keep_last": 3}}, request_only=True
            )
        ],
        responses={200: RetentionLook, 202: RetentionLook, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """What the rules keep and remove, and why. Without `dry_run` all that nothing keeps is removed now, however many:
        the answer when retention stopped because too many were due at once."""
        wanted = parsed(RetentionTry, request).validated_data
        needed = Capability.PROJECT_VIEW if wanted["dry_run"] else Capability.PROJECT_DELETE
        schedule = self.schedule(needed)
        if wanted["dry_run"]:
            found = services.retention_preview(
                principal=self.principal, schedule=schedule, retention=wanted.get("retention")
            )
            return Response(RetentionLook(look_body(found)).data)
        services.refuse_rules(wanted)
        shown: list[Look] = []

        def make() -> tuple[int, dict[str, str]]:
            shown.append(services.retention_apply(principal=self.principal, schedule=schedule))
            return 202, {}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            look = shown[0] if shown else services.retention_preview(principal=self.principal, schedule=schedule)
            return Response(RetentionLook(look_body(look)).data, status=status)

        return idempotent(request, organization_id=schedule.organization_id, effect=make, rebuild=rebuild)
