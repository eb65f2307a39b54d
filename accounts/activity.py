"""The audit log for people: words for actions, days as groups, a cursor instead of pages."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from accounts.models import AuditEvent
from novastack.common.clock import now

PAGE_SIZE = 50
MAX_ID = 2**63 - 1

WORDS = {
    "project.created": "Created project",
    "allocation.created": "Allocated a database to an instance",
    "project.changed": "Changed settings",
    "project.start": "Started",
    "project.stop": "Stopped",
    "project.restart": "Restarted",
    "project.rotate_password": "Rotated password",
    "project.renew_certificate": "Renewed certificate",
    "project.retry": "Retried",
    "project.deleted": "Deleted project",
    "project.final_backup_waived": "Deleted without a final backup",
    "project.undelete": "Restored from the bin",
    "project.purged": "Removed for good",
    "project.move": "Moved",
    "project.plan_changed": "Changed plan",
    "project.copy_removed": "Removed the old copy after a move",
    "restore.started": "Began to restore",
    "restore.undo": "Began to undo a restore",
    "project.writes_fenced": "Paused writing",
    "project.writes_allowed": "Allowed writing again",
    "project.forgotten": "Forgot without its runtime",
    "backup.started": "Began a backup",
    "backup.uploaded": "Uploaded a dump",
    "backup.downloaded": "Downloaded a backup",
    "backup.pinned": "Pinned a backup",
    "backup.unpinned": "Unpinned a backup",
    "server.adopted": "Recorded the server that is there",
    "server.quarantined": "Set a server aside",
    "catalogue.changed": "Changed engine versions",
    "standbys.changed": "Changed the number of standbys",
    "pool.created": "Began a pool",
    "pool.checked": "Checked a pool",
    "pool.draining": "Began to drain a pool",
    "pool.drain_ended": "Stopped draining a pool",
    "pool.removed": "Removed a pool",
    "pool.recover": "Started a pool again",
    "pool.restart": "Restarted a pool",
    "pool.renew_certificate": "Renewed a pool's certificate",
    "region.created": "Added region",
    "region.changed": "Changed region",
    "region.enabled": "Enabled region",
    "region.disabled": "Disabled region",
    "region.removed": "Removed region",
    "region.declared_gone": "Declared region gone",
    "region.not_gone": "Took back that a region is gone",
    "schedule.created": "Made a backup schedule",
    "schedule.changed": "Changed a backup schedule",
    "schedule.deleted": "Removed a backup schedule",
    "schedule.run": "Ran a backup schedule by hand",
    "backup.delete": "Began to remove a backup",
    "backup.deleted": "Removed a backup",
    "backup.retention_applied": "Applied retention by hand",
    "backup.retention_stopped": "Retention stopped: too many at once",
    "backup.shrank": "A backup is less than half of the one before",
    "operation.cancelled": "Cancelled operation",
    "operation.retried": "Retried operation",
    "credentials.revealed": "Saw the password",
    "backup.verify": "Began to verify a backup",
    "backup_policy.changed": "Changed what is promised about backups",
    "drill.created": "Added a drill",
    "drill.changed": "Changed a drill",
    "drill.deleted": "Removed a drill",
    "drill.run": "Began a drill",
    "drill.not_run": "A drill could not run",
    "api_key.created": "Created a project's API key",
    "service.enable": "Registered with a service",
    "service.register": "Registered anew with a service",
    "service.retry": "Retried a service",
    "service.disable": "Deregistered from a service",
    "connector.changed": "Changed a service's endpoint",
    "api_key.revoked": "Revoked a project's API key",
    "api_key.confirmed": "Confirmed a project's API key after a restore",
    "token.created": "Created API token",
    "token.revoked": "Revoked API token",
    "member.invited": "Invited",
    "member.joined": "Joined",
    "member.left": "Left",
    "member.removed": "Removed member",
    "member.role_changed": "Changed role",
    "member.invitation_withdrawn": "Withdrew invitation",
    "organization.created": "Created organization",
    "organization.renamed": "Renamed organization",
    "organization.deleted": "Deleted organization",
    "organization.quota_changed": "Changed quotas",
    "storage.created": "Added a storage of backups",
    "storage.changed": "Changed a storage of backups",
    "storage.deleted": "Removed a storage of backups",
    "storage.taken_over": "Took over a storage of backups",
    "recovery_kit.exported": "Exported the recovery kit",
    "recovery_kit.confirmed": "Confirmed the recovery kit",
    "backup_key.rotated": "Made a new key for backups",
    "backup_key.recipient_added": "Added a recipient of backups",
    "backup_key.recipient_removed": "Removed a recipient of backups",
    "backups.adopted": "Adopted backups of another install",
    "quota_defaults.changed": "Changed the quotas of organizations without their own",
    "user.registered": "Registered",
    "auth.login": "Signed in",
    "auth.logout": "Signed out",
    "auth.login_failed": "Failed to sign in",
    "auth.password_changed": "Changed password",
    "auth.factor_added": "Added a second factor",
    "auth.factor_removed": "Removed a second factor",
    "auth.factor_reset": "Made new recovery codes",
    "auth.address_added": "Added an address",
    "auth.address_removed": "Removed an address",
    "auth.address_changed": "Changed the address",
    "auth.address_confirmed": "Confirmed an address",
    "profile.updated": "Changed profile",
}
ENGINES: dict[str, str] = {}  # name → title; filled by `projects`, which knows them
# What the filter offers → the actions' beginnings
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "projects": ("Projects", ("project.", "operation.", "allocation.")),
    "backups": (
        "Backups",
        (
            "backup.",
            "restore.",
            "schedule.",
            "drill.",
            "storage.",
            "recovery_kit.",
            "backup_key.",
            "backup_policy.",
            "backups.",
        ),
    ),
    "secrets": (
        "Secrets",
        ("credentials.", "token.", "api_key.", "project.rotate_password", "recovery_kit.", "backup.downloaded"),
    ),
    "members": ("Members", ("member.", "organization.")),
    "sign-in": ("Sign-in", ("auth.", "user.", "profile.")),
}


def words(action: str) -> str:
    return WORDS.get(action) or action.replace(".", " ").replace("_", " ").capitalize()


def detail(event: AuditEvent) -> str:
    """The second line: what of the data helps a reader."""
    data = event.data or {}
    if event.action == "project.created":
        engine = ENGINES.get(str(data.get("engine")), str(data.get("engine", "")))
        return f"{engine} {data.get('version', '')}, {str(data.get('plan', '')).capitalize()}"
    if event.action == "allocation.created":
        return f"Instance {event.target}"
    if event.action == "project.writes_fenced":
        return "The disk is almost full" if data.get("reason") == "disk" else "Larger than its storage limit"
    if event.action == "project.writes_allowed":
        return "The disk has room again" if data.get("reason") == "disk" else "Below its storage limit again"
    if event.action == "member.role_changed":
        return f"{data.get('before', '')} to {data.get('after', '')}".capitalize()
    if event.action == "credentials.revealed":
        return f"User {event.target}, {data.get('purpose', '')}".rstrip(", ")
    if event.action == "drill.not_run":
        return f"{event.target}: {data.get('reason', '')}"
    if event.action == "token.created":
        return "Scopes " + ", ".join(data.get("scopes", []))
    if event.action == "organization.renamed":
        return f"{data.get('before', '')} to {data.get('after', '')}"
    if "fields" in data:
        return ", ".join(data["fields"]).replace("_", " ")
    if "role" in data:
        return f"As {data['role']}"
    return f"Request {event.request_id[:12]}" if event.project_id and not event.actor_id else ""


def feed(events: QuerySet[AuditEvent], *, before: str = "", size: int = PAGE_SIZE) -> dict[str, Any]:
    """One page before the cursor: `days` as groups of events, newest first, and `older`, the next cursor."""
    if before.isdecimal() and len(before) < 20 and int(before) <= MAX_ID:
        events = events.filter(pk__lt=int(before))
    rows = list(events.order_by("-id")[: size + 1])
    older = rows[size - 1].pk if len(rows) > size else None
    today = timezone.localdate(now())
    days: list[dict[str, Any]] = []
    for event in rows[:size]:
        event.words, event.detail = words(event.action), detail(event)  # type: ignore[attr-defined]
        event.subject = event.project_name or event.target  # type: ignore[attr-defined]
        event.bad = event.action == "auth.login_failed"  # type: ignore[attr-defined]
        day = _day(timezone.localdate(event.created_at), today)
        if not days or days[-1]["label"] != day:
            days.append({"label": day, "events": []})
        days[-1]["events"].append(event)
    return {"days": days, "older": older}


def _day(day: date, today: date) -> str:
    if day == today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    return f"{day:%-d %B}" if day.year == today.year else f"{day:%-d %B %Y}"
