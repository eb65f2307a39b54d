"""Figures for a dashboard."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import PrincipalMixin
from accounts.models import Scope
from accounts.permissions import Capability, require_scope
from accounts.services import organization_for
from novastack.common.openapi import problems
from projects.services.overview import overview_of


class ProjectFigures(serializers.Serializer[Any]):
    total = serializers.IntegerField(help_text="Without the recycle bin.")
    by_status = serializers.DictField(child=serializers.IntegerField())
    by_engine = serializers.DictField(child=serializers.IntegerField())
    by_region = serializers.DictField(child=serializers.IntegerField())


class BackupFigures(serializers.Serializer[Any]):
    """Of projects that are there, and of those that are gone."""

    available = serializers.BooleanField(help_text="False: this install takes no backups.")
    total = serializers.IntegerField(help_text="Without failed ones.")
    by_status = serializers.DictField(child=serializers.IntegerField())
    size_bytes = serializers.IntegerField(help_text="As they lie in their storages.")
    last_verified_at = serializers.DateTimeField(allow_null=True)


class DayFigures(serializers.Serializer[Any]):
    date = serializers.DateField()
    count = serializers.IntegerField(help_text="Changes and revelations: events of the audit log.")


class OverviewOutput(serializers.Serializer[Any]):
    projects = ProjectFigures()
    storage_bytes = serializers.IntegerField(help_text="As measured, recycle bin included.")
    connections = serializers.IntegerField()
    backups = BackupFigures()
    activity = DayFigures(many=True)


@extend_schema(tags=["projects"])
class OverviewView(PrincipalMixin, generics.GenericAPIView[Any]):
    serializer_class = OverviewOutput
    filter_backends: list[Any] = []
    pagination_class = None

    @extend_schema(
        operation_id="projects_overview",
        parameters=[OpenApiParameter("organization", str, description="Slug or id; all of yours if missing.")],
        responses={200: OverviewOutput, **problems(404)},
    )
    def get(self, request: Request) -> Response:
        """Counts and sums over all projects that the caller may see."""
        require_scope(self.principal, Scope.READ)
        ref = request.query_params.get("organization", "")[:100]
        if ref:
            ids = [organization_for(self.principal, ref, capability=Capability.PROJECT_VIEW).pk]
        else:
            ids = self.principal.organization_ids(Capability.PROJECT_VIEW)
        return Response(overview_of(ids))
