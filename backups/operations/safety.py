"""Safety backups of restores: pinned while there is a way back, let go afterwards."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import DateTimeField, F, Q, Value
from django.db.models.functions import Coalesce

from backups.models import Backup, BackupTrigger, Restore, RestoreStatus
from novastack.common.clock import now

PINNED = "Taken before a restore."
KEPT = timedelta(days=7)  # from when it is let go
BATCH = 500
OURS = Q(trigger=BackupTrigger.SAFETY, pinned=True, pinned_reason=PINNED)  # a pin that no person set
UNENDED = (RestoreStatus.QUEUED, RestoreStatus.RUNNING, RestoreStatus.UNDOING)


def let_go(*restores: Any) -> int:
    """Unpin safety backups that no way back needs any more: of restores that failed, were undone, or can be undone no
    longer. They go `KEPT` later. Of these restores only, or of all, at most `BATCH` at once; returns how many. What somebody
    pinned anew stays pinned."""
    moment = now()
    ended = Restore.objects.filter(safety_backup__pinned=True, safety_backup__pinned_reason=PINNED)
    ended = ended.exclude(status__in=UNENDED).exclude(undo_until__gt=moment)
    if restores:
        ended = ended.filter(pk__in=restores)
    found = list(ended.values_list("safety_backup_id", flat=True)[:BATCH])
    if not found:
        return 0
    later = Coalesce(F("keep_until"), Value(moment + KEPT), output_field=DateTimeField())
    return Backup.objects.filter(OURS, pk__in=found).update(
        pinned=False, pinned_reason="", keep_until=later, updated_at=moment
    )
