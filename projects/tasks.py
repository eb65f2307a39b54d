"""Celery's side: shells around operations. A message carries an id; the row decides."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from uuid import UUID

import structlog
from celery import shared_task
from django.conf import settings
from django.core.cache import cache
from django.db import transaction

from novastack.common.clock import now
from novastack.common.errors import Conflict
from novastack.common.models import Heartbeat, Install
from projects.models import DatabaseServer, Operation
from projects.operations import (
    disks,
    doctor,
    fences,
    janitor,
    logs,
    metrics,
    moving,
    parallel,
    pool_blanks,
    pool_upkeep,
    reconciler,
    region_check,
    registration,
    removal,
    retiring,
    runner,
    standby_upkeep,
    tls,
    watch,
)
from projects.operations.queue import send_hint

log = structlog.get_logger(__name__)


@shared_task(name="projects.run_operation")
def run_operation(operation_id: str) -> None:
    runner.run(UUID(operation_id))


@shared_task(name="projects.reconcile")
def reconcile() -> None:
    """One tick; also the sign of life of beat, which sent it."""
    Heartbeat.touch("beat")
    reconciler.reconcile()


@shared_task(name="projects.pulse")
def pulse(queue: str) -> None:
    """Sent to every queue: the sign of life of the worker that takes it."""
    Heartbeat.touch(f"worker:{queue}")


@shared_task(name="projects.check_health")
def check_health() -> None:
    with parallel.alone("health", seconds=60) as mine:
        if mine:
            watch.check_health()


@shared_task(name="projects.collect_usage")
def collect_usage() -> None:
    watch.collect_usage()


@shared_task(name="projects.guard_disks")
def guard_disks() -> None:
    """How full disks and databases are, and what follows from it (rules 16, 50)."""
    try:
        disks.measure()
    finally:  # after the look, which is to see the disk as full as it got; even without a control database
        disks.keep_ballast(settings.NOVASTACK_BALLAST_FOLDER, settings.NOVASTACK_BALLAST_BYTES)
    with parallel.alone("fences", seconds=60) as mine:
        if mine:
            fences.keep()


@shared_task(name="projects.read_logs")
def read_logs(server_id: str, tail: int, ticket: str, cursor: str = "") -> None:
    """For a web process without a way to runtimes (rule 23): the answer waits in the cache under the ticket."""
    server = DatabaseServer.objects.select_related("region").filter(pk=server_id).first()
    gone = logs.LogText([], cursor, failure="The server is gone.")
    cache.set(ticket, asdict(logs.read_on(server, cursor=cursor, tail=tail) if server else gone), 30)


@shared_task(name="projects.check_region")
def check_region(region_id: str) -> None:
    """An operator asked, or changed it: whether the region works as it is set up."""
    region_check.check(UUID(region_id))


@shared_task(name="projects.janitor")
def run_janitor() -> None:
    reconciler.claim_epochs()
    retiring.drop_due()
    if janitor.delete_due_data():
        for pk in Operation.objects.live().filter(kind="purge", lease_until=None).values_list("pk", flat=True):
            send_hint(pk)


@shared_task(name="projects.purge_due")
def purge_due() -> None:
    """The daily clean-up of the recycle bin and of what moves kept: runs once in 20 hours however often it is sent."""
    Install.load()
    with transaction.atomic():
        install = Install.objects.select_for_update().get(pk=1)  # of two at once the second sees that it was done
        last = install.notes.get("purge_due_at", "")
        if install.read_only or (last and last > (now() - timedelta(hours=20)).isoformat()):
            return
        due = janitor.due_in_bin(install.notes.get("purge_due_seen", []))
        copies = moving.copies_due(install.notes.get("copies_due_seen", []))
        Install.merge_notes(
            purge_due_at=now().isoformat(), purge_due_seen=due.seen, purge_due_refused=due.refusal,
            copies_due_seen=copies.seen, copies_due_later=copies.later,
        )  # fmt: skip
    if due.refusal:
        log.error("recycle bin not emptied", reason=due.refusal)
    if copies.later:
        log.warning("old copies wait for the next look", reason=copies.later)
    for copy in copies.databases:
        with transaction.atomic():
            moving.discard_begin(copy, created_by_label="clean-up of old copies")
    refused = []
    for project in due.projects:
        try:
            with transaction.atomic():
                removal.purge_begin(project, created_by_label="recycle bin clean-up")
        except Conflict as refusal:  # it stays in the bin, and is asked for again every day
            log.error("project in the recycle bin not purged", project=str(project.pk), reason=refusal.detail)
            refused.append(f"{project.name}: {refusal.detail}")
    if refused:
        Install.merge_notes(purge_due_refused=f"{len(refused)} could not be purged. {refused[0]}"[:1000])


@shared_task(name="projects.renew_certificates")
def renew_certificates() -> None:
    tls.renew_due()


@shared_task(name="projects.keep_standbys")
def keep_standbys() -> None:
    standby_upkeep.keep()


@shared_task(name="projects.keep_pools")
def keep_pools() -> None:
    """The next pool ahead of its need, what drained pools are waiting for, and empty databases for whoever comes."""
    with parallel.alone("pools", seconds=60) as mine:
        if mine:
            pool_upkeep.keep()
            pool_blanks.keep()


@shared_task(name="projects.check_pools")
def check_pools() -> None:
    """Every five minutes: whether pools let us in and hold what the rows say."""
    pool_upkeep.check_pools()


@shared_task(name="projects.check_pool")
def check_pool(server_id: str) -> None:
    """An operator asked."""
    pool_upkeep.check_pools([UUID(server_id)])


@shared_task(name="projects.clean_up_pools")
def clean_up_pools() -> None:
    """Daily: pools that failed and that nobody is on."""
    pool_upkeep.clean_up_failed()


@shared_task(name="projects.check_connectors")
def check_connectors() -> None:
    """Whether the endpoints of services answer."""
    registration.check_connectors()


@shared_task(name="projects.clean_up")
def clean_up() -> None:
    janitor.clean_up()


@shared_task(name="projects.thin_metrics")
def thin_metrics() -> None:
    """Readings become coarser with age, and end."""
    metrics.thin()


@shared_task(name="projects.examine")
def examine() -> None:
    """The doctor's look, for the operators' page; the answer waits in the cache."""
    cache.set(doctor.CACHE_KEY, doctor.examine().as_json(), doctor.KEPT_SECONDS)
