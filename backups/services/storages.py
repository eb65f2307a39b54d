"""Storage targets: an organization's own, and those of the install, which operators keep. Tried before they are believed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction

from accounts.models import Organization, Scope
from accounts.permissions import Capability, Principal, require, require_operator, require_scope
from accounts.services import audit
from accounts.validation import clean_line
from backups.models import Backup, Schedule, StorageKind, StorageTarget
from backups.operations import storages
from backups.storage.base import Check, Storage, StorageError
from backups.storage.names import parts_of
from novastack.common.clock import now
from novastack.common.errors import Conflict, FieldProblem, Invalid, NameTaken, Problem
from novastack.common.secrets import Sealed

_PATH_LENGTH = 120
_S3_FIELDS = {"endpoint": 300, "bucket": 63, "region": 40, "prefix": 120}
_SECRETS = ("access_key", "secret_key")
MAX_TARGETS = 50  # of an organization


class StorageTestFailed(Problem):
    """What was tried is in `errors`: the first thing that failed, by the name of the check."""

    status, code, title = 400, "storage_test_failed", "The storage was tried and did not do what backups need"


class StorageInUse(Conflict):
    code, title = "storage_in_use", "Backups are stored there"


class StorageOwned(Conflict):
    code, title = "storage_owned", "Another target, or another install, writes there"


def require_manage(principal: Principal, organization: Organization | None) -> None:
    """Operators for the install's, admins of the organization for its own."""
    if organization is None:
        require_operator(principal)
        require_scope(principal, Scope.ADMIN)
    else:
        require(principal, organization, Capability.ORG_CHANGE)


def storage_create(
    *,
    principal: Principal,
    organization: Organization | None,
    name: str,
    kind: str,
    config: Mapping[str, Any],
    secret: Mapping[str, Any] | None = None,
    encrypt: bool = True,
    is_default: bool = False,
    capacity_bytes: int | None = None,
    take_over: bool = False,
) -> StorageTarget:
    """Try it, claim the place, record it. `organization` None: for everybody on this install.

    `Invalid` with the field, `NameTaken`, `StorageTestFailed` with the checks, `StorageOwned` for a place that another
    target or install writes to (`take_over` makes it ours).
    """
    require_manage(principal, organization)
    target = StorageTarget(
        organization=organization, name=_name(name), kind=_kind(kind, organization), encrypt=bool(encrypt),
        capacity_bytes=_capacity(capacity_bytes),
    )  # fmt: skip
    target.config = _config(target, config)
    target.secret = _secret(target, secret)
    if StorageTarget.objects.filter(organization=organization).count() >= MAX_TARGETS:
        raise Conflict(f"There are {MAX_TARGETS} storages already; remove one first.", code="quota_exceeded")
    _check_name(target)
    _check_place(target)
    _try(target)
    with _claimed(target, take_over=take_over), transaction.atomic():
        first = not StorageTarget.objects.filter(organization=organization, is_default=True).exists()
        if is_default or (first and organization is None):
            _no_default(organization)
            target.is_default = True
        _save(target)
        _record(principal, "storage.created", target, {"kind": target.kind, "default": target.is_default})
    return target


def storage_update(*, principal: Principal, storage: StorageTarget, changes: Mapping[str, Any]) -> StorageTarget:
    """Change `name`, `config`, `secret` (None keeps it), `encrypt`, `is_default`, `capacity_bytes`, and try it again.

    A target that holds backups stays at its place: other credentials or another address of the same bucket are fine,
    another bucket or folder is `StorageInUse`.
    """
    require_manage(principal, storage.organization)
    target = StorageTarget.objects.select_related("organization").get(pk=storage.pk)
    if "name" in changes:
        target.name = _name(changes["name"])
        _check_name(target)
    if "encrypt" in changes:
        target.encrypt = bool(changes["encrypt"])
    if "capacity_bytes" in changes:
        target.capacity_bytes = _capacity(changes["capacity_bytes"])
    before = dict(target.config)
    if "config" in changes:
        target.config = _config(target, changes["config"])
    if changes.get("secret"):
        target.secret = _secret(target, changes["secret"])
    moved = target.config != before
    if moved or changes.get("secret"):
        if moved:
            _check_place(target)
        _try(target)
    with _kept(target) if moved else contextlib.nullcontext(), transaction.atomic():
        if changes.get("is_default") and not target.is_default:
            _no_default(target.organization)
            target.is_default = True
        elif changes.get("is_default") is False:
            target.is_default = False
        _save(target)
        _record(principal, "storage.changed", target, {"changed": sorted(name for name in changes if name != "secret")})
    return target


