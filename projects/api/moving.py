"""Moves: what one would do, and doing it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import Capability
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import AcceptedProject, ProjectScoped, parsed
from projects.api.inputs import MoveInput
from projects.api.projects import operation_of
from projects.models import Project
from projects.services import project_move
from projects.services.moving import preview

EXAMPLES = [
    OpenApiExample("What would happen", value={"target": {"region": "eu-west-1"}, "dry_run": True}, request_only=True),
    OpenApiExample("To a server of its own", value={"target": {"placement": "dedicated"}}, request_only=True),
    OpenApiExample("To another plan", value={"target": {"plan": "small"}}, request_only=True),
]


class MoveLimits(serializers.Serializer[Any]):
    memory_bytes = serializers.IntegerField()
    cpus = serializers.FloatField()
    storage_bytes = serializers.IntegerField()


class MoveQuotas(serializers.Serializer[Any]):
    memory_bytes = serializers.IntegerField()
    storage_bytes = serializers.IntegerField()


class MoveProblem(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable.")
    detail = serializers.CharField()


class MovePreview(serializers.Serializer[Any]):
    """What a move, or a change of plan, will do."""

    kind = serializers.CharField(help_text="`move`, `change_plan` (at the same place) or `none`.")
    placement = serializers.CharField()
    region = serializers.CharField()
    plan = serializers.CharField()
    limits = MoveLimits()
    connection_limit = serializers.IntegerField()
    size_bytes = serializers.IntegerField(allow_null=True)
    expected_downtime_seconds = serializers.FloatField(help_text="A rough estimate by the size.")
    address_changes = serializers.BooleanField(help_text="Host or port will be other ones.")
    names_change = serializers.BooleanField(help_text="Database and user will have other names, as on every pool.")
    quotas = MoveQuotas(help_text="How much more of the organization's quotas it uses.")
    kept_hours = serializers.FloatField(help_text="For how long the old copy is kept.")
    problems = MoveProblem(many=True, help_text="What stands in the way now. Empty: it can begin.")


@extend_schema(tags=["projects"])
class MoveView(ProjectScoped, generics.GenericAPIView[Project]):
    queryset = Project.objects.none()
    serializer_class = MovePreview

    @extend_schema(
        operation_id="projects_move", parameters=[IDEMPOTENCY_KEY], request=MoveInput, examples=EXAMPLES,
        responses={200: MovePreview, 202: AcceptedProject, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Give the project another place: a pool or a server of its own, another region, another plan. With `dry_run` 200
        and what would happen; else 202 with the operation `move`. Clients are shut out while the copy is made and
        compared; the operation's `result` then says for how long, and what of the address changed."""
        project = self.project(Capability.PROJECT_CHANGE)
        wanted = parsed(MoveInput, request).validated_data
        target: dict[str, Any] = dict(wanted.get("target") or {})
        if wanted["dry_run"]:
            seen = preview(self.principal, project, target=target, move=True)
            return Response(MovePreview(seen.as_json()).data)

        def make() -> tuple[int, dict[str, str]]:
            operation = project_move(principal=self.principal, project=project, target=target)
            return 202, {"operation": str(operation.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            operation = operation_of(resource)
            if operation is None:
                raise NotFound
            return self.answer(request, project.pk, operation, status)

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)
