"""A fresh install, the storage of one that is gone, and the recovery kit."""

from __future__ import annotations

import base64
import io
import math
import uuid
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import CommandError, call_command

from accounts.models import Role
from accounts.permissions import Principal
from backups import manifest as manifests
from backups.archive import Opener, Sealer
from backups.models import Backup, BackupKey, OfflineKey, SigningKey, StorageTarget
from backups.operations import keys, storages
from backups.operations.restoring_data import read_manifest
from backups.services.kits import kit_export
from novastack.common.clock import now
from novastack.common.models import Install
from projects.domain import Fingerprint, TableContent
from tests.backups.test_manifest import made as manifest_of
from tests.factories import OrganizationFactory, Team, make_person

pytestmark = pytest.mark.django_db


def put(target: StorageTarget, key: str, content: bytes) -> None:
    writer = storages.storage_of(target).writer(key)
    writer.write(content)
    writer.commit()


def store(team: Team, target: StorageTarget, *, signer: Ed25519PrivateKey | None = None, **changes: Any) -> str:
    """A dump and its manifest, as a backup leaves them."""
    pk, organization = str(uuid.uuid4()), str(team.organization.pk)
    key = f"{Install.load().install_id}/{organization}/{pk}/2"
    storage = storages.storage_of(target)
    writer = storage.writer(key)
    recipients = keys.recipients_of(team.organization.pk)
    sealer = Sealer(writer, recipients)
    sealer.feed(b"the dump of " + pk.encode())
    sealed = sealer.finish()
    writer.commit()
    values = {
        "install": str(Install.load().install_id), "organization": organization, "backup": pk, "key": key,
        "project": {"id": str(uuid.uuid4()), "name": "Shop", "slug": "shop"},
        "stored": {"bytes": sealed.size_bytes, "sha256": sealed.sha256, "compressed": True, "recipients": recipients},
        "contents": Fingerprint({"public.t": TableContent(7, "ab")}, {}),
    }  # fmt: skip
    data = manifests.seal(manifest_of(**(values | changes)), recipients, signer or keys.signing_key())
    put(target, f"{key}.manifest", data)
    return key


@pytest.fixture
def kit(team: Team, tmp_path: Path) -> Path:
    file = tmp_path / "recovery-kit.txt"
    file.write_text(kit_export(principal=Principal.of(team.alice), organization=team.organization).text)
    return file


def burn_down() -> None:
    """All rows are gone, and another install begins."""
    for model in (Backup, BackupKey, OfflineKey, SigningKey, StorageTarget, Install):
        model.objects.all().delete()


def adopt(kit: Path, **options: Any) -> str:
    out = StringIO()
    call_command("backups_adopt", kit=kit, stdout=out, **({"path": "here", "organization": "new"} | options))
    return out.getvalue()


def test_the_catalogue_comes_back_and_its_backups_open(team: Team, target: StorageTarget, kit: Path) -> None:
    first, second = store(team, target), store(team, target)
    burn_down()
    new = OrganizationFactory(slug="new")
    assert adopt(kit) == "2 adopted, 0 known already, 0 untrusted\n"
    found = Backup.objects.for_principal(Principal.of(team.charlie))
    assert not found.exists()
    backup = Backup.objects.get(object_key=first)
    assert (backup.organization_id, backup.trigger, backup.status, backup.trusted) == (
        new.pk,
        "adopted",
        "stored",
        True,
    )
    assert (backup.project_name, backup.rows, backup.tables, backup.attempt) == ("Shop", 7, 1, 2)
    assert backup.created_at.isoformat() == "2026-11-20T12:00:00+00:00"
    manifest = read_manifest(backup)
    with Opener(
        storages.storage_of(backup.storage).open(backup.object_key), keys.identities_of(new.pk), compressed=True,
        sha256=manifest.stored["sha256"],
    ) as opener:  # fmt: skip
        assert b"".join(opener) == b"the dump of " + manifest.backup.encode()
    assert adopt(kit) == "0 adopted, 2 known already, 0 untrusted\n"
    assert second in set(Backup.objects.values_list("object_key", flat=True))
    assert keys.current_key(new.pk).recipient not in {
        key.recipient for key in BackupKey.objects.exclude(retired_at=None)
    }


