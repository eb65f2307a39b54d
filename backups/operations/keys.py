"""What backups are sealed and signed with. Nothing is removed here: what an older key sealed stays readable."""

from __future__ import annotations

import base64
import uuid

import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import IntegrityError, transaction

from backups.models import BackupKey, OfflineKey, SigningKey
from novastack.common.secrets import Sealed


def recipients_of(organization_id: uuid.UUID) -> list[str]:
    """Who can open what is sealed now: the organization's current identity (made on first use) and its offline ones."""
    offline = OfflineKey.objects.filter(organization_id=organization_id, retired_at=None).order_by("created_at", "id")
    found = [current_key(organization_id).recipient, *offline.values_list("recipient", flat=True)]
    return list(dict.fromkeys(found))


def identities_of(organization_id: uuid.UUID) -> list[str]:
    """Every identity of the organization that is known here, the newest first."""
    return [key.identity.open() for key in BackupKey.objects.filter(organization_id=organization_id) if key.identity]


def current_key(organization_id: uuid.UUID) -> BackupKey:
    """The identity for new backups; made if there is none."""
    current = BackupKey.objects.filter(organization_id=organization_id, retired_at=None)
    if (key := current.first()) is not None:
        return key
    identity = pyrage.x25519.Identity.generate()
    try:
        with transaction.atomic():
            return BackupKey.objects.create(
                organization_id=organization_id, recipient=str(identity.to_public()), identity=Sealed.of(str(identity))
            )
    except IntegrityError:  # another one was faster
        return current.get()


def signing_key() -> Ed25519PrivateKey:
    """The key that manifests are signed with; made if there is none."""
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(current_signing_key().private_key.open()))


def current_signing_key() -> SigningKey:
    current = SigningKey.objects.filter(retired_at=None, private_key__isnull=False)
    if (key := current.first()) is not None:
        return key
    private = Ed25519PrivateKey.generate()
    try:
        with transaction.atomic():
            return SigningKey.objects.create(
                public_key=base64.b64encode(private.public_key().public_bytes_raw()).decode(),
                private_key=Sealed.of(base64.b64encode(private.private_bytes_raw()).decode()),
            )
    except IntegrityError:
        return current.get()


def public_keys() -> list[str]:
    """base64 of all keys whose signature is believed: this install's, and those that a recovery kit brought."""
    return list(SigningKey.objects.values_list("public_key", flat=True))
