"""`projects/{id}/api-keys/`, and `api-keys/verify` for the services that are shown such a key."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import generics, serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.views import APIView

from accounts.permissions import Capability
from novastack.common.api import SecretResponse, idempotent
from novastack.common.errors import NotFound
from novastack.common.filters import Ordering, Search
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import AcceptedProject, ProjectScoped, parsed
from projects.api.fields import Input, Text
from projects.models import ApiKey, KeyScope
from projects.services.keys import BOTH, key_confirm, key_create, key_revoke, key_verify

STATES = [(state, state) for state in ("active", "pending", "suspended", "expired", "revoked")]


class KeyOutput(serializers.ModelSerializer[ApiKey]):
    state = serializers.ChoiceField(
        choices=STATES,
        read_only=True,
        help_text="`pending`: works as soon as the project is ready. `suspended`: NovaStack was restored from a backup and"
        " can't know whether it was revoked since; works again once it is confirmed.",
    )
    created_by = serializers.CharField(source="created_by.email", default=None, allow_null=True, read_only=True)

    class Meta:
        model = ApiKey
        fields = [
            "id", "name", "prefix", "start", "scopes", "state", "expires_at", "last_used_at", "revoked_at",
            "created_by", "created_at",
        ]  # fmt: skip
        read_only_fields = fields


class KeyCreated(KeyOutput):
    key = serializers.CharField(allow_null=True, help_text="This once; null in a replay.")
    already_shown = serializers.BooleanField(required=False)

    class Meta(KeyOutput.Meta):
        fields = [*KeyOutput.Meta.fields, "key", "already_shown"]
        read_only_fields = fields


class CreatedProject(AcceptedProject):
    """The project, its operation, and the API keys that were asked for, with their values this once."""

    api_keys = KeyCreated(many=True, required=False)

    class Meta(AcceptedProject.Meta):
        fields = [*AcceptedProject.Meta.fields, "api_keys"]
        read_only_fields = fields


class KeyInput(Input):
    name = Text(max_length=200)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=KeyScope.choices), required=False, min_length=1, default=list(BOTH),
        max_length=len(KeyScope.values),
    )  # fmt: skip
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)
    prefix = Text(required=False, default="", allow_blank=True, max_length=200, help_text="`pk` if missing.")


class VerifyInput(Input):
    key = Text(max_length=500)
    project = serializers.UUIDField(required=False, help_text="The key must be this project's.")
    scope = serializers.ChoiceField(choices=KeyScope.choices, required=False, help_text="The key must have it.")


class VerifyOutput(serializers.Serializer[Any]):
    valid = serializers.BooleanField()
    code = serializers.CharField(
        allow_null=True,
        help_text="Why not: malformed, unknown, revoked, expired, suspended, inactive, project_gone, wrong_project,"
        " scope_missing.",
    )
    key = serializers.UUIDField(allow_null=True, help_text="The key's id, for revoking it.")
    project = serializers.UUIDField(allow_null=True)
    organization = serializers.UUIDField(allow_null=True)
    scopes = serializers.ListField(child=serializers.CharField())
    expires_at = serializers.DateTimeField(allow_null=True)


def key_body(key: ApiKey, clear: str | None) -> dict[str, Any]:
    """A key's answer with its value, or in a replay without."""
    body = {**KeyOutput(key).data, "key": clear}
    return body if clear is not None else {**body, "already_shown": True}


class KeyScoped(ProjectScoped):
    def key(self, capability: Capability = Capability.PROJECT_VIEW) -> ApiKey:
        project = self.project(capability)
        rows = ApiKey.objects.select_related("created_by", "project")
        found = rows.filter(project=project, pk=self.kwargs["key_id"]).first()
        if found is None:
            raise NotFound
        return found