def storage_make_default(*, principal: Principal, storage: StorageTarget) -> StorageTarget:
    """New backups go there if nobody says where."""
    require_manage(principal, storage.organization)
    if storage.read_only_reason:
        raise Conflict(storage.read_only_reason, code="storage_read_only")
    return storage_update(principal=principal, storage=storage, changes={"is_default": True})


def storage_delete(*, principal: Principal, storage: StorageTarget) -> None:
    """Forget it. What lies there stays, except the owner object. `StorageInUse` while backups or schedules need it."""
    require_manage(principal, storage.organization)
    with transaction.atomic():
        target = StorageTarget.objects.select_for_update(of=("self",)).get(pk=storage.pk)
        if (held := Backup.objects.filter(storage=target).count()) > 0:
            raise StorageInUse(f"It holds {held} backup{'s' if held != 1 else ''}; delete them first.")
        if Schedule.objects.filter(storage=target).exists():
            raise StorageInUse("A schedule stores its backups there; give it another storage first.")
        _record(principal, "storage.deleted", target, {"kind": target.kind})
        target.delete()
    with contextlib.suppress(StorageError):  # another install finds it later, and is told that it was ours
        storages.disown(storage, _opened(storage))


def storage_test(*, principal: Principal, storage: StorageTarget) -> list[Check]:
    """Try it now; the row keeps the result. Never raises for what the storage does."""
    require_manage(principal, storage.organization)
    return storages.test(storage, quick=True)


def storage_take_over(*, principal: Principal, storage: StorageTarget) -> StorageTarget:
    """The place is this target's again: whoever else wrote there becomes read-only."""
    require_manage(principal, storage.organization)
    target = StorageTarget.objects.select_related("organization").get(pk=storage.pk)
    _try(target)
    with _claimed(target, take_over=True), transaction.atomic():
        _save(target)
        _record(principal, "storage.taken_over", target, {})
    return target


def storage_owner(*, principal: Principal, storage: StorageTarget) -> storages.Owner | None:
    """Who writes there now, as the place says; None: nobody. `StorageTestFailed` when it can't be told."""
    require_manage(principal, storage.organization)
    try:
        return storages.owner_of(storage)
    except StorageError as error:
        raise StorageTestFailed(error.detail) from None


# --- what is given ------------------------------------------------------------------------------------------------
def _name(value: object) -> str:
    return clean_line("name", value, max_length=63)


