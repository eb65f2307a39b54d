"""Pages of accounts, for every role."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import ApiToken, AuditEvent, Invitation, Membership, Organization, User
from accounts.permissions import Principal
from accounts.services import member_invite, record
from tests.factories import Team, make_token

pytestmark = pytest.mark.django_db


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


PAGES = {
    "/profile/": 200, "/tokens/": 200, "/members/": 200, "/activity/": 403, "/organization/": 403,
    "/organizations/new/": 200, "/accounts/email/": 200, "/accounts/2fa/": 200, "/accounts/sessions/": 200,
    "/accounts/password/change/": 200,
}  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_for_its_roles_and_for_no_stranger(team: Team, path: str) -> None:
    assert browser(team.alice).get(path).status_code == 200
    assert browser(team.vera).get(path).status_code == PAGES[path]
    response = Client().get(path)
    assert response.status_code == 302
    assert response.url.startswith("/accounts/login/")


@pytest.mark.parametrize(
    "path", ["/accounts/login/", "/accounts/signup/", "/accounts/password/reset/", "/accounts/password/reset/done/",
             "/accounts/password/reset/key/done/", "/accounts/inactive/", "/accounts/confirm-email/"],
)  # fmt: skip
def test_strangers_pages_render_in_our_hand(path: str, db: None) -> None:
    response = Client().get(path)
    assert response.status_code == 200
    assert 'class="auth-form"' in response.content.decode()


@pytest.mark.parametrize(
    "path", ["/accounts/2fa/totp/activate/", "/accounts/2fa/webauthn/add/", "/accounts/2fa/webauthn/"]
)
def test_a_second_factor_asks_for_a_fresh_proof_and_then_shows_its_page(team: Team, path: str) -> None:
    from tests.factories import PASSWORD

    client = Client()
    client.post("/accounts/login/", {"login": team.alice.email, "password": PASSWORD})
    response = client.get(path)
    if response.status_code == 302:
        question = client.get(response.url).content.decode()
        assert "Confirm that it is you" in question
        response = client.post(response.url, {"password": PASSWORD}, follow=True)
    assert response.status_code == 200
    assert 'class="sidebar"' in response.content.decode()


class TestTokens:
    def test_the_value_is_in_one_answer_only(self, team: Team) -> None:
        client = browser(team.alice)
        sent = {"name": "ci <b>", "scopes": ["read", "write"], "expires": "90"}
        response = client.post("/tokens/", sent)
        token = ApiToken.objects.get()
        page = response.content.decode()
        clear = page.split('aria-label="New token"><code>')[1].split("</code>")[0]
        assert clear.startswith("nvs_")
        assert clear.startswith(token.prefix)
        assert "ci &lt;b&gt;" in page
        assert "no-store" in response["Cache-Control"]
        assert clear not in client.get("/tokens/").content.decode()
        assert token.organization == team.organization

    @pytest.mark.parametrize(
        "sent", [{"name": ""}, {"name": "x", "scopes": []}, {"name": "x" * 100, "scopes": ["read"]}]
    )
    def test_a_bad_form_makes_none(self, team: Team, sent: dict[str, object]) -> None:
        assert browser(team.alice).post("/tokens/", sent).status_code == 400
        assert not ApiToken.objects.exists()

    def test_only_ones_own_can_be_revoked(self, team: Team) -> None:
        token, _ = make_token(team.alice)
        assert browser(team.bob).post(f"/tokens/{token.pk}/revoke/").status_code == 404
        assert browser(team.alice).post(f"/tokens/{token.pk}/revoke/").status_code == 302
        token.refresh_from_db()
        assert token.revoked_at is not None


class TestMembers:
    def test_the_table_of_rights_is_the_real_one(self, team: Team) -> None:
        page = browser(team.vera).get("/members/")
        rights = dict(page.context["capabilities"])
        assert rights["See passwords"] == [True, True, True, False]
        assert rights["Remove for good"] == [True, True, False, False]

    def test_an_invitation_shows_its_link_once(self, team: Team) -> None:
        client = browser(team.adam)
        page = client.post("/members/", {"email": "new@example.test", "role": "member"}).content.decode()
        link = page.split('aria-label="Invitation link"><code>')[1].split("</code>")[0]
        assert link not in client.get("/members/").content.decode()
        stranger = Client().get(link.removeprefix("http://testserver"))
        assert stranger.status_code == 200
        assert "Join Acme" in stranger.content.decode()

    def test_the_invited_joins_and_nobody_else(self, team: Team) -> None:
        _, clear = member_invite(
            principal=Principal.of(team.alice), organization=team.organization, email=team.charlie.email
        )
        path = f"/invitations/{clear}/"
        assert "sign out" in browser(team.bob).get(path).content.decode()
        assert browser(team.bob).post(path).status_code == 403
        assert browser(team.charlie).post(path).status_code == 302
        assert Membership.objects.filter(organization=team.organization, user=team.charlie).exists()
        assert browser(team.charlie).get(path).status_code == 404

    @pytest.mark.parametrize("person", ["bob", "vera"])
    def test_managing_needs_the_right(self, team: Team, person: str) -> None:
        client = browser(getattr(team, person))
        assert client.post("/members/", {"email": "x@example.test", "role": "member"}).status_code == 403
        assert client.post(f"/members/{team.adam.pk}/role/", {"role": "viewer"}).status_code == 403
        assert client.post(f"/members/{team.adam.pk}/remove/").status_code == 403

    def test_roles_change_and_the_last_owner_stays(self, team: Team) -> None:
        client = browser(team.alice)
        client.post(f"/members/{team.vera.pk}/role/", {"role": "member"})
        assert Membership.objects.get(user=team.vera, organization=team.organization).role == "member"
        page = client.post(f"/members/{team.alice.pk}/role/", {"role": "viewer"}, follow=True).content.decode()
        assert "last owner" in page

    def test_removing_asks_first(self, team: Team) -> None:
        client = browser(team.alice)
        assert "Remove bob@example.test?" in client.get(f"/members/{team.bob.pk}/remove/").content.decode()
        assert client.post(f"/members/{team.bob.pk}/remove/").status_code == 302
        assert not Membership.objects.filter(user=team.bob, organization=team.organization).exists()
        assert client.post(f"/members/{team.charlie.pk}/remove/").status_code == 404

    def test_an_invitation_can_be_withdrawn(self, team: Team) -> None:
        invitation, _ = member_invite(
            principal=Principal.of(team.alice), organization=team.organization, email="x@example.test"
        )
        path = f"/members/invitations/{invitation.pk}/withdraw/"
        assert browser(team.charlie).post(path).status_code == 404
        assert browser(team.alice).post(path).status_code == 302
        assert Invitation.objects.get().revoked_at is not None


class TestOrganizations:
    def test_the_switcher_only_offers_ones_own(self, team: Team) -> None:
        assert browser(team.alice).post("/organizations/elsewhere/select/").status_code == 404
        Membership.objects.create(organization=team.elsewhere, user=team.alice, role="viewer")
        client = browser(team.alice)
        assert client.post("/organizations/elsewhere/select/").status_code == 302
        assert client.get("/projects/").context["shell"].organization == team.elsewhere

    def test_a_new_one_is_chosen_at_once(self, team: Team) -> None:
        client = browser(team.bob)
        client.post("/organizations/new/", {"name": "Bob & Sons"})
        assert client.get("/projects/").context["shell"].organization.name == "Bob & Sons"
        assert client.post("/organizations/new/", {"name": ""}).status_code == 400

    def test_renaming_and_deleting(self, team: Team) -> None:
        client = browser(team.alice)
        client.post("/organization/", {"name": "Acme Two"})
        team.organization.refresh_from_db()
        assert team.organization.name == "Acme Two"
        client.post("/organization/delete/", {"confirm": "nope"})
        assert Organization.objects.filter(pk=team.organization.pk).exists()
        client.post("/organization/delete/", {"confirm": "acme"})
        assert not Organization.objects.filter(pk=team.organization.pk).exists()


class TestActivity:
    def test_it_is_the_organizations_own_newest_first_with_a_cursor(self, team: Team) -> None:
        for n in range(60):
            record(Principal.of(team.alice), "token.created", organization=team.organization, target=f"nvs_{n:02d}")
        record(Principal.of(team.charlie), "token.created", organization=team.elsewhere, target="nvs_secretly")
        client = browser(team.bob)
        page = client.get("/activity/")
        assert "nvs_59" in page.content.decode()
        assert "nvs_05" not in page.content.decode()
        assert "secretly" not in page.content.decode()
        older = client.get(
            f"/activity/?before={page.context['older']}", headers={"HX-Request": "true"}
        ).content.decode()
        assert "nvs_05" in older
        assert "<html" not in older

    def test_it_filters(self, team: Team) -> None:
        record(Principal.of(team.alice), "member.invited", organization=team.organization, target="x@example.test")
        record(None, "project.purged", organization=team.organization, project_name="Shop")
        client = browser(team.bob)
        assert "Shop" not in client.get("/activity/?kind=members").content.decode().split("<main")[1]
        assert "x@example.test" not in client.get("/activity/?actor=system").content.decode()
        assert client.get("/activity/?search=%00&before=99999999999999999999&kind=zzz").status_code == 200

    def test_queries_do_not_grow(self, team: Team, django_assert_max_num_queries) -> None:  # type: ignore[no-untyped-def]
        for n in range(45):
            record(Principal.of(team.alice), "token.created", organization=team.organization, target=str(n))
        client = browser(team.bob)
        with django_assert_max_num_queries(10):
            client.get("/activity/")


class TestProfile:
    def test_it_changes_name_zone_and_theme(self, team: Team) -> None:
        client = browser(team.bob)
        sent = {"full_name": "Bob B", "time_zone": "Europe/Zurich", "theme": "dark"}
        assert client.post("/profile/", sent).status_code == 302
        assert 'data-theme="dark"' in client.get("/profile/").content.decode()
        team.bob.refresh_from_db()
        assert (team.bob.full_name, team.bob.time_zone) == ("Bob B", "Europe/Zurich")

    def test_a_zone_that_is_none_stands_at_its_field(self, team: Team) -> None:
        sent = {"full_name": "", "time_zone": "Mars/Olympus", "theme": "dark"}
        response = browser(team.bob).post("/profile/", sent)
        assert "time_zone" in response.context["form"].errors

    def test_times_are_the_readers(self, team: Team) -> None:
        from datetime import UTC, datetime

        import time_machine

        team.bob.time_zone = "Asia/Tokyo"
        team.bob.save()
        with time_machine.travel(datetime(2026, 11, 20, 12, 0, tzinfo=UTC), tick=False):
            record(Principal.of(team.alice), "member.invited", organization=team.organization, target="x")
            assert ">21:00<" in browser(team.bob).get("/activity/").content.decode()

    def test_the_theme_buttons_work_with_and_without_a_script(self, team: Team) -> None:
        client = browser(team.bob)
        assert client.post("/theme/", {"theme": "dark"}).status_code == 302
        assert client.post("/theme/", {"theme": "light"}, headers={"Accept": "application/json"}).json() == {}
        assert client.post("/theme/", {"theme": "pink"}, headers={"Accept": "application/json"}).status_code == 400
        team.bob.refresh_from_db()
        assert team.bob.theme == "light"


def test_pages_allow_no_inline_script_or_style(team: Team) -> None:
    import re

    client = browser(team.alice)
    for path in [*PAGES, "/projects/", "/recycle-bin/", "/accounts/login/"]:
        response = client.get(path, follow=True)
        page = response.content.decode()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page), path
        for script in re.findall(r"<script([^>]*)>", page):
            assert "src=" in script or "application/json" in script, path
        assert "'unsafe" not in response["Content-Security-Policy"]


def test_error_pages_say_what_to_do(team: Team) -> None:
    page = browser(team.alice).get("/nowhere/")
    assert page.status_code == 404
    assert "There is no such page here" in page.content.decode()


def test_an_error_page_needs_no_database() -> None:
    from django.template import loader

    assert "That is our fault" in loader.get_template("500.html").render({"request_id": "r"}, None)
    assert AuditEvent  # nothing of it was asked
