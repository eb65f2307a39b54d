"""Filters, search and order of the lists. What they do not know is a 400 that names the parameter."""

from __future__ import annotations

from typing import Any

import django_filters
from django_filters.rest_framework import DjangoFilterBackend

from accounts.models import Organization
from accounts.permissions import principal_from
from novastack.common.errors import Invalid, NotFound
from novastack.common.filters import Ordering, Search
from projects import registry
from projects.models import Operation, OperationState, Placement, Project, ProjectStatus, Region
from projects.operations import base


def _engines() -> list[tuple[str, str]]:
    return [(engine.name, engine.title) for engine in registry.engines().values()]


def _kinds() -> list[tuple[str, str]]:
    return sorted(base.titles().items())


class OrganizationFilter(django_filters.CharFilter):
    """Slug or id. A foreign or unknown one is a 404 that names the parameter."""

    def filter(self, qs: Any, value: str) -> Any:
        if not value:
            return qs
        principal = principal_from(self.parent.request)
        found = Organization.objects.for_principal(principal).by_ref(value[:100]).values_list("pk", flat=True).first()
        if found is None:
            raise NotFound.field("organization", "There is no such organization here.")
        return qs.filter(organization_id=found)


class ProjectFilter(django_filters.FilterSet):
    """Without `status`, what is in the recycle bin is left out; `status=recycled` lists the bin."""

    status = django_filters.MultipleChoiceFilter(
        choices=ProjectStatus.choices, distinct=False, help_text="May be repeated."
    )
    engine = django_filters.MultipleChoiceFilter(choices=_engines, distinct=False, help_text="May be repeated.")
    placement = django_filters.ChoiceFilter(choices=Placement.choices)
    region = django_filters.CharFilter(method="by_region", help_text="Slug.")
    organization = OrganizationFilter(help_text="Slug or id.")

    class Meta:
        model = Project
        fields: list[str] = []

    def by_region(self, queryset: Any, name: str, value: str) -> Any:
        region = Region.objects.filter(slug=value).values_list("pk", flat=True).first()
        if region is None:
            raise Invalid.field("region", "unknown", "There is no such region; see `regions/`.")
        return queryset.filter(region_id=region)

    def filter_queryset(self, queryset: Any) -> Any:
        rows = super().filter_queryset(queryset)
        return rows if self.form.cleaned_data.get("status") else rows.live()


class OperationFilter(django_filters.FilterSet):
    state = django_filters.MultipleChoiceFilter(
        choices=OperationState.choices, distinct=False, help_text="May be repeated."
    )
    kind = django_filters.MultipleChoiceFilter(choices=_kinds, distinct=False, help_text="May be repeated.")
    project = django_filters.UUIDFilter(field_name="project_uuid")
    organization = OrganizationFilter(help_text="Slug or id.")

    class Meta:
        model = Operation
        fields: list[str] = []


FILTERS = [DjangoFilterBackend, Search, Ordering]
