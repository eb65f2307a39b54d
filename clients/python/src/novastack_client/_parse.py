"""From JSON to frozen dataclasses, by their type hints."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class InvalidAnswer(ValueError):
    """It is not what the API promises."""


_known: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _known:
        _known[kind] = get_type_hints(kind)
    return _known[kind]


def build(kind: type[T], data: Any) -> T:
    """An instance of a dataclass. What it does not know goes into `extra`; what is null although it should not be gets its
    default; what it needs and does not get is an `InvalidAnswer`."""
    if not isinstance(data, dict):
        raise InvalidAnswer(f"{kind.__name__}: not an object")
    hints = _hints(kind)
    usual = _with_defaults(kind)
    values = {
        name: _value(hint, data[name], f"{kind.__name__}.{name}")
        for name, hint in hints.items()
        if name != "extra" and name in data and not (data[name] is None and name in usual)
    }
    if "extra" in hints:
        values["extra"] = {name: value for name, value in data.items() if name not in hints}
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidAnswer(str(error)) from None


def _with_defaults(kind: Any) -> set[str]:
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is not missing or field.default_factory is not missing
    }


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not type(None))
        origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise InvalidAnswer(f"{where}: not a list")
        return tuple(_value(get_args(hint)[0], each, where) for each in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise InvalidAnswer(f"{where}: not an object")
        return dict(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    if hint is datetime:
        return _time(value, where)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (type(value) is bool and hint is not bool)):
        raise InvalidAnswer(f"{where}: not {hint.__name__}")
    return value


def _time(value: Any, where: str) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidAnswer(f"{where}: not a time") from None