def test_what_was_adopted_once_is_adopted_again(team: Team, target: StorageTarget, kit: Path) -> None:
    """By the kit of the installation that adopted it: its objects keep the names that the first one gave them."""
    first = store(team, target)
    burn_down()
    new = OrganizationFactory(slug="new")
    adopt(kit)
    owner = Principal.of(make_person("olga", new, Role.OWNER))
    kit.write_text(kit_export(principal=owner, organization=new).text)
    burn_down()
    OrganizationFactory(slug="newer")
    assert adopt(kit, organization="newer") == "1 adopted, 0 known already, 0 untrusted\n"
    backup = Backup.objects.get()
    assert backup.object_key == first and read_manifest(backup).key == first


def test_what_was_uploaded_stays_an_upload(team: Team, target: StorageTarget, kit: Path) -> None:
    """It is no backup of the project's own data: drills, objectives and retention leave it out."""
    kept = {store(team, target, trigger=trigger): told for trigger, told in
            (("upload", "upload"), ("schedule", "adopted"), ("", "adopted"))}  # fmt: skip
    burn_down()
    OrganizationFactory(slug="new")
    adopt(kit)
    assert dict(Backup.objects.values_list("object_key", "trigger")) == kept


def test_who_wrote_there_before_is_read_only(team: Team, target: StorageTarget, kit: Path) -> None:
    store(team, target)
    old = StorageTarget.objects.get()
    burn_down()
    OrganizationFactory(slug="new")
    adopt(kit)
    assert storages.write_allowed(StorageTarget.objects.get())
    old.pk = uuid.uuid4()
    assert not storages.write_allowed(old)
    assert "took it over" in old.read_only_reason


def test_what_an_unknown_key_signed_is_listed_and_not_believed(team: Team, target: StorageTarget, kit: Path) -> None:
    key = store(team, target, signer=Ed25519PrivateKey.generate())
    burn_down()
    OrganizationFactory(slug="new")
    assert adopt(kit) == "0 adopted, 0 known already, 1 untrusted\n"
    assert not Backup.objects.get(object_key=key).trusted


@pytest.mark.parametrize(
    "changes",
    [
        {"dump": {"format": "x", "bytes": "many"}}, {"dump": {"format": "x", "bytes": -1}}, {"dump": {"bytes": 1 << 70}},
        {"database": {"name": "d", "bytes": []}}, {"project": {"id": str(uuid.uuid4()), "name": "a\0b", "slug": ""}},
        {"taken_at": "0001-01-01T00:00:00+14:00"},
        {"contents": Fingerprint({"t": TableContent(1 << 70, "ab")}, {})},
        {"contents": Fingerprint({"t": TableContent(math.inf, "ab")}, {})},  # type: ignore[arg-type]
        {"notes": 5}, {"project": {"id": 5}}, {"stored": {"bytes": math.inf, "sha256": "", "recipients": []}},
    ],
)  # fmt: skip
def test_one_that_says_what_can_not_be_keeps_no_other_from_being_found(
    team: Team, target: StorageTarget, kit: Path, changes: dict[str, Any]
) -> None:
    bad = store(team, target, signer=Ed25519PrivateKey.generate(), **changes)
    good = store(team, target)
    burn_down()
    OrganizationFactory(slug="new")
    said = adopt(kit)
    assert said.startswith("1 adopted, 0 known already, 0 untrusted\n") and f"left out: {bad}: damaged" in said
    assert Backup.objects.get().object_key == good


