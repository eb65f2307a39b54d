"""`projects/{id}/services/` and `/resources/`: the tenant data layer around a database."""

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
from projects.api.base import Brief, ProjectScoped, parsed
from projects.api.fields import Input
from projects.api.outputs import ProjectQuotas, operation_brief
from projects.api.projects import operation_of
from projects.models import Project, ServiceStatus, ServiceType
from projects.services.project_services import ACTIONS, ServiceState, resources_of, service_action, services_of
from projects.services.quotas import project_usage


class ServiceOutput(serializers.Serializer[Any]):
    service = serializers.ChoiceField(choices=ServiceType.choices)
    status = serializers.ChoiceField(
        choices=ServiceStatus.choices, help_text="`active`: the service itself has said so."
    )
    reason = serializers.CharField(help_text="Why it is not active.")
    service_id = serializers.CharField(help_text="The service's own id for the project.")
    endpoint = serializers.CharField()
    config = serializers.DictField(allow_null=True, help_text="Null without the right to connect.")
    registered_at = serializers.DateTimeField(allow_null=True)
    available = serializers.BooleanField(help_text="An endpoint takes registrations in this region.")
    actions = serializers.ListField(child=serializers.CharField(), help_text="What makes sense now.")


class ServiceAccepted(ServiceOutput):
    operation = Brief(read_only=True)


class ServiceActionInput(Input):
    action = serializers.ChoiceField(choices=[(a, a) for a in ACTIONS])


class ResourceOutput(serializers.Serializer[Any]):
    type = serializers.ChoiceField(choices=[(t, t) for t in ("databases", "api_keys", "services", "storage")])
    id = serializers.CharField()
    metadata = serializers.DictField()
    created_at = serializers.DateTimeField()


class ResourcesOutput(serializers.Serializer[Any]):
    """Oldest first."""

    count = serializers.IntegerField()
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    quotas = ProjectQuotas(help_text="The plan's, and what is used of them.")
    results = ResourceOutput(many=True)


class ServiceScoped(ProjectScoped):
    def shown(self, project: Project, state: ServiceState) -> dict[str, Any]:
        connects = Capability.CONNECT in self.principal.capabilities_in(project.organization_id)
        return {
            "service": state.service_type, "status": state.status, "reason": state.reason,
            "service_id": state.service_id, "endpoint": state.endpoint, "config": state.config if connects else None,
            "registered_at": state.registered_at, "available": state.can_register, "actions": list(state.actions),
        }  # fmt: skip

    def one(self, project: Project, service: str) -> dict[str, Any]:
        found = next((s for s in services_of(project) if s.service_type == service), None)
        if found is None:
            raise NotFound
        return self.shown(project, found)


@extend_schema(tags=["services"])
class ServiceListView(ServiceScoped, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    serializer_class = ServiceOutput
    filter_backends: list[Any] = []

    @extend_schema(operation_id="services_list", responses={200: ServiceOutput(many=True), **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """Auth, realtime, storage: what each of them knows of the project."""
        project = self.project()
        rows = [self.shown(project, state) for state in services_of(project)]
        page = self.paginate_queryset(rows)  # type: ignore[arg-type]
        return self.get_paginated_response(ServiceOutput(page, many=True).data)


@extend_schema(tags=["services"])
class ServiceView(ServiceScoped, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    serializer_class = ServiceOutput
    pagination_class = None
    filter_backends: list[Any] = []

    @extend_schema(operation_id="services_retrieve", responses={200: ServiceOutput, **problems(404)})
    def get(self, request: Request, pk: UUID, service: str) -> Response:
        """One of them."""
        return Response(ServiceOutput(self.one(self.project(), service)).data)

    @extend_schema(
        operation_id="services_action", parameters=[IDEMPOTENCY_KEY], request=ServiceActionInput,
        examples=[OpenApiExample("Register", value={"action": "enable"}, request_only=True)],
        responses={202: ServiceAccepted, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID, service: str) -> Response:
        """`enable`, `disable`, `retry` after an error, `register` anew. Without an endpoint in the region it stays `disabled`,
        with that reason."""
        project = self.project(Capability.PROJECT_CHANGE)
        if service not in ServiceType.values:
            raise NotFound
        wanted = parsed(ServiceActionInput, request).validated_data

        def make() -> tuple[int, dict[str, str]]:
            operation = service_action(
                principal=self.principal, project=project, service=service, action=wanted["action"]
            )
            return 202, {"operation": str(operation.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            body = ServiceOutput(self.one(project, service)).data
            brief = operation_brief(operation_of(resource), request)
            return Response({**body, "operation": brief}, status=status)

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)


@extend_schema(tags=["services"])
class ResourceListView(ProjectScoped, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    serializer_class = ResourcesOutput
    filter_backends: list[Any] = []

    @extend_schema(operation_id="resources_list", responses={200: ResourcesOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """What exists of the project: databases, API keys, registrations with services, storage; and the plan's quotas."""
        project = self.project()
        answer = self.get_paginated_response(self.paginate_queryset(resources_of(project)))  # type: ignore[arg-type]
        return Response(ResourcesOutput({**answer.data, "quotas": project_usage(project)}).data)
