"""The browser's way in and out, on allauth: sign-up, sign-in, second factor, passwords."""

from __future__ import annotations

import re
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from django.core import mail
from django.test import Client

from accounts.models import AuditEvent, Membership, Organization, RefreshFamily, User
from accounts.permissions import Principal
from accounts.services import member_invite, session_start
from accounts.services.invitations import SESSION_KEY
from tests.accounts.test_api_auth import totp_code
from tests.factories import PASSWORD, Team

pytestmark = pytest.mark.django_db
NEW = {"email": "Dora@Example.test", "password1": "a-long-enough-password", "full_name": "Dora",
       "organization_name": "Dora & Co"}  # fmt: skip


def signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


def sign_in(client: Client, user: User, password: str = PASSWORD, **more: Any) -> Any:
    return client.post("/accounts/login/", {"login": user.email, "password": password, **more})


@pytest.fixture(autouse=True)
def _open(settings: Any) -> None:
    settings.NOVASTACK_REGISTRATION = "open"
    settings.ACCOUNT_EMAIL_VERIFICATION = "none"


class TestSignUp:
    def test_it_makes_person_organization_and_session_in_one_go(self, client: Client) -> None:
        response = client.post("/accounts/signup/", NEW)
        assert response.status_code == 302, response.content.decode()
        user = User.objects.get()
        assert (user.email, user.full_name) == ("dora@example.test", "Dora")
        organization = Organization.objects.get()
        assert (organization.name, organization.personal, user.default_organization) == (
            "Dora & Co",
            True,
            organization,
        )
        assert Membership.objects.get().role == "owner"
        assert signed_in(client)
        assert set(AuditEvent.objects.values_list("action", flat=True)) == {"user.registered", "auth.login"}

    def test_the_pages_open(self, client: Client) -> None:
        for path in ("signup/", "login/", "password/reset/"):
            assert client.get(f"/accounts/{path}").status_code == 200, path

    def test_nothing_is_half_made(self, client: Client, monkeypatch: Any) -> None:
        def fail(**_: Any) -> None:
            raise RuntimeError

        monkeypatch.setattr("accounts.forms.welcome", fail)
        with pytest.raises(RuntimeError):
            client.post("/accounts/signup/", NEW)
        assert not User.objects.exists()
        assert not EmailAddress.objects.exists()

    @pytest.mark.parametrize(
        ("field", "value"),
        [("email", "a\0@b.ch"), ("email", "x" * 100_000), ("password1", "short"), ("password1", "a\0bcdefghijklmno"),
         ("full_name", "x" * 100_000), ("full_name", "a\0"), ("organization_name", "x" * 100),
         ("organization_name", "Acme\nBcc: c@d.ch"), ("full_name", "a\tb")],
    )  # fmt: skip
    def test_hostile_input_comes_back_as_a_form(self, client: Client, field: str, value: str) -> None:
        response = client.post("/accounts/signup/", {**NEW, field: value})
        assert response.status_code == 200
        assert response.context["form"].errors.keys() == {field}
        assert not User.objects.exists()

    def test_by_invitation_only(self, client: Client, settings: Any, team: Team) -> None:
        settings.NOVASTACK_REGISTRATION = "invite"
        client.post("/accounts/signup/", NEW)
        assert not User.objects.filter(email="dora@example.test").exists()
        invitation, _ = member_invite(
            principal=Principal.of(team.alice), organization=team.organization, email="dora@example.test"
        )
        session = client.session
        session[SESSION_KEY] = str(invitation.pk)
        session.save()
        wrong = client.post("/accounts/signup/", {**NEW, "email": "mallory@example.test"})
        assert wrong.context["form"].errors.keys() == {"email"}
        assert client.post("/accounts/signup/", NEW).status_code == 302
        assert Membership.objects.filter(organization=team.organization, user__email="dora@example.test").exists()

    def test_with_verification_the_session_waits_for_the_mail(self, client: Client, settings: Any) -> None:
        settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
        client.post("/accounts/signup/", NEW)
        assert not signed_in(client)
        link = re.search(r"http://testserver(/accounts/confirm-email/\S+)", mail.outbox[0].body)
        assert link
        client.post(link[1])
        assert EmailAddress.objects.get().verified


