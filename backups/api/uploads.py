"""A dump that was taken elsewhere is sent as the body of one request, and becomes a backup."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics
from rest_framework.exceptions import UnsupportedMediaType
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.permissions import Capability
from backups.api.backups import BackupScoped, BackupSerializer
from backups.models import Backup
from backups.services.uploads import Intake, LengthRequired, drain, upload_receive
from novastack.common.api import idempotent
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import ProjectScoped

_FORMS = ("multipart/", "application/x-www-form-urlencoded", "application/json")


@extend_schema(tags=["backups"])
class ProjectUploadsView(ProjectScoped, BackupScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = BackupSerializer

    @extend_schema(
        operation_id="projects_uploads_create",
        parameters=[
            IDEMPOTENCY_KEY,
            OpenApiParameter("filename", str, description="What it is called; shown with the backup."),
            OpenApiParameter("label", str, description="Else the file's name."),
            OpenApiParameter("storage", str, description="Id or name; else the default."),
        ],
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses={202: BackupSerializer, **problems(400, 403, 404, 409, 411, 413, 415, 422, 429, 503)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Send a dump of your own: the file as the request's body, with its `Content-Length`. PostgreSQL takes pg_dump's
        custom and tar formats and SQL, MySQL and MariaDB take SQL; each may be packed with gzip or zstd. It is streamed to the
        storage, run in a throw-away server that reaches nothing, and kept as a backup with `trigger` = `upload`: 202 with
        that backup and the `operation` that makes it. Restore it as any other. What is not taken is answered with a
        code that says why (`upload_…`), and nothing of it stays."""
        project = self.project(Capability.PROJECT_ACT)
        body = request._request
        try:
            intake = Intake(
                self.principal, project, filename=request.query_params.get("filename", ""),
                label=request.query_params.get("label", ""), storage=request.query_params.get("storage") or None,
                size_bytes=_length(request),
            )  # fmt: skip
            sha256 = upload_receive(intake, body)
        except Exception:
            drain(body)
            raise

        def make() -> tuple[int, dict[str, str]]:
            backup = intake.begin()
            return 202, {"backup": str(backup.pk), "operation": str(backup.operation_id)}

        def rebuild(status: int, made: dict[str, Any]) -> Response:
            location = reverse("backup-detail", kwargs={"pk": made["backup"]}, request=request)
            return self.shown(request, made["backup"], status, headers={"Location": location})

        try:
            answer = idempotent(
                request, organization_id=project.organization_id, effect=make, rebuild=rebuild, body_hash=sha256
            )
        except BaseException:
            intake.discard()
            raise
        if answer.headers.get("Idempotency-Replayed"):
            intake.discard()
        intake.close()
        return answer


def _length(request: Request) -> int:
    kind = str(request.content_type or "")
    if kind.startswith(_FORMS):
        raise UnsupportedMediaType(kind, detail="Send the file itself: Content-Type: application/octet-stream.")
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length.isdigit():
        raise LengthRequired("Send the file's length in Content-Length, as `curl -T file` does.")
    return int(length)
