"""Proofs of backups, drills, and what a project promises about its backups."""

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
from backups.api.briefs import WithOperations, brief, operations_of
from backups.models import Backup, Drill, Proof, ProofKind, ProofState
from backups.services import proofs as services
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.filters import Ordering
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import ProjectScoped, parsed
from projects.api.fields import Flag, Input, Text, Whole
from projects.api.inputs import Nothing
from projects.api.operation_outputs import OperationError
from projects.api.outputs import OperationBrief
from projects.models import Project

DRILL_EXAMPLES = [
    OpenApiExample(
        "Every Monday", request_only=True,
        value={
            "name": "Orders are there", "cron": "0 4 * * 1", "time_zone": "Europe/Berlin",
            "assertions": [
                {"name": "some orders", "sql": "SELECT count(*) > 1000 FROM orders", "expect": "true"},
                {"name": "the newest is of today", "sql": "SELECT max(day) FROM orders", "expect": "2026-11-21"},
            ],
        },
    )
]  # fmt: skip


# --- what is shown ------------------------------------------------------------------------------------------------------
class AnswerOutput(serializers.Serializer[Any]):
    name = serializers.CharField()
    passed = serializers.BooleanField()
    detail = serializers.CharField(help_text="What came, and what was expected.")


class ProofOutput(serializers.ModelSerializer[Proof]):
    backup = serializers.UUIDField(source="backup_id")
    drill = serializers.UUIDField(source="drill_id", allow_null=True)
    kind = serializers.ChoiceField(choices=ProofKind.choices)
    state = serializers.ChoiceField(choices=ProofState.choices)
    operation = serializers.SerializerMethodField(help_text="Null: it is no longer kept.")
    differences = serializers.ListField(child=serializers.CharField(), help_text="At most 20; no values of rows.")
    assertions = AnswerOutput(many=True, help_text="Of a drill.")
    notes = serializers.ListField(
        child=serializers.CharField(), help_text="Under what other circumstances than the source's."
    )
    error = OperationError(allow_null=True)
    operation_columns = ("operation_id",)

    class Meta:
        model = Proof
        list_serializer_class = WithOperations
        fields = [
            "id", "backup", "drill", "kind", "state", "operation", "created_at", "started_at", "finished_at",
            "restore_seconds", "compare_seconds", "tables", "rows", "differences", "assertions", "notes", "error",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(OperationBrief(allow_null=True))
    def get_operation(self, proof: Proof) -> dict[str, Any] | None:
        return brief(self.context, proof.operation_id)


class AssertionOutput(serializers.Serializer[Any]):
    name = serializers.CharField()
    sql = serializers.CharField()
    expect = serializers.CharField(allow_null=True)


class DrillOutput(serializers.ModelSerializer[Drill]):
    project = serializers.UUIDField(source="project_id")
    assertions = AssertionOutput(many=True)
    description = serializers.SerializerMethodField(help_text="When, in plain English; empty: by hand only.")
    last_run = serializers.SerializerMethodField()
    stalled_since = serializers.DateTimeField(allow_null=True, help_text="It could not run since; null: it can.")
    stalled_error = OperationError(allow_null=True, help_text="Why it could not run, the last time.")

    class Meta:
        model = Drill
        fields = [
            "id", "project", "name", "cron", "time_zone", "description", "enabled", "assertions", "next_run_at", "last_run",
            "stalled_since", "stalled_error", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields

    def get_description(self, drill: Drill) -> str:
        return services.schedules.describe(drill.cron, drill.time_zone) if drill.cron else ""

    @extend_schema_field(ProofOutput(allow_null=True))
    def get_last_run(self, drill: Drill) -> dict[str, Any] | None:
        runs = self.context.get("last_runs")
        run = runs.get(drill.pk) if runs is not None else drill.runs.first()
        return None if run is None else dict(ProofOutput(run, context=self.context).data)


class ObjectiveBackup(serializers.ModelSerializer[Backup]):
    class Meta:
        model = Backup
        fields = ["id", "status", "started_at", "finished_at", "verified_at", "rto_seconds"]
        read_only_fields = fields


class ObjectiveOutput(serializers.Serializer[Any]):
    """Targets in seconds; null: none."""

    verify_after_backup = serializers.BooleanField(source="policy.verify_after_backup")
    reverify_days = serializers.IntegerField(source="policy.reverify_days", help_text="0: never again by itself.")
    rpo_seconds = serializers.IntegerField(source="policy.rpo_seconds", allow_null=True)
    rto_seconds = serializers.IntegerField(source="policy.rto_seconds", allow_null=True)
    heartbeat_url = serializers.CharField(source="policy.heartbeat_url", help_text="Called after each verified backup.")
    heartbeat_at = serializers.DateTimeField(source="policy.heartbeat_at", allow_null=True)
    heartbeat_error = serializers.CharField(source="policy.heartbeat_error", help_text="Of the last call. Empty: none.")
    last_backup = ObjectiveBackup(allow_null=True)
    last_verified = ObjectiveBackup(allow_null=True)
    last_verified_age_seconds = serializers.FloatField(
        allow_null=True, help_text="How old what the newest verified backup holds is now."
    )
    rto_measured_seconds = serializers.FloatField(allow_null=True, help_text="What restoring that one took.")
    missed_runs = serializers.IntegerField(help_text="Slots without a backup in the last seven days.")
    corrupt = serializers.IntegerField(help_text="Backups that are corrupt.")
    broken = serializers.BooleanField()
    reasons = serializers.ListField(child=serializers.CharField())


# --- what is taken ------------------------------------------------------------------------------------------------------
class AssertionInput(Input):
    name = Text(required=False, allow_blank=True, max_length=200)
    sql = Text(max_length=services.MOST_SQL, help_text="One query, asked as the database's user, read-only.")
    expect = Text(
        required=False, allow_null=True, allow_blank=True, default=None, max_length=1000,
        help_text="The first cell of the answer as text; null: NULL, or no row.",
    )  # fmt: skip


class DrillInput(Input):
    name = Text(max_length=200)
    cron = Text(required=False, default="", allow_blank=True, max_length=200, help_text="Empty: by hand only.")
    time_zone = Text(required=False, default="UTC", max_length=200)
    enabled = Flag(required=False, default=True)
    assertions = AssertionInput(many=True)


class DrillChange(Input):
    name = Text(required=False, max_length=200)
    cron = Text(required=False, allow_blank=True, max_length=200)
    time_zone = Text(required=False, max_length=200)
    enabled = Flag(required=False)
    assertions = AssertionInput(many=True, required=False)


class PolicyChange(Input):
    verify_after_backup = Flag(required=False)
    reverify_days = Whole(required=False)
    rpo_seconds = Whole(required=False, allow_null=True)
    rto_seconds = Whole(required=False, allow_null=True)
    heartbeat_url = Text(required=False, allow_blank=True, max_length=2000)


def body(serializer: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    """As plain data: nested ones too."""
    found = dict(parsed(serializer, request).validated_data)
    if "assertions" in found:
        found["assertions"] = [dict(each) for each in found["assertions"]]
    return found


# --- views --------------------------------------------------------------------------------------------------------------
class BackupProofScoped(PrincipalMixin):
    """Views below `backups/{id}/`."""

    kwargs: dict[str, Any]

    def backup(self, capability: Capability = Capability.PROJECT_VIEW) -> Backup:
        found: Backup | None = Backup.objects.for_principal(self.principal).filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        require(self.principal, found.organization_id, capability)
        return found


class ProofsView(generics.GenericAPIView[Proof]):
    """Proofs of something, page by page, newest first."""

    queryset = Proof.objects.none()
    serializer_class = ProofOutput
    filter_backends: list[Any] = [Ordering]
    ordering_fields: ClassVar[list[str]] = ["created_at"]

    def get_queryset(self) -> QuerySet[Proof]:
        if getattr(self, "swagger_fake_view", False):
            return Proof.objects.none()
        return self.whose()

    def whose(self) -> QuerySet[Proof]:
        raise NotImplementedError

    def page(self, request: Request) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        return self.get_paginated_response(ProofOutput(page, many=True, context={"request": request}).data)


def accepted(view: Any, request: Request, organization_id: UUID, act: Any) -> Response:
    """Do it once per `Idempotency-Key`, and answer 202 with the proof that was begun."""
    parsed(Nothing, request)

    def make() -> tuple[int, dict[str, str]]:
        return 202, {"proof": str(services.proof_of(act()).pk)}

    def rebuild(status: int, resource: dict[str, str]) -> Response:
        proof = Proof.objects.filter(pk=resource["proof"]).first()
        if proof is None:
            raise NotFound
        return Response(ProofOutput(proof, context={"request": request}).data, status=status)

    return idempotent(request, organization_id=organization_id, effect=make, rebuild=rebuild)


@extend_schema(tags=["backups"])
class BackupVerifyView(BackupProofScoped, generics.GenericAPIView[Proof]):
    queryset = Proof.objects.none()
    serializer_class = ProofOutput

    @extend_schema(
        operation_id="backups_verify", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={202: ProofOutput, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Restore it into a throw-away server and compare it with its manifest, now."""
        backup = self.backup(Capability.PROJECT_ACT)
        return accepted(
            self, request, backup.organization_id,
            lambda: services.backup_verify(principal=self.principal, backup=backup),
        )  # fmt: skip


@extend_schema(tags=["backups"])
class BackupProofsView(BackupProofScoped, ProofsView):
    def whose(self) -> QuerySet[Proof]:
        return Proof.objects.filter(backup=self.backup())

    @extend_schema(operation_id="backups_proofs", responses={200: ProofOutput(many=True), **problems(400, 404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """Its proofs and drills, newest first."""
        return self.page(request)


@extend_schema(tags=["backups"])
class PolicyView(ProjectScoped, generics.GenericAPIView[Project]):
    queryset = Project.objects.none()
    serializer_class = ObjectiveOutput

    @extend_schema(operation_id="backup_policy_retrieve", responses={200: ObjectiveOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """What the project promises about its backups, and whether that is so."""
        return Response(ObjectiveOutput(services.objective(self.project())).data)

    @extend_schema(
        operation_id="backup_policy_update", request=PolicyChange,
        examples=[OpenApiExample("A day", value={"rpo_seconds": 86400, "rto_seconds": 3600}, request_only=True)],
        responses={200: ObjectiveOutput, **problems(400, 403, 404)},
    )  # fmt: skip
    def patch(self, request: Request, pk: UUID) -> Response:
        """Change some of it."""
        project = self.project(Capability.PROJECT_CHANGE)
        services.policy_update(principal=self.principal, project=project, changes=body(PolicyChange, request))
        return Response(ObjectiveOutput(services.objective(project)).data)


@extend_schema(tags=["drills"])
class DrillListView(ProjectScoped, generics.GenericAPIView[Drill]):
    queryset = Drill.objects.none()
    serializer_class = DrillOutput
    filter_backends: list[Any] = [Ordering]
    ordering_fields: ClassVar[list[str]] = ["name", "created_at"]

    def get_queryset(self) -> QuerySet[Drill]:
        if getattr(self, "swagger_fake_view", False):
            return Drill.objects.none()
        return Drill.objects.filter(project=self.project())

    @extend_schema(operation_id="drills_list", responses={200: DrillOutput(many=True), **problems(400, 404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """The project's drills, each with its last run."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        newest = Proof.objects.filter(drill__in=[drill.pk for drill in page])
        newest = newest.order_by("drill_id", "-created_at").distinct("drill_id")
        runs = {proof.drill_id: proof for proof in newest}
        operations = operations_of(runs.values(), "operation_id")
        context = {"last_runs": runs, "operations": operations, "request": request}
        return self.get_paginated_response(DrillOutput(page, many=True, context=context).data)

    @extend_schema(
        operation_id="drills_create", parameters=[IDEMPOTENCY_KEY], request=DrillInput, examples=DRILL_EXAMPLES,
        responses={201: DrillOutput, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Make one: the newest backup is restored into a throw-away server and asked."""
        project: Project = self.project(Capability.PROJECT_CHANGE)
        wanted = body(DrillInput, request)

        def make() -> tuple[int, dict[str, str]]:
            drill = services.drill_create(principal=self.principal, project=project, **wanted)
            return 201, {"drill": str(drill.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            drill = Drill.objects.filter(project=project, pk=resource["drill"]).first()
            if drill is None:
                raise NotFound
            location = reverse("drill-detail", kwargs={"pk": drill.pk}, request=request)
            return Response(
                DrillOutput(drill, context={"request": request}).data, status=status, headers={"Location": location}
            )

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)


class DrillScoped(PrincipalMixin):
    """Views below `drills/{id}/`."""

    kwargs: dict[str, Any]

    def drill(self, capability: Capability = Capability.PROJECT_VIEW) -> Drill:
        rows = Drill.objects.filter(organization_id__in=self.principal.organization_ids())
        found = rows.select_related("project").filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        require(self.principal, found.organization_id, capability)
        return found


@extend_schema(tags=["drills"])
class DrillView(DrillScoped, generics.GenericAPIView[Drill]):
    queryset = Drill.objects.none()
    serializer_class = DrillOutput

    @extend_schema(operation_id="drills_retrieve", responses={200: DrillOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One drill, with its last run."""
        return Response(DrillOutput(self.drill(), context={"request": request}).data)

    @extend_schema(
        operation_id="drills_update", request=DrillChange,
        responses={200: DrillOutput, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def patch(self, request: Request, pk: UUID) -> Response:
        """Change some of it."""
        drill = self.drill(Capability.PROJECT_CHANGE)
        found = services.drill_update(principal=self.principal, drill=drill, changes=body(DrillChange, request))
        return Response(DrillOutput(found, context={"request": request}).data)

    @extend_schema(operation_id="drills_delete", responses={204: None, **problems(403, 404)})
    def delete(self, request: Request, pk: UUID) -> Response:
        """No further runs. Its history stays with the backups that it tried."""
        services.drill_delete(principal=self.principal, drill=self.drill(Capability.PROJECT_CHANGE))
        return Response(status=204)


@extend_schema(tags=["drills"])
class DrillRunView(DrillScoped, generics.GenericAPIView[Proof]):
    queryset = Proof.objects.none()
    serializer_class = ProofOutput

    @extend_schema(
        operation_id="drills_run", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={202: ProofOutput, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Run it now, on the newest backup."""
        drill = self.drill(Capability.PROJECT_ACT)
        return accepted(
            self, request, drill.organization_id, lambda: services.drill_run(principal=self.principal, drill=drill)
        )


@extend_schema(tags=["drills"])
class DrillRunsView(DrillScoped, ProofsView):
    def whose(self) -> QuerySet[Proof]:
        return Proof.objects.filter(drill=self.drill())

    @extend_schema(operation_id="drills_runs", responses={200: ProofOutput(many=True), **problems(400, 404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """Its runs, newest first."""
        return self.page(request)