@extend_schema(tags=["api-keys"])
class KeyListView(ProjectScoped, generics.ListAPIView[ApiKey]):
    """Keys of the project for its own services, newest first; revoked ones as well."""

    queryset = ApiKey.objects.none()
    serializer_class = KeyOutput
    filter_backends: list[Any] = [Search, Ordering]
    search_fields: ClassVar[list[str]] = ["name", "start"]
    ordering_fields: ClassVar[list[str]] = ["created_at", "name", "last_used_at", "expires_at"]

    def get_queryset(self) -> QuerySet[ApiKey]:
        if getattr(self, "swagger_fake_view", False):
            return ApiKey.objects.none()
        return ApiKey.objects.filter(project=self.project()).select_related("created_by")

    @extend_schema(operation_id="api_keys_list", responses={200: KeyOutput(many=True), **problems(400, 404)})
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Keys of the project for its own services, newest first; revoked ones as well. Values are not kept."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="api_keys_create", parameters=[IDEMPOTENCY_KEY], request=KeyInput,
        examples=[OpenApiExample("Reads only", value={"name": "web", "scopes": ["read"]}, request_only=True)],
        responses={201: KeyCreated, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Make a key: `{prefix}_{timestamp}_{random hex}`. Its value is in this answer only; its SHA-256 is kept."""
        project = self.project(Capability.API_KEY_MANAGE)
        wanted = parsed(KeyInput, request).validated_data
        shown: list[str] = []

        def make() -> tuple[int, dict[str, str]]:
            key, clear = key_create(principal=self.principal, project=project, **wanted)
            shown.append(clear)
            return 201, {"key": str(key.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            key = ApiKey.objects.select_related("created_by").filter(project=project, pk=resource["key"]).first()
            if key is None:
                raise NotFound
            location = reverse("project-api-key", kwargs={"pk": project.pk, "key_id": key.pk}, request=request)
            body = key_body(key, shown[0] if shown else None)
            return SecretResponse(body, status=status, headers={"Location": location})

        return idempotent(request, organization_id=project.organization_id, effect=make, rebuild=rebuild)


@extend_schema(tags=["api-keys"])
class KeyView(KeyScoped, generics.GenericAPIView[ApiKey]):
    queryset = ApiKey.objects.none()
    serializer_class = KeyOutput

    @extend_schema(operation_id="api_keys_retrieve", responses={200: KeyOutput, **problems(404)})
    def get(self, request: Request, pk: UUID, key_id: UUID) -> Response:
        """One key, without its value."""
        return Response(KeyOutput(self.key()).data)

    @extend_schema(operation_id="api_keys_revoke", responses={204: None, **problems(403, 404)})
    def delete(self, request: Request, pk: UUID, key_id: UUID) -> Response:
        """Revoke: it stops working at once. It stays in the list."""
        key_revoke(principal=self.principal, key=self.key(Capability.API_KEY_MANAGE))
        return Response(status=204)


@extend_schema(tags=["api-keys"])
class KeyConfirmView(KeyScoped, generics.GenericAPIView[ApiKey]):
    queryset = ApiKey.objects.none()
    serializer_class = KeyOutput

    @extend_schema(
        operation_id="api_keys_confirm", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={200: KeyOutput, **problems(403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID, key_id: UUID) -> Response:
        """A suspended key works again: you say that it had not been revoked since the backup that NovaStack was restored
        from. Harmless for a key that is not suspended."""
        key = self.key(Capability.API_KEY_MANAGE)

        def confirm() -> tuple[int, dict[str, str]]:
            key_confirm(principal=self.principal, key=key)
            return 200, {}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            return Response(KeyOutput(self.key()).data, status=status)

        return idempotent(request, organization_id=key.project.organization_id, effect=confirm, rebuild=rebuild)


class KeyVerifyView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="api_keys_verify", tags=["api-keys"], request=VerifyInput, auth=[],
        examples=[OpenApiExample("One", value={"key": "pk_1760000000_…", "scope": "read"}, request_only=True)],
        responses={200: VerifyOutput, **problems(400, 429)},
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """For services: does this key work now? Needs no login (whoever has the key may use it); with an API token of your
        own the throttle counts the token instead of the address. 200 whatever the key: read `valid`."""
        body = parsed(VerifyInput, request).validated_data
        found = key_verify(
            clear=body["key"], project=str(body.get("project") or ""), scope=body.get("scope", "")
        )  # fmt: skip
        key = found.key
        answer = {
            "valid": found.valid,
            "code": found.code or None,
            "key": str(key.pk) if key else None,
            "project": str(key.project_id) if key else None,
            "organization": str(key.project.organization_id) if key else None,
            "scopes": list(key.scopes) if key else [],
            "expires_at": key.expires_at if key else None,
        }
        return SecretResponse(VerifyOutput(answer).data)
