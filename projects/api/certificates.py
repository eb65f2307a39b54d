"""`GET ca`: what clients need to check that a database is this install's."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from novastack.common.errors import NotFound
from novastack.common.openapi import problems
from projects.services.connections import CA_FILE, ca_certificates


class AuthorityView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="ca_retrieve", tags=["catalogue"], auth=[],
        responses={(200, "application/x-pem-file"): OpenApiTypes.STR, **problems(404)},
    )  # fmt: skip
    def get(self, request: Request) -> HttpResponse:
        """The certificate of this install's CA (PEM), for `sslrootcert` and its like. Public: needs no login."""
        found = ca_certificates()
        if not found:
            raise NotFound("There is no CA yet: it is made with the first server that speaks TLS.")
        response = HttpResponse(found, content_type="application/x-pem-file")
        response["Content-Disposition"] = f'attachment; filename="{CA_FILE}"'
        return response

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Whatever a client says that it accepts; a problem is JSON all the same."""
        renderer: BaseRenderer = JSONRenderer()
        return renderer, renderer.media_type
