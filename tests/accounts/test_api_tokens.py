"""auth/tokens/ and what a token opens."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client

from accounts import services
from accounts.models import ApiToken, AuditEvent, Scope
from accounts.models.tokens import hash_token
from accounts.permissions import Principal
from novastack.common.clock import now
from tests.factories import MembershipFactory, Team, api_client, make_token

pytestmark = pytest.mark.django_db
URL = "/api/v1/auth/tokens/"
PROFILE = "/api/v1/auth/profile/"


def create(client: Any, **fields: Any) -> Any:
    return client.post(URL, {"name": "ci", "scopes": ["read"], **fields})


def test_it_is_shown_once_and_kept_as_a_hash(team: Team) -> None:
    client = api_client(team.alice)
    response = create(client, scopes=["write", "read"], organization="acme")
    assert response.status_code == 201
    body = response.json()
    clear = body["token"]
    assert clear.startswith("nvs_")
    assert len(clear) == 44
    assert body["prefix"] == clear[:12]
    assert (body["organization"], body["scopes"]) == ("acme", ["read", "write"])
    assert response["Cache-Control"] == "no-store"
    row = ApiToken.objects.get(pk=body["id"])
    assert row.token_hash == hash_token(clear)
    assert clear not in client.get(URL).content.decode()
    assert clear not in json.dumps(list(AuditEvent.objects.values()), default=str)
    assert response["Location"] == f"{URL}{body['id']}/"
    assert "token" not in client.get(response["Location"]).json()


def test_a_replay_does_not_show_it_again(team: Team) -> None:
    client = api_client(team.alice)
    headers = {"Idempotency-Key": "k1"}
    first = client.post(URL, {"name": "ci", "scopes": ["read"]}, headers=headers)
    again = client.post(URL, {"name": "ci", "scopes": ["read"]}, headers=headers)
    assert again.status_code == 201
    assert (again.json()["token"], again.json()["already_shown"]) == (None, True)
    assert again.json()["id"] == first.json()["id"]
    client.delete(f"{URL}{first.json()['id']}/")
    assert client.post(URL, {"name": "ci", "scopes": ["read"]}, headers=headers).status_code == 404


@pytest.mark.parametrize("header", ["HTTP_AUTHORIZATION", "HTTP_X_API_KEY"])
def test_both_headers_open_and_revoking_closes(team: Team, header: str) -> None:
    body = create(api_client(team.alice)).json()
    client = api_client()
    client.credentials(**{header: f"Bearer {body['token']}" if "AUTH" in header else body["token"]})
    assert client.get(PROFILE).status_code == 200
    assert api_client(team.alice).delete(f"{URL}{body['id']}/").status_code == 204
    refused = client.get(PROFILE)
    assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")
    assert refused["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "value", ["nvs_", "nvs_" + "x" * 40, "nvs_é", "nvs_" + "x" * 100_000, "sk_other", "nvs_a b", "nvs_%00", "null"]
)
def test_nonsense_is_401(team: Team, value: str) -> None:
    for header in ({"HTTP_X_API_KEY": value}, {"HTTP_AUTHORIZATION": f"Bearer {value}"}):
        client = api_client()
        client.credentials(**header)
        assert client.get(PROFILE).status_code == 401


def test_it_expires(team: Team) -> None:
    with time_machine.travel(now(), tick=False) as clock:
        client = api_client(team.alice, scopes=["read"], expires_at=now() + timedelta(hours=1))
        assert client.get(PROFILE).status_code == 200
        clock.shift(timedelta(hours=1))
        assert client.get(PROFILE).status_code == 401


def test_last_used_is_written_at_most_once_a_minute(team: Team) -> None:
    with time_machine.travel(now(), tick=False) as clock:
        token, clear = make_token(team.alice)
        client = api_client()
        client.credentials(HTTP_X_API_KEY=clear)
        client.get(PROFILE)
        token.refresh_from_db()
        first = token.last_used_at
        assert first is not None
        clock.shift(timedelta(seconds=59))
        client.get(PROFILE)
        token.refresh_from_db()
        assert token.last_used_at == first
        clock.shift(timedelta(seconds=2))
        client.get(PROFILE)
        token.refresh_from_db()
        assert token.last_used_at > first


def test_a_deactivated_persons_token_is_closed(team: Team) -> None:
    client = api_client(team.bob, scopes=["read"])
    team.bob.is_active = False
    team.bob.save()
    assert client.get(PROFILE).status_code == 401


class TestBelongings:
    def test_people_see_and_revoke_only_their_own(self, team: Team) -> None:
        token, _ = make_token(team.alice)
        for person in (team.adam, team.charlie):
            client = api_client(person)
            assert client.get(URL).json()["count"] == 0
            assert client.get(f"{URL}{token.pk}/").status_code == 404
            assert client.delete(f"{URL}{token.pk}/").status_code == 404
        assert api_client().get(URL).status_code == 401
        assert api_client().post(URL, {"name": "x", "scopes": ["read"]}).status_code == 401

    def test_a_foreign_organization_is_404_with_the_field(self, team: Team) -> None:
        for ref in ("elsewhere", str(team.elsewhere.pk), "no-such"):
            response = create(api_client(team.alice), organization=ref)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (404, "organization")
        assert not ApiToken.objects.exists()

    def test_a_token_makes_none_with_more_right_than_itself(self, team: Team) -> None:
        MembershipFactory(organization=team.elsewhere, user=team.alice, role="owner")
        assert create(api_client(team.alice, scopes=["read", "write"])).status_code == 403
        limited = api_client(team.alice, scopes=["read", "admin"], organization=team.organization,
                             expires_at=now() + timedelta(days=1))  # fmt: skip
        soon = (now() + timedelta(hours=1)).isoformat()
        assert create(limited, organization="acme", expires_at=soon).status_code == 201
        assert create(limited, organization="acme", expires_at=soon, scopes=["connect"]).status_code == 403
        assert create(limited, expires_at=soon).status_code == 403
        assert create(limited, organization="elsewhere", expires_at=soon).status_code == 404
        assert create(limited, organization="acme").status_code == 403

    def test_a_read_token_revokes_nothing_but_itself(self, team: Team) -> None:
        other, _ = make_token(team.alice)
        own, clear = make_token(team.alice, scopes=["read"])
        client = api_client()
        client.credentials(HTTP_X_API_KEY=clear)
        assert client.delete(f"{URL}{other.pk}/").status_code == 403
        assert client.delete(f"{URL}{own.pk}/").status_code == 204
        assert client.get(PROFILE).status_code == 401


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", "a\0"), ("name", "x" * 100_000), ("name", "\ud800"), ("name", "a\nb"), ("name", None),
     ("scopes", []), ("scopes", ["root"]), ("scopes", "read"), ("scopes", None), ("scopes", [["read"]]),
     ("expires_at", "yesterday"), ("expires_at", "2001-01-01T00:00:00Z"), ("organization", "a\0"),
     ("organization", "x" * 100_000)],
)  # fmt: skip
def test_hostile_input_names_the_field(team: Team, field: str, value: Any) -> None:
    body = json.dumps({"name": "ci", "scopes": ["read"], field: value})
    response = api_client(team.alice).post(URL, body, content_type="application/json")
    assert response.status_code == 400
    assert response.json()["errors"][0]["field"].split(".")[0] == field
    assert not ApiToken.objects.exists()


def test_every_scope_can_be_given(team: Team) -> None:
    assert create(api_client(team.alice), scopes=list(Scope.values)).json()["scopes"] == list(Scope.values)


def test_the_list_takes_a_constant_number_of_queries(team: Team, django_assert_max_num_queries: Any) -> None:
    for _ in range(30):
        make_token(team.alice, organization=team.organization)
    client = api_client(team.alice)
    with django_assert_max_num_queries(4):
        assert client.get(f"{URL}?page_size=100").json()["count"] == 30


def test_what_a_restore_ended_is_listed_with_the_reason(client: Client, team: Team) -> None:
    """On the page, not in the API's list of tokens that work."""
    principal = Principal.of(team.alice)
    gone, _ = services.token_create(principal=principal, name="By hand", scopes=["read"])
    services.token_revoke(principal=principal, token=gone)
    services.token_create(principal=principal, name="By restore", scopes=["read"])
    assert services.revoke_after_restore() == (1, 0)
    client.force_login(team.alice)
    page = client.get("/tokens/").content.decode()
    assert "By restore" in page and "By hand" not in page
    assert "NovaStack was restored from a backup." in page
    assert "Revoke By restore" not in page  # nothing left to revoke
    assert api_client(team.alice).get(URL).json()["count"] == 0
    ApiToken.objects.update(revoked_at=now() - timedelta(days=31))
    assert "By restore" not in client.get("/tokens/").content.decode()
