"""The caller's own API tokens."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import services
from accounts.api.base import PrincipalMixin
from accounts.api.serializers import ApiTokenCreatedSerializer, ApiTokenCreateSerializer, ApiTokenSerializer
from accounts.models import ApiToken, Scope
from accounts.permissions import Capability, require_scope
from novastack.common.api import SecretResponse, idempotent
from novastack.common.openapi import IDEMPOTENCY_KEY


@extend_schema_view(
    list=extend_schema(tags=["auth"], operation_id="tokens_list"),
    retrieve=extend_schema(tags=["auth"], operation_id="tokens_retrieve"),
    create=extend_schema(tags=["auth"], operation_id="tokens_create", parameters=[IDEMPOTENCY_KEY],
                         request=ApiTokenCreateSerializer, responses={201: ApiTokenCreatedSerializer}),
    destroy=extend_schema(tags=["auth"], operation_id="tokens_revoke"),
)  # fmt: skip
class ApiTokenViewSet(
    PrincipalMixin, mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[ApiToken]
):
    """List, make (`token` is in that answer only) and revoke tokens."""

    queryset = ApiToken.objects.none()
    serializer_class = ApiTokenSerializer
    lookup_value_converter = "uuid"
    search_fields = ["name", "prefix"]
    ordering_fields = ["created_at", "name", "last_used_at", "expires_at"]

    def get_queryset(self) -> QuerySet[ApiToken]:
        if getattr(self, "swagger_fake_view", False):
            return ApiToken.objects.none()
        rows = ApiToken.objects.filter(user=self.principal.user, revoked_at=None).select_related("organization")
        if self.principal.token is not None:
            require_scope(self.principal, Scope.READ)
            if self.principal.token.organization_id:
                rows = rows.filter(organization_id=self.principal.token.organization_id)
        return rows

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = ApiTokenCreateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields = dict(serializer.validated_data)
        require_scope(self.principal, Scope.ADMIN)
        ref = fields.pop("organization")
        organization = (
            services.organization_for(self.principal, ref, capability=Capability.TOKEN_MANAGE) if ref else None
        )
        shown: list[str] = []

        def make() -> tuple[int, dict[str, str]]:
            token, clear = services.token_create(principal=self.principal, organization=organization, **fields)
            shown.append(clear)
            return 201, {"token": str(token.pk)}

        def answer(status: int, resource: dict[str, str]) -> Response:
            token = self.get_queryset().get(pk=resource["token"]) if shown else self._replayed(resource["token"])
            body = {**ApiTokenSerializer(token).data, "token": shown[0] if shown else None}
            return SecretResponse(body if shown else {**body, "already_shown": True}, status=status,
                                  headers={"Location": f"{request._request.path}{token.pk}/"})  # fmt: skip

        return idempotent(request, organization_id=None, effect=make, rebuild=answer)

    def _replayed(self, pk: str) -> ApiToken:
        """The token of the first answer; 404 when it was revoked since."""
        from django.shortcuts import get_object_or_404

        return get_object_or_404(self.get_queryset(), pk=pk)

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        services.token_revoke(principal=self.principal, token=self.get_object())
        return Response(status=204)
