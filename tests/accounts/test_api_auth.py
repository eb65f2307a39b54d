"""auth/: registering, signing in, second factor, profile, password, logout."""

from __future__ import annotations

from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import identify_hasher
from django.core import mail

from accounts.models import AuditEvent, Membership, Organization, User
from tests.factories import PASSWORD, Team, api_client, make_token

pytestmark = pytest.mark.django_db
URL = "/api/v1/auth/"
NEW = {"email": "dora@example.test", "password": "a-long-enough-password"}


def register(**fields: Any) -> Any:
    return api_client().post(f"{URL}register/", {**NEW, **fields})


def login(email: str, password: str = PASSWORD, **more: Any) -> Any:
    return api_client().post(f"{URL}login/", {"email": email, "password": password, **more})


@pytest.fixture
def open_registration(settings: Any) -> None:
    settings.NOVASTACK_REGISTRATION = "open"
    settings.ACCOUNT_EMAIL_VERIFICATION = "none"


@pytest.mark.usefixtures("open_registration")
class TestRegister:
    def test_it_makes_a_person_with_an_organization_of_their_own(self) -> None:
        response = register(full_name="Dora", organization_name="Dora & Co")
        assert response.status_code == 201, response.json()
        body = response.json()
        assert body["user"]["email"] == NEW["email"]
        assert body["organization"] == {
            **body["organization"], "name": "Dora & Co", "slug": "dora-co", "personal": True, "role": "owner",
        }  # fmt: skip
        assert {"access", "refresh", "expires_in_seconds"} <= body.keys()
        assert response["Cache-Control"] == "no-store"
        user = User.objects.get(email=NEW["email"])
        assert user.default_organization == Organization.objects.get()
        assert Membership.objects.get(user=user).role == "owner"
        assert set(AuditEvent.objects.values_list("action", flat=True)) == {"user.registered", "auth.login"}
        client = api_client()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {body['access']}")
        assert client.get(f"{URL}profile/").json()["organizations"][0]["slug"] == "dora-co"

    def test_a_known_address_in_any_case_is_taken(self) -> None:
        register()
        response = register(email="DORA@Example.test")
        assert (response.status_code, response.json()["code"]) == (400, "email_taken")
        assert response.json()["errors"][0]["field"] == "email"

    def test_with_verification_a_known_address_gets_the_same_answer(self, settings: Any) -> None:
        settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
        first, second = register(), register()
        assert first.status_code == second.status_code == 201
        assert first.json() == second.json() == {"verification_required": True}
        assert [m.to for m in mail.outbox] == [[NEW["email"]], [NEW["email"]]]
        assert User.objects.count() == 1
        refused = login(NEW["email"], NEW["password"])
        assert (refused.status_code, refused.json()["code"]) == (403, "email_not_verified")
        EmailAddress.objects.update(verified=True)
        assert login(NEW["email"], NEW["password"]).status_code == 200

    @pytest.mark.parametrize("password", ["short", "1234567890123", "password1234"[:8], "dora@example.test"])
    def test_weak_passwords_are_refused_by_name(self, password: str) -> None:
        response = register(password=password)
        assert response.status_code == 400
        assert {e["field"] for e in response.json()["errors"]} == {"password"}
        assert not User.objects.exists()

    @pytest.mark.parametrize("hostile", ["a\0b", "x" * 100_000, "\ud800", "a\nb", ["a"], {"a": 1}, 7])
    @pytest.mark.parametrize("field", ["email", "password", "full_name", "organization_name", "invitation"])
    def test_hostile_input_is_a_clear_400(self, field: str, hostile: Any) -> None:
        import json

        response = api_client().post(
            f"{URL}register/", json.dumps({**NEW, field: hostile}), content_type="application/json"
        )
        if hostile == 7 and field in {"full_name", "organization_name"}:
            assert response.status_code == 201  # a number is text enough for a name
            return
        if hostile == "a\nb" and field == "password":
            assert response.status_code == 400  # too short
        assert response.status_code in {400, 404}, (field, hostile)
        if response.status_code == 400:
            assert response.json()["errors"][0]["field"] == field
        assert not User.objects.exists()

    def test_closed_and_invite_only(self, settings: Any, team: Team) -> None:
        for mode in ("closed", "invite"):
            settings.NOVASTACK_REGISTRATION = mode
            response = register()
            assert (response.status_code, response.json()["code"]) == (403, "registration_closed")

    def test_an_invitation_opens_the_door_for_its_address_only(self, settings: Any, team: Team) -> None:
        settings.NOVASTACK_REGISTRATION = "invite"
        made = api_client(team.alice).post(
            "/api/v1/organizations/acme/invitations/", {"email": NEW["email"], "role": "viewer"}
        )
        token = made.json()["link"].rstrip("/").rsplit("/", 1)[1]
        assert register(email="mallory@example.test", invitation=token).status_code == 400
        assert register(invitation=token).status_code == 201
        roles = dict(Membership.objects.filter(user__email=NEW["email"]).values_list("organization__slug", "role"))
        assert roles["acme"] == "viewer"
        assert len(roles) == 2
        assert register(email="mallory@example.test", invitation=token).status_code == 404


