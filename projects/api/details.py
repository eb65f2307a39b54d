"""What one project shows: how to connect, status, metrics, logs, activity."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.filters import AuditEventFilter
from accounts.api.pagination import AuditEventPagination
from accounts.api.serializers import AuditEventSerializer
from accounts.models import AuditEvent
from accounts.permissions import Capability
from novastack.common.api import SecretResponse
from novastack.common.errors import Invalid
from novastack.common.filters import Ordering, Search
from novastack.common.openapi import problems
from projects.api.base import ProjectScoped
from projects.api.outputs import (
    ConnectionOutput,
    LogsOutput,
    MetricsOutput,
    StatusOutput,
    TablesOutput,
    live_operations,
    operation_brief,
    write_fence_of,
)
from projects.models import Project
from projects.services import connection_reveal
from projects.services.connections import render_connection
from projects.services.readings import (
    CURSOR_MAX,
    FOLLOW_SECONDS_MAX,
    LOG_LINES_MAX,
    RANGES,
    logs_follow,
    logs_read,
    metrics_of,
    status_of,
    tables_of,
)


def whole_number(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """A query parameter between `least` and `most`; anything else is a 400 that names it."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise Invalid.field(name, "out_of_range", f"Give a whole number from {least} to {most}.")
    return int(text)


