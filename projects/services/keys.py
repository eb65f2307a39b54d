"""API keys of projects: made once in clear, kept as hashes, told apart by services (seed 001)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q

from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from accounts.validation import clean_line
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid, NotFound, QuotaExceeded
from projects.models import ApiKey, DesiredStatus, KeyScope, Project
from projects.models.keys import DEFAULT_KEY_PREFIX, KEY_FORMAT, KEY_PREFIX, hash_key, new_key

RESERVED_PREFIXES = frozenset({"nvs"})  # our own API tokens begin so
USED_EVERY = timedelta(minutes=1)
GONE = frozenset({DesiredStatus.RECYCLED, DesiredStatus.ABSENT})  # deleted, or being deleted
BOTH = (KeyScope.READ, KeyScope.WRITE)


def clean_prefix(value: object, *, field: str = "prefix") -> str:
    """The prefix of new keys; `Invalid` with the field."""
    if value in (None, ""):
        return DEFAULT_KEY_PREFIX
    if not isinstance(value, str) or not KEY_PREFIX.fullmatch(value):
        raise Invalid.field(field, "invalid", "1 to 16 lower-case letters and digits, a letter first, such as `shop`.")
    if value in RESERVED_PREFIXES:
        raise Invalid.field(field, "reserved", f"`{value}` marks NovaStack's own API tokens; choose another one.")
    return value


def working_keys(project: Project) -> int:
    """How many are neither revoked nor expired: what the plan's quota counts."""
    return ApiKey.objects.filter(
        Q(expires_at=None) | Q(expires_at__gt=now()), project=project, revoked_at=None
    ).count()  # fmt: skip


def _check_quota(project: Project, more: int, *, field: str = "") -> None:
    """With the project's row locked, or not seen by anybody yet."""
    limit = project.plan.max_api_keys
    if working_keys(project) + more > limit:
        text = f"The plan {project.plan.name} allows {limit} working API keys in a project; revoke one first."
        if field:
            raise Invalid.field(field, "quota_exceeded", text)
        raise QuotaExceeded(text)


def _make(project: Project, principal: Principal, **fields: Any) -> tuple[ApiKey, str]:
    clear = new_key(fields.pop("prefix"))
    key = ApiKey.objects.create(
        project=project, key_hash=hash_key(clear), start=ApiKey.start_of(clear), prefix=clear.partition("_")[0],
        activated_at=now() if project.ready_at else None, created_by=principal.user, **fields,
    )  # fmt: skip
    audit.record(
        principal, "api_key.created", organization=project.organization, project_id=project.pk,
        project_name=project.name, target=key.start, data={"name": key.name, "scopes": list(key.scopes)},
    )  # fmt: skip
    return key, clear


def keys_for_new_project(
    *, principal: Principal, project: Project, count: int, prefix: object
) -> list[tuple[ApiKey, str]]:
    """The keys that a project was asked for with; in its transaction. They work once it is ready (rule 45)."""
    if count < 0:
        raise Invalid.field("api_keys.count", "out_of_range", "Give a number from 0 to the plan's.")
    begin = clean_prefix(prefix, field="api_keys.prefix")
    if not count:
        return []
    _check_quota(project, count, field="api_keys.count")
    return [
        _make(project, principal, prefix=begin, name=f"Key {n}", scopes=list(BOTH)) for n in range(1, count + 1)
    ]  # fmt: skip


@transaction.atomic
def key_create(
    *,
    principal: Principal,
    project: Project,
    name: str,
    scopes: Sequence[str] = BOTH,
    expires_at: datetime | None = None,
    prefix: str = "",
) -> tuple[ApiKey, str]:
    """Make a key; returns it with its clear value, this once. It works at once, or as soon as the project is ready.

    `Invalid` with the field, `QuotaExceeded` (plan), `ActionNotAllowed` in the recycle bin.
    """
    require(principal, project.organization_id, Capability.API_KEY_MANAGE)
    name = clean_line("name", name, max_length=80)
    wanted = [scope for scope in KeyScope.values if scope in scopes]
    if not wanted or set(scopes) - set(wanted):
        raise Invalid.field("scopes", "invalid_choice", f"Name at least one of {', '.join(KeyScope.values)}.")
    if expires_at is not None and expires_at <= now():
        raise Invalid.field("expires_at", "past", "Choose a time in the future.")
    begin = clean_prefix(prefix)
    project = Project.objects.get_locked(project.pk)
    if project.desired_status in GONE:
        raise ActionNotAllowed("The project is deleted: its keys do not work.")
    _check_quota(project, 1)
    return _make(project, principal, prefix=begin, name=name, scopes=wanted, expires_at=expires_at)


