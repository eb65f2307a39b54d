"""Identities and signing keys: made once, kept for ever, sealed in the database."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from backups.models import BackupKey, OfflineKey, SigningKey
from backups.operations import keys
from novastack.common.clock import now
from tests.factories import OrganizationFactory, Team

pytestmark = pytest.mark.django_db


def test_an_identity_is_made_on_first_use_and_then_kept(team: Team) -> None:
    first = keys.recipients_of(team.organization.pk)
    assert len(first) == 1
    assert first[0].startswith("age1")
    assert keys.recipients_of(team.organization.pk) == first
    assert keys.recipients_of(team.elsewhere.pk) != first
    (identity,) = keys.identities_of(team.organization.pk)
    assert identity.startswith("AGE-SECRET-KEY-1")
    with connection.cursor() as cursor:
        cursor.execute("SELECT identity FROM backups_backupkey")
        assert all("AGE-SECRET" not in row[0] for row in cursor.fetchall())


def test_an_offline_recipient_is_sealed_for_until_it_is_retired(team: Team) -> None:
    mine = keys.recipients_of(team.organization.pk)
    offline = OfflineKey.objects.create(organization=team.organization, recipient="age1offline", fingerprint="f")
    assert keys.recipients_of(team.organization.pk) == [*mine, "age1offline"]
    offline.retired_at = now()
    offline.save()
    assert keys.recipients_of(team.organization.pk) == mine


def test_what_an_older_identity_sealed_stays_readable(team: Team) -> None:
    older = keys.current_key(team.organization.pk)
    older.retired_at = now()
    older.save()
    newer = keys.current_key(team.organization.pk)
    assert newer.recipient != older.recipient
    assert keys.recipients_of(team.organization.pk) == [newer.recipient]
    assert keys.identities_of(team.organization.pk) == [newer.identity.open(), older.identity.open()]


def test_the_install_signs_with_one_key_and_believes_older_ones() -> None:
    key = keys.signing_key()
    assert keys.signing_key().private_bytes_raw() == key.private_bytes_raw()
    SigningKey.objects.create(public_key="b2xkZXI=", retired_at=now())
    assert len(keys.public_keys()) == 2
    assert keys.signing_key().private_bytes_raw() == key.private_bytes_raw()


@pytest.mark.django_db(transaction=True)
def test_many_at_once_make_one() -> None:
    organization = OrganizationFactory()
    found: list[str] = []
    gate = threading.Barrier(6)

    def use() -> None:
        gate.wait(60)
        found.append(keys.current_key(organization.pk).recipient + keys.current_signing_key().public_key)
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert BackupKey.objects.count() == SigningKey.objects.count() == 1
