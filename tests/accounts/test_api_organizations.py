"""organizations/, members, invitations, audit events: each call for outsider, under-privileged and allowed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import ApiToken, AuditEvent, Invitation, Membership, Organization
from accounts.permissions import Principal
from accounts.services import member_change_role, member_invite, organization_delete_guards, record
from novastack.common.clock import now
from novastack.common.errors import Conflict
from tests.factories import MembershipFactory, OrganizationFactory, Team, UserFactory, api_client, make_team

pytestmark = pytest.mark.django_db
URL = "/api/v1/organizations/"

# method, path, body, and the answers for: charlie (outsider), vera (viewer), bob (member), adam (admin), alice (owner)
TABLE = [
    ("get", "acme/", None, (404, 200, 200, 200, 200)),
    ("get", "{id}/", None, (404, 200, 200, 200, 200)),
    ("put", "acme/", {"name": "New"}, (404, 403, 403, 200, 200)),
    ("patch", "acme/", {"name": "New"}, (404, 403, 403, 200, 200)),
    ("delete", "acme/", None, (404, 403, 403, 403, 204)),
    ("get", "acme/members/", None, (404, 200, 200, 200, 200)),
    ("get", "acme/members/{vera}/", None, (404, 200, 200, 200, 200)),
    ("patch", "acme/members/{vera}/", {"role": "member"}, (404, 403, 403, 200, 200)),
    ("patch", "acme/members/{vera}/", {"role": "owner"}, (404, 403, 403, 403, 200)),
    ("patch", "acme/members/{alice}/", {"role": "viewer"}, (404, 403, 403, 403, 409)),
    ("delete", "acme/members/{adam}/", None, (404, 403, 403, 204, 204)),
    ("delete", "acme/members/{alice}/", None, (404, 403, 403, 403, 409)),
    ("get", "acme/invitations/", None, (404, 403, 403, 200, 200)),
    ("post", "acme/invitations/", {"email": "x@example.test"}, (404, 403, 403, 201, 201)),
    ("post", "acme/invitations/", {"email": "x@example.test", "role": "owner"}, (404, 403, 403, 403, 201)),
    ("delete", "acme/invitations/{invitation}/", None, (404, 403, 403, 204, 204)),
    ("get", "acme/audit-events/", None, (404, 403, 200, 200, 200)),
    ("options", "acme/", None, (404, 200, 200, 200, 200)),
    ("get", "no-such/members/", None, (404, 404, 404, 404, 404)),
]


@pytest.mark.parametrize("index", range(5), ids=["charlie", "vera", "bob", "adam", "alice"])
@pytest.mark.parametrize(("method", "path", "body", "expected"), TABLE)
def test_every_call_for_every_role(
    team: Team, method: str, path: str, body: Any, expected: tuple[int, ...], index: int
) -> None:
    person = (team.charlie, team.vera, team.bob, team.adam, team.alice)[index]
    invitation, _ = member_invite(
        principal=Principal.of(team.alice), organization=team.organization, email="eve@example.test"
    )
    path = path.format(
        id=team.organization.pk, vera=team.vera.pk, alice=team.alice.pk, adam=team.adam.pk, invitation=invitation.pk
    )
    response = getattr(api_client(person), method)(URL + path, body)
    assert response.status_code == expected[index], response.content
    assert getattr(api_client(), method)(URL + path, body).status_code == 401
    if response.status_code == 404:
        assert response.json()["code"] == "not_found"
        assert "Acme" not in response.content.decode()


@pytest.mark.parametrize(
    ("scope", "method", "path", "body", "status"),
    [
        ("read", "get", "acme/", None, 200),
        ("read", "patch", "acme/", {"name": "x"}, 403),
        ("write", "patch", "acme/", {"name": "x"}, 403),
        ("write", "post", "acme/invitations/", {"email": "x@example.test"}, 403),
        ("connect", "get", "acme/", None, 403),
        ("connect", "get", "acme/audit-events/", None, 403),
        ("admin", "patch", "acme/", {"name": "x"}, 200),
        ("admin", "post", "acme/invitations/", {"email": "x@example.test"}, 201),
        ("read", "post", "", {"name": "x"}, 403),
        ("admin", "post", "", {"name": "x"}, 201),
    ],
)
def test_scopes_narrow_an_owner(team: Team, scope: str, method: str, path: str, body: Any, status: int) -> None:
    response = getattr(api_client(team.alice, scopes=[scope]), method)(URL + path, body)
    assert response.status_code == status, response.content


def test_a_bound_token_finds_no_other_organization_of_its_user(team: Team) -> None:
    MembershipFactory(organization=team.elsewhere, user=team.alice, role="owner")
    client = api_client(team.alice, organization=team.organization)
    assert [o["slug"] for o in client.get(URL).json()["results"]] == ["acme"]
    assert client.get(f"{URL}elsewhere/").status_code == 404
    assert client.post(URL, {"name": "x"}).status_code == 403


class TestOrganizations:
    def test_the_list_holds_ones_own_with_role_and_count_in_few_queries(
        self, team: Team, django_assert_max_num_queries: Any
    ) -> None:
        for _ in range(30):
            MembershipFactory(user=team.bob)
        client = api_client(team.bob)
        with django_assert_max_num_queries(6):
            body = client.get(f"{URL}?ordering=name&page_size=100").json()
        assert body["count"] == 31
        acme = next(o for o in body["results"] if o["slug"] == "acme")
        assert (acme["role"], acme["member_count"]) == ("member", 4)

    def test_create_makes_the_caller_its_owner(self, team: Team) -> None:
        response = api_client(team.vera).post(URL, {"name": "Vera's Lab"})
        assert response.status_code == 201
        body = response.json()
        assert (body["slug"], body["role"], body["personal"]) == ("veras-lab", "owner", False)
        assert response["Location"] == f"{URL}veras-lab/"
        assert api_client(team.vera).post(URL, {"name": "Vera's Lab"}).json()["slug"].startswith("veras-lab-")

    def test_a_wished_slug_that_is_taken_is_409_and_a_bad_one_400(self, team: Team) -> None:
        client = api_client(team.vera)
        taken = client.post(URL, {"name": "x", "slug": "acme"})
        assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
        for bad in ("A", "a--b", "a b", "-a", "é", "a/b"):
            response = client.post(URL, {"name": "x", "slug": bad})
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "slug"), bad
        assert client.post(URL, {"name": "日本"}).json()["slug"] == "organization"

    @pytest.mark.parametrize("hostile", ["", " ", "a\0b", "x" * 100_000, "\ud800", "a\nb", None, [], {}])
    def test_hostile_names(self, team: Team, hostile: Any) -> None:
        for method, path in (("post", URL), ("patch", f"{URL}acme/")):
            body = json.dumps({"name": hostile})
            response = getattr(api_client(team.alice), method)(path, body, content_type="application/json")
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "name")

    def test_the_slug_is_immutable(self, team: Team) -> None:
        api_client(team.alice).patch(f"{URL}acme/", {"name": "Other", "slug": "other"})
        team.organization.refresh_from_db()
        assert (team.organization.name, team.organization.slug) == ("Other", "acme")

    def test_delete_listens_to_the_guards_and_spares_personal_ones(self, team: Team, monkeypatch: Any) -> None:
        def refuse(organization: Organization) -> None:
            raise Conflict("It has projects.")

        organization_delete_guards.append(refuse)
        try:
            assert api_client(team.alice).delete(f"{URL}acme/").status_code == 409
        finally:
            organization_delete_guards.remove(refuse)
        Organization.objects.filter(slug="acme").update(personal=True)
        assert api_client(team.alice).delete(f"{URL}acme/").status_code == 409
        Organization.objects.filter(slug="acme").update(personal=False)
        assert api_client(team.alice).delete(f"{URL}acme/").status_code == 204
        assert AuditEvent.objects.filter(action="organization.deleted", organization_name="Acme").exists()

    @pytest.mark.parametrize("ref", ["%00", "a%00b", "..%2F..", "x" * 5000, "%F0%9F%92%A9", "'; DROP TABLE x;--"])
    def test_hostile_refs_are_404(self, team: Team, ref: str) -> None:
        assert api_client(team.alice).get(f"{URL}{ref}/").status_code == 404
        assert api_client(team.alice).get(f"{URL}{ref}/members/").status_code == 404

    @pytest.mark.parametrize("query", ["search=%00", "search=" + "x" * 3000, "ordering=password", "page=0", "page=x",
                                       "page_size=-1", "page_size=999999", "page=99999999999999999999"])  # fmt: skip
    def test_hostile_queries_never_break(self, team: Team, query: str) -> None:
        assert api_client(team.alice).get(f"{URL}?{query}").status_code in {200, 400, 404}
        assert api_client(team.alice).get(f"{URL}acme/members/?{query}").status_code in {200, 400, 404}


class TestIdempotency:
    def test_the_same_key_makes_one_organization(self, team: Team) -> None:
        client = api_client(team.alice)
        first = client.post(URL, {"name": "Once"}, headers={"Idempotency-Key": "k"})
        again = client.post(URL, {"name": "Once"}, headers={"Idempotency-Key": "k"})
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json()["id"] == again.json()["id"]
        assert again["Idempotency-Replayed"] == "true"
        assert "Idempotency-Replayed" not in first
        other = client.post(URL, {"name": "Twice"}, headers={"Idempotency-Key": "k"})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert api_client(team.bob).post(URL, {"name": "Once"}, headers={"Idempotency-Key": "k"}).status_code == 201

    def test_a_replayed_invitation_does_not_show_the_link_again(self, team: Team) -> None:
        client = api_client(team.alice)
        body, headers = {"email": "x@example.test"}, {"Idempotency-Key": "k"}
        first = client.post(f"{URL}acme/invitations/", body, headers=headers)
        again = client.post(f"{URL}acme/invitations/", body, headers=headers)
        assert first.json()["link"].startswith("http://testserver/invitations/")
        assert (again.json()["link"], again.json()["already_shown"]) == (None, True)
        assert again.json()["id"] == first.json()["id"]


class TestMembers:
    def test_the_list_takes_a_constant_number_of_queries(self, team: Team, django_assert_max_num_queries: Any) -> None:
        for _ in range(40):
            MembershipFactory(organization=team.organization)
        client = api_client(team.bob)
        with django_assert_max_num_queries(6):
            body = client.get(f"{URL}acme/members/?page_size=100").json()
        assert body["count"] == 44
        assert body["results"][0].keys() == {"id", "email", "full_name", "role", "joined_at"}

    def test_leaving_takes_bound_tokens_along(self, team: Team) -> None:
        bound = api_client(team.bob, organization=team.organization)
        assert bound.get(f"{URL}acme/").status_code == 200
        assert api_client(team.bob).delete(f"{URL}acme/members/{team.bob.pk}/").status_code == 204
        assert bound.get(f"{URL}acme/").status_code == 401
        assert not ApiToken.objects.filter(user=team.bob, revoked_at=None).exists()

    def test_unknown_people_and_roles(self, team: Team) -> None:
        client = api_client(team.alice)
        assert client.patch(f"{URL}acme/members/{team.charlie.pk}/", {"role": "viewer"}).status_code == 404
        assert client.delete(f"{URL}acme/members/{team.charlie.pk}/").status_code == 404
        bad = client.patch(f"{URL}acme/members/{team.bob.pk}/", {"role": "root"})
        assert (bad.status_code, bad.json()["errors"][0]["field"]) == (400, "role")
        assert client.get(f"{URL}acme/members/not-a-uuid/").status_code == 404

    @pytest.mark.django_db(transaction=True)
    def test_two_owners_cannot_demote_each_other_at_once(self) -> None:
        team = make_team()
        Membership.objects.filter(user=team.adam).update(role="owner")

        def demote(pair: tuple[Any, Any]) -> str:
            actor, other = pair
            try:
                member_change_role(
                    principal=Principal.of(actor), organization=team.organization, user_id=other.pk, role="viewer"
                )
                return "done"
            except Exception as error:
                return type(error).__name__
            finally:
                connection.close()

        with ThreadPoolExecutor(2) as pool:
            outcomes = sorted(pool.map(demote, [(team.alice, team.adam), (team.adam, team.alice)]))
        assert outcomes in (["PermissionDenied", "done"], ["Conflict", "done"])
        assert Membership.objects.filter(organization=team.organization, role="owner").count() == 1


class TestInvitations:
    def invite(self, team: Team, email: str = "dora@example.test", role: str = "member") -> tuple[dict[str, Any], str]:
        body = api_client(team.alice).post(f"{URL}acme/invitations/", {"email": email, "role": role}).json()
        return body, body["link"].rstrip("/").rsplit("/", 1)[1]

    def test_it_is_accepted_by_its_address_once(self, team: Team) -> None:
        dora = UserFactory(email="dora@example.test")
        _, token = self.invite(team)
        assert token not in json.dumps(list(Invitation.objects.values()), default=str)
        accept = "/api/v1/invitations/accept/"
        assert api_client(team.charlie).post(accept, {"token": token}).status_code == 403
        assert api_client(dora, scopes=["admin"]).post(accept, {"token": token}).status_code == 403
        client, key = api_client(dora), {"Idempotency-Key": "join-1"}
        joined = client.post(accept, {"token": token}, headers=key)
        assert (joined.status_code, joined.json()["role"]) == (200, "member")
        again = client.post(accept, {"token": token}, headers=key)
        assert (again.status_code, again["Idempotency-Replayed"]) == (200, "true")
        assert again.json() == joined.json()
        assert api_client(dora).post(accept, {"token": token}).status_code == 404
        assert api_client(team.alice).get(f"{URL}acme/invitations/").json()["count"] == 0

    def test_expired_withdrawn_and_replaced_ones_are_404(self, team: Team) -> None:
        dora = UserFactory(email="dora@example.test")
        accept = "/api/v1/invitations/accept/"
        _, replaced = self.invite(team)
        body, current = self.invite(team)
        assert api_client(dora).post(accept, {"token": replaced}).status_code == 404
        Invitation.objects.filter(pk=body["id"]).update(expires_at=now() - timedelta(seconds=1))
        assert api_client(dora).post(accept, {"token": current}).status_code == 404
        body, current = self.invite(team)
        assert api_client(team.adam).delete(f"{URL}acme/invitations/{body['id']}/").status_code == 204
        assert api_client(dora).post(accept, {"token": current}).status_code == 404

    def test_a_member_is_not_invited_again(self, team: Team) -> None:
        response = api_client(team.alice).post(f"{URL}acme/invitations/", {"email": "BOB@example.test"})
        assert (response.status_code, response.json()["code"]) == (409, "already_member")

    def test_an_invitation_of_another_organization_is_404(self, team: Team) -> None:
        body, _ = self.invite(team)
        assert api_client(team.charlie).delete(f"{URL}elsewhere/invitations/{body['id']}/").status_code == 404

    @pytest.mark.parametrize(
        "hostile", ["x", "a\0@b.c", "x" * 100_000 + "@b.ch", "a@b.ch\nBcc: c@d.ch", None, [], "é@é"]
    )
    def test_hostile_addresses(self, team: Team, hostile: Any) -> None:
        body = json.dumps({"email": hostile})
        response = api_client(team.alice).post(f"{URL}acme/invitations/", body, content_type="application/json")
        assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "email")


class TestAuditEvents:
    def test_newest_first_with_a_cursor_and_forward_polling(
        self, team: Team, django_assert_max_num_queries: Any
    ) -> None:
        events = [record(Principal.of(team.alice), f"project.{i}", organization=team.organization) for i in range(60)]
        record(Principal.of(team.charlie), "project.secret", organization=team.elsewhere)
        client = api_client(team.bob)
        with django_assert_max_num_queries(5):
            body = client.get(f"{URL}acme/audit-events/").json()
        assert body.keys() == {"next", "previous", "results"}
        assert body["results"][0]["action"] == "project.59"
        rest = client.get(body["next"]).json()
        assert len(body["results"]) + len(rest["results"]) == 60
        forward = client.get(f"{URL}acme/audit-events/?after={events[-3].pk}").json()
        assert [e["action"] for e in forward["results"]] == ["project.58", "project.59"]

    def test_filters(self, team: Team) -> None:
        record(Principal.of(team.alice), "project.created", organization=team.organization, target="shop")
        record(Principal.of(team.bob), "token.created", organization=team.organization)
        client = api_client(team.alice)
        for query, expected in [
            ("action=project", 1), ("action=token.created", 1), ("actor=bob@example.test", 1), ("search=shop", 1),
            ("since=2999-01-01T00:00:00Z", 0), (f"project={team.organization.pk}", 0),
        ]:  # fmt: skip
            assert len(client.get(f"{URL}acme/audit-events/?{query}").json()["results"]) == expected, query

    @pytest.mark.parametrize("query", ["after=x", "after=-1", "after=99999999999999999999", "project=x", "since=x",
                                       "cursor=x", "cursor=%00", "actor=%00", "action=%00", "page_size=x"])  # fmt: skip
    def test_hostile_queries_never_break(self, team: Team, query: str) -> None:
        response = api_client(team.alice).get(f"{URL}acme/audit-events/?{query}")
        assert response.status_code in {200, 400, 404}


def test_other_organizations_events_stay_theirs(team: Team) -> None:
    OrganizationFactory()
    record(Principal.of(team.charlie), "project.created", organization=team.elsewhere, target="hidden")
    assert "hidden" not in api_client(team.alice).get(f"{URL}acme/audit-events/").content.decode()


class TestOrdering:
    LISTS = [
        "/api/v1/organizations/", "/api/v1/organizations/acme/members/", "/api/v1/organizations/acme/invitations/",
        "/api/v1/organizations/acme/audit-events/", "/api/v1/auth/tokens/",
    ]  # fmt: skip

    @pytest.mark.parametrize("path", LISTS)
    @pytest.mark.parametrize("asked", ["nonsense", "-password", "created_at,nonsense", "created_at,-created_at"])
    def test_what_is_not_known_is_named(self, team: Team, path: str, asked: str) -> None:
        response = api_client(team.alice).get(path, {"ordering": asked})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "ordering")

    def test_equals_are_ordered_by_id(self, team: Team) -> None:
        moment = now()
        for number in range(6):
            member_invite(principal=Principal.of(team.alice), organization=team.organization, email=f"p{number}@x.test")
        Invitation.objects.update(created_at=moment, expires_at=moment + timedelta(days=1))
        ids = sorted(str(pk) for pk in Invitation.objects.values_list("pk", flat=True))
        for asked, expected in (("expires_at", ids), ("-expires_at", ids[::-1]), ("", ids[::-1])):
            with CaptureQueriesContext(connection) as queries:
                found = api_client(team.alice).get(self.LISTS[2], {"ordering": asked}).json()["results"]
            assert [row["id"] for row in found] == expected
            assert any('"id" ' in q["sql"].partition("ORDER BY")[2] for q in queries.captured_queries)

    @pytest.mark.parametrize("model", [Membership, Invitation, ApiToken])
    def test_the_default_order_is_an_index_s(self, team: Team, model: Any) -> None:
        owner = {"user": team.alice} if model is ApiToken else {"organization": team.organization}
        with connection.cursor() as cursor:
            for name in ("seqscan", "bitmapscan", "sort", "incremental_sort"):
                cursor.execute(f"SET LOCAL enable_{name} = off")
        plan = model.objects.filter(**owner).order_by(*model._meta.ordering).explain()
        assert "Index" in plan and "Sort" not in plan
