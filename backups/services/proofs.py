"""Proofs by hand, drills, and what a project promises about its backups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.db import IntegrityError, transaction
from django.db.models import F

from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from backups.models import Backup, BackupPolicy, Drill, Proof, ProofKind
from backups.operations import asking, drills, objectives, proving, schedules
from backups.operations.objectives import Objective
from novastack.common import outbound
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid, NameTaken
from projects import domain, registry
from projects.models import Operation, Project

POLICY = ("verify_after_backup", "reverify_days", "rpo_seconds", "rto_seconds", "heartbeat_url")
DRILL = ("name", "cron", "time_zone", "enabled", "assertions")
MOST_DRILLS = 20
MOST_SQL = 4000
MOST_SECONDS = 10 * 366 * 86400
MOST_DAYS = 3650


# --- proofs -------------------------------------------------------------------------------------------------------------
@transaction.atomic
def backup_verify(*, principal: Principal, backup: Backup) -> Operation:
    """Restore it into a throw-away server and compare, now. Raises `PermissionDenied`, `ActionNotAllowed`,
    `BackupNotSupported`, `OperationInProgress`."""
    require(principal, backup.organization_id, Capability.PROJECT_ACT)
    locked = Backup.objects.select_for_update(of=("self",), no_key=True).get(pk=backup.pk)
    operation = proving.verify_begin(
        locked, kind=ProofKind.MANUAL, created_by=principal.user, created_by_label=principal.label
    )
    audit.record(
        principal, "backup.verify", organization_id=backup.organization_id, project_id=backup.project_uuid,
        project_name=backup.project_name, target=str(backup.pk),
    )  # fmt: skip
    return operation


def proof_of(operation: Operation) -> Proof:
    return Proof.objects.select_related("backup", "drill").get(operation_id=operation.pk)


# --- promises -----------------------------------------------------------------------------------------------------------
def objective(project: Project) -> Objective:
    """What the project promises about its backups, and whether that is so."""
    return objectives.objective_of(project)


@transaction.atomic
def policy_update(*, principal: Principal, project: Project, changes: Mapping[str, Any]) -> BackupPolicy:
    """Change some of `POLICY`. `Invalid` names the field."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    unknown = set(changes) - set(POLICY)
    if unknown:
        raise Invalid.field(min(unknown), "read_only", f"Only these can be changed: {', '.join(POLICY)}.")
    clean = {name: _CLEAN[name](name, value) for name, value in changes.items()}
    Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
    policy, _ = BackupPolicy.objects.get_or_create(
        project=project, defaults={"organization_id": project.organization_id}
    )
    changed = {name: value for name, value in clean.items() if getattr(policy, name) != value}
    if not changed:
        return policy
    if "heartbeat_url" in changed:
        changed |= {"heartbeat_at": None, "heartbeat_error": ""}
    if "reverify_days" in changed:
        _reverify(project, _whole("reverify_days", changed["reverify_days"], 0, MOST_DAYS))
    for name, value in changed.items():
        setattr(policy, name, value)
    policy.save()
    audit.record(
        principal, "backup_policy.changed", organization_id=project.organization_id, project_id=project.pk,
        project_name=project.name, data={name: _told(name, value) for name, value in changed.items() if name in POLICY},
    )  # fmt: skip
    return policy


def _told(name: str, value: Any) -> Any:
    """Whoever knows a heartbeat's address can call it: the audit log says where it goes, and no more."""
    return urlsplit(value).hostname or "" if name == "heartbeat_url" else value


def _reverify(project: Project, days: int) -> None:
    """The new number counts from each backup's last proof."""
    rows = Backup.objects.filter(project_uuid=project.pk, verified_at__isnull=False)
    if not days:
        rows.update(reverify_at=None)
        return
    rows.update(reverify_at=F("verified_at") + timedelta(days=days))


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Invalid.field(name, "invalid", "Use true or false.")
    return value


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid.field(name, "out_of_range", f"Use a whole number from {least} to {most}.")
    return value


def _target(name: str, value: Any) -> int | None:
    return None if value is None else _whole(name, value, 1, MOST_SECONDS)


def _url(name: str, value: Any) -> str:
    text = value.strip() if isinstance(value, str) else None
    if text is None or len(text) > 500:
        raise Invalid.field(name, "invalid", "Use an address of at most 500 characters; empty: none.")
    if not text:
        return ""
    try:
        return outbound.check_url(text)
    except outbound.OutboundError as error:
        raise Invalid.field(name, "bad_url", error.detail) from None


_CLEAN = {
    "verify_after_backup": _flag, "rpo_seconds": _target, "rto_seconds": _target, "heartbeat_url": _url,
    "reverify_days": lambda name, value: _whole(name, value, 0, MOST_DAYS),
}  # fmt: skip


