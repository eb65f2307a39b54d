"""The bytes of a backup: as stored, as the engine's archive, or some tables as SQL."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import generics, renderers, serializers
from rest_framework.request import Request

from accounts.permissions import Capability, Principal, require
from backups.api.backups import BackupScoped
from backups.models import Backup, BackupStatus
from backups.services import downloads
from backups.services.backups import backup_download, download_allowed
from backups.services.downloads import Download, name_of
from backups.services.sql import sql_choice, sql_download
from novastack.common.errors import ActionNotAllowed, Invalid, Problem
from novastack.common.openapi import problems
from novastack.common.streaming import attachment
from projects.api.base import parsed
from projects.api.fields import Input, Text

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class RangeNotSatisfiable(Problem):
    status, code, title = 416, "range_not_satisfiable", "The object has no such range"


class Bytes(renderers.BaseRenderer):
    """So that a client that asks for bytes is not refused; errors are problem documents all the same."""

    media_type, format, charset = "application/octet-stream", "bin", None

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> Any:
        return renderers.JSONRenderer().render(data)


class PartsAsSql(Input):
    tables = serializers.ListField(
        child=Text(max_length=260), required=False, default=list,
        help_text="`orders`, or `schema.orders`; at most 200. See `backups/{id}/tables`.",
    )  # fmt: skip
    schemas = serializers.ListField(
        child=Text(max_length=130), required=False, default=list,
        help_text="PostgreSQL: whole schemas instead, which have tables; at most 200.",
    )  # fmt: skip
    compress = serializers.ChoiceField(choices=["none", "zstd"], required=False, default="none")


@extend_schema(tags=["backups"])
class BackupDownloadView(BackupScoped, generics.GenericAPIView[Backup]):
    queryset = Backup.objects.none()
    serializer_class = PartsAsSql  # what OPTIONS tells of POST
    renderer_classes = [renderers.JSONRenderer, Bytes]

    @extend_schema(
        operation_id="backups_download",
        parameters=[
            OpenApiParameter(
                "as", str, enum=["decrypted", "stored", "sql"],
                description="`stored`: as it lies in the storage (zstd in age), with ranges. `sql`: some `tables`, or"
                " `schemas`. Else the engine's archive.",
            ),
            OpenApiParameter(
                "tables", str, many=True, description="Of `as=sql`, once for each: `orders`, or `schema.orders`; at most 200."
            ),
            OpenApiParameter(
                "schemas", str, many=True, description="Of `as=sql`, of PostgreSQL: instead, whole schemas that have tables."
            ),
            OpenApiParameter("compress", str, enum=["none", "zstd"], description="Of `as=sql`; `none` by default."),
            OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="`bytes=…`, one range, of `as=stored`."),
        ],
        responses={
            (200, "application/octet-stream"): OpenApiTypes.BINARY,
            (206, "application/octet-stream"): OpenApiResponse(OpenApiTypes.BINARY, description="The range."),
            **problems(400, 403, 404, 409, 416, 429, 503),
        },
    )  # fmt: skip
    def get(self, request: Request, pk: UUID) -> HttpResponseBase:
        """All rows of the database: the right is that to connect, and it is audited. A decrypted download is hashed on the
        way, and breaks off before its end when it is not what was stored: what ends well is whole. As `sql` some
        tables or schemas come with their rows and what belongs to them, for psql, mysql or mariadb; its first lines say
        what of them is left out, and which line is to be its last one (`-- End of …`)"""
        backup = self.backup()
        wanted = _form(request)
        if wanted == "sql":
            return _answer(*sql_download(self.principal, backup, *_parts(request), packed=_packed(request)))
        if wanted == "stored":
            return _stored(self.principal, backup, request)
        download = backup_download(self.principal, backup, lambda: downloads.decrypted(backup), decrypted=True)
        return _answer(download, name_of(backup, ".dump"))

    @extend_schema(
        operation_id="backups_download_parts", request=PartsAsSql,
        responses={
            (200, "application/octet-stream"): OpenApiTypes.BINARY, **problems(400, 403, 404, 409, 429, 503),
        },
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> HttpResponseBase:
        """As GET with `as=sql`, for more names than an address holds: some 4,000 characters are taken."""
        backup, wanted = self.backup(), parsed(PartsAsSql, request).validated_data
        packed = wanted["compress"] == "zstd"
        return _answer(*sql_download(self.principal, backup, wanted["tables"], wanted["schemas"], packed=packed))

    def head(self, request: Request, pk: UUID) -> HttpResponseBase:
        """How large it is, and what names it: nothing is read, so that nothing counts as downloaded."""
        backup = self.backup()
        require(self.principal, backup.organization_id, Capability.CONNECT)
        stored = _form(request) == "stored"
        if not backup.usable and not (stored and backup.status == BackupStatus.CORRUPT):
            raise ActionNotAllowed("There is nothing to download.")
        if _form(request) == "sql":  # how large nobody knows before
            _packed(request)
            sql_choice(self.principal, backup, *_parts(request))
            return StreamingHttpResponse(iter(()), content_type="application/octet-stream")
        response = HttpResponse(content_type="application/octet-stream")
        size = backup.size_bytes if stored else backup.dump_bytes
        if size is not None:
            response["Content-Length"] = str(size)
        if stored:
            response["Accept-Ranges"], response["ETag"] = "bytes", f'"{backup.sha256}"'
        return response


def _form(request: Request) -> str:
    wanted = request.query_params.get("as", "decrypted")
    if wanted not in {"decrypted", "stored", "sql"}:
        raise Invalid.field("as", "invalid", "Use decrypted, stored or sql.")
    for field in ("tables", "schemas"):
        if wanted != "sql" and request.query_params.getlist(field):
            raise Invalid.field(field, "invalid", f"{field.capitalize()} are for as=sql.")
    return wanted


def _parts(request: Request) -> tuple[list[str], list[str]]:
    return request.query_params.getlist("tables"), request.query_params.getlist("schemas")


def _packed(request: Request) -> bool:
    wanted = request.query_params.get("compress", "none")
    if wanted not in {"none", "zstd"}:
        raise Invalid.field("compress", "invalid", "Use none or zstd.")
    return wanted == "zstd"


def _stored(principal: Principal, backup: Backup, request: Request) -> HttpResponseBase:
    download_allowed(principal, backup, decrypted=False)
    size, tag = backup.size_bytes or 0, f'"{backup.sha256}"'
    part = _range(request.headers.get("Range", ""), size)
    if part is not None and request.headers.get("If-Range", tag) != tag:
        part = None
    name = name_of(backup, ".zst.age" if backup.encrypted else ".zst")
    if part is None:
        download = backup_download(principal, backup, lambda: downloads.stored(backup), decrypted=False)
        response = _answer(download, name)
    else:
        first, last = part
        download = backup_download(
            principal, backup, lambda: downloads.stored(backup, offset=first, length=last - first + 1), decrypted=False
        )  # fmt: skip
        response = _answer(download, name)
        response.status_code = 206
        response["Content-Range"] = f"bytes {first}-{last}/{size}"
    response["Accept-Ranges"], response["ETag"] = "bytes", tag
    return response


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None for the whole: nothing asked for, several ranges, or another unit (RFC 9110 lets us)."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    begin, end = match.groups()
    if not begin:
        first, last = max(0, size - int(end)), size - 1
        if not int(end):
            first = size
    else:
        first, last = int(begin), min(int(end), size - 1) if end else size - 1
        if end and int(end) < first:
            return None
    if first >= size:
        raise RangeNotSatisfiable(f"It has {size} bytes.")
    return first, last


def _answer(download: Download, name: str) -> HttpResponseBase:
    return attachment(download.pieces, name, download.size_bytes)
