"""A backup's words, icons and colours; what the pages of projects show of backups.

Only what was restored and compared is green: a stored one is grey.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from backups.models import (
    Backup,
    BackupStatus,
    BackupTrigger,
    Proof,
    ProofState,
    Restore,
    RestoreStatus,
    Schedule,
    StorageKind,
    StorageTarget,
)
from backups.operations.retaining import TWO_LOOKS
from backups.services import readings
from backups.services.proofs import objective
from backups.services.protection import Level, Protection
from backups.services.schedules import describe
from novastack.common.clock import now
from novastack.common.templatetags.ui import clock, size_text
from projects.models import Project
from projects.operations.taxonomy import CODES
from projects.templatetags.projects_ui import badge

register = template.Library()

S = BackupStatus
_LOOKS: dict[str, tuple[str, str]] = {  # look, icon; without icon: a spinner
    S.QUEUED: ("", "clock"), S.DUMPING: ("run", ""), S.STORED: ("", "archive-restore"), S.VERIFYING: ("run", ""),
    S.VERIFIED: ("proven", "badge-check"), S.FAILED: ("bad", "circle-x"), S.CORRUPT: ("bad", "triangle-alert"),
    S.DELETING: ("run", ""),
}  # fmt: skip
_PROOFS: dict[str, tuple[str, str]] = {
    ProofState.QUEUED: ("", "clock"), ProofState.RUNNING: ("run", ""), ProofState.PASSED: ("proven", "badge-check"),
    ProofState.FAILED: ("bad", "triangle-alert"), ProofState.ERROR: ("warn", "circle-alert"),
    ProofState.CANCELLED: ("", "ban"),
}  # fmt: skip
_RESTORES: dict[str, tuple[str, str]] = {
    RestoreStatus.QUEUED: ("", "clock"), RestoreStatus.RUNNING: ("run", ""), RestoreStatus.SUCCEEDED: ("ok", "circle-check"),
    RestoreStatus.FAILED: ("bad", "circle-x"), RestoreStatus.CANCELLED: ("", "ban"), RestoreStatus.UNDOING: ("run", ""),
    RestoreStatus.UNDONE: ("", "undo-2"),
}  # fmt: skip


@register.simple_tag
def backup_badge(backup: Backup) -> SafeString:
    look, symbol = ("bad", "triangle-alert") if _gone(backup) else _LOOKS[backup.status]
    return badge(backup_state(backup), look, symbol)


def _gone(backup: Backup) -> bool:
    """Proven or not: there is nothing to restore."""
    return backup.missing and backup.status in {S.STORED, S.VERIFIED}


@register.simple_tag
def backup_state(backup: Backup) -> str:
    """The badge's word: of what was uploaded nothing is dumped before it was run."""
    if _gone(backup):
        return "Missing"
    imported = backup.trigger == BackupTrigger.UPLOAD and backup.status == S.DUMPING
    return "Importing" if imported else str(backup.get_status_display())


@register.simple_tag
def proof_badge(proof: Proof) -> SafeString:
    look, symbol = _PROOFS[proof.state]
    return badge(proof.get_state_display(), look, symbol)


@register.simple_tag
def restore_badge(restore: Restore) -> SafeString:
    look, symbol = _RESTORES[restore.status]
    return badge(restore.get_status_display(), look, symbol)


@register.filter
def advice(code: str) -> str:
    """What to do about an error, by its code; empty: nothing more is known than its words. That those are in the API's
    `detail`, or a proof's `differences`, needs no telling where they are shown."""
    known = CODES.get(code)
    text = re.sub(r"^`(?:detail|differences)`[^.;]*[.;]\s*", "", known.advice) if known is not None else ""
    return (text[:1].upper() + text[1:]).replace("`", "")


_LEVELS: dict[Level, tuple[str, str, str]] = {  # words, look, icon
    Level.BROKEN: ("Not protected", "bad", "triangle-alert"), Level.AT_RISK: ("At risk", "warn", "triangle-alert"),
    Level.PROTECTED: ("Protected", "proven", "badge-check"), Level.UNSUPPORTED: ("Not supported", "", "ban"),
}  # fmt: skip


@register.simple_tag
def protection_badge(found: Protection) -> SafeString:
    return badge(*_LEVELS[found.level])


