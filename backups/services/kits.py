"""The recovery kit of an organization: given out once, proven by typing back its fingerprint (rule 30)."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import pyrage
from django.db import transaction
from django.db.models import Q

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from accounts.services import audit
from backups import kit as kits
from backups.models import Backup, BackupKey, OfflineKey, StorageTarget
from backups.operations import keys
from novastack.common.clock import now
from novastack.common.errors import Conflict, Invalid, PermissionDenied
from novastack.common.models import Install

MAX_RECIPIENTS = 10


@dataclass(frozen=True, slots=True)
class ExportedKit:
    """`text` is shown in this one answer only. `fingerprint` is in it; no page shows it."""

    text: str = field(repr=False)
    fingerprint: str = field(repr=False)
    offline: OfflineKey


@dataclass(frozen=True, slots=True)
class Protection:
    """Whether an organization's backups outlive this install. `confirmed_at`: of the kit that counts."""

    confirmed_at: datetime | None
    waiting_since: datetime | None  # a kit was exported and not typed back

    @property
    def is_protected(self) -> bool:
        return self.confirmed_at is not None


def kit_export(*, principal: Principal, organization: Organization) -> ExportedKit:
    """A new kit with a new offline identity, which every backup from now on is sealed for as well. The page asks for the
    password again before. Older kits go on to open what was sealed until now; one that was confirmed still counts, until
    this one is. `PermissionDenied` for tokens: only people get a kit."""
    _require_person(principal, organization)
    identity = pyrage.x25519.Identity.generate()
    with transaction.atomic():
        Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
        keys.current_key(organization.pk)
        keys.current_signing_key()
        made = kits.Kit(
            install=str(Install.load().install_id),
            organization={"id": str(organization.pk), "name": organization.name, "slug": organization.slug},
            made_at=f"{now():%Y-%m-%d %H:%M} UTC", made_by=principal.label,
            identities=(str(identity), *keys.identities_of(organization.pk)),
            public_keys=tuple(keys.public_keys()), storages=tuple(_storages(principal, organization)),
            signing_key=_signing_key(principal), also=tuple(_adopted(organization)),
        )  # fmt: skip
        text, fingerprint = kits.render(made)
        moment = now()
        OfflineKey.objects.filter(organization=organization, retired_at=None, confirmed_at=None).exclude(
            fingerprint=""
        ).update(retired_at=moment, updated_at=moment)
        offline = OfflineKey.objects.create(
            organization=organization, recipient=str(identity.to_public()), fingerprint=fingerprint,
            exported_by=principal.label,
        )  # fmt: skip
        audit.record(
            principal, "recovery_kit.exported", organization=organization, target=offline.recipient[:20],
            data={"signing_key": bool(made.signing_key)},
        )  # fmt: skip
    return ExportedKit(text, fingerprint, offline)


@transaction.atomic
def kit_confirm(*, principal: Principal, organization: Organization, fingerprint: str) -> OfflineKey:
    """What was typed is the newest kit's fingerprint: from now on it counts. `Invalid` on `fingerprint` otherwise."""
    _require_person(principal, organization)
    rows = OfflineKey.objects.select_for_update().filter(organization=organization, retired_at=None)
    kit = rows.exclude(fingerprint="").order_by("-created_at", "-id").first()
    if kit is None:
        raise Conflict("Export a recovery kit first.", code="no_recovery_kit")
    if not isinstance(fingerprint, str) or not hmac.compare_digest(
        kits.normal(fingerprint).encode(), kits.normal(kit.fingerprint).encode()
    ):
        raise Invalid.field(
            "fingerprint", "mismatch", "That is not the newest kit's fingerprint. It stands in the file's second line."
        )
    if kit.confirmed_at is None:
        moment = now()
        kit.confirmed_at = moment
        kit.save(update_fields=["confirmed_at", "updated_at"])
        older = rows.exclude(pk=kit.pk).exclude(fingerprint="")
        older.update(retired_at=moment, updated_at=moment)
        audit.record(principal, "recovery_kit.confirmed", organization=organization, target=kit.recipient[:20])
    return kit


