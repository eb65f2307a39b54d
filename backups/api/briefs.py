"""Operations in what is shown: `{id, kind, state, url}`, one query for any number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from rest_framework import serializers
from rest_framework.request import Request

from projects.api.outputs import operation_brief
from projects.models import Operation


def operations_of(rows: Iterable[Any], *names: str) -> dict[UUID, Operation]:
    """The operations that these columns of the rows name."""
    wanted = {pk for row in rows for name in names if (pk := getattr(row, name)) is not None}
    return Operation.objects.in_bulk(list(wanted)) if wanted else {}


class WithOperations(serializers.ListSerializer[Any]):
    """Finds the operations of all rows at once; the child says in `operation_columns` which columns name them."""

    def to_representation(self, data: Any) -> list[Any]:
        rows = list(data.all() if hasattr(data, "all") else data)
        self.context["operations"] = operations_of(rows, *self.child.operation_columns)  # type: ignore[index, union-attr]
        return list(super().to_representation(rows))


def brief(context: Mapping[str, Any], pk: UUID | None) -> dict[str, Any] | None:
    """By what `WithOperations` found; of one row alone it is asked for."""
    if pk is None:
        return None
    found: dict[UUID, Operation] | None = context.get("operations")
    operation = found.get(pk) if found is not None else Operation.objects.filter(pk=pk).first()
    request: Request | None = context.get("request")
    return operation_brief(operation, request)
