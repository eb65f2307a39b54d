"""What the views share: the scoped fetch, and answers that show a project with its operation."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import PrincipalMixin
from accounts.permissions import Capability, require
from novastack.common.errors import NotFound
from projects.api.outputs import OperationBrief, ProjectSerializer, live_operations
from projects.models import Operation, Project


def parsed(serializer: type[serializers.Serializer[Any]], request: Request) -> Any:
    """The body in the serializer's shape; 400 with the fields otherwise."""
    found = serializer(data={} if request.data is None else request.data)
    found.is_valid(raise_exception=True)
    return found


def render_project(project: Project, request: Request, *, operation: Operation | None = None) -> dict[str, Any]:
    """The project, with `operation` if it is named, else with its live one."""
    operations = {project.pk: operation} if operation is not None else live_operations([project])
    return dict(ProjectSerializer(project, context={"request": request, "operations": operations}).data)


class ProjectScoped(PrincipalMixin):
    """Views below `projects/{id}/`."""

    kwargs: dict[str, Any]

    def project(self, capability: Capability = Capability.PROJECT_VIEW) -> Project:
        """The project by who asks: `NotFound` for outsiders, `PermissionDenied` without the capability."""
        found: Project | None = Project.objects.for_principal(self.principal).for_lists().filter(
            pk=self.kwargs["pk"]
        ).first()  # fmt: skip
        if found is None:
            raise NotFound
        require(self.principal, found.organization_id, capability)
        return found

    def answer(self, request: Request, pk: UUID, operation: Operation | None, status: int, **kwargs: Any) -> Response:
        """The project as it is now, fetched again by who asks."""
        project = Project.objects.for_principal(self.principal).for_lists().filter(pk=pk).first()
        if project is None:
            raise NotFound
        return Response(render_project(project, request, operation=operation), status=status, **kwargs)


@extend_schema_field(OperationBrief)
class Brief(serializers.JSONField):
    pass


class AcceptedProject(ProjectSerializer):
    """The project, with the `operation` that was accepted."""

    operation = Brief(read_only=True)  # type: ignore[assignment]
