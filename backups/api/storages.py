"""`storages/`: where backups are kept. Secrets go in and never come out."""

from __future__ import annotations

import json
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import Count, Q, QuerySet, Sum
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field, extend_schema_view
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.base import PrincipalMixin
from accounts.models import Organization, Scope
from accounts.permissions import Capability, require_scope
from accounts.services import organization_for
from backups.models import BackupStatus, StorageKind, StorageTarget
from backups.services.storages import (
    checks_body,
    require_manage,
    storage_create,
    storage_delete,
    storage_test,
    storage_update,
)
from novastack.common.api import idempotent
from novastack.common.errors import Invalid, NotFound
from novastack.common.filters import Ordering, Search
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects.api.base import parsed
from projects.api.fields import Flag, Input, Text, Whole

EXAMPLES = [
    OpenApiExample(
        "A bucket", request_only=True,
        value={
            "name": "offsite", "kind": "s3",
            "config": {"endpoint": "https://s3.example.com", "bucket": "backups", "region": "eu-central-1", "prefix": "nova"},
            "secret": {"access_key": "AKIA…", "secret_key": "…"},
        },
    ),
    OpenApiExample(
        "A folder of the server, by an operator", request_only=True,
        value={"name": "nas", "kind": "filesystem", "install_wide": True, "config": {"path": "nas/backups"}},
    ),
]  # fmt: skip


class StorageConfig(Input):
    path = Text(required=False, max_length=200, help_text="`filesystem`: below the operator's folder.")
    endpoint = Text(required=False, allow_blank=True, max_length=400, help_text="`s3`: Amazon's if missing.")
    bucket = Text(required=False, max_length=100)
    region = Text(required=False, allow_blank=True, max_length=100, help_text="us-east-1 if missing.")
    prefix = Text(required=False, allow_blank=True, max_length=200, help_text="A folder in the bucket.")
    path_style = Flag(required=False, help_text="`true` if missing: the bucket in the path, not in the host's name.")


class StorageSecret(Input):
    access_key = Text(max_length=300)
    secret_key = Text(max_length=300)


class StorageInput(Input):
    name = Text(max_length=200)
    kind = serializers.ChoiceField(choices=StorageKind.choices)
    organization = Text(required=False, allow_null=True, max_length=200, help_text="Slug or id; your own if missing.")
    install_wide = Flag(required=False, default=False, help_text="For everybody on this install; operators only.")
    config = StorageConfig()
    secret = StorageSecret(required=False, allow_null=True, help_text="Of `s3`. Never shown again.")
    encrypt = Flag(required=False, default=True)
    is_default = Flag(required=False, default=False)
    capacity_bytes = Whole(required=False, allow_null=True, min_value=1, help_text="As you know it; shown only.")
    take_over = Flag(required=False, default=False, help_text="Also when another install writes there.")


class StorageChange(Input):
    name = Text(required=False, max_length=200)
    config = StorageConfig(required=False, help_text="The whole of it.")
    secret = StorageSecret(required=False, allow_null=True, help_text="Missing: as it is.")
    encrypt = Flag(required=False)
    is_default = Flag(required=False)
    capacity_bytes = Whole(required=False, allow_null=True, min_value=1)


