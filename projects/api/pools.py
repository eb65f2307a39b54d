"""`database/admin/`: pools, for operators. Infrastructure: ids and names of who lives there, never what is in a database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_field, extend_schema_view
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from accounts.api.base import PrincipalMixin
from accounts.models import Scope
from accounts.permissions import require_operator, require_scope
from novastack.common.api import PageNumberPagination, idempotent
from novastack.common.errors import Invalid
from novastack.common.openapi import IDEMPOTENCY_KEY, problems
from projects import registry
from projects.api.base import parsed
from projects.api.fields import Cores, Input, Text, Whole
from projects.api.filters import FILTERS
from projects.api.inputs import LONG, Nothing
from projects.api.operation_outputs import OperationError, StepSerializer
from projects.models import DatabaseServer, DatabaseSlot, Health, Operation, OperationState, Placement, Region
from projects.services.pools import (
    Pool,
    PoolRequest,
    PoolStatus,
    describe,
    pool_check,
    pool_create,
    pool_drain,
    pool_drain_end,
    pool_get,
    pool_rows,
    pool_stats,
)

EXAMPLES = [
    OpenApiExample("As the settings say", value={"engine": "postgresql"}, request_only=True),
    OpenApiExample(
        "Of one plan, and smaller", request_only=True,
        value={"engine": "mariadb", "region": "local", "plan": "small", "max_databases": 20, "memory_bytes": 2147483648},
    ),
]  # fmt: skip


class PoolCreate(Input):
    engine = Text(required=False, default=registry.DEFAULT_ENGINE, max_length=LONG, help_text="One that can be shared.")
    version = Text(required=False, allow_null=True, max_length=LONG, help_text="The engine's default one if missing.")
    region = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; the first one if missing.")
    plan = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; missing: projects of every plan.")
    name = Text(required=False, default="", allow_blank=True, max_length=LONG, help_text="Made if missing.")
    max_databases = Whole(required=False, allow_null=True, help_text="NOVASTACK_POOL_MAX_DATABASES if missing.")
    memory_bytes = Whole(required=False, allow_null=True, help_text="NOVASTACK_POOL_MEMORY if missing.")
    cpus = Cores(required=False, allow_null=True, help_text="NOVASTACK_POOL_CPUS if missing.")


class PoolEndpoint(serializers.Serializer[Any]):
    host = serializers.CharField()
    port = serializers.IntegerField(allow_null=True)


class PoolLimits(serializers.Serializer[Any]):
    memory_bytes = serializers.IntegerField()
    cpus = serializers.FloatField()
    max_connections = serializers.IntegerField()
    connections_per_database = serializers.IntegerField(help_text="Guaranteed, and a login's most here.")


class PoolUsage(serializers.Serializer[Any]):
    cpu_percent = serializers.FloatField(allow_null=True, help_text="100 is one core.")
    memory_bytes = serializers.IntegerField(allow_null=True)
    read_at = serializers.DateTimeField(allow_null=True)


class PoolOperation(serializers.Serializer[Any]):
    """What works on the pool; the steps are seen here, `operations/` has those of organizations only."""

    id = serializers.UUIDField()
    kind = serializers.CharField(help_text="prepare_pool, recover_pool, restart_pool, drain_pool, remove_pool …")
    state = serializers.ChoiceField(choices=OperationState.choices)
    url = serializers.URLField(help_text="Of the pool: ask it again.")
    steps = StepSerializer(many=True)
    error = OperationError(allow_null=True)


class PoolMember(serializers.Serializer[Any]):
    database = serializers.CharField(source="name", help_text="Opaque.")
    slot = serializers.ChoiceField(choices=DatabaseSlot.choices)
    project = serializers.UUIDField(source="project_id")
    project_slug = serializers.CharField(source="project.slug")
    organization = serializers.CharField(source="project.organization.slug")
    status = serializers.CharField(source="project.status")
    size_bytes = serializers.IntegerField(source="project.size_bytes", allow_null=True)


class PoolSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="server.pk")
    name = serializers.CharField(source="server.name")
    engine = serializers.CharField(source="server.engine")
    version = serializers.CharField(source="server.version")
    region = serializers.CharField(source="server.region.slug")
    plan = serializers.SerializerMethodField(help_text="Slug; null: projects of every plan.")
    placement = serializers.SerializerMethodField()
    databases = serializers.IntegerField(help_text="Places that are taken.")
    max_databases = serializers.IntegerField(source="server.max_databases")
    blanks = serializers.IntegerField(help_text="Empty databases that are ready for whoever comes next.")
    health = serializers.ChoiceField(choices=Health.choices)
    health_detail = serializers.CharField()
    status = serializers.ChoiceField(choices=PoolStatus.choices)
    status_detail = serializers.CharField()
    endpoint = serializers.SerializerMethodField()
    limits = serializers.SerializerMethodField()
    usage = serializers.SerializerMethodField()
    size_bytes = serializers.IntegerField(source="server.pool_size_bytes", allow_null=True)
    checked_at = serializers.DateTimeField(source="server.pool_checked_at", allow_null=True)
    ready_at = serializers.DateTimeField(source="server.pool_ready_at", allow_null=True)
    draining_at = serializers.DateTimeField(source="server.draining_at", allow_null=True)
    created_at = serializers.DateTimeField(source="server.created_at")
    operation = serializers.SerializerMethodField()

    def get_plan(self, pool: Pool) -> str | None:
        return pool.server.plan.slug if pool.server.plan else None

    def get_placement(self, pool: Pool) -> str:
        return str(Placement.POOL)

    @extend_schema_field(PoolEndpoint)
    def get_endpoint(self, pool: Pool) -> dict[str, Any]:
        return {"host": pool.server.region.client_host, "port": pool.server.port}

    @extend_schema_field(PoolLimits)
    def get_limits(self, pool: Pool) -> dict[str, Any]:
        server = pool.server
        return {
            "memory_bytes": server.memory_bytes, "cpus": float(server.cpus), "max_connections": server.max_connections,
            "connections_per_database": pool.connections,
        }  # fmt: skip

    @extend_schema_field(PoolUsage)
    def get_usage(self, pool: Pool) -> dict[str, Any]:
        server = pool.server
        return dict(
            PoolUsage(
                {
                    "cpu_percent": server.cpu_percent,
                    "memory_bytes": server.memory_used_bytes,
                    "read_at": server.usage_at,
                }
            ).data
        )

    @extend_schema_field(PoolOperation(allow_null=True))
    def get_operation(self, pool: Pool) -> dict[str, Any] | None:
        return operation_of(pool.operation, pool.server, self.context.get("request"))


class PoolDetailSerializer(PoolSerializer):
    """With who lives there."""

    members = PoolMember(many=True)


class PoolDrainOutput(serializers.Serializer[Any]):
    pool = PoolSerializer()
    operation = PoolOperation()


class PoolCounts(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    by_status = serializers.DictField(child=serializers.IntegerField())
    by_health = serializers.DictField(child=serializers.IntegerField())
    by_engine = serializers.DictField(child=serializers.IntegerField())
    by_region = serializers.DictField(child=serializers.IntegerField())


class DedicatedCounts(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    memory_bytes = serializers.IntegerField()


class PoolStatsOutput(serializers.Serializer[Any]):
    pools = PoolCounts()
    databases = serializers.IntegerField(help_text="On all pools.")
    max_databases = serializers.IntegerField(help_text="Places of the pools that take projects.")
    free = serializers.IntegerField()
    fill_percent = serializers.FloatField(allow_null=True, help_text="Null without a pool.")
    blanks = serializers.IntegerField()
    size_bytes = serializers.IntegerField()
    memory_bytes = serializers.IntegerField()
    waiting_projects = serializers.IntegerField(help_text="That have no place yet.")
    dedicated_servers = DedicatedCounts()


def operation_of(operation: Operation | None, server: DatabaseServer, request: Request | None) -> dict[str, Any] | None:
    if operation is None:
        return None
    return {
        "id": str(operation.pk), "kind": operation.kind, "state": str(operation.state),
        "url": reverse("database-pool", kwargs={"pool_id": server.pk}, request=request),
        "steps": StepSerializer(operation.steps.all(), many=True).data, "error": operation.error_body(),
    }  # fmt: skip


class PoolFilter(django_filters.FilterSet):
    engine = django_filters.CharFilter()
    version = django_filters.CharFilter()
    region = django_filters.CharFilter(method="by_region", help_text="Slug.")
    plan = django_filters.CharFilter(field_name="plan__slug")
    health = django_filters.ChoiceFilter(field_name="pool_health", choices=Health.choices, help_text="As last checked.")
    draining = django_filters.BooleanFilter(field_name="draining_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = DatabaseServer
        fields: list[str] = []

    def by_region(self, queryset: Any, name: str, value: str) -> Any:
        region = Region.objects.filter(slug=value).values_list("pk", flat=True).first()
        if region is None:
            raise Invalid.field("region", "unknown", "There is no such region; see `regions/`.")
        return queryset.filter(region_id=region)


class OperatorView(PrincipalMixin, generics.GenericAPIView[DatabaseServer]):
    queryset = DatabaseServer.objects.none()
    serializer_class: Any = PoolSerializer
    filter_backends: list[Any] = []
    pagination_class: Any = None

    def operator(self, scope: Scope = Scope.READ) -> Any:
        principal = self.principal
        require_operator(principal)
        require_scope(principal, scope)
        return principal

    def shown(self, request: Request, pk: Any, *, detail: bool = False) -> dict[str, Any]:
        pool = describe([pool_get(pk)], members=detail)[0]
        serializer = PoolDetailSerializer if detail else PoolSerializer
        return dict(serializer(pool, context={"request": request}).data)


@extend_schema_view(
    get=extend_schema(
        tags=["database"], operation_id="database_pools_list",
        responses={200: PoolSerializer(many=True), **problems(400, 403)},
    )
)  # fmt: skip
class PoolListView(OperatorView, generics.ListAPIView[DatabaseServer]):
    """Pools, newest first. For operators."""

    pagination_class = PageNumberPagination
    filter_backends = FILTERS
    filterset_class = PoolFilter
    search_fields: ClassVar[list[str]] = ["name", "engine", "version"]
    ordering_fields: ClassVar[list[str]] = ["created_at", "name", "pool_checked_at", "pool_size_bytes"]

    def get_queryset(self) -> QuerySet[DatabaseServer]:
        if getattr(self, "swagger_fake_view", False):
            return DatabaseServer.objects.none()
        self.operator()
        return pool_rows()

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(PoolSerializer(describe(list(page or [])), many=True,
                                                          context={"request": request}).data)  # fmt: skip

    @extend_schema(
        tags=["database"], operation_id="database_pools_create", parameters=[IDEMPOTENCY_KEY], request=PoolCreate,
        examples=EXAMPLES, responses={202: PoolSerializer, **problems(400, 403, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        """One more pool; what is not given is as the settings say. 202: it is being made, `status` says how far. 409:
        `operation_in_progress` (one of its kind is being made), `pool_too_small`, `pool_settings_invalid`,
        `engine_not_pooled`, `no_free_port`."""
        principal = self.operator(Scope.WRITE)
        wanted = PoolRequest(**parsed(PoolCreate, request).validated_data)
        return self.once(request, lambda: pool_create(principal=principal, request=wanted).pk)

    def once(self, request: Request, act: Callable[[], Any]) -> Response:
        def rebuild(status: int, resource: dict[str, str]) -> Response:
            location = reverse("database-pool", kwargs={"pool_id": resource["pool"]}, request=request)
            return Response(self.shown(request, resource["pool"]), status=status, headers={"Location": location})

        return idempotent(
            request, organization_id=None, effect=lambda: (202, {"pool": str(act())}), rebuild=rebuild
        )  # fmt: skip


@extend_schema(tags=["database"])
class PoolView(OperatorView):
    serializer_class = PoolDetailSerializer

    @extend_schema(operation_id="database_pools_retrieve", responses={200: PoolDetailSerializer, **problems(403, 404)})
    def get(self, request: Request, pool_id: UUID) -> Response:
        """One pool, with the databases on it."""
        self.operator()
        return Response(self.shown(request, pool_id, detail=True))


@extend_schema(tags=["database"])
class PoolCheckView(OperatorView):
    @extend_schema(
        operation_id="database_pools_health_check", parameters=[IDEMPOTENCY_KEY], request=Nothing,
        responses={202: PoolSerializer, **problems(403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pool_id: UUID) -> Response:
        """Have a worker look now: a real login, the databases on it, their sizes. `checked_at` says when it has."""
        principal = self.operator(Scope.WRITE)
        server = pool_get(pool_id)
        parsed(Nothing, request)

        def make() -> tuple[int, dict[str, str]]:
            pool_check(principal=principal, server=server)
            return 202, {"pool": str(server.pk)}

        return idempotent(
            request, organization_id=None, effect=make,
            rebuild=lambda status, resource: Response(self.shown(request, resource["pool"]), status=status),
        )  # fmt: skip


@extend_schema(tags=["database"])
class PoolDrainView(OperatorView):
    serializer_class = PoolDrainOutput

    @extend_schema(
        operation_id="database_pools_drain", parameters=[IDEMPOTENCY_KEY], request=Nothing,
        responses={202: PoolDrainOutput, **problems(403, 404, 409, 422)},
    )  # fmt: skip
    def post(self, request: Request, pool_id: UUID) -> Response:
        """Place nothing new on it, move its projects out, then remove it. Asked again: the same operation. 409
        `no_room_elsewhere` when its projects fit on no other pool and none can be made."""
        principal = self.operator(Scope.WRITE)
        server = pool_get(pool_id)
        parsed(Nothing, request)

        def make() -> tuple[int, dict[str, str]]:
            return 202, {"pool": str(server.pk), "operation": str(pool_drain(principal=principal, server=server).pk)}

        return idempotent(
            request, organization_id=None, effect=make,
            rebuild=lambda status, resource: self.answer(request, resource, status),
        )  # fmt: skip

    @extend_schema(
        operation_id="database_pools_drain_end", request=None,
        responses={202: PoolDrainOutput, **problems(403, 404, 409)},
    )  # fmt: skip
    def delete(self, request: Request, pool_id: UUID) -> Response:
        """Stop draining: it takes projects again. Who has moved stays where they are."""
        principal = self.operator(Scope.WRITE)
        server = pool_get(pool_id)
        operation = pool_drain_end(principal=principal, server=server)
        return self.answer(request, {"pool": str(server.pk), "operation": str(operation.pk)}, 202)

    def answer(self, request: Request, resource: dict[str, str], status: int) -> Response:
        server = pool_get(UUID(resource["pool"]))
        operation = Operation.objects.with_steps().filter(pk=resource["operation"]).first()
        return Response(
            {"pool": self.shown(request, server.pk), "operation": operation_of(operation, server, request)},
            status=status,
        )


@extend_schema(tags=["database"])
class PoolStatsView(OperatorView):
    serializer_class = PoolStatsOutput

    @extend_schema(operation_id="database_stats", responses={200: PoolStatsOutput, **problems(403)})
    def get(self, request: Request) -> Response:
        """Sums over all pools, and what waits for a place."""
        self.operator()
        return Response(pool_stats())
