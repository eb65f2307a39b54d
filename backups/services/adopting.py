"""A fresh install with a storage and the recovery kit knows all backups that are there (rule 30)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pyrage
from django.db import DataError, IntegrityError, transaction

from accounts.models import Organization
from accounts.services import audit
from backups import manifest as manifests
from backups.kit import Kit
from backups.manifest import Manifest, ManifestError
from backups.models import (
    ADOPTED,
    Backup,
    BackupKey,
    BackupStatus,
    BackupTrigger,
    SigningKey,
    StorageKind,
    StorageTarget,
)
from backups.operations import storages
from backups.operations.queueing import subject_of
from backups.storage.base import Storage, StorageError, Stored
from novastack.common.clock import now
from novastack.common.errors import Conflict, Invalid
from novastack.common.secrets import Sealed
from projects.operations import locks

_SUFFIX = ".manifest"
_MOST_MANIFEST_BYTES = 256 << 20
# Whoever can write there makes a manifest that nobody trusts: it must not keep the others from being found.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_SAYS_WHAT_CAN_NOT_BE = "damaged: the manifest says what can't be"


@dataclass(slots=True)
class Adopted:
    """`untrusted`: signed by a key that the kit does not name: listed, and neither verified nor restored by itself.
    `left_out`: key → why."""

    adopted: int = 0
    known: int = 0
    untrusted: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def target_from_kit(kit: Kit, *, storage: str = "", path: str = "") -> StorageTarget:
    """The target that the operator means: a folder (`path`), or one of the kit's by its name. Recorded already, or not yet
    saved. It is for everybody on this install; `Invalid` says what can't be."""
    if path:
        config: dict[str, Any] = {"path": path}
        found = StorageTarget.objects.filter(kind=StorageKind.FILESYSTEM, config=config).first()
        return found or StorageTarget(
            name=_free_name(path.replace("/", "-")), kind=StorageKind.FILESYSTEM, config=config
        )
    described = next((row for row in kit.storages if row.get("name") == storage), None)
    if described is None or not described.get("config"):
        names = ", ".join(str(row.get("name")) for row in kit.storages if row.get("config")) or "none"
        raise Invalid.field("storage", "unknown", f"The kit says enough of these storages: {names}.")
    kind, config = str(described["kind"]), dict(described["config"])
    found = StorageTarget.objects.filter(kind=kind, config=config).first()
    if found is not None:
        return found
    secret = described.get("secret")
    return StorageTarget(
        name=_free_name(storage), kind=kind, config=config, secret=Sealed.of(json.dumps(secret)) if secret else None
    )


def backups_adopt(*, kit: Kit, organization: Organization, target: StorageTarget) -> Adopted:
    """Take the storage over, learn the kit's keys for `organization`, and record every backup of the kit's organization that
    is there. Repeatable: what is known stays as it is. `Conflict` when the storage can't be used."""
    storage = storages.storage_of(target)
    checks = storages.tried(target)
    if not target.test_ok:
        raise Conflict(f"{checks[-1].name}: {checks[-1].detail}", code="storage_test_failed")
    try:
        if not (target.owner_epoch and storages.is_owner(target, storage)):
            storages.claim(target, storage, take_over=True)
    except StorageError as error:
        raise Conflict(error.detail, code="storage_test_failed") from None
    with transaction.atomic():
        target.save()
        _learn(kit, organization)
    found = Adopted()
    own = f"{kit.install}/{kit.organization['id']}"
    try:
        for prefix in dict.fromkeys((own, *kit.also)):
            for stored in storage.objects(f"{prefix}/"):
                if stored.key.endswith(_SUFFIX):
                    _adopt(stored, kit, organization, target, storage, found)
    except StorageError as error:
        raise Conflict(f"Listing ended early: {error.detail} Run it again.", code="storage_test_failed") from None
    audit.record(
        None, "backups.adopted", organization=organization, target=target.name,
        data={"adopted": found.adopted, "known": found.known, "untrusted": found.untrusted, "left_out": len(found.left_out)},
    )  # fmt: skip
    return found


def _learn(kit: Kit, organization: Organization) -> None:
    """Old identities open what they sealed; new backups are sealed with a key of this install."""
    moment = now()
    for text in kit.identities:
        recipient = str(pyrage.x25519.Identity.from_str(text).to_public())
        if not BackupKey.objects.filter(organization=organization, recipient=recipient).exists():
            BackupKey.objects.create(
                organization=organization, recipient=recipient, identity=Sealed.of(text), retired_at=moment
            )
    for public in kit.public_keys:
        SigningKey.objects.get_or_create(public_key=public, defaults={"retired_at": moment})