class TestLogin:
    def test_right_and_wrong(self, team: Team) -> None:
        body = login("Alice@Example.TEST").json()
        assert body["user"]["email"] == team.alice.email
        assert body["expires_in_seconds"] == 900
        wrong, unknown = login(team.alice.email, "wrong"), login("nobody@example.test")
        assert wrong.status_code == unknown.status_code == 401
        assert wrong.json()["code"] == unknown.json()["code"] == "invalid_credentials"
        assert wrong.json()["detail"] == unknown.json()["detail"]

    def test_both_cost_one_password_hash(self, team: Team, monkeypatch: Any) -> None:
        """Same time for unknown addresses: the slow part runs exactly once either way."""
        from django.contrib.auth.hashers import MD5PasswordHasher

        calls: list[str] = []
        original = MD5PasswordHasher.encode
        monkeypatch.setattr(
            MD5PasswordHasher, "encode", lambda self, *a, **k: calls.append("x") or original(self, *a, **k)
        )
        login(team.alice.email, "wrong")
        known, calls[:] = len(calls), []
        login("nobody@example.test", "wrong")
        assert known == len(calls) == 1

    def test_failures_are_audited_without_what_was_typed(self, team: Team) -> None:
        login(team.alice.email, "my-secret-typo")
        login("my-password-in-the-wrong-field", "x")
        assert list(AuditEvent.objects.order_by("id").values_list("action", "target")) == [
            ("auth.login_failed", team.alice.email), ("auth.login_failed", "unknown address"),
        ]  # fmt: skip

    def test_a_deactivated_person_is_like_an_unknown_one(self, team: Team) -> None:
        User.objects.filter(pk=team.bob.pk).update(is_active=False)
        assert login(team.bob.email).json()["code"] == "invalid_credentials"

    def test_many_failures_are_throttled_per_account(self, team: Team, settings: Any) -> None:
        settings.ACCOUNT_RATE_LIMITS = {"login_failed": "10/m/ip,3/5m/key"}
        codes = [login(team.alice.email, "wrong").status_code for _ in range(4)]
        assert codes == [401, 401, 401, 429]
        response = login(team.alice.email)
        assert (response.status_code, response.json()["code"]) == (429, "throttled")
        assert int(response["Retry-After"]) > 0
        assert login(team.bob.email).status_code == 200

    def test_sign_in_is_throttled_per_address(self, team: Team, monkeypatch: Any) -> None:
        from novastack.common.api import AuthThrottle

        monkeypatch.setattr(AuthThrottle, "get_rate", lambda self: "2/min")
        assert [login(team.alice.email).status_code for _ in range(3)] == [200, 200, 429]

    @pytest.mark.parametrize("hostile", ["a\0b", "x" * 100_000, "\ud800", [], {}, None])
    @pytest.mark.parametrize("field", ["email", "password", "code"])
    def test_hostile_input(self, team: Team, field: str, hostile: Any) -> None:
        import json

        body = json.dumps({"email": team.alice.email, "password": PASSWORD, field: hostile})
        response = api_client().post(f"{URL}login/", body, content_type="application/json")
        assert response.status_code == 400
        assert response.json()["errors"][0]["field"] == field

    def test_bodies_that_are_no_object(self) -> None:
        for body in ("[]", '"x"', "null", "{", "[" * 50_000):
            response = api_client().post(f"{URL}login/", body, content_type="application/json")
            assert response.status_code == 400, body[:10]
            assert response["Content-Type"] == "application/problem+json"

    def test_a_stale_token_does_not_get_in_the_way(self, team: Team) -> None:
        client = api_client()
        client.credentials(HTTP_AUTHORIZATION="Bearer stale")
        body = {"email": team.alice.email, "password": PASSWORD}
        assert client.post(f"{URL}login/", body).status_code == 200