class DetailView(ProjectScoped, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    filter_backends: list[Any] = []
    pagination_class = None


@extend_schema(tags=["projects"])
class ConnectionView(DetailView):
    serializer_class = ConnectionOutput

    @extend_schema(
        operation_id="projects_connection", responses={200: ConnectionOutput, **problems(403, 404, 409)}
    )  # fmt: skip
    def get(self, request: Request, pk: UUID) -> Response:
        """How to connect, with the password. Needs `connect`, is audited, and is never stored on the way."""
        info = connection_reveal(
            principal=self.principal, project=self.project(Capability.CONNECT), purpose="api"
        )  # fmt: skip
        ca_url = reverse("ca", request=request) if info.tls else None
        return SecretResponse(render_connection(info) | {"ca_url": ca_url})


@extend_schema(tags=["projects"])
class StatusView(DetailView):
    serializer_class = StatusOutput

    @extend_schema(operation_id="projects_status", responses={200: StatusOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """What was asked for and what was seen. `observed_at` says when."""
        project = self.project()
        operation = live_operations([project]).get(project.pk)
        body = {
            **status_of(project, operator=self.principal.is_operator),
            "write_fence": write_fence_of(project),
            "operation": operation_brief(operation, request),
        }
        return Response(StatusOutput(body).data)


@extend_schema(tags=["projects"])
class MetricsView(DetailView):
    serializer_class = MetricsOutput

    @extend_schema(
        operation_id="projects_metrics",
        parameters=[OpenApiParameter("range", str, enum=list(RANGES), default="1h")],
        responses={200: MetricsOutput, **problems(400, 404)},
    )
    def get(self, request: Request, pk: UUID) -> Response:
        """Readings, oldest first, mean and peak per bucket: at most 400 points, so that there is one page. Kept raw for a
        day, then as 5-minute and as hourly figures."""
        project = self.project()
        range_ = request.query_params.get("range", "1h")
        if range_ not in RANGES:
            raise Invalid.field("range", "invalid_choice", f"Use one of: {', '.join(RANGES)}.")
        series = metrics_of(project, range_)
        body = {"next": None, "previous": None, "range": range_, "bucket_seconds": series.bucket_seconds,
                "results": series.points}  # fmt: skip
        return Response(MetricsOutput(body).data)


@extend_schema(tags=["projects"])
class TablesView(ProjectScoped, generics.GenericAPIView[Any]):
    queryset = Project.objects.none()
    serializer_class = TablesOutput
    filter_backends: list[Any] = []

    @extend_schema(operation_id="projects_tables", responses={200: TablesOutput, **problems(404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """Tables (or collections) with rows and size, as the engine estimates them. The 200 largest are listed."""
        tables = tables_of(self.project())
        answer = self.get_paginated_response(self.paginate_queryset(tables.rows))  # type: ignore[arg-type]
        answer.data |= {"total": tables.total, "estimated": True, "measured_at": tables.measured_at}
        return Response(TablesOutput(answer.data).data)


@extend_schema(tags=["projects"])
class LogsView(DetailView):
    serializer_class = LogsOutput

    @extend_schema(
        operation_id="projects_logs",
        parameters=[
            OpenApiParameter("tail", int, default=200, description=f"Lines at most, 1 to {LOG_LINES_MAX}."),
            OpenApiParameter("cursor", str, description="Of an earlier answer: only what was logged after it."),
            OpenApiParameter(
                "follow",
                bool,
                default=False,
                description="Wait for a line if there is none; `next` goes on from there.",
            ),
            OpenApiParameter(
                "wait", int, default=10, description=f"Seconds that `follow` waits at most, 1 to {FOLLOW_SECONDS_MAX}."
            ),
        ],
        responses={200: LogsOutput, **problems(400, 403, 404, 409, 429, 503)},
    )
    def get(self, request: Request, pk: UUID) -> Response:
        """The server's last log lines, live: 503 when its runtime can't be reached now. Failed statements stand there with
        their data: not for viewers. With `follow=true` and the `cursor` of the answer before, each call gives the new lines
        once: `gap` says that some between were left out (more than `tail`, or the log began anew). Three at a time."""
        project = self.project(Capability.PROJECT_LOGS)
        tail = whole_number(request, "tail", default=200, least=1, most=LOG_LINES_MAX)
        wait = whole_number(request, "wait", default=10, least=1, most=FOLLOW_SECONDS_MAX)
        cursor = request.query_params.get("cursor", "")
        follow = request.query_params.get("follow", "false").lower()
        if follow not in {"true", "false", "1", "0"}:
            raise Invalid.field("follow", "invalid", "Use true or false.")
        if len(cursor) > CURSOR_MAX or not cursor.isprintable() or not cursor.isascii():
            raise Invalid.field("cursor", "invalid", "Give back the cursor of an earlier answer.")
        asked: dict[str, Any] = {"principal": self.principal, "project": project, "tail": tail, "cursor": cursor}
        more = None
        if follow in {"true", "1"}:
            found = logs_follow(**asked, seconds=wait)
            query = {"follow": "true", "tail": tail, "wait": wait, "cursor": found.cursor}
            more = request.build_absolute_uri(f"{request.path}?{urlencode(query)}")
        else:
            found = logs_read(**asked)
        return SecretResponse(
            {
                "next": more, "previous": None, "results": [{"message": line} for line in found.lines],
                "cursor": found.cursor, "gap": found.gap, "running": found.running,
            }
        )  # fmt: skip


@extend_schema_view(
    get=extend_schema(
        tags=["projects"], operation_id="projects_activity",
        responses={200: AuditEventSerializer(many=True), **problems(400, 403, 404)},
    )
)  # fmt: skip
class ActivityView(ProjectScoped, generics.ListAPIView[AuditEvent]):
    """Who changed or revealed what of this project, newest first. `?after=<sequence>` polls forward, oldest first."""

    queryset = AuditEvent.objects.none()
    serializer_class = AuditEventSerializer
    pagination_class = AuditEventPagination
    filter_backends: list[Any] = [DjangoFilterBackend, Search, Ordering]
    ordering_fields: list[str] = []
    filterset_class = AuditEventFilter
    search_fields: ClassVar[list[str]] = ["target", "actor_label", "action"]

    def get_queryset(self) -> QuerySet[AuditEvent]:
        if getattr(self, "swagger_fake_view", False):
            return AuditEvent.objects.none()
        project = self.project(Capability.AUDIT_VIEW)
        rows: QuerySet[AuditEvent] = AuditEvent.objects.for_organization(project.organization_id).filter(
            project_id=project.pk
        )
        return rows
