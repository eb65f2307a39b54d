"""Filters of the lists."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import django_filters
import django_filters.fields
from django.core.exceptions import ValidationError

from accounts.models import AuditEvent


class MomentField(django_filters.fields.IsoDateTimeField):
    """In UTC: PostgreSQL knows fewer offsets than ISO 8601 lets people write."""

    def clean(self, value: Any) -> Any:
        moment = super().clean(value)
        try:
            return moment and moment.astimezone(UTC)
        except (OverflowError, ValueError):
            raise ValidationError("This moment is out of range.", code="invalid") from None


class MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = MomentField


class AuditEventFilter(django_filters.FilterSet):
    action = django_filters.CharFilter(help_text="Exact, or a group: `project` is every project.*", method="by_action")
    project = django_filters.UUIDFilter(field_name="project_id")
    actor = django_filters.CharFilter(field_name="actor_label", lookup_expr="iexact")
    since = MomentFilter(field_name="created_at", lookup_expr="gte")
    until = MomentFilter(field_name="created_at", lookup_expr="lt")
    after = django_filters.NumberFilter(
        field_name="id", lookup_expr="gt", min_value=0, max_value=2**63 - 1, help_text="Later than this `sequence`."
    )

    class Meta:
        model = AuditEvent
        fields: list[str] = []

    def by_action(self, queryset: Any, name: str, value: str) -> Any:
        return queryset.filter(action=value) if "." in value else queryset.filter(action__startswith=f"{value}.")