@transaction.atomic
def key_revoke(*, principal: Principal, key: ApiKey) -> None:
    """It stops working at once; harmless when done twice."""
    require(principal, key.project.organization_id, Capability.API_KEY_MANAGE)
    locked = ApiKey.objects.select_for_update(of=("self",)).select_related("project__organization").filter(pk=key.pk)
    found = locked.first()
    if found is None:
        raise NotFound
    if found.revoked_at is None:
        found.revoked_at = now()
        found.save(update_fields=["revoked_at", "updated_at"])
        audit.record(
            principal, "api_key.revoked", organization=found.project.organization, project_id=found.project_id,
            project_name=found.project.name, target=found.start, data={"name": found.name},
        )  # fmt: skip


@transaction.atomic
def key_confirm(*, principal: Principal, key: ApiKey) -> ApiKey:
    """A key that a control restore has suspended works again; harmless for one that is not suspended. Whoever does it
    says that it had not been revoked since the backup. `ActionNotAllowed` for a revoked one."""
    require(principal, key.project.organization_id, Capability.API_KEY_MANAGE)
    locked = ApiKey.objects.select_for_update(of=("self",)).select_related("project__organization", "created_by")
    found = locked.filter(pk=key.pk).first()
    if found is None:
        raise NotFound
    if found.revoked_at is not None:
        raise ActionNotAllowed("The key is revoked; make a new one.")
    if found.suspended_at is not None:
        found.suspended_at = None
        found.save(update_fields=["suspended_at", "updated_at"])
        audit.record(
            principal, "api_key.confirmed", organization=found.project.organization, project_id=found.project_id,
            project_name=found.project.name, target=found.start, data={"name": found.name},
        )  # fmt: skip
    return found


def keys_suspend_after_restore() -> int:
    """All keys stop working until each is confirmed: which of them were revoked since the backup was made, it can't know,
    and a key that leaked must not come back. Returns how many would have worked."""
    moment = now()
    kept = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=moment), revoked_at=None, suspended_at=None)
    return kept.update(suspended_at=moment)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a service learns of a key. `code` says why it is not valid: `malformed`, `unknown`, `revoked`, `expired`,
    `suspended` (by a control restore, until it is confirmed), `inactive` (the project is not ready yet),
    `project_gone` (in the recycle bin, or being removed), `wrong_project`, `scope_missing`."""

    code: str = ""
    key: ApiKey | None = None

    @property
    def valid(self) -> bool:
        return not self.code


def key_verify(*, clear: str, project: str = "", scope: str = "") -> Verified:
    """Whether this key works now, for that project (its id) and scope if they are named.

    The same work is done for every text: one hash, and one look-up by it. What is compared with stored hashes is the
    hash, so that the time taken says nothing of any key. `project` is compared after the key was proven.
    """
    well_formed = KEY_FORMAT.fullmatch(clear) is not None
    found = ApiKey.objects.filter(key_hash=hash_key(clear)).select_related("project").first()
    if not well_formed:
        return Verified("malformed")
    if found is None:
        return Verified("unknown")
    code = _against(found, project, scope)
    if code:
        return Verified(code, found if code != "wrong_project" else None)
    moment = now()
    ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lt=moment - USED_EVERY), pk=found.pk).update(
        last_used_at=moment
    )
    return Verified(key=found)


def _against(key: ApiKey, project: str, scope: str) -> str:
    """Why the key may not be used; empty: it may."""
    if key.project.desired_status in GONE:
        return "project_gone"
    if (state := key.state) != "active":
        return "inactive" if state == "pending" else state
    if project and project != str(key.project_id):
        return "wrong_project"
    return "scope_missing" if scope and scope not in key.scopes else ""
