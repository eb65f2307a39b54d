"""What can be chosen: engines, regions, plans; and what an organization has used of its quotas."""

from __future__ import annotations

from datetime import date
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import generics
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.organizations import REF, OrganizationScoped
from accounts.permissions import Capability, principal_from
from novastack.common.filters import Ordering, Search
from novastack.common.openapi import problems
from projects.api.outputs import EngineOutput, PlanSerializer, RegionSerializer, UsageOutput
from projects.domain import EngineVersion, Offer
from projects.engines.base import Engine
from projects.models import Plan, Region
from projects.operations.catalogue import Versions, everything
from projects.services import usage_of


def _describe(versions: Versions, regions: list[Region], *, operator: bool) -> dict[str, Any]:
    engine, today = versions.engine, timezone.now().date()
    offered = [region for region in regions if region.available]
    reachable = [region for region in offered if region.reachable]
    able = {
        v.version: [r for r in offered if v.offered(today) and not r.reason_against(engine.name, v.version)]
        for v in versions.entries
    }
    if any(region in rows for rows in able.values() for region in reachable):
        reason = ""
    elif not versions.default:
        reason = "No version of it is offered to new projects."
    elif reachable:
        lacking = reachable[0].reason_against(engine.name, versions.default)
        reason = f"{reachable[0].name} can't run it: {lacking}."
    elif offered:
        reason = f"{offered[0].reason_for(operator=operator)} Projects wait for it."
    else:
        reason = "No region has a runtime yet."
    return {
        "name": engine.name,
        "title": engine.title,
        "versions": [
            {
                "version": v.version, "end_of_life": v.end_of_life, "default": v.default, "deprecated": v.deprecated,
                "ended": v.ended(today), "offered": v.offered(today), "available": bool(able[v.version]),
                "image": versions.image_of(v.version),
                "reason": "" if able[v.version] else _why_not(v, engine, offered, today),
            }
            for v in versions.entries
        ],
        "default_version": versions.default,
        "default_port": engine.default_port,
        "capabilities": sorted(str(capability) for capability in engine.capabilities),
        "runtimes": sorted({region.runtime for rows in able.values() for region in rows}),
        "limitations": list(engine.limitations),
        "minimum_memory_bytes": engine.minimum_memory_bytes,
        "resize": engine.resize_words,
        "available": not reason,
        "reason": reason,
    }  # fmt: skip


def _why_not(entry: EngineVersion, engine: Engine, regions: list[Region], today: date) -> str:
    if not entry.offered(today):
        if entry.ended(today) and entry.offer is Offer.UNTIL_END:
            return f"Not offered to new projects: its vendor published the last fixes on {entry.end_of_life}"
        return "Not offered to new projects"
    return regions[0].reason_against(engine.name, entry.version) if regions else ""


@extend_schema(tags=["catalogue"])
class EngineListView(generics.GenericAPIView[Any]):
    serializer_class = EngineOutput
    filter_backends: list[Any] = []

    @extend_schema(operation_id="engines_list", responses={200: EngineOutput(many=True), **problems()})
    def get(self, request: Request) -> Response:
        """Engines with their versions. `available`: a project would be made at once; else `reason`."""
        regions = list(Region.objects.all())
        operator = principal_from(request).is_operator
        rows = [_describe(versions, regions, operator=operator) for _, versions in sorted(everything().items())]
        page = self.paginate_queryset(rows)  # type: ignore[arg-type]
        return self.get_paginated_response(page)


@extend_schema(tags=["catalogue"])
@extend_schema_view(
    get=extend_schema(operation_id="regions_list", responses={200: RegionSerializer(many=True), **problems(400)})
)
class RegionListView(generics.ListAPIView[Region]):
    """Where databases may run."""

    queryset = Region.objects.filter(enabled=True)
    serializer_class = RegionSerializer
    filter_backends = [Search, Ordering]
    search_fields = ["name", "slug"]
    ordering_fields = ["name", "slug"]
    ordering = "name"


@extend_schema(tags=["catalogue"])
@extend_schema_view(
    get=extend_schema(operation_id="plans_list", responses={200: PlanSerializer(many=True), **problems(400)})
)
class PlanListView(generics.ListAPIView[Plan]):
    """Sizes to choose from. Bytes, cores, days."""

    queryset = Plan.objects.filter(enabled=True)
    serializer_class = PlanSerializer
    filter_backends = [Search, Ordering]
    search_fields = ["name", "slug"]
    ordering_fields = ["position", "name", "memory_bytes"]
    ordering = "position"


@extend_schema(tags=["organizations"], parameters=[REF])
class UsageView(OrganizationScoped, generics.GenericAPIView[Any]):
    serializer_class = UsageOutput
    filter_backends: list[Any] = []
    pagination_class = None

    @extend_schema(operation_id="organizations_usage", responses={200: UsageOutput, **problems(404)})
    def get(self, request: Request, ref: str) -> Response:
        """Each quota with its limit and what is used of it."""
        return Response(usage_of(self.organization(Capability.ORG_VIEW)))
