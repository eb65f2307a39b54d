"""A project's outbound heartbeat: a URL that is called when a backup is verified that is newer than all that were, so that
somebody outside notices when none comes any more. Proving an old one again is no sign of life."""

from __future__ import annotations

import json
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Coalesce

from backups.models import Backup, BackupPolicy, BackupTrigger, Proof, ProofState
from backups.retention import AHEAD
from novastack.common import outbound
from novastack.common.clock import now

SECONDS = 5.0


def send(backup: Backup, proof_id: UUID | str) -> str:
    """Call it, once; the outcome is kept on the policy. `proof_id`: the proof that has just ended. Returns what happened,
    for people; never raises for the place."""
    policy = BackupPolicy.objects.filter(project_id=backup.project_uuid).exclude(heartbeat_url="").first()
    backup.refresh_from_db()
    if policy is None or backup.verified_at is None or backup.status != "verified":
        return "There is none to call"
    if not _is_new(backup, proof_id):
        return "Not called: there is no newer verified backup than before"
    body = {
        "event": "backup.verified", "project": str(backup.project_uuid), "backup": str(backup.pk),
        "verified_at": backup.verified_at.isoformat(), "size_bytes": backup.size_bytes, "rto_seconds": backup.rto_seconds,
    }  # fmt: skip
    error = ""
    try:
        answer = outbound.post(
            policy.heartbeat_url, json.dumps(body).encode(), timeout_seconds=SECONDS,
            headers={"Content-Type": "application/json", "User-Agent": "NovaStack"},
        )  # fmt: skip
        if not 200 <= answer.status < 300:
            error = f"It answered {answer.status}."
    except outbound.OutboundError as failed:
        error = failed.detail
    mine = BackupPolicy.objects.filter(pk=policy.pk, heartbeat_url=policy.heartbeat_url)
    mine.update(heartbeat_error=error[:300], **({} if error else {"heartbeat_at": now()}))
    return f"Not taken: {error}"[:300] if error else "Taken"


def _is_new(backup: Backup, proof_id: UUID | str) -> bool:
    """Proven for the first time, and no newer one was proven before it."""
    whole = Q(state=ProofState.PASSED) | Q(state=ProofState.FAILED, error__code="assertion_failed")
    if Proof.objects.filter(whole, backup=backup).exclude(pk=proof_id).exists():
        return False
    at = backup.started_at or backup.created_at
    others = Backup.objects.filter(project_uuid=backup.project_uuid, verified_at__isnull=False).exclude(pk=backup.pk)
    others = others.exclude(trigger=BackupTrigger.UPLOAD).annotate(at=Coalesce("started_at", "created_at"))
    return not others.filter(at__gt=at, at__lte=now() + AHEAD).exists()  # later ones a wrong clock has dated
