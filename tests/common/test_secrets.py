"""Sealed fields: bound to their row, refused in clear, rotated, never shown."""

from __future__ import annotations

from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import TOTP
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from novastack.common.secrets import Sealed, SecretUnreadable, new_key, random_password, seal, unseal
from projects.models import DatabaseServer, Region
from tests.factories import UserFactory

SECRET = "s3cr3t-of-the-server"


@pytest.fixture
def server(db: None) -> DatabaseServer:
    region = Region.objects.create(slug="here", name="Here", runtime="memory")
    return DatabaseServer.objects.create(
        region=region, engine="postgresql", version="17", memory_bytes=1, cpus=1, admin_username="root",
        admin_secret=Sealed.of(SECRET),
    )  # fmt: skip


def raw(server: DatabaseServer) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT admin_secret FROM {DatabaseServer._meta.db_table} WHERE id = %s", [server.pk])
        return str(cursor.fetchone()[0])


def test_what_is_stored_is_sealed_and_opens_again(server: DatabaseServer) -> None:
    assert raw(server).startswith("v1.")
    assert SECRET not in raw(server)
    assert DatabaseServer.objects.get().admin_secret.open() == SECRET
    assert DatabaseServer.objects.get().admin_pending_secret is None


def test_neither_repr_nor_str_shows_it(server: DatabaseServer) -> None:
    for text in (repr(server.admin_secret), str(server.admin_secret), f"{server.admin_secret}", repr(server)):
        assert SECRET not in text


def test_a_value_copied_to_another_row_does_not_open(server: DatabaseServer) -> None:
    other = DatabaseServer.objects.create(
        region=server.region, engine="postgresql", version="17", memory_bytes=1, cpus=1, admin_username="root"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {DatabaseServer._meta.db_table} SET admin_secret = %s WHERE id = %s", [raw(server), other.pk]
        )
    with pytest.raises(SecretUnreadable):
        DatabaseServer.objects.get(pk=other.pk).admin_secret.open()
    other.admin_secret = server.admin_secret  # through the model it is sealed anew
    other.save()
    assert DatabaseServer.objects.get(pk=other.pk).admin_secret.open() == SECRET


def test_update_filter_and_clear_text_are_refused(server: DatabaseServer) -> None:
    for value in (Sealed.of("x"), "x"):
        with pytest.raises(FieldError), transaction.atomic():
            DatabaseServer.objects.update(admin_secret=value)
    with pytest.raises(FieldError):
        DatabaseServer.objects.filter(admin_secret="x").exists()
    with pytest.raises(TypeError):
        server.admin_secret = "clear"
    with pytest.raises(TypeError):
        server.admin_secret = 7
    assert DatabaseServer.objects.get().admin_secret.open() == SECRET


def test_a_damaged_or_foreign_value_is_unreadable_not_wrong() -> None:
    token = seal("x", "a:1")
    assert unseal(token, "a:1") == "x"
    for broken, context in [(token, "a:2"), (token[:-4] + "AAAA", "a:1"), ("v1.x", "a:1"), ("", "a:1"),
                            ("v2" + token[2:], "a:1")]:  # fmt: skip
        with pytest.raises(SecretUnreadable):
            unseal(broken, context)


def test_keys_of_a_wrong_size_stop_everything(settings: Any) -> None:
    for keys in ([], ["c2hvcnQ="]):
        settings.NOVASTACK_SECRET_KEYS = keys
        with pytest.raises(ImproperlyConfigured):
            seal("x", "a:1")


def test_rotation_reseals_fields_and_second_factors_and_then_the_old_key_can_go(
    server: DatabaseServer, settings: Any, capsys: Any
) -> None:
    user = UserFactory()
    TOTP.activate(user, "ABCDEFGH")
    before, old = raw(server), settings.NOVASTACK_SECRET_KEYS
    settings.NOVASTACK_SECRET_KEYS = [new_key(), *old]
    with pytest.raises(CommandError, match="another key"):
        call_command("rotate_secrets", "--check")
    assert raw(server) == before
    call_command("rotate_secrets")
    assert "2 rows" in capsys.readouterr().out
    assert raw(server) != before
    settings.NOVASTACK_SECRET_KEYS = settings.NOVASTACK_SECRET_KEYS[:1]
    call_command("rotate_secrets", "--check")
    assert DatabaseServer.objects.get().admin_secret.open() == SECRET
    assert Authenticator.objects.get().wrap().instance.data["secret"].startswith("v1.")
    from allauth.mfa.utils import decrypt

    assert decrypt(Authenticator.objects.get().data["secret"]) == "ABCDEFGH"
    call_command("rotate_secrets")
    assert "0 rows" in capsys.readouterr().out


def test_rotation_without_the_old_key_changes_nothing_and_fails(server: DatabaseServer, settings: Any) -> None:
    before = raw(server)
    settings.NOVASTACK_SECRET_KEYS = [new_key()]
    with pytest.raises(CommandError, match="can't be read"):
        call_command("rotate_secrets")
    assert raw(server) == before


def test_passwords_are_long_plain_and_different() -> None:
    made = {random_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(p) == 32 and p.isalnum() and p.isascii() for p in made)
