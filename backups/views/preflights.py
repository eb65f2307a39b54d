"""A preflight for people: what was looked at, rows now against rows in the backup, what would be lost first."""

from __future__ import annotations

from typing import Any

from backups.models import Backup, BackupTrigger
from novastack.common.templatetags.ui import duration_text, size_text
from projects.models import Project
from projects.templatetags.projects_ui import whole

SHOWN = 8


def shown(seen: Any, into: Project) -> dict[str, Any]:
    """What `_preflight.html` shows: `checks` as (look, words), `rows` as (table, live, backup, words, css), the rest of the
    tables in one line, `lost` and what becomes of it, `seconds`, whether a `safety` backup goes before (CSS hides what is said
    of it where it is waived), and how long that, `before`, may take with its proof, where it is known."""
    differing = [row for row in seen.tables if row.change_rows]
    rows = [_row(row) for row in (differing or seen.tables)[:SHOWN]]
    return {
        "ready": seen.ready, "problems": [problem["detail"] for problem in seen.problems], "checks": _checks(seen, into),
        "rows": rows, "others": max(0, seen.tables_total - len(rows)), "others_same": len(differing) <= SHOWN,
        "lost": seen.rows_lost or 0, "counted_at": seen.counted_at, "kept_days": seen.kept_hours / 24,
        "safety": seen.safety_backup, "before": _before(into) if seen.safety_backup else None,
        "seconds": seen.expected_seconds, "measured": seen.measured,
        "downtime": seen.expected_downtime_seconds,
        "confirm": seen.confirm, "address_changes": seen.address_changes,
    }  # fmt: skip


def spoken(told: dict[str, Any]) -> str:
    """A preflight in one sentence, for who hears the page."""
    if told["problems"]:
        return f"it can’t begin like this. {' '.join(told['problems'])}"
    if told["lost"]:
        rows = f"{told['lost']:,} row{'' if told['lost'] == 1 else 's'}"
        return f"it can begin. About {rows} will be gone from the live database."
    return "it can begin. What was written since the backup will be gone from the live database."


def _before(into: Project) -> float | None:
    """What the newest proven backup of what lives there took, and its proof: the one that comes first is of as much. What
    somebody uploaded says nothing of it."""
    newest = (
        Backup.objects.filter(project_uuid=into.pk, rto_seconds__isnull=False, finished_at__isnull=False)
        .exclude(trigger=BackupTrigger.UPLOAD).order_by("-created_at").first()
    )  # fmt: skip
    return None if newest is None else (newest.duration_seconds or 0.0) + (newest.rto_seconds or 0.0)


def _checks(seen: Any, into: Project) -> list[tuple[str, str]]:
    """(`ok`, `late` or `broken`, words)"""
    told = [("ok" if check.passed else "broken", check.detail) for check in seen.checks]
    told.append(("ok", f"Version {seen.backup_version} into {seen.target_version}"))
    if seen.database_bytes is not None and seen.storage_limit_bytes:
        fits = seen.database_bytes <= seen.storage_limit_bytes
        needed, allowed = size_text(seen.database_bytes), size_text(seen.storage_limit_bytes)
        told.append(("ok" if fits else "broken", f"{needed} when restored, {allowed} in the plan"))
    if seen.disk_free_bytes is not None:
        told.append(("ok", f"{size_text(seen.disk_free_bytes)} of disk are free in {into.region.name}"))
    if seen.open_connections:
        count = seen.open_connections
        clients = "1 client is" if count == 1 else f"{whole(count)} clients are"
        told.append(
            (
                "late",
                f"{clients} connected; cut off for about {duration_text(seen.expected_downtime_seconds)} at the swap",
            )
        )
    if seen.address_changes:
        told.append(("late", "Host or port change: clients need the new address"))
    return told


def _row(row: Any) -> tuple[str, str, str, str, str]:
    change = row.change_rows
    if row.live_rows is None and row.backup_rows is not None:
        return (row.name, "–", whole(row.backup_rows), "not counted yet", "diff-same")
    if not change:
        words, css = "same", "diff-same"
    elif change < 0:
        words, css = f"−{whole(-change)} lost", "diff-loss"
    else:
        words, css = f"+{whole(change)} back", "diff-gain"
    return (row.name, whole(row.live_rows), whole(row.backup_rows), words, css)
