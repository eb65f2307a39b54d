"""The audit log can be added to, nothing else: not by a model, a query, SQL or the admin."""

from __future__ import annotations

import pytest
from allauth.account import signals as account_signals
from allauth.account.models import EmailAddress
from allauth.mfa import signals as mfa_signals
from allauth.mfa.models import Authenticator
from django.db import DatabaseError, connection, transaction

from accounts.models import AuditEvent
from accounts.models.audit import AuditEventsAreImmutable
from accounts.permissions import Principal
from accounts.services import record
from tests.factories import Team, make_token

pytestmark = pytest.mark.django_db


def test_it_holds_who_where_and_what(team: Team) -> None:
    token, _ = make_token(team.alice)
    principal = Principal(user=team.alice, token=token, ip="203.0.113.9", request_id="r1")
    event = record(principal, "project.created", organization=team.organization, target="shop", data={"a": 1})
    event.refresh_from_db()
    assert (event.actor, event.actor_label, event.token_prefix) == (team.alice, team.alice.email, token.prefix)
    assert (event.organization_id, event.organization_name) == (team.organization.pk, "Acme")
    assert (event.ip, event.request_id, event.data) == ("203.0.113.9", "r1", {"a": 1})


def test_models_and_querysets_refuse(team: Team) -> None:
    event = record(None, "system.started")
    assert event.actor_label == "system"
    event.action = "other"
    for attempt in (
        event.save, event.delete, AuditEvent.objects.all().delete,
        lambda: AuditEvent.objects.update(action="x"), lambda: AuditEvent.objects.bulk_update([event], ["action"]),
    ):  # fmt: skip
        with pytest.raises(AuditEventsAreImmutable):
            attempt()


@pytest.mark.parametrize("sql", ["UPDATE accounts_auditevent SET action = 'x'", "DELETE FROM accounts_auditevent"])
def test_the_database_refuses(team: Team, sql: str) -> None:
    record(None, "system.started")
    with pytest.raises(DatabaseError, match="never changed"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)
    assert AuditEvent.objects.get().action == "system.started"


def test_events_outlive_user_and_organization(team: Team) -> None:
    record(Principal.of(team.charlie), "project.created", organization=team.elsewhere)
    team.elsewhere.delete()
    team.charlie.delete()
    event = AuditEvent.objects.get()
    assert event.actor is None
    assert (event.actor_label, event.organization_name) == ("charlie@example.test", "Elsewhere")


def test_the_admin_shows_it_and_changes_nothing(team: Team, client) -> None:
    event = record(Principal.of(team.alice), "project.created", organization=team.organization)
    team.alice.is_staff = team.alice.is_superuser = True
    team.alice.save()
    client.force_login(team.alice)
    assert client.get("/admin/accounts/auditevent/").status_code == 200
    assert client.get(f"/admin/accounts/auditevent/{event.pk}/change/").status_code == 200
    assert client.get("/admin/accounts/auditevent/add/").status_code == 403
    assert client.post(f"/admin/accounts/auditevent/{event.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"/admin/accounts/auditevent/{event.pk}/change/", {"action": "x"}).status_code == 403


def test_factors_and_addresses_are_in_it(team: Team) -> None:
    """They change on allauth's pages, which tell by signals."""
    factor = Authenticator(user=team.alice, type="totp", data={"secret": "s3cret"})
    mfa_signals.authenticator_added.send(sender=Authenticator, request=None, user=team.alice, authenticator=factor)
    address = EmailAddress(user=team.alice, email="alice@new.example")
    account_signals.email_confirmed.send(sender=EmailAddress, request=None, email_address=address)
    events = AuditEvent.objects.filter(actor=team.alice).order_by("-id")[:2]
    assert [(e.action, e.target, e.data) for e in events] == [
        ("auth.address_confirmed", "alice@new.example", {}),
        ("auth.factor_added", team.alice.email, {"factor": "totp"}),
    ]
