"""From a target's row to its storage, and whether this install may write there."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from django.conf import settings
from django.db.models import F, Q

from backups.models import StorageKind, StorageTarget
from backups.storage.base import Check, Storage, StorageError
from backups.storage.filesystem import FilesystemStorage
from novastack.common.clock import now
from novastack.common.models import Install

log = structlog.get_logger(__name__)
OWNER_KEY = "novastack-owner"
_MOST_OWNER_BYTES = 4096
_WORKS = "Everything works."
_ANSWERS = "It answers, and its list can be read; it was not written to."
_LOOKED = ("reach: ", "list: ", "owner: ")  # what failed so, a look without writing can find mended


class NotOurs(StorageError):
    """The place belongs to another target or another install. `storage_owned`."""

    def __init__(self, detail: str) -> None:
        super().__init__("storage_owned", detail, retryable=False)


def root() -> Path:
    """Below it are all filesystem targets; only the operator sets it."""
    if not settings.NOVASTACK_BACKUP_ROOT:
        raise StorageError("storage_missing", "No folder for backups is set: NOVASTACK_BACKUP_ROOT.", retryable=False)
    return Path(settings.NOVASTACK_BACKUP_ROOT)


def storage_of(target: StorageTarget, *, quick: bool = False) -> Storage:
    """Not yet connected to. `quick`: somebody waits for the answer, so what does not answer is given up soon.
    `StorageError` when its settings can't be used."""
    try:
        return _KINDS[target.kind](target, quick)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise StorageError("storage_failed", "The target's settings can't be used.", retryable=False) from None


def _filesystem(target: StorageTarget, quick: bool) -> Storage:
    return FilesystemStorage(root(), target.config["path"])


def _s3(target: StorageTarget, quick: bool) -> Storage:
    from backups.storage.s3 import S3Settings, S3Storage  # botocore costs every start 20 MB and a tenth of a second

    settings = S3Settings(**target.config, **json.loads(target.secret.open()))
    return S3Storage(settings, attempts=1, read_seconds=10) if quick else S3Storage(settings)


_KINDS: Mapping[str, Callable[[StorageTarget, bool], Storage]] = {
    StorageKind.FILESYSTEM: _filesystem,
    StorageKind.S3: _s3,
}


def default_target(organization_id: uuid.UUID) -> StorageTarget | None:
    """Where an organization's backups go if nobody says where: its own default, else the install's."""
    defaults = StorageTarget.objects.filter(is_default=True)
    return (
        defaults.filter(organization_id=organization_id).first() or defaults.filter(organization=None).first()
    )  # fmt: skip


def claim(target: StorageTarget, storage: Storage | None = None, *, take_over: bool = False) -> None:
    """Write the owner object, so that this target alone writes there, and note its epoch in the row (not saved).

    `NotOurs` for a place that another target holds; with `take_over` it becomes ours, and the other one read-only.
    """
    storage = storage or storage_of(target)
    found = _owner(storage)
    ours: dict[str, object] = {"install": str(Install.load().install_id), "target": str(target.pk)}
    if found is not None and not take_over and found.get("target") != ours["target"]:
        if found.get("install") != ours["install"]:
            raise NotOurs("Another install of NovaStack writes there.")
        if _exists(found.get("target")):  # else one whose making was cut short, or that was removed
            raise NotOurs("Another target of this install writes there.")
    epoch = secrets.token_hex(16)
    writer = storage.writer(OWNER_KEY)
    try:
        writer.write(json.dumps({**ours, "epoch": epoch, "claimed_at": now().isoformat()}).encode())
        writer.commit()
    except StorageError:
        writer.abort()
        raise
    target.owner_epoch, target.read_only_reason = epoch, ""


def write_allowed(target: StorageTarget, storage: Storage | None = None) -> bool:
    """Whether the place is still this target's: before anything is written or removed there (rule 30). If not, the row says
    so in `read_only_reason` (saved). `StorageError` when it can't be told."""
    if target.read_only_reason:
        return False
    found = _owner(storage or storage_of(target))
    if found is None:
        reason = "Its owner object is gone: another folder or bucket answers, or somebody removed it."
    elif not secrets.compare_digest(str(found.get("epoch", "")).encode(), target.owner_epoch.encode()):
        reason = "Another target or install took it over."
    else:
        return True
    target.read_only_reason = reason
    StorageTarget.objects.filter(pk=target.pk).update(read_only_reason=reason, updated_at=now())
    return False


def is_owner(target: StorageTarget, storage: Storage) -> bool:
    """Whether the owner object there is this target's. `StorageError` when it can't be told."""
    found = _owner(storage)
    return found is not None and secrets.compare_digest(
        str(found.get("epoch", "")).encode(), target.owner_epoch.encode()
    )