# --- drills -------------------------------------------------------------------------------------------------------------
@transaction.atomic
def drill_create(
    *, principal: Principal, project: Project, name: str, assertions: Sequence[Mapping[str, Any]], cron: str = "",
    time_zone: str = "UTC", enabled: bool = True,
) -> Drill:  # fmt: skip
    """A drill: questions in SQL, and when they are asked (`cron` empty: by hand only). `Invalid` names the field."""
    require(principal, project.organization_id, Capability.PROJECT_CHANGE)
    engine = registry.engine(project.engine)
    if domain.Capability.COPY not in engine.capabilities:
        raise proving.BackupNotSupported(f"{engine.title} can't be backed up yet.")
    Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
    if Drill.objects.filter(project=project).count() >= MOST_DRILLS:
        raise ActionNotAllowed(f"A project has at most {MOST_DRILLS} drills.")
    drill = Drill(project=project, organization_id=project.organization_id)
    _put(drill, {
        "name": name, "assertions": assertions, "cron": cron, "time_zone": time_zone, "enabled": enabled,
    })  # fmt: skip
    _audit(principal, "drill.created", drill)
    return drill


@transaction.atomic
def drill_update(*, principal: Principal, drill: Drill, changes: Mapping[str, Any]) -> Drill:
    """Change some of `DRILL`."""
    require(principal, drill.organization_id, Capability.PROJECT_CHANGE)
    unknown = set(changes) - set(DRILL)
    if unknown:
        raise Invalid.field(min(unknown), "read_only", f"Only these can be changed: {', '.join(DRILL)}.")
    locked = Drill.objects.select_for_update(of=("self",)).select_related("project").get(pk=drill.pk)
    _put(locked, changes)
    _audit(principal, "drill.changed", locked)
    return locked


@transaction.atomic
def drill_delete(*, principal: Principal, drill: Drill) -> None:
    """No further runs; the history stays with the backups."""
    require(principal, drill.organization_id, Capability.PROJECT_CHANGE)
    _audit(principal, "drill.deleted", drill)
    drill.delete()


@transaction.atomic
def drill_run(*, principal: Principal, drill: Drill) -> Operation:
    """Restore the newest backup and ask, now. Raises as `backup_verify`, and `NothingToRestore`."""
    require(principal, drill.organization_id, Capability.PROJECT_ACT)
    operation = drills.run_begin(drill, created_by=principal.user, created_by_label=principal.label)
    _audit(principal, "drill.run", drill)
    return operation


def _put(drill: Drill, changes: Mapping[str, Any]) -> None:
    if "name" in changes:
        drill.name = _text("name", changes["name"], 63)
    if "assertions" in changes:
        drill.assertions = _assertions(changes["assertions"])
    if "enabled" in changes:
        drill.enabled = _flag("enabled", changes["enabled"])
    try:
        if changes.get("cron"):
            drill.cron = schedules.clean_cron(changes["cron"])
        elif "cron" in changes:
            drill.cron = ""
        if "time_zone" in changes:
            drill.time_zone = schedules.clean_zone(changes["time_zone"])
    except schedules.BadSchedule as error:
        raise Invalid.field(error.field, error.code, error.detail) from None
    drill.next_run_at = drills.next_run(drill, now())
    if drill.next_run_at is None:  # nobody expects it to run by itself
        drill.stalled_since = drill.stalled_error = None
    try:
        with transaction.atomic():
            drill.save()
    except IntegrityError:
        raise NameTaken("The project has another drill of that name.") from None


def _text(field: str, value: Any, most: int) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or len(text) > most or not text.isprintable():
        raise Invalid.field(field, "invalid", f"Use one line of 1 to {most} characters.")
    return text


def _assertions(value: Any) -> list[dict[str, str | None]]:
    """`[{name, sql, expect}]`: `expect` is compared with the first cell as text; null: NULL, or no row."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= asking.MOST:
        raise Invalid.field("assertions", "invalid", f"Ask 1 to {asking.MOST} questions.")
    found: list[dict[str, str | None]] = []
    for number, each in enumerate(value):
        field = f"assertions.{number}"
        if not isinstance(each, Mapping) or set(each) - {"name", "sql", "expect"} or "sql" not in each:
            raise Invalid.field(field, "invalid", "A question has `name`, `sql` and `expect`.")
        sql, expect = each["sql"], each.get("expect")
        if not isinstance(sql, str) or not sql.strip() or len(sql) > MOST_SQL or "\0" in sql:
            raise Invalid.field(f"{field}.sql", "invalid", f"Use one query of at most {MOST_SQL} characters.")
        if expect is not None and (not isinstance(expect, str) or len(expect) > 1000 or "\0" in expect):
            raise Invalid.field(f"{field}.expect", "invalid", "Use text of at most 1,000 characters, or null.")
        name = _text(f"{field}.name", each.get("name") or f"Check {number + 1}", 100)
        found.append({"name": name, "sql": sql.strip(), "expect": expect})
    return found


def _audit(principal: Principal, action: str, drill: Drill) -> None:
    audit.record(
        principal, action, organization_id=drill.organization_id, project_id=drill.project_id,
        project_name=drill.project.name, target=drill.name,
    )  # fmt: skip
