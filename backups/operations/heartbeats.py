"""A project's outbound heartbeat: a URL that is called after each verified backup, so that somebody outside notices when
none comes any more."""

from __future__ import annotations

import json

from backups.models import Backup, BackupPolicy
from novastack.common import outbound
from novastack.common.clock import now

SECONDS = 5.0


def send(backup: Backup) -> str:
    """Call it, once; the outcome is kept on the policy. Returns what happened, for people; never raises for the place."""
    policy = BackupPolicy.objects.filter(project_id=backup.project_uuid).exclude(heartbeat_url="").first()
    backup.refresh_from_db()
    if policy is None or backup.verified_at is None or backup.status != "verified":
        return "There is none to call"
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
