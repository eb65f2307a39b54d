"""The recovery kit: who gets it, what is in it, when it counts, and that it alone opens what was sealed."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accounts.models import AuditEvent
from accounts.permissions import Principal
from backups import kit as kits
from backups.archive import Opener, Sealer
from backups.models import BackupKey, OfflineKey, StorageKind, StorageTarget
from backups.operations import keys
from backups.services.kits import (
    key_rotate,
    kit_confirm,
    kit_export,
    protection,
    recipient_add,
    recipient_remove,
)
from novastack.common.errors import Conflict, Invalid, NotFound, PermissionDenied
from novastack.common.secrets import Sealed
from tests.factories import Team, make_token

pytestmark = pytest.mark.django_db


def alice(team: Team) -> Principal:
    return Principal.of(team.alice)


def export(team: Team, **changes: Any) -> Any:
    return kit_export(**({"principal": alice(team), "organization": team.organization} | changes))


def sealed_now(team: Team) -> bytes:
    into = io.BytesIO()
    sealer = Sealer(into, keys.recipients_of(team.organization.pk))
    sealer.feed(b"a dump" * 1000)
    sealer.finish()
    return into.getvalue()


def opened(stored: bytes, identities: Any) -> bytes:
    with Opener(io.BytesIO(stored), list(identities), compressed=True) as opener:
        return b"".join(opener)


def test_the_kit_opens_what_was_sealed_before_and_after_it(team: Team) -> None:
    before = sealed_now(team)
    made = export(team)
    after = sealed_now(team)
    kit = kits.read(made.text)
    assert opened(before, kit.identities) == opened(after, kit.identities) == b"a dump" * 1000
    offline = kit.identities[0]
    assert opened(after, [offline]) == b"a dump" * 1000
    assert offline not in keys.identities_of(team.organization.pk)
    assert offline not in json.dumps(list(OfflineKey.objects.values()), default=str)


@pytest.mark.skipif(
    not (shutil.which("age") and shutil.which("zstd")), reason="needs the programs age and zstd (Debian: age, zstd)"
)
def test_the_file_is_one_that_age_takes_as_it_is(team: Team, tmp_path: Path) -> None:
    (tmp_path / "recovery-kit.txt").write_text(export(team).text)
    (tmp_path / "OBJECT").write_bytes(sealed_now(team))
    done = subprocess.run(
        ["sh", "-ec", "age -d -i recovery-kit.txt OBJECT | zstd -d > dump"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert not done.stderr
    assert (tmp_path / "dump").read_bytes() == b"a dump" * 1000


def test_it_counts_once_its_fingerprint_was_typed_back(team: Team) -> None:
    assert not protection(team.organization.pk).is_protected
    with pytest.raises(Conflict) as missing:
        kit_confirm(principal=alice(team), organization=team.organization, fingerprint="x")
    assert missing.value.code == "no_recovery_kit"
    made = export(team)
    assert made.fingerprint in made.text.splitlines()[1]
    found = protection(team.organization.pk)
    assert found.waiting_since
    assert not found.is_protected
    for wrong in ("", "0000-0000-0000-0000-0000", made.fingerprint[:-1], made.fingerprint + "0"):
        with pytest.raises(Invalid) as refused:
            kit_confirm(principal=alice(team), organization=team.organization, fingerprint=wrong)
        assert refused.value.errors[0].field == "fingerprint"
    typed = f" {made.fingerprint.upper().replace('-', ' ')} "
    kit_confirm(principal=alice(team), organization=team.organization, fingerprint=typed)
    assert protection(team.organization.pk).is_protected
    assert [e.action for e in AuditEvent.objects.filter(action__startswith="recovery_kit").order_by("id")] == [
        "recovery_kit.exported", "recovery_kit.confirmed",
    ]  # fmt: skip


def test_a_new_kit_takes_the_place_of_the_older_one_when_it_is_confirmed(team: Team) -> None:
    first = export(team)
    kit_confirm(principal=alice(team), organization=team.organization, fingerprint=first.fingerprint)
    export(team)  # never typed back
    third = export(team)
    assert protection(team.organization.pk).is_protected
    assert len(keys.recipients_of(team.organization.pk)) == 3  # ours, the confirmed one, the newest
    both = sealed_now(team)
    for made in (first, third):
        assert opened(both, [kits.read(made.text).identities[0]])
    with pytest.raises(Invalid):
        kit_confirm(principal=alice(team), organization=team.organization, fingerprint=first.fingerprint)
    kit_confirm(principal=alice(team), organization=team.organization, fingerprint=third.fingerprint)
    assert keys.recipients_of(team.organization.pk)[1:] == [third.offline.recipient]
    assert opened(sealed_now(team), [kits.read(third.text).identities[0]])


def test_a_damaged_or_foreign_file_is_no_kit(team: Team) -> None:
    text = export(team).text
    assert kits.read(text.replace("\n", "\r\n")) == kits.read(text)
    for wrong in ("", "hello\nworld\n\n", text[:-10], text.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-2", 1)):
        with pytest.raises(kits.KitError):
            kits.read(wrong)


class TestWhatIsInIt:
    @pytest.fixture
    def two(self, team: Team) -> None:
        for organization, name in ((team.organization, "own"), (None, "common"), (team.elsewhere, "theirs")):
            StorageTarget.objects.create(
                organization=organization, name=name, kind=StorageKind.S3, config={"bucket": f"bucket-{name}"},
                secret=Sealed.of(json.dumps({"access_key": f"access-{name}", "secret_key": f"secret-{name}"})),
            )  # fmt: skip

    def test_a_tenant_gets_what_is_the_tenants(self, team: Team, two: None) -> None:
        keys.current_key(team.elsewhere.pk)
        text = export(team).text
        kit = kits.read(text)
        assert "secret-own" in text
        for hidden in ("secret-common", "access-common", "bucket-common", "theirs", "(private)"):
            assert hidden not in text
            assert hidden not in json.dumps([dict(row) for row in kit.storages])
        assert kit.signing_key == ""
        assert kit.public_keys == tuple(keys.public_keys())
        (other,) = keys.identities_of(team.elsewhere.pk)
        assert other not in text

    def test_an_operator_gets_the_installs_keys_as_well(self, team: Team, two: None) -> None:
        team.alice.is_staff = True
        team.alice.save()
        kit = kits.read(export(team).text)
        assert {row["name"]: (row["secret"] or {}).get("secret_key") for row in kit.storages} == {
            "own": "secret-own", "common": "secret-common",
        }  # fmt: skip
        private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(kit.signing_key))
        assert base64.b64encode(private.public_key().public_bytes_raw()).decode() in kit.public_keys

    def test_nothing_of_it_is_in_the_log_or_in_a_repr(self, team: Team, two: None) -> None:
        made = export(team)
        assert "AGE-SECRET" not in repr(made) + repr(kits.read(made.text))
        assert made.fingerprint not in str(AuditEvent.objects.latest("id").data)


class TestWhoMay:
    def test_admins_and_owners_and_nobody_else(self, team: Team) -> None:
        assert export(team, principal=Principal.of(team.adam))
        for person, refusal in ((team.bob, PermissionDenied), (team.vera, PermissionDenied), (team.charlie, NotFound)):
            for act in (
                lambda p: kit_export(principal=p, organization=team.organization),
                lambda p: kit_confirm(principal=p, organization=team.organization, fingerprint="x"),
                lambda p: key_rotate(principal=p, organization=team.organization),
                lambda p: recipient_add(principal=p, organization=team.organization, recipient="x"),
            ):
                with pytest.raises(refusal):
                    act(Principal.of(person))

    def test_no_token_whatever_its_scopes(self, team: Team) -> None:
        token, _ = make_token(team.alice)
        principal = Principal(user=team.alice, token=token, scopes=frozenset(token.scopes))
        with pytest.raises(PermissionDenied):
            export(team, principal=principal)
        assert not OfflineKey.objects.exists()


def test_a_new_key_leaves_older_backups_readable(team: Team) -> None:
    kit = kits.read(export(team).text)
    before = sealed_now(team)
    key_rotate(principal=alice(team), organization=team.organization)
    after = sealed_now(team)
    assert BackupKey.objects.filter(organization=team.organization).count() == 2
    for stored in (before, after):
        assert opened(stored, keys.identities_of(team.organization.pk))
        assert opened(stored, kit.identities)


def test_an_own_recipient_is_sealed_for_until_it_is_removed(team: Team) -> None:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    with pytest.raises(Invalid):
        recipient_add(principal=alice(team), organization=team.organization, recipient="age1nonsense")
    added = recipient_add(principal=alice(team), organization=team.organization, recipient=f" {identity.to_public()} ")
    assert opened(sealed_now(team), [str(identity)])
    assert not protection(team.organization.pk).is_protected
    with pytest.raises(Invalid):
        recipient_add(principal=alice(team), organization=team.organization, recipient=str(identity.to_public()))
    made = export(team)
    kit_confirm(principal=alice(team), organization=team.organization, fingerprint=made.fingerprint)
    assert opened(sealed_now(team), [str(identity)])
    recipient_remove(principal=alice(team), organization=team.organization, recipient=made.offline)
    assert protection(team.organization.pk).is_protected
    recipient_remove(principal=alice(team), organization=team.organization, recipient=added)
    assert str(identity.to_public()) not in keys.recipients_of(team.organization.pk)