def test_a_manifest_without_an_end_of_brackets_is_damaged(team: Team, target: StorageTarget, kit: Path) -> None:
    bad, _good = store(team, target), store(team, target)
    key, body = Ed25519PrivateKey.generate(), b"[" * 200_000 + b"]" * 200_000
    line = b" ".join(
        (b"novastack-manifest", b"1", base64.b64encode(key.public_key().public_bytes_raw()),
         base64.b64encode(key.sign(body)))
    )  # fmt: skip
    sealed = io.BytesIO()
    sealer = Sealer(sealed, keys.recipients_of(team.organization.pk))
    sealer.feed(line + b"\n" + body)
    sealer.finish()
    put(target, f"{bad}.manifest", sealed.getvalue())
    burn_down()
    OrganizationFactory(slug="new")
    assert f"left out: {bad}: damaged" in adopt(kit)


def test_what_nobody_trusts_does_not_hide_a_backup(team: Team, target: StorageTarget, kit: Path) -> None:
    """Under its own name, as an attempt before it: who may write into a bucket with object lock can do no more than that."""
    key = store(team, target)
    first = f"{key[:-2]}/1"
    put(target, first, b"something else")
    other = manifest_of(
        install=str(Install.load().install_id), organization=str(team.organization.pk), backup=key.split("/")[2],
        key=first, project={"id": str(uuid.uuid4()), "name": "Shop", "slug": "shop"},
        stored={"bytes": 14, "sha256": "00", "compressed": True, "recipients": []},
    )  # fmt: skip
    recipients = keys.recipients_of(team.organization.pk)
    put(target, f"{first}.manifest", manifests.seal(other, recipients, Ed25519PrivateKey.generate()))
    burn_down()
    OrganizationFactory(slug="new")
    assert adopt(kit) == "1 adopted, 0 known already, 1 untrusted\n"
    backup = Backup.objects.get()
    assert (backup.object_key, backup.trusted, backup.rows) == (key, True, 7)
    assert read_manifest(backup).key == key
    assert adopt(kit) == "0 adopted, 2 known already, 0 untrusted\n"
    assert Backup.objects.get().trusted


def test_what_is_being_removed_is_not_made_another(team: Team, target: StorageTarget, kit: Path) -> None:
    key = store(team, target)
    burn_down()
    OrganizationFactory(slug="new")
    adopt(kit)
    Backup.objects.update(trusted=False, status="deleting", delete_requested_at=now())
    assert adopt(kit) == "0 adopted, 1 known already, 0 untrusted\n"
    backup = Backup.objects.get(object_key=key)
    assert (backup.trusted, backup.status) == (False, "deleting")


def test_what_is_not_whole_is_left_out_and_said_so(team: Team, target: StorageTarget, kit: Path) -> None:
    store(team, target)
    swapped, short, missing, foreign, garbage = (store(team, target) for _ in range(5))
    storage = storages.storage_of(target)
    with storage.open(f"{short}.manifest") as source:
        other = source.read()
    put(target, f"{swapped}.manifest", other)
    put(target, short, b"short")
    storage.delete(missing)
    put(target, f"{garbage}.manifest", b"garbage")
    put(target, f"{foreign}.manifest", b"")
    burn_down()
    OrganizationFactory(slug="new")
    said = adopt(kit)
    assert said.startswith("1 adopted, 0 known already, 0 untrusted\n")
    for key, why in (
        (swapped, "manifest_mismatch"),
        (short, "truncated"),
        (missing, "object_missing"),
        (garbage, "damaged"),
    ):
        assert f"left out: {key}: {why}" in said
    assert f"left out: {foreign}" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"organization": "nobody"}, "--organization"), ({"path": "../x"}, "settings can't be used"),
        ({"path": "", "storage": "unknown"}, "of these storages"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(
    team: Team, target: StorageTarget, kit: Path, options: dict[str, str], words: str
) -> None:
    OrganizationFactory(slug="new")
    with pytest.raises(CommandError, match=words):
        adopt(kit, **options)


def test_a_damaged_kit_changes_nothing(team: Team, target: StorageTarget, kit: Path) -> None:
    OrganizationFactory(slug="new")
    before = target.owner_epoch
    kit.write_text(kit.read_text()[:-20])
    with pytest.raises(CommandError, match="damaged"):
        adopt(kit)
    assert storages.write_allowed(StorageTarget.objects.get(owner_epoch=before))