def totp_code(secret: str) -> str:
    return format_hotp_value(hotp_value(secret, next(yield_hotp_counters_from_time())))


class TestSecondFactor:
    def test_it_is_not_bypassed(self, team: Team) -> None:
        secret = generate_totp_secret()
        TOTP.activate(team.alice, secret)
        missing = login(team.alice.email)
        assert (missing.status_code, missing.json()["code"]) == (401, "mfa_required")
        assert login(team.alice.email, "wrong").json()["code"] == "invalid_credentials"
        wrong = login(team.alice.email, code="000000" if totp_code(secret) != "000000" else "111111")
        assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_code")
        code = totp_code(secret)
        assert login(team.alice.email, code=code).status_code == 200
        assert login(team.alice.email, code=code).json()["code"] == "invalid_code"  # once only

    def test_a_recovery_code_works_once(self, team: Team) -> None:
        TOTP.activate(team.alice, generate_totp_secret())
        code = RecoveryCodes.activate(team.alice).get_unused_codes()[0]
        assert login(team.alice.email, code=code).status_code == 200
        assert login(team.alice.email, code=code).json()["code"] == "invalid_code"

    def test_guessing_codes_is_throttled(self, team: Team, settings: Any) -> None:
        settings.ACCOUNT_RATE_LIMITS = {"login_failed": "100/m/ip,3/5m/key"}
        TOTP.activate(team.alice, generate_totp_secret())
        codes = [login(team.alice.email, code="123").status_code for _ in range(4)]
        assert codes == [401, 401, 401, 429]

    def test_its_secret_is_sealed_at_rest(self, team: Team) -> None:
        secret = generate_totp_secret()
        TOTP.activate(team.alice, secret)
        stored = Authenticator.objects.get().data["secret"]
        assert stored.startswith("v1.")
        assert secret not in stored

    def test_a_token_made_before_still_works_and_is_no_way_to_sign_in(self, team: Team) -> None:
        client = api_client(team.alice, scopes=["read"])
        TOTP.activate(team.alice, generate_totp_secret())
        assert client.get(f"{URL}profile/").json()["mfa_enabled"] is True
        _, clear = make_token(team.alice)
        assert login(team.alice.email, clear).status_code == 401


class TestRefreshAndLogout:
    def test_the_round(self, team: Team) -> None:
        first = login(team.alice.email).json()
        second = api_client().post(f"{URL}refresh/", {"refresh": first["refresh"]})
        assert second.status_code == 200
        assert second["Cache-Control"] == "no-store"
        assert api_client().post(f"{URL}logout", {"refresh": second.json()["refresh"]}).status_code == 204
        again = api_client().post(f"{URL}refresh/", {"refresh": second.json()["refresh"]})
        assert (again.status_code, again.json()["code"]) == (401, "not_authenticated")

    @pytest.mark.parametrize("bad", ["", "x", "a.b.c", "\0", "é" * 100, "x" * 100_000])
    def test_nonsense(self, db: None, bad: str) -> None:
        for path in ("refresh", "logout"):
            assert api_client().post(f"{URL}{path}/", {"refresh": bad}).status_code in {400, 401}