class TestSignIn:
    def test_it_is_audited_with_the_address(self, client: Client, team: Team) -> None:
        assert sign_in(client, team.alice).status_code == 302
        event = AuditEvent.objects.get()
        assert (event.action, event.actor, event.ip) == ("auth.login", team.alice, "127.0.0.1")
        client.post("/accounts/logout/")
        assert not signed_in(client)
        assert AuditEvent.objects.first().action == "auth.logout"

    def test_it_goes_nowhere_else(self, client: Client, team: Team) -> None:
        for target in ("https://evil.test/", "//evil.test/", "javascript:alert(1)", "http:///evil.test"):
            response = sign_in(client, team.alice, next=target)
            assert response["Location"] == "/", target
            client.logout()
        assert sign_in(client, team.alice, next="/projects/")["Location"] == "/projects/"

    def test_the_second_factor_is_asked_for(self, client: Client, team: Team) -> None:
        secret = generate_totp_secret()
        TOTP.activate(team.alice, secret)
        response = sign_in(client, team.alice)
        assert "/2fa/authenticate" in response["Location"]
        assert not signed_in(client)
        client.post(response["Location"], {"code": totp_code(secret)})
        assert signed_in(client)

    def test_its_secrets_are_stored_nowhere(
        self, client: Client, team: Team, django_capture_on_commit_callbacks: Any
    ) -> None:
        sign_in(client, team.alice)
        client.post("/accounts/reauthenticate/", {"password": PASSWORD})
        page = client.get("/accounts/2fa/totp/activate/")
        assert page.status_code == 200
        assert "no-store" in page["Cache-Control"]
        TOTP.activate(team.alice, generate_totp_secret())
        with django_capture_on_commit_callbacks(execute=True):
            client.post("/accounts/2fa/recovery-codes/generate/")
        page = client.get("/accounts/2fa/recovery-codes/")
        assert page.status_code == 200
        assert "no-store" in page["Cache-Control"]
        assert AuditEvent.objects.filter(action="auth.factor_reset", actor=team.alice, ip="127.0.0.1").count() == 1

    def test_wrong_passwords_are_limited(self, client: Client, team: Team, settings: Any) -> None:
        settings.ACCOUNT_RATE_LIMITS = {"login_failed": "10/m/ip,2/5m/key"}
        for _ in range(3):
            sign_in(client, team.alice, "wrong")
        sign_in(client, team.alice)
        assert not signed_in(client)
        assert AuditEvent.objects.filter(action="auth.login_failed").count() == 2


class TestPasswords:
    def test_a_change_ends_the_other_sessions_and_token_pairs(self, client: Client, team: Team) -> None:
        other = Client()
        sign_in(client, team.alice)
        sign_in(other, team.alice)
        session_start(user=team.alice)
        response = client.post(
            "/accounts/password/change/",
            {"oldpassword": PASSWORD, "password1": "quite-another-one", "password2": "quite-another-one"},
        )
        assert response.status_code == 302, response.content.decode()
        assert client.get("/api/v1/auth/profile/").status_code == 200
        assert other.get("/api/v1/auth/profile/").status_code == 401
        assert not RefreshFamily.objects.filter(revoked_at=None).exists()
        assert AuditEvent.objects.filter(action="auth.password_changed").count() == 1

    def test_a_reset_by_mail_does_too(self, client: Client, team: Team) -> None:
        session_start(user=team.alice)
        client.post("/accounts/password/reset/", {"email": team.alice.email})
        link = re.search(r"http://testserver(/accounts/password/reset/key/\S+)", mail.outbox[0].body)
        assert link
        page = client.get(link[1], follow=True)
        client.post(page.request["PATH_INFO"], {"password1": "quite-another-one", "password2": "quite-another-one"})
        team.alice.refresh_from_db()
        assert team.alice.check_password("quite-another-one")
        assert not RefreshFamily.objects.filter(revoked_at=None).exists()

    def test_a_reset_for_a_stranger_says_the_same(self, client: Client, team: Team) -> None:
        answers = [
            client.post("/accounts/password/reset/", {"email": email})
            for email in (team.alice.email, "no@example.test")
        ]
        assert answers[0].status_code == answers[1].status_code == 302
        assert answers[0]["Location"] == answers[1]["Location"]
