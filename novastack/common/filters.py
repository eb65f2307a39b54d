"""Search and order of the lists. What they do not know is a 400 that names the parameter."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet, Value
from django.db.models.functions import Lower
from rest_framework import filters
from rest_framework.request import Request

from novastack.common.errors import Invalid

SEARCH_MAX = 100


class Search(filters.SearchFilter):
    """`?search=`: every word, in any of the view's `search_fields`, whatever its case. One query, no joins.
    A view's `search_column` holds them all in one.

    The rows are the principal's (an index), so that some 10,000 of them are read through: contrib modules such as
    pg_trgm are not everywhere.
    """

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        fields = getattr(view, "search_fields", None)
        text = request.query_params.get(self.search_param, "")
        if not fields or not text.strip():
            return queryset
        if len(text) > SEARCH_MAX or not text.isprintable():
            raise Invalid.field("search", "invalid", f"Use at most {SEARCH_MAX} printable characters.")
        column = getattr(view, "search_column", "")  # the fields in lower case, spaces between: no word holds one
        for word in text.split():
            found = Q(**{f"{column}__contains": Lower(Value(word))}) if column else Q()
            for field in () if column else fields:
                found |= Q(**{f"{field}__icontains": word})
            queryset = queryset.filter(found)
        return queryset


class Ordering(filters.OrderingFilter):
    """`?ordering=`: one or more of the view's `ordering_fields`, each once; the id decides between equals (rule 49).

    Without it: the view's `ordering` (`-created_at` if it has none). A view without `ordering_fields` has its own order
    and takes no other.
    """

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        allowed: list[str] = list(getattr(view, "ordering_fields", None) or [])
        asked = [name.strip() for name in request.query_params.get(self.ordering_param, "").split(",") if name.strip()]
        if asked and not allowed:
            raise Invalid.field("ordering", "unknown", "This list has one order; leave this out.")
        for name in asked:
            if name.removeprefix("-") not in allowed:
                raise Invalid.field("ordering", "unknown", f"Order by one of: {', '.join(allowed)}.")
        if len({name.removeprefix("-") for name in asked}) < len(asked):
            raise Invalid.field("ordering", "invalid", "Name each field once.")
        if not allowed:
            return queryset
        asked = asked or [getattr(view, "ordering", None) or "-created_at"]
        return queryset.order_by(*asked, "-id" if asked[-1].startswith("-") else "id")

    def get_schema_operation_parameters(self, view: Any) -> list[Any]:
        return super().get_schema_operation_parameters(view) if getattr(view, "ordering_fields", None) else []
