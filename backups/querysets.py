"""Tenancy lives here: views and API fetch through `for_principal` and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q

if TYPE_CHECKING:
    from accounts.permissions import Principal


class OwnedQuerySet(models.QuerySet[Any]):
    """Of rows with an `organization_id`."""

    def for_principal(self, principal: Principal) -> OwnedQuerySet:
        return self.filter(organization_id__in=principal.organization_ids())


class StorageQuerySet(models.QuerySet[Any]):
    def for_principal(self, principal: Principal) -> StorageQuerySet:
        """The organization's own, and those that the install has for everybody."""
        return self.filter(Q(organization=None) | Q(organization_id__in=principal.organization_ids()))
