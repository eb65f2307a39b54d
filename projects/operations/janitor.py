"""The one place that deletes data (rule 3), and the clean-up of what time has made due (rule 8)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db import transaction
from django.db.models import Q, QuerySet

from accounts.services import audit
from accounts.services import clean_up as accounts_clean_up
from novastack.common.clock import now
from novastack.common.models import IdempotencyRecord, Install
from projects import domain
from projects.models import (
    BlockedPort,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    OperationEvent,
    Project,
    ServerDesired,
)
from projects.operations import wiring

log = structlog.get_logger(__name__)

THROWN_AWAY = "throw-away server"  # of data that only a backup was restored into: nobody's, and no event when it goes


def delete_due_data(limit: int = 20) -> int:
    """Delete the data of tombstones that are due. A live server's incarnation is never touched. Returns how many."""
    if Install.load().read_only:
        return 0
    done, away = 0, set()
    due = _waiting().filter(due_at__lte=now()).select_related("region").order_by("due_at")
    for tomb in due[:limit]:
        if _is_alive(tomb):
            tomb.last_error = "A server still uses this data: not deleted."
            tomb.due_at = now() + timedelta(hours=1)
            tomb.save(update_fields=["last_error", "due_at", "updated_at"])
            log.error("tombstone of a live server", name=tomb.handle.name)
            continue
        if tomb.region_id in away:  # it did not answer a moment ago; those of other regions are next
            tomb.due_at = now() + timedelta(seconds=60)
            tomb.save(update_fields=["due_at", "updated_at"])
            continue
        try:
            done += _delete(tomb)
        except domain.RuntimeUnreachable:
            away.add(tomb.region_id)
    return done


def _waiting() -> QuerySet[DataTombstone]:
    """What was forgotten with its runtime is nobody's to delete any more."""
    return DataTombstone.objects.filter(deleted_at=None, forgotten_at=None)


def _is_alive(tomb: DataTombstone) -> bool:
    return (
        DatabaseServer.objects.filter(pk=tomb.server_uuid, incarnation=tomb.incarnation)
        .exclude(desired_state=ServerDesired.ABSENT)
        .exists()
    )


def delete_now(tomb: DataTombstone) -> bool:
    """Delete the data of a throw-away server at once rather than at the next tick; what can't be now is tried again then.
    True if it is gone."""
    if tomb.reason != THROWN_AWAY or _is_alive(tomb):
        return False
    try:
        return bool(_delete(tomb))
    except domain.RuntimeUnreachable:
        return False


def _delete(tomb: DataTombstone) -> int:
    if not _waiting().filter(pk=tomb.pk).exists():  # forgotten since we looked
        return 0
    try:
        runtime = wiring.runtime_of(tomb.region)
        runtime.destroy(tomb.handle, delete_data=True)
        if runtime.data_exists(tomb.handle):
            raise domain.NovaStackRuntimeError("The data is still there.")
    except domain.NovaStackRuntimeError as error:
        tomb.last_error, tomb.due_at = str(error)[:500], now() + timedelta(seconds=60)
        tomb.save(update_fields=["last_error", "due_at", "updated_at"])
        if isinstance(error, domain.RuntimeUnreachable):
            raise
        return 0
    if tomb.reason == THROWN_AWAY:
        tomb.delete()
        return 1
    with transaction.atomic():
        tomb.deleted_at, tomb.last_error = now(), ""
        tomb.save(update_fields=["deleted_at", "last_error", "updated_at"])
        audit.record(
            None, "data.deleted", organization_id=tomb.organization_id, project_id=tomb.project_uuid,
            project_name=tomb.project_name, target=tomb.handle.name, data={"reason": tomb.reason},
        )  # fmt: skip
        # Purges wait for this: let them go on now rather than at their next look.
        waiting = Operation.objects.live().filter(project_uuid=tomb.project_uuid, kind="purge", lease_until=None)
        waiting.update(next_attempt_at=None, hinted_at=None)
    return 1


@dataclass(frozen=True, slots=True)
class Due:
    """`projects` may be purged now; `seen` is what this look found due, for the next one; `refusal` says why nothing is."""

    projects: list[Project]
    seen: list[str]
    refusal: str


def due_in_bin(seen_before: Collection[str]) -> Due:
    """Projects whose time in the recycle bin is over (rule 8): due at two daily looks (`seen_before` is what the last one
    found, so that a clock that jumps deletes nothing), and at most max(3, 5 %) of all at once, else none."""
    due = Project.objects.in_bin().filter(
        recycle_until__lte=now(), desired_status="recycled", deletion_protection=False
    )
    total = Project.objects.count()
    most = max(3, total // 20)
    rows = list(due.order_by("recycle_until"))
    seen = [str(p.pk) for p in rows]
    if len(rows) > most:
        return Due([], seen, f"{len(rows)} of {total} projects are due at once (at most {most}): purge them by hand.")
    return Due([p for p in rows if str(p.pk) in seen_before], seen, "")


def clean_up() -> dict[str, int]:
    """Rows that time has made worthless; never data."""
    moment = now()
    return {
        "endpoints": Endpoint.objects.filter(project=None, reserved_until__lt=moment).delete()[0],
        "blocked_ports": BlockedPort.objects.filter(until__lt=moment).delete()[0],
        "idempotency": IdempotencyRecord.objects.filter(created_at__lt=moment - timedelta(hours=24)).delete()[0],
        **accounts_clean_up(),
        "events": OperationEvent.objects.filter(
            Q(at__lt=moment - timedelta(days=30)), operation__finished_at__isnull=False
        ).delete()[0],
    }