class TestProfile:
    def test_get_put_patch(self, team: Team) -> None:
        client = api_client(team.alice)
        body = client.get(f"{URL}profile/").json()
        assert body["email"] == team.alice.email
        assert body["organizations"] == [
            {"id": str(team.organization.pk), "name": "Acme", "slug": "acme", "personal": False, "role": "owner",
             "default": True}
        ]  # fmt: skip
        changed = client.patch(f"{URL}profile/", {"time_zone": "Europe/Zurich", "theme": "dark"}).json()
        assert (changed["time_zone"], changed["theme"], changed["full_name"]) == ("Europe/Zurich", "dark", "Alice")
        replaced = client.put(f"{URL}profile/", {"email": team.alice.email, "full_name": "A."}).json()
        assert (replaced["full_name"], replaced["time_zone"]) == ("A.", "UTC")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("time_zone", "Mars/Base"), ("time_zone", "../../etc/passwd"), ("theme", "pink"), ("full_name", "a\0"),
         ("full_name", "x" * 100_000), ("email", "other@example.test"), ("full_name", "a\u202eb\nc")],
    )  # fmt: skip
    def test_bad_values_name_the_field(self, team: Team, field: str, value: str) -> None:
        response = api_client(team.alice).patch(f"{URL}profile/", {field: value})
        assert response.status_code == 400
        assert response.json()["errors"][0]["field"] == field

    def test_strangers_get_401_with_a_challenge(self, db: None) -> None:
        response = api_client().get(f"{URL}profile/")
        assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
        assert response["WWW-Authenticate"].startswith("Bearer")

    def test_a_read_token_may_look_but_not_change(self, team: Team) -> None:
        client = api_client(team.alice, scopes=["read"])
        assert client.get(f"{URL}profile/").status_code == 200
        assert client.patch(f"{URL}profile/", {"theme": "dark"}).status_code == 403
        assert api_client(team.alice, scopes=["connect"]).get(f"{URL}profile/").status_code == 403

    def test_a_bound_token_sees_its_organization_only(self, team: Team) -> None:
        from tests.factories import MembershipFactory

        MembershipFactory(organization=team.elsewhere, user=team.alice)
        client = api_client(team.alice, scopes=["read"], organization=team.organization)
        assert [o["slug"] for o in client.get(f"{URL}profile/").json()["organizations"]] == ["acme"]


class TestPassword:
    BODY = {"current_password": PASSWORD, "new_password": "quite-another-one"}

    def test_it_ends_all_token_pairs(self, team: Team) -> None:
        here, there = api_client(team.alice), api_client(team.alice)
        assert here.post(f"{URL}password/", self.BODY).status_code == 204
        assert here.get(f"{URL}profile/").status_code == there.get(f"{URL}profile/").status_code == 401
        assert login(team.alice.email, "quite-another-one").status_code == 200

    def test_a_browser_keeps_its_session_and_ends_the_others(self, team: Team) -> None:
        from django.test import Client

        here, there = Client(), Client()
        for browser in (here, there):
            browser.force_login(team.alice)
            UserSession.objects.create(
                user=team.alice, session_key=browser.session.session_key, ip="127.0.0.1", user_agent="x"
            )
        response = here.post(f"{URL}password/", self.BODY, content_type="application/json")
        assert response.status_code == 204
        assert here.get(f"{URL}profile/").status_code == 200
        assert there.get(f"{URL}profile/").status_code == 401
        assert UserSession.objects.count() <= 1

    def test_a_session_needs_csrf(self, team: Team) -> None:
        from django.test import Client

        browser = Client(enforce_csrf_checks=True)
        browser.force_login(team.alice)
        assert browser.post(f"{URL}password/", self.BODY, content_type="application/json").status_code == 403

    def test_wrong_current_weak_new_and_tokens_are_refused(self, team: Team) -> None:
        client = api_client(team.alice)
        wrong = client.post(f"{URL}password/", {**self.BODY, "current_password": "no"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, "current_password")
        weak = client.post(f"{URL}password/", {**self.BODY, "new_password": "short"})
        assert (weak.status_code, weak.json()["errors"][0]["field"]) == (400, "new_password")
        assert api_client(team.alice, scopes=["admin"]).post(f"{URL}password/", self.BODY).status_code == 403

    def test_passwords_are_hashed_with_argon2_outside_of_tests(self, settings: Any, team: Team) -> None:
        settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[1:]
        team.alice.set_password("quite-another-one")
        assert identify_hasher(team.alice.password).algorithm == "argon2"
