"""Quotas of an organization, counted and enforced under its lock; and what a project has of its plan's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.db.models import Count, Q, Sum

from accounts.models import Organization
from novastack.common.errors import QuotaExceeded
from projects.models import Database, DatabaseSlot, Placement, Project, ProjectService, ServiceStatus
from projects.services.keys import working_keys

# quota → the organization's field, and its name for people
QUOTAS: Mapping[str, tuple[str, str]] = {
    "projects": ("max_projects", "projects"),
    "memory_bytes": ("max_memory_bytes", "memory"),
    "storage_bytes": ("max_storage_bytes", "storage"),
    "backups": ("max_backups", "backups"),
    "backup_bytes": ("max_backup_bytes", "storage of backups"),
}
Counter = Callable[[Organization], Mapping[str, int]]
_counters: list[tuple[frozenset[str], Counter]] = []


def count_also(names: Iterable[str], counter: Counter) -> None:
    """Another app counts what is its own (`backups`, `backup_bytes`), from its `AppConfig.ready()`."""
    _counters.append((frozenset(names), counter))


def _used(organization: Organization, wanted: Iterable[str] = QUOTAS) -> dict[str, int]:
    """Of each quota; right for those that are `wanted`."""
    live = Q(recycled_at=None)
    sums = Project.objects.filter(organization=organization).aggregate(
        projects=Count("id", filter=live),
        # Those on pools have no memory of their own.
        memory_bytes=Sum("memory_bytes", filter=live & ~Q(placement=Placement.POOL), default=0),
        storage_bytes=Sum("storage_bytes", default=0),  # the recycle bin counts for storage (rule 14)
    )
    used = dict.fromkeys(QUOTAS, 0) | {key: int(value or 0) for key, value in sums.items()}
    for names, counter in _counters:
        if not names.isdisjoint(wanted):
            used |= counter(organization)
    return used


def usage_of(organization: Organization) -> dict[str, dict[str, Any]]:
    """Each quota: `{"limit", "used"}`; bytes of projects are those of their limits, not of disks."""
    used, limits = _used(organization), organization.quotas()
    return {name: {"limit": limits[field], "used": used[name]} for name, (field, _) in QUOTAS.items()}


def check(organization: Organization, **more: int) -> None:
    """Raise `QuotaExceeded` when so much more (`projects=1`, `memory_bytes=…` …) would be too much. Call with the
    organization's row locked. What is above a limit already stays; only more is refused."""
    usage, limits = _used(organization, more), organization.quotas()
    for name, wanted in more.items():
        field, title = QUOTAS[name]
        if wanted > 0 and usage[name] + wanted > limits[field]:
            limit, used = (
                f"{number / 2**30:g} GiB" if name.endswith("_bytes") else str(number)
                for number in (limits[field], usage[name])
            )
            raise QuotaExceeded(
                f"The organization's quota for {title} is {limit}, {used} are used; this would exceed it."
            )


def project_usage(project: Project) -> dict[str, dict[str, int]]:
    """The plan's quotas of one project: `{"limit", "used"}` of databases, API keys and services."""
    plan = project.plan
    return {
        "databases": {
            "limit": plan.max_databases,
            "used": Database.objects.filter(project=project, slot=DatabaseSlot.CURRENT).count(),
        },
        "api_keys": {"limit": plan.max_api_keys, "used": working_keys(project)},
        "services": {
            "limit": plan.max_services,
            "used": ProjectService.objects.filter(project=project).exclude(status=ServiceStatus.DISABLED).count(),
        },
    }