@register.filter
def proof_words(backup: Backup) -> SafeString:
    """What is known of it: the column “Verified by restore”."""
    error = (backup.error or {}).get("detail", "")
    verify_error = (backup.verify_error or {}).get("detail", "")
    if backup.status in {S.FAILED, S.CORRUPT}:
        return format_html('<span class="small broken">{}</span>', error or verify_error or "Nothing was recorded.")
    if backup.status in {S.QUEUED, S.DUMPING}:
        return format_html(
            '<span class="faint small">After the {}</span>',
            "import" if backup.trigger == BackupTrigger.UPLOAD else "dump",
        )
    if backup.status == S.VERIFYING:
        return format_html('<span class="faint small">{}</span>', "Being restored and compared")
    if backup.missing:
        return format_html('<span class="small broken">{}</span>', verify_error)
    if verify_error:
        return format_html('<span class="small late">Could not be tried: {}</span>', verify_error)
    if backup.verified_at is not None:
        return format_html('<span class="small faint">{} match</span>', tables_text(backup.tables))
    return format_html('<span class="faint small">{}</span>', "Not yet" if backup.usable else "")


def tables_text(tables: int | None) -> str:
    if tables is None:
        return "Contents"
    return f"{tables:,} table{'' if tables == 1 else 's'}".replace(",", "\u202f")


@register.filter
def share(part: int | None, whole: int | None) -> int | None:
    """Percent, 0 to 99 while it runs; None when the whole is not known."""
    return min(99, round(100 * part / whole)) if part is not None and whole else None


@register.filter
def why_words(why: Iterable[str]) -> str:
    """Why retention keeps it, or why it goes; sizes as people read them."""
    told = [re.sub(r"\b(\d{4,}) bytes\b", lambda found: size_text(int(found[1])), text) for text in why]
    text = "; ".join(told)
    return text[:1].upper() + text[1:]


@register.filter
def goes_at(backup: Backup) -> datetime | None:
    """The earliest daily look that may remove it; None: no look has seen yet that nothing keeps it."""
    return backup.due_since + TWO_LOOKS if backup.due_since is not None else None


@register.filter
def of(part: float, whole: float | None) -> int:
    """Percent of a limit."""
    return min(100, round(100 * part / whole)) if whole else 0


@register.filter
def span(seconds: float | None) -> str:
    """A target in round words: `4 h`, `30 min`, `2 days`."""
    if seconds is None:
        return ""
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size and (size < 86_400 or seconds >= 2 * size):
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {name}"
    return f"{seconds:.0f} s"


@register.filter
def moment(value: datetime | None) -> str:
    """`today 12:00`, `19 Nov 20:00`, `2 Dec 2025 04:00`: in the reader's zone, for sentences and labels."""
    if value is None:
        return "–"
    local, today = timezone.localtime(value), timezone.localtime(now())
    if local.date() == today.date():
        return f"today {local:%H:%M}"
    return f"{local:%-d %b %H:%M}" if local.year == today.year else f"{local:%-d %b %Y %H:%M}"


@register.filter
def when(value: datetime | None) -> SafeString | str:
    """The same as the beginning of a row, with the exact time in `title`."""
    text = moment(value)
    return clock(value, text[:1].upper() + text[1:].replace("%", "%%")) if value is not None else text


@register.filter
def place(target: StorageTarget) -> str:
    """Where it is, without secrets."""
    config = target.config
    if target.kind == StorageKind.FILESYSTEM:
        return str(config.get("path", ""))
    host = str(config.get("endpoint", "")).split("://")[-1]
    return ", ".join(part for part in (str(config.get("bucket", "")), host or str(config.get("region", ""))) if part)


@register.filter
def short_hash(value: str) -> str:
    return f"{value[:6]}…{value[-4:]}" if len(value) > 12 else value


_SHORT = {"0 * * * *": "Every hour", "0 */4 * * *": "Every 4 hours"}  # else “At minute 0 past every fourth hour”


@register.filter
def cron_words(schedule: Schedule) -> str:
    """The schedule in plain English, without its zone."""
    if schedule.cron in _SHORT:
        return _SHORT[schedule.cron]
    return describe(schedule.cron, schedule.time_zone).removesuffix(f", {schedule.time_zone}")


@register.simple_tag
def undoable(project: Project) -> Restore | None:
    return readings.undoable(project)


@register.inclusion_tag("backups/_objective.html")
def recovery(project: Project) -> dict[str, Any]:
    """The card of a project's overview: what could be lost, how long it would take, what comes next."""
    return {"project": project, "objective": objective(project), "next_backup": readings.next_run(project)}


@register.simple_tag
def last_good_backups(projects: Iterable[Project]) -> dict[UUID, dict[str, Any]]:
    return readings.last_good_of(list(projects))
