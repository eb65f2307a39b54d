"""The disks that hold data: how full they are, and a ballast that is given up when one is nearly full (rule 16)."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings

from projects import domain
from projects.models import (
    DISK_CLOSED_PERCENT,
    DISK_FENCED_PERCENT,
    DISK_WARN_PERCENT,
    DiskLevel,
    Region,
)
from projects.operations import fanout, wiring

log = structlog.get_logger(__name__)
CALM_BELOW_PERCENT = 78  # from a warning back to none, so that it is not said again and again
BALLAST_BELOW_PERCENT = 85
FULL_BYTES = 20 << 20  # a server that had no room for its log ends, and what it was writing is gone again
BALLAST_MOST = 100  # never more than this part of the disk: one hundredth
BALLAST_NAME = "ballast"
ROOT_KEPT_SECONDS = 300
SAID_EVERY_SECONDS = 60  # that it is still so
UNKNOWN_AFTER_SECONDS = 600
_roots: dict[UUID, tuple[str, str, float]] = {}


def measure() -> None:
    """How full the disk of each region's data is, where this worker can see it. Writes what changed, says once what it
    means."""
    regions = {region.pk: region for region in Region.objects.exclude(runtime="")}
    unknown = {}
    for pk, region in regions.items():
        if _known_root(region) is None:
            with contextlib.suppress(domain.NovaStackRuntimeError, KeyError):
                unknown[pk] = wiring.runtime_of(region).data_root
    for pk, root in fanout.ask("data_root", unknown, fanout.patience(regions)):
        if isinstance(root, str):
            _keep_root(regions[pk], root)
    for region in regions.values():
        measure_region(region)


def is_full(region: Region) -> bool:
    """Whether the disk of its servers' data has no room at all, as far as this worker sees it now."""
    try:
        root = _root_of(region)
        return bool(root) and shutil.disk_usage(root).free < FULL_BYTES
    except (domain.NovaStackRuntimeError, OSError, KeyError):
        return False


def measure_region(region: Region) -> None:
    try:
        root = _root_of(region)
        usage = shutil.disk_usage(root) if root else None
    except domain.NovaStackRuntimeError:
        return  # away: nobody writes there, and no fence could be lifted
    except (OSError, KeyError):
        usage = None  # not from here: a worker in a container, a runtime that is not known here
    moment = time.time()
    age = moment - region.disk.get("at", 0)
    if usage is None:
        if region.disk and age > UNKNOWN_AFTER_SECONDS:  # else a fence would stay that nobody can see the reason of
            Region.objects.filter(pk=region.pk, disk=region.disk).update(disk={})
            log.warning("disk of the data is not seen any more", region=region.slug, before=region.disk_level)
        return
    before = region.disk_level
    used = used_percent(usage)
    level = level_of(used, before)
    disk: dict[str, Any] = {
        "total_bytes": usage.total, "free_bytes": usage.free, "used_percent": used, "level": str(level),
        "at": int(moment),
    }  # fmt: skip
    as_before = level == region.disk.get("level") and abs(used - region.disk.get("used_percent", -1)) < 0.5
    if as_before and age < SAID_EVERY_SECONDS:
        return
    Region.objects.filter(pk=region.pk).update(disk=disk)
    if level != before:
        calmer = level in {DiskLevel.OK, DiskLevel.WARN} and before != DiskLevel.OK
        say = log.info if calmer else log.warning
        say("disk of the data", region=region.slug, used_percent=used, level=str(level), before=before)


def used_percent(usage: Any) -> float:
    """As `df` says it: what is kept back for root or by a quota is no room of ours."""
    percent: float = 100 * usage.used / max(1, usage.used + usage.free)
    return round(percent, 1)


def level_of(used: float, before: str) -> DiskLevel:
    """What that much means. Fenced until it is below 90 % again, warned of until it is below 78 %."""
    if used >= DISK_FENCED_PERCENT or (before == DiskLevel.FENCED and used >= DISK_CLOSED_PERCENT):
        return DiskLevel.FENCED
    if used >= DISK_CLOSED_PERCENT:
        return DiskLevel.CLOSED
    if used >= DISK_WARN_PERCENT or (before != DiskLevel.OK and used >= CALM_BELOW_PERCENT):
        return DiskLevel.WARN
    return DiskLevel.OK


def _root_of(region: Region) -> str:
    """The folder to measure: the region's `data_root`, or what the runtime says (asked every 5 minutes: it is a call to
    the Docker engine)."""
    known = _known_root(region)
    if known is None:
        return _keep_root(region, fanout.ask_one("data_root", region, wiring.runtime_of(region).data_root))
    return known


def _known_root(region: Region) -> str | None:
    if given := region.config.get("data_root"):
        return str(given)
    known = _roots.get(region.pk)
    if (
        known
        and known[0] == f"{region.runtime} {region.endpoint_url}"
        and time.monotonic() - known[2] < ROOT_KEPT_SECONDS
    ):
        return known[1]
    return None


def _keep_root(region: Region, root: str) -> str:
    on_engines_disk = region.runtime == "docker" or (
        region.runtime == "swarm" and "volume_options" not in region.config
    )
    if root and on_engines_disk and settings.NOVASTACK_DOCKER_DISK:
        root = settings.NOVASTACK_DOCKER_DISK  # this worker's own door to the same disk
    if root or region.endpoint_url:  # an engine elsewhere has none, and need not be asked every time
        _roots[region.pk] = (f"{region.runtime} {region.endpoint_url}", root, time.monotonic())
    return root


def keep_ballast(folder: str, size_bytes: int) -> None:
    """Keep a file of that size (at most a hundredth of the disk) in `folder`, and give it up when the disk is 95 % full, so
    that whoever must still write (the control database, checkpoints) has room until writers are fenced. Made again below
    85 %. No folder or size 0: none. Asks no database: that one may have run out of room already."""
    if not folder:
        return
    ballast = Path(folder) / BALLAST_NAME
    try:
        usage = shutil.disk_usage(folder)
        used = used_percent(usage)
        if ballast.exists():
            if used >= DISK_FENCED_PERCENT or size_bytes <= 0:
                ballast.unlink()
                _part_of(ballast).unlink(missing_ok=True)
                log.error("ballast released", folder=folder, used_percent=used)
        elif size_bytes > 0 and used < BALLAST_BELOW_PERCENT:
            _make(ballast, min(size_bytes, usage.total // BALLAST_MOST))
            log.info("ballast made", folder=folder, used_percent=used)
    except OSError as error:
        log.warning("ballast not kept", folder=folder, error=str(error))


def _part_of(ballast: Path) -> Path:
    """One name, so that what a killed worker left of it is used up by the next."""
    return ballast.with_name(f".{ballast.name}.part")


def _make(ballast: Path, size_bytes: int) -> None:
    """Room that is really taken, not a file with a hole."""
    part = _part_of(ballast)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(ballast)
    finally:
        part.unlink(missing_ok=True)
