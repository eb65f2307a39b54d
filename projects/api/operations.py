"""Operations: list, watch, retry, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import PrincipalMixin
from accounts.models import Scope
from accounts.permissions import Capability, require, require_scope
from novastack.common.api import idempotent
from novastack.common.errors import NotFound
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import Brief, ProjectScoped, parsed
from projects.api.details import whole_number
from projects.api.filters import FILTERS, OperationFilter
from projects.api.inputs import Nothing
from projects.api.operation_outputs import OperationSerializer
from projects.api.outputs import operation_brief
from projects.api.waiting import wait_for_end
from projects.models import Operation
from projects.services import operation_cancel, operation_retry

WAIT_MAX_SECONDS = 30


class AcceptedOperation(OperationSerializer):
    """The operation that goes on, or that was made, in full and in brief."""

    operation = Brief(read_only=True)

    class Meta(OperationSerializer.Meta):
        fields = [*OperationSerializer.Meta.fields, "operation"]
        read_only_fields = fields


class OperationList(PrincipalMixin, generics.ListAPIView[Operation]):
    queryset = Operation.objects.none()
    serializer_class = OperationSerializer
    filter_backends = FILTERS
    filterset_class = OperationFilter
    search_fields: ClassVar[list[str]] = ["project_name", "kind", "created_by_label"]
    ordering_fields: ClassVar[list[str]] = ["created_at", "finished_at", "kind", "state"]

    def get_queryset(self) -> QuerySet[Operation]:
        if getattr(self, "swagger_fake_view", False):
            return Operation.objects.none()
        require_scope(self.principal, Scope.READ)
        rows: QuerySet[Operation] = Operation.objects.for_principal(self.principal).with_steps()
        return rows


@extend_schema_view(
    get=extend_schema(
        tags=["operations"], operation_id="operations_list",
        responses={200: OperationSerializer(many=True), **problems(400, 404)},
    )
)  # fmt: skip
class OperationListView(OperationList):
    """Operations of the caller's organizations, newest first; also of projects that are gone."""


@extend_schema_view(
    get=extend_schema(
        tags=["projects"], operation_id="projects_operations",
        responses={200: OperationSerializer(many=True), **problems(400, 404)},
    )
)  # fmt: skip
class ProjectOperationListView(ProjectScoped, OperationList):
    """Operations of this project, newest first."""

    def get_queryset(self) -> QuerySet[Operation]:
        if getattr(self, "swagger_fake_view", False):
            return Operation.objects.none()
        return super().get_queryset().filter(project_uuid=self.project().pk)


@extend_schema(tags=["operations"])
class OperationScoped(PrincipalMixin, generics.GenericAPIView[Operation]):
    queryset = Operation.objects.none()
    serializer_class = OperationSerializer
    filter_backends: list[Any] = []
    pagination_class = None

    def operation(self, capability: Capability) -> Operation:
        found: Operation | None = (
            Operation.objects.for_principal(self.principal).with_steps().filter(pk=self.kwargs["pk"]).first()
        )
        if found is None or found.organization_id is None:
            raise NotFound
        require(self.principal, found.organization_id, capability)
        return found

    def accepted(self, request: Request, act: Callable[..., Operation]) -> Response:
        """Do it once per `Idempotency-Key`, and answer 202 with the operation that goes on."""
        operation = self.operation(Capability.PROJECT_ACT)
        parsed(Nothing, request)

        def make() -> tuple[int, dict[str, str]]:
            return 202, {"operation": str(act(principal=self.principal, operation=operation).pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            rows = Operation.objects.for_principal(self.principal).with_steps()
            going_on = rows.filter(pk=resource["operation"]).first()
            if going_on is None:
                raise NotFound
            shown = OperationSerializer(going_on, context={"request": request}).data
            return Response({**shown, "operation": operation_brief(going_on, request)}, status=status)

        return idempotent(request, organization_id=operation.organization_id, effect=make, rebuild=rebuild)


class OperationView(OperationScoped):
    @extend_schema(
        operation_id="operations_retrieve",
        parameters=[OpenApiParameter("wait", int, default=0, description="Seconds, 0 to 30.")],
        responses={200: OperationSerializer, **problems(400, 404)},
    )
    def get(self, request: Request, pk: UUID) -> Response:
        """One operation with its steps. `?wait=30` holds the answer until it has ended or 30 seconds have passed; when
        too many wait already, it comes at once."""
        seconds = whole_number(request, "wait", default=0, least=0, most=WAIT_MAX_SECONDS)
        operation = self.operation(Capability.PROJECT_VIEW)
        if seconds and operation.live:
            wait_for_end(operation.pk, seconds)
            operation = self.operation(Capability.PROJECT_VIEW)
        return Response(OperationSerializer(operation, context={"request": request}).data)


class OperationRetryView(OperationScoped):
    @extend_schema(
        operation_id="operations_retry",
        parameters=[IDEMPOTENCY_KEY],
        request=None,
        responses={202: AcceptedOperation, **problems(403, 404, 409, 422)},
    )
    def post(self, request: Request, pk: UUID) -> Response:
        """A waiting operation goes on at once; a failed one is begun again as a new operation."""
        return self.accepted(request, operation_retry)


class OperationCancelView(OperationScoped):
    @extend_schema(
        operation_id="operations_cancel",
        parameters=[IDEMPOTENCY_KEY],
        request=None,
        responses={202: AcceptedOperation, **problems(403, 404, 409, 422)},
    )
    def post(self, request: Request, pk: UUID) -> Response:
        """Ask it to stop and undo what it did. Kinds that roll forward: 409 `action_not_allowed`."""
        return self.accepted(request, operation_cancel)
