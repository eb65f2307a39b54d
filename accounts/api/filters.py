"""Filters of the lists."""

from __future__ import annotations

from typing import Any

import django_filters

from accounts.models import AuditEvent


class AuditEventFilter(django_filters.FilterSet):
    action = django_filters.CharFilter(help_text="Exact, or a group: `project` is every project.*", method="by_action")
    project = django_filters.UUIDFilter(field_name="project_id")
    actor = django_filters.CharFilter(field_name="actor_label", lookup_expr="iexact")
    since = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="lt")
    after = django_filters.NumberFilter(
        field_name="id", lookup_expr="gt", min_value=0, max_value=2**63 - 1, help_text="Later than this `sequence`."
    )

    class Meta:
        model = AuditEvent
        fields: list[str] = []

    def by_action(self, queryset: Any, name: str, value: str) -> Any:
        return queryset.filter(action=value) if "." in value else queryset.filter(action__startswith=f"{value}.")