def _capacity(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise Invalid.field("capacity_bytes", "invalid", "Give a number of bytes, or null.")
    return value


def _kind(value: object, organization: Organization | None) -> str:
    if value not in StorageKind.values:
        raise Invalid.field("kind", "invalid_choice", f"Choose one of {', '.join(StorageKind.values)}.")
    if value == StorageKind.FILESYSTEM and organization is not None:
        raise Invalid.field("kind", "operators_only", "Folders of the server are for operators, and for everybody.")
    return str(value)


def _config(target: StorageTarget, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise Invalid.field("config", "invalid", "Send an object.")
    known = {"path"} if target.kind == StorageKind.FILESYSTEM else {*_S3_FIELDS, "path_style"}
    if unknown := sorted(str(name)[:40] for name in set(given) - known):
        raise Invalid.field(f"config.{unknown[0]}", "unknown", "There is no such setting of this kind.")
    if target.kind == StorageKind.FILESYSTEM:
        path = clean_line("config.path", given.get("path", ""), max_length=_PATH_LENGTH)
        return {"path": _as_key("config.path", path, "Use a path such as nas/backups, below the operator's folder.")}
    config: dict[str, Any] = {}
    for name, most in _S3_FIELDS.items():
        text = clean_line(f"config.{name}", given.get(name) or "", max_length=most, required=name == "bucket")
        if text:
            config[name] = text
    if "prefix" in config:
        config["prefix"] = _as_key("config.prefix", config["prefix"].strip("/"), "Use a path such as nova/backups.")
    style = given.get("path_style", True)
    if not isinstance(style, bool):
        raise Invalid.field("config.path_style", "invalid", "Use true or false.")
    return {**config, "path_style": style}


def _as_key(field: str, text: str, words: str) -> str:
    try:
        parts_of(text)
    except ValueError:
        raise Invalid.field(field, "invalid", words) from None
    return text


def _secret(target: StorageTarget, given: object) -> Sealed | None:
    if target.kind == StorageKind.FILESYSTEM:
        if given:
            raise Invalid.field("secret", "unknown", "A folder has no secret.")
        return None
    if not isinstance(given, Mapping) or set(given) - set(_SECRETS):
        raise Invalid.field("secret", "required", "Send access_key and secret_key.")
    keys = {name: clean_line(f"secret.{name}", given.get(name, ""), max_length=256) for name in _SECRETS}
    return Sealed.of(json.dumps(keys))


def _check_name(target: StorageTarget) -> None:
    same = StorageTarget.objects.filter(organization=target.organization, name__iexact=target.name)
    if same.exclude(pk=target.pk).exists():
        raise NameTaken("There is a storage of this name.")


def _check_place(target: StorageTarget) -> None:
    """Settings that can be used, at a place that lies neither inside another target's nor around it."""
    if target.kind == StorageKind.FILESYSTEM:
        mine = f"{target.config['path']}/"
        for other in StorageTarget.objects.filter(kind=StorageKind.FILESYSTEM).exclude(pk=target.pk):
            theirs = f"{other.config.get('path', '')}/"
            if mine.startswith(theirs) or theirs.startswith(mine):
                raise Invalid.field(
                    "config.path", "taken", f"This folder is that of the storage {other.name}, or meets it."
                )
        return
    from backups.storage.s3 import S3Settings

    try:
        S3Settings(**target.config, **json.loads(target.secret.open()))
    except ValueError as error:
        name = str(error) if str(error) in _S3_FIELDS else "bucket"
        if str(error) == "access key":
            raise Invalid.field("secret.access_key", "invalid", "These are no keys of S3.") from None
        raise Invalid.field(f"config.{name}", "invalid", f"This {name} can't be used.") from None


# --- trying and claiming --------------------------------------------------------------------------------------------
def _try(target: StorageTarget) -> None:
    """`StorageTestFailed` unless everything works. Notes the result in the row, which is not saved."""
    checks = storages.tried(target, quick=True)
    failed = next((check for check in checks if not check.passed), None)
    if failed is not None:
        raise StorageTestFailed(
            f"{failed.name}: {failed.detail}",
            errors=[FieldProblem(_field(target, failed.name), failed.name, failed.detail)],
        )


def _field(target: StorageTarget, check: str) -> str:
    return (
        "config.path" if target.kind == StorageKind.FILESYSTEM else "config.endpoint" if check == "reach" else "config"
    )


@contextlib.contextmanager
def _claimed(target: StorageTarget, *, take_over: bool) -> Any:
    """The place is this target's while the row is saved; given up again when that fails."""
    storage = _opened(target)
    try:
        storages.claim(target, storage, take_over=take_over)
    except storages.NotOurs as error:
        raise StorageOwned(error.detail) from None
    except StorageError as error:
        raise StorageTestFailed(error.detail, errors=[FieldProblem("config", error.code, error.detail)]) from None
    try:
        yield
    except BaseException:
        if not take_over:
            with contextlib.suppress(StorageError):
                storages.disown(target, storage)
        raise


@contextlib.contextmanager
def _kept(target: StorageTarget) -> Any:
    """Other settings: of the same place, or of a new one as long as nothing is stored at the old one."""
    try:
        same = storages.is_owner(target, _opened(target))
    except StorageError as error:
        raise StorageTestFailed(error.detail, errors=[FieldProblem("config", error.code, error.detail)]) from None
    if same:
        yield
        return
    if Backup.objects.filter(storage=target).exists():
        raise StorageInUse("Backups are stored at its present place; add another storage instead.")
    with _claimed(target, take_over=False):
        yield


def _opened(target: StorageTarget) -> Storage:
    return storages.storage_of(target, quick=True)


def _no_default(organization: Organization | None) -> None:
    StorageTarget.objects.filter(organization=organization, is_default=True).update(is_default=False, updated_at=now())


def _save(target: StorageTarget) -> None:
    try:
        with transaction.atomic():
            target.save()
    except IntegrityError:
        raise NameTaken("There is a storage of this name, or another one became the default just now.") from None


def _record(principal: Principal, action: str, target: StorageTarget, data: dict[str, Any]) -> None:
    audit.record(principal, action, organization=target.organization, target=target.name, data=data)


def checks_body(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """For answers."""
    return [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks]