def _adopt(
    stored: Stored, kit: Kit, organization: Organization, target: StorageTarget, storage: Storage, found: Adopted
) -> None:
    key = stored.key.removesuffix(_SUFFIX)
    try:
        with contextlib.closing(storage.open(stored.key)) as source:
            data = source.read(_MOST_MANIFEST_BYTES + 1)
        sealed = manifests.is_sealed(data)
        manifest, signer = manifests.open_of_anybody(data, kit.identities if sealed else None)
        wrong = _wrong(manifest, key, storage.head(key))
    except ManifestError as error:
        found.left_out[key] = f"{error.code}: {error.detail}"
        return
    except StorageError as error:
        if error.retryable:
            raise
        found.left_out[key] = error.detail
        return
    except _ODD:
        found.left_out[key] = _SAYS_WHAT_CAN_NOT_BE
        return
    if wrong:
        found.left_out[key] = wrong
        return
    trusted = signer in kit.public_keys
    try:
        values = _values(manifest, sealed=sealed) | {
            "organization_id": organization.pk, "storage": target, "trusted": trusted,
        }  # fmt: skip
        with transaction.atomic():
            made = _put_down(UUID(manifest.backup), values)
    except (*_ODD, DataError, IntegrityError):
        found.left_out[key] = _SAYS_WHAT_CAN_NOT_BE
        return
    if not made:
        found.known += 1
    elif trusted:
        found.adopted += 1
    else:
        found.untrusted += 1


def _put_down(pk: UUID, values: dict[str, Any]) -> bool:
    """Whether it is new here. One that is believed takes the place of one of the same name that nobody trusts: who may write
    into the storage, and no more, can't hide it. One that is being removed stays that: what goes is told by its row."""
    locks.lock_subject(subject_of(Backup(pk=pk)))
    row, made = Backup.objects.get_or_create(pk=pk, defaults=values)
    if made or row.trusted or not values["trusted"] or row.created_by_label != values["created_by_label"]:
        return made
    untrusted = Backup.objects.filter(
        pk=pk, trusted=False, organization_id=values["organization_id"], status=BackupStatus.STORED,
        delete_requested_at=None,
    )  # fmt: skip
    return untrusted.update(**values, error=None, verify_error=None, updated_at=now()) == 1


def _wrong(manifest: Manifest, key: str, dump: Stored | None) -> str:
    """Why it is not what it says; empty: it is."""
    if manifest.key != key or [manifest.organization] != key.split("/")[1:2]:
        return "manifest_mismatch: it is another backup's manifest"
    if dump is None:
        return "object_missing: there is a manifest, and no dump"
    try:
        UUID(manifest.backup), UUID(manifest.project["id"])
        size = int(manifest.stored["bytes"])
    except _ODD:
        return "damaged: the manifest lacks something"
    if dump.size_bytes != size:
        return f"truncated: the dump has {dump.size_bytes} bytes instead of {size}"
    return ""


def _values(manifest: Manifest, *, sealed: bool) -> dict[str, Any]:
    stored: Mapping[str, Any] = manifest.stored
    contents = manifest.contents
    taken_at = _moment(manifest.taken_at)
    return {
        "project_uuid": UUID(manifest.project["id"]), "project_name": str(manifest.project.get("name", ""))[:63],
        "project_slug": str(manifest.project.get("slug", ""))[:63], "engine": manifest.engine[:16],
        "version": manifest.version[:16], "server_version": manifest.server_version[:64],
        # Uploads stay what they are: other data than the project's own.
        "trigger": BackupTrigger.UPLOAD if manifest.trigger == BackupTrigger.UPLOAD else BackupTrigger.ADOPTED,
        "status": BackupStatus.STORED, "object_key": manifest.key,
        "attempt": _attempt(manifest.key), "encrypted": sealed, "compressed": bool(stored.get("compressed", True)),
        "key_ids": list(stored.get("recipients") or []), "size_bytes": int(stored["bytes"]),
        "dump_bytes": manifest.dump.get("bytes"), "database_bytes": manifest.database.get("bytes"),
        "sha256": str(stored.get("sha256", "")), "rows": contents.rows if contents else None,
        "tables": len(contents.tables) if contents else None, "manifest": manifest.to_json(), "notes": list(manifest.notes),
        "created_by_label": ADOPTED, "created_at": taken_at, "started_at": taken_at,
        "finished_at": _moment(manifest.finished_at),
    }  # fmt: skip


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return now()
    # Before the first year, or after the last one, it could be put down, and no page that shows it could be made.
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _attempt(key: str) -> int:
    last = key.rpartition("/")[2]
    return int(last) if last.isdigit() and len(last) < 5 else 0


def _free_name(name: str) -> str:
    wanted = "".join(c for c in name if c.isprintable())[:50] or "adopted"
    taken = set(StorageTarget.objects.filter(organization=None).values_list("name", flat=True))
    return next(text for n in range(len(taken) + 2) if (text := wanted if n == 0 else f"{wanted}-{n + 1}") not in taken)
