"""Quotas of an organization, counted and enforced under its lock."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q, Sum

from accounts.models import Organization
from novastack.common.errors import QuotaExceeded
from projects.models import Placement, Project


def _used(organization: Organization) -> dict[str, int]:
    live = Q(recycled_at=None)
    sums = Project.objects.filter(organization=organization).aggregate(
        projects=Count("id", filter=live),
        # Those on pools have no memory of their own.
        memory_bytes=Sum("memory_bytes", filter=live & ~Q(placement=Placement.POOL), default=0),
        storage_bytes=Sum("storage_bytes", default=0),  # the recycle bin counts for storage (rule 14)
    )
    return {key: int(value or 0) for key, value in sums.items()}


def usage_of(organization: Organization) -> dict[str, dict[str, Any]]:
    """Each quota: `{"limit", "used"}`; bytes are of plans, not of disks."""
    used = _used(organization)
    return {
        "projects": {"limit": organization.max_projects, "used": used["projects"]},
        "memory_bytes": {"limit": organization.max_memory_bytes, "used": used["memory_bytes"]},
        "storage_bytes": {"limit": organization.max_storage_bytes, "used": used["storage_bytes"]},
    }


def check(organization: Organization, *, projects: int = 0, memory_bytes: int = 0, storage_bytes: int = 0) -> None:
    """Raise `QuotaExceeded` when so much more would be too much. Call with the organization's row locked."""
    more = {"projects": projects, "memory_bytes": memory_bytes, "storage_bytes": storage_bytes}
    for name, quota in usage_of(organization).items():
        wanted = quota["used"] + more[name]
        if more[name] > 0 and wanted > quota["limit"]:
            what = name.removesuffix("_bytes")
            shown = f"{quota['limit'] / 2**30:g} GiB" if name.endswith("_bytes") else str(quota["limit"])
            raise QuotaExceeded(f"The organization's quota for {what} is {shown}; this would exceed it.")
