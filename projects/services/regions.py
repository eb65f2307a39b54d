"""Regions: operators add, change, check, disable and remove them. What is in a runtime is not touched."""

from __future__ import annotations

from django.db import transaction
from django.db.models import ProtectedError

from accounts.permissions import Principal, require_operator
from accounts.services import audit
from novastack.common.errors import ActionNotAllowed, Conflict
from projects import tasks
from projects.models import DataTombstone, Region
from projects.operations import region_check as checking

# Where servers live, the driver stays (rule 12). How it is reached may change: certificates end, machines get new names.
FIXED_WITH_SERVERS = ("slug", "runtime", "config")


@transaction.atomic
def region_save(*, principal: Principal, region: Region, changed: list[str]) -> Region:
    """Store a new or changed region (validated: `full_clean`), and have a worker check it. `changed` names the fields;
    a key among them is audited by its name only. Raises `ValidationError`, `ActionNotAllowed`."""
    require_operator(principal)
    new = region._state.adding
    if not new:
        before = Region.objects.select_for_update(no_key=True).get(pk=region.pk)
        fixed = [name for name in FIXED_WITH_SERVERS if getattr(before, name) != getattr(region, name)]
        if fixed and (before.servers.exists() or before.projects.exists()):
            raise ActionNotAllowed(f"Servers live there: {', '.join(fixed)} can't be changed any more.")
        if region.endpoint_url != before.endpoint_url and not before.servers.exists():
            region.engine_identity = ""
    region.full_clean(exclude={"endpoint_key"})
    region.save()
    if new or changed:
        audit.record(
            principal, "region.created" if new else "region.changed", target=region.slug,
            data={"fields": sorted(changed)} if not new else {"runtime": region.runtime, "endpoint": region.endpoint_url},
        )  # fmt: skip
    _check_soon(region)
    return region


def region_check(*, principal: Principal, region: Region) -> None:
    """Have a worker look whether it works. `ActionNotAllowed` when none can be asked."""
    require_operator(principal)
    checking.want(region)
    if not _send(region):
        raise ActionNotAllowed("No worker can be asked now; the check is made when one takes the next look.")


@transaction.atomic
def region_enable(*, principal: Principal, region: Region, enabled: bool) -> Region:
    """A disabled region is looked at and changed by nobody; what runs there runs on, and nothing new is made."""
    require_operator(principal)
    region = Region.objects.select_for_update(no_key=True).get(pk=region.pk)
    if region.enabled != enabled:
        region.enabled = enabled
        region.save(update_fields=["enabled", "updated_at"])
        audit.record(principal, "region.enabled" if enabled else "region.disabled", target=region.slug)
    return region


@transaction.atomic
def region_remove(*, principal: Principal, region: Region) -> None:
    """Remove a region without servers, projects and data. `ActionNotAllowed` says what is still there."""
    require_operator(principal)
    region = Region.objects.select_for_update().get(pk=region.pk)
    left = {
        "server": region.servers.count(),
        "project": region.projects.count(),
        "volume": DataTombstone.objects.filter(region=region, deleted_at=None, forgotten_at=None).count(),
    }
    if any(left.values()):
        words = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in left.items() if count)
        raise ActionNotAllowed(f"{region.name} still has {words}. Disable it, or purge and move them first.")
    slug = region.slug
    try:
        with transaction.atomic():
            region.delete()
    except ProtectedError as error:
        raise Conflict(
            f"{region.name} is still referred to by records that must be kept; disable it instead."
        ) from error
    audit.record(principal, "region.removed", target=slug)


def _check_soon(region: Region) -> None:
    if region.runtime:
        checking.want(region)
        transaction.on_commit(lambda: _send(region))


def _send(region: Region) -> bool:
    try:
        tasks.check_region.apply_async(args=[str(region.pk)], expires=300, retry=False)
    except Exception:  # every broker has errors of its own
        return False
    return True