@dataclass(frozen=True, slots=True)
class Owner:
    """Who wrote the owner object. `ours`: this target; `here`: this install, perhaps by another target of it."""

    ours: bool
    here: bool
    install: str
    target: str
    claimed_at: str


def owner_of(target: StorageTarget) -> Owner | None:
    """Who writes there now, as the place itself says; None: nobody does. `StorageError` when it can't be told."""
    found = _owner(storage_of(target, quick=True))
    if found is None:
        return None
    told = {name: str(found.get(name, ""))[:64] for name in ("install", "target", "claimed_at", "epoch")}
    ours = bool(target.owner_epoch) and secrets.compare_digest(told["epoch"].encode(), target.owner_epoch.encode())
    here = told["install"] == str(Install.load().install_id)
    return Owner(ours, here, told["install"], told["target"], told["claimed_at"])


def disown(target: StorageTarget, storage: Storage) -> None:
    """Remove the owner object if it is this target's."""
    if is_owner(target, storage):
        storage.delete(OWNER_KEY)


def tried(target: StorageTarget, *, quick: bool = False, known: bool = False, writing: bool = True) -> list[Check]:
    """Try it, and note in the row (not saved) how that went. Does not raise. `known`, `writing`: as `Storage.check`. What
    failed at writing stays so until it is written to again."""
    began, stays = time.monotonic(), not writing and _failed_at_writing(target)
    try:
        storage = storage_of(target, quick=quick)
        checks = storage.check(known=known, writing=writing)
        if any(check.name == "object_lock" for check in checks):
            target.object_lock = True
        elif writing and checks[-1].passed and not storage.lock_unknown:
            target.object_lock = False
    except StorageError as error:
        checks = [Check("reach", False, error.detail)]
    failed = next((check for check in checks if not check.passed), None)
    target.tested_at, target.test_ms = now(), round((time.monotonic() - began) * 1000)
    if not stays:
        target.test_ok = failed is None
        target.test_detail = f"{failed.name}: {failed.detail}"[:500] if failed else _WORKS if writing else _ANSWERS
    return checks


def _failed_at_writing(target: StorageTarget) -> bool:
    return target.test_ok is False and not target.test_detail.startswith(_LOOKED)


def test(target: StorageTarget, *, quick: bool = False, writing: bool = True) -> list[Check]:
    """Try a target that is recorded, also whether it is still ours; the row keeps the result. One that was read-only and is
    ours again, as a folder is that is mounted again, is written to again."""
    checks = tried(target, quick=quick, known=True, writing=writing)
    if target.test_ok:
        try:
            storage = storage_of(target, quick=quick)
            _believe_again(target, storage)
            if not target.read_only_reason and not write_allowed(target, storage):
                checks.append(Check("owner", False, target.read_only_reason))
                target.test_ok, target.test_detail = False, f"owner: {target.read_only_reason}"[:500]
        except StorageError as error:
            checks.append(Check("owner", False, error.detail))
    StorageTarget.objects.filter(pk=target.pk).update(
        tested_at=target.tested_at, test_ok=target.test_ok, test_detail=target.test_detail, test_ms=target.test_ms,
        object_lock=target.object_lock, updated_at=now(),
    )  # fmt: skip
    return checks


def _believe_again(target: StorageTarget, storage: Storage) -> None:
    if target.read_only_reason and target.owner_epoch and is_owner(target, storage):
        mine = StorageTarget.objects.filter(pk=target.pk, owner_epoch=target.owner_epoch)
        mine.update(read_only_reason="", updated_at=now())
        log.info("a storage is its target's again", storage=str(target.pk), reason=target.read_only_reason)
        target.read_only_reason = ""


def test_due(*, seconds: float = 120) -> int:
    """Try the targets that were not tried for 4 minutes, the longest first, as many as fit into `seconds`. Returns how many."""
    until, done = time.monotonic() + seconds, 0
    due = StorageTarget.objects.filter(Q(tested_at=None) | Q(tested_at__lt=now() - timedelta(minutes=4)))
    for target in due.order_by(F("tested_at").asc(nulls_first=True)):
        if time.monotonic() >= until:
            break
        # What a bucket with object lock is given to try it stays there: by the clock that would be some hundred a day.
        test(target, quick=True, writing=not target.object_lock)
        done += 1
    return done


def _exists(target: object) -> bool:
    try:
        return StorageTarget.objects.filter(pk=uuid.UUID(str(target))).exists()
    except ValueError:
        return False


def _owner(storage: Storage) -> dict[str, object] | None:
    try:
        with storage.open(OWNER_KEY) as source:
            text = source.read(_MOST_OWNER_BYTES)
    except StorageError as error:
        if error.code == "object_missing":
            return None
        raise
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
