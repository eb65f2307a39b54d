"""Rows of backups name others by plain values, since they outlive them: links to those that are still there."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html


def linked(model: type[Model], pk: UUID | None, text: str = "") -> str:
    """A link to the row's page; its text alone when it is gone; a dash when there never was one. One query."""
    if pk is None:
        return "-"
    found: Any = model._default_manager.filter(pk=pk).first()
    if found is None:
        return f"{text or pk} (gone)"
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    return format_html('<a href="{}">{}</a>', reverse(name, args=[pk]), text or str(found))