def protection(organization_id: UUID) -> Protection:
    """For banners: red until somebody proved that they have a kit."""
    rows = list(OfflineKey.objects.filter(organization_id=organization_id, retired_at=None).exclude(fingerprint=""))
    confirmed = [row.confirmed_at for row in rows if row.confirmed_at]
    waiting = [row.created_at for row in rows if not row.confirmed_at]
    return Protection(max(confirmed, default=None), max(waiting, default=None))


@transaction.atomic
def key_rotate(*, principal: Principal, organization: Organization) -> BackupKey:
    """A new identity for new backups; the older one stays, and opens what it sealed. Kits that are out there still open
    everything new: they hold an identity of their own."""
    _require_person(principal, organization)
    Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    moment = now()
    BackupKey.objects.filter(organization=organization, retired_at=None).update(retired_at=moment, updated_at=moment)
    made = keys.current_key(organization.pk)
    audit.record(principal, "backup_key.rotated", organization=organization, target=made.recipient[:20])
    return made


@transaction.atomic
def recipient_add(*, principal: Principal, organization: Organization, recipient: str) -> OfflineKey:
    """An age recipient of the organization's own, whose identity NovaStack never sees: backups are sealed for it as well."""
    _require_person(principal, organization)
    text = recipient.strip() if isinstance(recipient, str) else ""
    try:
        pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise Invalid.field("recipient", "invalid", "Send an age recipient: age1…") from None
    mine = OfflineKey.objects.filter(organization=organization, retired_at=None)
    if mine.filter(recipient=text).exists():
        raise Invalid.field("recipient", "taken", "Backups are sealed for it already.")
    if mine.filter(fingerprint="").count() >= MAX_RECIPIENTS:
        raise Conflict(f"There are {MAX_RECIPIENTS} recipients already.", code="quota_exceeded")
    made = OfflineKey.objects.create(organization=organization, recipient=text, exported_by=principal.label)
    audit.record(principal, "backup_key.recipient_added", organization=organization, target=text[:20])
    return made


@transaction.atomic
def recipient_remove(*, principal: Principal, organization: Organization, recipient: OfflineKey) -> None:
    """New backups are no longer sealed for it; it still opens those that were. Not for kits."""
    _require_person(principal, organization)
    moment = now()
    changed = OfflineKey.objects.filter(
        pk=recipient.pk, organization=organization, fingerprint="", retired_at=None
    ).update(retired_at=moment, updated_at=moment)
    if changed:
        audit.record(
            principal, "backup_key.recipient_removed", organization=organization, target=recipient.recipient[:20]
        )


def _require_person(principal: Principal, organization: Organization) -> None:
    require(principal, organization, Capability.ORG_CHANGE)
    if principal.token is not None:
        raise PermissionDenied("Only people may do this, not tokens.")


def _storages(principal: Principal, organization: Organization) -> list[dict[str, Any]]:
    """Where this organization's backups may be. The install's keys are the operators'."""
    rows = StorageTarget.objects.filter(Q(organization=organization) | Q(organization=None))
    found = []
    for target in rows:
        ours = target.organization_id is not None or principal.is_operator
        secret = json.loads(target.secret.open()) if ours and target.secret else None
        found.append(
            {
                "id": str(target.pk), "name": target.name, "kind": target.kind, "install_wide": target.organization_id is None,
                "config": dict(target.config) if ours else {}, "secret": secret,
            }
        )  # fmt: skip
    return found


def _adopted(organization: Organization) -> list[str]:
    """Where its backups are that another install has made."""
    own = f"{Install.load().install_id}/{organization.pk}"
    rows = Backup.objects.filter(organization_id=organization.pk).exclude(object_key="")
    keys_ = rows.exclude(object_key__startswith=f"{own}/").values_list("object_key", flat=True)
    return sorted({"/".join(key.split("/")[:2]) for key in keys_.iterator()})


def _signing_key(principal: Principal) -> str:
    """Of operators' kits only: who has it can make backups that every organization of this install would believe."""
    if not principal.is_operator:
        return ""
    return base64.b64encode(keys.signing_key().private_bytes_raw()).decode()
