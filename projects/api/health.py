"""`GET health`: how the install does. Strangers see one word, people the parts, operators the reasons."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.permissions import principal_from
from novastack.common import health
from novastack.common.clock import isoformat, now
from projects.services import fleet


class CheckOutput(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["healthy", "degraded"])
    detail = serializers.CharField(required=False, help_text="For operators.")


class HealthOutput(serializers.Serializer[Any]):
    """Anonymous callers get `status` only."""

    status = serializers.ChoiceField(choices=["healthy", "degraded"])
    timestamp = serializers.DateTimeField(required=False)
    version = serializers.CharField(required=False)
    uptime = serializers.IntegerField(required=False, help_text="Seconds, of the process that answers.")
    checks = serializers.DictField(child=CheckOutput(), required=False)


class HealthView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(operation_id="health", tags=["health"], responses={200: HealthOutput})
    def get(self, request: Request) -> Response:
        """Always 200: `degraded` is an answer, not a failure of this call. `/readyz` is for load balancers."""
        checks = fleet.checks()
        ill = any(check["status"] != "healthy" for check in checks.values())
        body: dict[str, Any] = {"status": "degraded" if ill else "healthy"}
        if request.user.is_authenticated:
            operator = principal_from(request).is_operator
            body |= {
                "timestamp": isoformat(now()),
                "version": settings.VERSION,
                "uptime": health.uptime_seconds(),
                "checks": {name: check if operator else {"status": check["status"]} for name, check in checks.items()},
            }
        return Response(body, headers={"Cache-Control": "no-store"})