class StorageOutput(serializers.ModelSerializer[StorageTarget]):
    organization = serializers.CharField(
        source="organization.slug", default=None, allow_null=True, read_only=True,
        help_text="Null: the install's, for everybody.",
    )  # fmt: skip
    config = serializers.SerializerMethodField(
        help_text="Without secrets. Null for the install's, except to operators."
    )
    has_secret = serializers.SerializerMethodField()
    backups = serializers.IntegerField(source="backup_count", read_only=True, help_text="Of yours.")
    used_bytes = serializers.IntegerField(read_only=True, help_text="By backups of yours.")
    read_only_reason = serializers.CharField(read_only=True, help_text="Why nothing is written there; empty: it is.")

    class Meta:
        model = StorageTarget
        fields = [
            "id", "organization", "name", "kind", "config", "has_secret", "encrypt", "is_default", "capacity_bytes",
            "backups", "used_bytes", "object_lock", "read_only_reason", "tested_at", "test_ok", "test_detail",
            "test_ms", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(StorageConfig(allow_null=True))
    def get_config(self, target: StorageTarget) -> dict[str, Any] | None:
        return dict(target.config) if target.organization_id or self.context.get("operator") else None

    def get_has_secret(self, target: StorageTarget) -> bool:
        return target.secret is not None


class StorageCheck(serializers.Serializer[Any]):
    name = serializers.CharField(help_text="reach, write, list, read, range, abort, delete, object_lock, owner")
    passed = serializers.BooleanField()
    detail = serializers.CharField()


class StorageTestOutput(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    checks = StorageCheck(many=True)
    storage = StorageOutput()


class StorageScoped(PrincipalMixin):
    kwargs: dict[str, Any]

    def rows(self) -> QuerySet[StorageTarget]:
        """With what the caller's organizations have there; operators see all of it on the install's."""
        mine = Q(backups__organization_id__in=self.principal.organization_ids())
        if self.principal.is_operator:
            mine |= Q(organization=None)
        kept = [status for status in BackupStatus.values if status != BackupStatus.FAILED]
        mine &= Q(backups__status__in=kept)
        return (
            StorageTarget.objects.for_principal(self.principal)
            .select_related("organization")
            .annotate(
                backup_count=Count("backups", filter=mine, distinct=True),
                used_bytes=Sum("backups__size_bytes", filter=mine, default=0),
            )
        )

    def storage(self) -> StorageTarget:
        found: StorageTarget | None = self.rows().filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        return found

    def managed(self) -> StorageTarget:
        target = self.storage()
        require_manage(self.principal, target.organization)
        return target

    def shown(self, target: StorageTarget) -> dict[str, Any]:
        return dict(StorageOutput(target, context={"operator": self.principal.is_operator}).data)


@extend_schema_view(
    get=extend_schema(
        tags=["storages"], operation_id="storages_list", responses={200: StorageOutput(many=True), **problems(400, 403)}
    )
)
class StorageListView(StorageScoped, generics.ListAPIView[StorageTarget]):
    """Where backups can be stored: your organizations' own, and what the install has for everybody."""

    queryset = StorageTarget.objects.none()
    serializer_class = StorageOutput
    filter_backends: list[Any] = [Search, Ordering]
    search_fields: ClassVar[list[str]] = ["name"]
    ordering_fields: ClassVar[list[str]] = ["name", "created_at", "tested_at"]

    def get_queryset(self) -> QuerySet[StorageTarget]:
        if getattr(self, "swagger_fake_view", False):
            return StorageTarget.objects.none()
        require_scope(self.principal, Scope.READ)
        return self.rows()

    def get_serializer_context(self) -> dict[str, Any]:
        fake = getattr(self, "swagger_fake_view", False)
        return {**super().get_serializer_context(), "operator": not fake and self.principal.is_operator}

    @extend_schema(
        tags=["storages"], operation_id="storages_create", parameters=[IDEMPOTENCY_KEY], request=StorageInput,
        examples=EXAMPLES, responses={201: StorageOutput, **problems(400, 403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """Add one. It is tried first (write, list, read, delete); one that fails is refused: 400 `storage_test_failed`, and
        `errors` says which check. 409 `storage_owned`: another target or install writes there."""
        organization = self._owner(request.data if isinstance(request.data, dict) else {})
        wanted = dict(parsed(StorageInput, request).validated_data)
        wanted.pop("organization", None)
        if wanted.pop("install_wide") and organization is not None:
            raise Invalid.field("organization", "invalid", "What is for everybody belongs to no organization.")

        def make() -> tuple[int, dict[str, str]]:
            made = storage_create(principal=self.principal, organization=organization, **wanted)
            return 201, {"storage": str(made.pk)}

        def rebuild(status: int, resource: dict[str, str]) -> Response:
            self.kwargs["pk"] = resource["storage"]
            location = reverse("storage-detail", kwargs={"pk": resource["storage"]}, request=request)
            return Response(self.shown(self.storage()), status=status, headers={"Location": location})

        return idempotent(
            request, organization_id=organization.pk if organization else None, effect=make, rebuild=rebuild
        )  # fmt: skip

    def _owner(self, body: dict[str, Any]) -> Organization | None:
        """Whose it will be, and whether the caller may: known before the rest of the body is looked at."""
        ref = body.get("organization")
        if body.get("install_wide") is True and not ref:
            require_manage(self.principal, None)
            return None
        ref = ref if isinstance(ref, str) else None
        return organization_for(self.principal, ref, capability=Capability.ORG_CHANGE)


@extend_schema(tags=["storages"])
class StorageView(StorageScoped, generics.GenericAPIView[StorageTarget]):
    queryset = StorageTarget.objects.none()
    serializer_class = StorageOutput

    @extend_schema(operation_id="storages_retrieve", responses={200: StorageOutput, **problems(403, 404)})
    def get(self, request: Request, pk: UUID) -> Response:
        """One storage."""
        require_scope(self.principal, Scope.READ)
        return Response(self.shown(self.storage()))

    @extend_schema(
        operation_id="storages_update", request=StorageChange,
        responses={200: StorageOutput, **problems(400, 403, 404, 409)},
    )  # fmt: skip
    def patch(self, request: Request, pk: UUID) -> Response:
        """Change it; it is tried again. One that holds backups keeps its place: 409 `storage_in_use`."""
        storage_update(
            principal=self.principal, storage=self.managed(), changes=parsed(StorageChange, request).validated_data
        )  # fmt: skip
        return Response(self.shown(self.storage()))

    @extend_schema(operation_id="storages_delete", responses={204: None, **problems(403, 404, 409)})
    def delete(self, request: Request, pk: UUID) -> Response:
        """Forget it. What lies there stays. 409 `storage_in_use` while it holds backups."""
        storage_delete(principal=self.principal, storage=self.managed())
        return Response(status=204)


@extend_schema(tags=["storages"])
class StorageTestView(StorageScoped, generics.GenericAPIView[StorageTarget]):
    queryset = StorageTarget.objects.none()
    serializer_class = StorageTestOutput

    @extend_schema(
        operation_id="storages_test", parameters=[IDEMPOTENCY_KEY], request=None,
        responses={200: StorageTestOutput, **problems(400, 403, 404, 422)},
    )  # fmt: skip
    def post(self, request: Request, pk: UUID) -> Response:
        """Try it now: 200 whatever comes of it, read `ok` and `checks`."""
        target = self.managed()

        def make() -> tuple[int, dict[str, str]]:
            return 200, {"checks": json.dumps(checks_body(storage_test(principal=self.principal, storage=target)))}

        def rebuild(status: int, made: dict[str, str]) -> Response:
            checks = json.loads(made["checks"])
            ok = all(check["passed"] for check in checks)
            return Response({"ok": ok, "checks": checks, "storage": self.shown(self.storage())}, status=status)

        return idempotent(request, organization_id=target.organization_id, effect=make, rebuild=rebuild)
