"""Input that takes only what it says: JSON's own types, and no unknown field (a typing error is not ignored)."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class Text(serializers.CharField):
    """A JSON string; DRF's own takes numbers and booleans as well. Kept as given: services clean it."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("trim_whitespace", False)
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Flag(serializers.BooleanField):
    """`true` or `false`; not "yes", not 1."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Whole(serializers.IntegerField):
    """A JSON number without a fraction."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class Cores(serializers.FloatField):
    """A number of CPU cores."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float) or abs(data) > 10_000:
            self.fail("invalid")
        return float(super().to_internal_value(data))


class Input(serializers.Serializer[Any]):
    """A request body. An unknown field is an error that names it."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = {str(name)[:80] for name in data} - set(self.fields)
            if unknown:
                raise serializers.ValidationError(
                    {name: serializers.ErrorDetail("There is no such field.", code="unknown") for name in unknown}
                )
        return super().to_internal_value(data)
