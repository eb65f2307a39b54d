"""Services of this app by name, for what must not fail when one of them is not there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from novastack.common.errors import NotFound


def has(module: str, name: str) -> bool:
    """Whether `backups.services.<module>` offers `name`: a page shows no button that would do nothing."""
    try:
        return hasattr(import_module(f"backups.services.{module}"), name)
    except ModuleNotFoundError:
        return False


def service(module: str, name: str) -> Any:
    """The service itself; `NotFound` when there is none."""
    if not has(module, name):
        raise NotFound("This installation can't do that yet.")
    return getattr(import_module(f"backups.services.{module}"), name)
