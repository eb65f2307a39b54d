"""What services promise beyond what the API tests show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection
from django.test import Client, RequestFactory

from accounts.context import shell
from accounts.models import ApiToken, AuditEvent, Membership, Organization, RefreshFamily, User
from accounts.permissions import Capability, Principal
from accounts.services import (
    clean_up,
    organization_for,
    organization_select,
    personal_organization_ensure,
    session_refresh,
    session_start,
    user_create,
    user_register,
)
from novastack.common.clock import now
from novastack.common.errors import Invalid, NotAuthenticated, NotFound, PermissionDenied, Problem
from tests.factories import PASSWORD, MembershipFactory, OrganizationFactory, Team, UserFactory, make_token

pytestmark = pytest.mark.django_db


def test_the_first_admin_is_verified_and_has_an_organization() -> None:
    user = user_create(email="Admin@Localhost.local", password="x", is_staff=True, is_superuser=True)
    assert user.email == "admin@localhost.local"
    assert user.emailaddress_set.get().verified
    assert user.default_organization == Organization.objects.get()
    assert personal_organization_ensure(user=user) == user.default_organization
    assert AuditEvent.objects.get().actor_label == "system"


def test_the_database_knows_one_spelling_of_an_address() -> None:
    UserFactory(email="alice@example.test")
    with pytest.raises(IntegrityError):
        User(email="ALICE@example.test").save()


@pytest.mark.django_db(transaction=True)
def test_the_same_address_twice_at_once_makes_one_person(settings: Any) -> None:
    settings.NOVASTACK_REGISTRATION = "open"

    def register(_: int) -> str:
        try:
            user_register(email="dora@example.test", password="a-long-enough-password")
            return "made"
        except Problem as problem:
            return problem.code
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(register, range(4))) == ["email_taken"] * 3 + ["made"]
    assert Organization.objects.count() == Membership.objects.count() == 1


class TestOrganizationFor:
    def test_a_named_one_by_slug_or_id(self, team: Team) -> None:
        alice = Principal.of(team.alice)
        for ref in ("acme", str(team.organization.pk)):
            assert organization_for(alice, ref, capability=Capability.PROJECT_CREATE) == team.organization
        for ref in ("elsewhere", str(team.elsewhere.pk), "x", "0" * 32):
            with pytest.raises(NotFound) as caught:
                organization_for(alice, ref, capability=Capability.PROJECT_VIEW)
            assert caught.value.errors[0].field == "organization"
        with pytest.raises(PermissionDenied):
            organization_for(Principal.of(team.vera), "acme", capability=Capability.PROJECT_CREATE)

    def test_else_the_tokens_the_browsers_the_default_the_first(self, team: Team) -> None:
        second = MembershipFactory(user=team.alice, role="owner").organization
        view = {"capability": Capability.PROJECT_VIEW}
        token, _ = make_token(team.alice, organization=second)
        bound = Principal(user=team.alice, token=token, scopes=frozenset(token.scopes))
        assert organization_for(bound, **view) == second
        alice = Principal.of(team.alice)
        assert organization_for(alice, session={"organization": str(second.pk)}, **view) == second
        assert organization_for(alice, session={"organization": str(team.elsewhere.pk)}, **view) == team.organization
        assert organization_for(alice, session={"organization": "nonsense"}, **view) == team.organization
        User.objects.filter(pk=team.alice.pk).update(default_organization=None)
        assert organization_for(Principal.of(User.objects.get(pk=team.alice.pk)), **view) == team.organization

    def test_somebody_without_any(self) -> None:
        with pytest.raises(Invalid):
            organization_for(Principal.of(UserFactory()), capability=Capability.PROJECT_VIEW)


def test_the_switcher_is_remembered_and_refuses_foreign_ones(team: Team) -> None:
    second = MembershipFactory(user=team.alice).organization
    organization_select(principal=Principal.of(team.alice), organization=second)
    assert User.objects.get(pk=team.alice.pk).default_organization == second
    with pytest.raises(NotFound):
        organization_select(principal=Principal.of(team.alice), organization=team.elsewhere)


class TestShell:
    def request(self, user: Any) -> Any:
        request = RequestFactory().get("/")
        request.user, request.session = user, {}
        return request

    def test_strangers_cost_nothing(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            assert shell(self.request(AnonymousUser())) == {}

    def test_it_is_lazy_and_constant(self, team: Team, django_assert_num_queries: Any) -> None:
        for _ in range(20):
            MembershipFactory(user=team.bob)
        request = self.request(User.objects.select_related("default_organization").get(pk=team.bob.pk))
        with django_assert_num_queries(0):
            context = shell(request)["shell"]
        with django_assert_num_queries(2):
            assert len(context.organizations) == 21
            assert (context.organization, context.role) == (team.organization, "member")
            assert context.can["project_create"]
            assert not context.can["member_manage"]
            assert not context.is_operator


class TestConstraints:
    def test_unknown_scopes_and_roles_do_not_reach_the_table(self, team: Team) -> None:
        from django.db import transaction

        for row in (
            ApiToken(user=team.bob, name="x", token_hash="x", prefix="x", scopes=["root"]),
            ApiToken(user=team.bob, name="x", token_hash="y", prefix="x", scopes=[]),
            Membership(organization=OrganizationFactory(), user=team.bob, role="god"),
            Membership(organization=team.organization, user=team.bob, role="viewer"),
        ):
            with pytest.raises(IntegrityError), transaction.atomic():
                row.save()

    def test_time_zones_are_real(self, team: Team) -> None:
        team.alice.time_zone = "Mars/Base"
        with pytest.raises(ValidationError) as caught:
            team.alice.full_clean()
        assert caught.value.message_dict.keys() == {"time_zone"}


class TestAdmin:
    @pytest.fixture
    def operator(self, client: Client) -> Client:
        client.force_login(UserFactory(is_staff=True, is_superuser=True))
        return client

    def test_a_person_made_there_can_sign_in_and_has_an_organization(self, operator: Client) -> None:
        response = operator.post(
            "/admin/accounts/user/add/",
            {"email": "New@Example.test", "full_name": "New", "usable_password": "true",
             "password1": "a-long-enough-password", "password2": "a-long-enough-password"},
        )  # fmt: skip
        assert response.status_code == 302, response.content.decode()[:3000]
        user = User.objects.get(email="new@example.test")
        assert user.default_organization is not None
        assert Client().post(
            "/accounts/login/", {"login": user.email, "password": "a-long-enough-password"}
        ).status_code == 302  # fmt: skip

    def test_hashes_of_tokens_and_links_are_not_shown(self, operator: Client, team: Team) -> None:
        token, clear = make_token(team.alice)
        page = operator.get(f"/admin/accounts/apitoken/{token.pk}/change/").content.decode()
        assert token.prefix in page
        assert token.token_hash not in page
        assert clear not in page

    def test_tokens_are_revoked_by_an_action(self, operator: Client, team: Team) -> None:
        token, _ = make_token(team.alice)
        operator.post("/admin/accounts/apitoken/", {"action": "revoke", "_selected_action": [str(token.pk)]})
        token.refresh_from_db()
        assert token.revoked_at is not None
        assert AuditEvent.objects.filter(action="token.revoked_by_operator").exists()

    def test_people_and_organizations_are_not_deleted_there(self, operator: Client, team: Team) -> None:
        for path in (f"user/{team.alice.pk}", f"organization/{team.organization.pk}"):
            assert operator.post(f"/admin/accounts/{path}/delete/", {"post": "yes"}).status_code == 403

    def test_deactivating_signs_out(self, operator: Client, team: Team) -> None:
        page = operator.get(f"/admin/accounts/user/{team.bob.pk}/change/")
        form = page.context["adminform"].form
        data = {k: v for k, v in form.initial.items() if v is not None and k in form.fields and k != "is_active"}
        response = operator.post(f"/admin/accounts/user/{team.bob.pk}/change/", data)
        assert response.status_code == 302, response.context["errors"]
        team.bob.refresh_from_db()
        assert not team.bob.is_active
        assert AuditEvent.objects.filter(action="user.changed_by_operator", target=team.bob.email).exists()

    def test_a_password_set_there_ends_sessions_and_is_audited(self, operator: Client, team: Team) -> None:
        family = session_start(user=team.bob)
        new = "quite-another-one"
        response = operator.post(
            f"/admin/accounts/user/{team.bob.pk}/password/",
            {"usable_password": "true", "password1": new, "password2": new},
        )
        assert response.status_code == 302
        with pytest.raises(NotAuthenticated):
            session_refresh(refresh=family.refresh)
        assert AuditEvent.objects.filter(action="auth.password_changed", target=team.bob.email).exists()


def test_who_belongs_nowhere_gets_an_organization_at_sign_in(client: Client) -> None:
    user = User.objects.create_superuser("root@example.test", PASSWORD)
    client.post("/accounts/login/", {"login": user.email, "password": PASSWORD})
    user.refresh_from_db()
    assert user.default_organization is not None
    assert user.default_organization.personal


def test_clean_up_removes_what_has_ended_and_nothing_else(team: Team) -> None:
    session_start(user=team.alice)
    session_start(user=team.bob)
    RefreshFamily.objects.filter(user=team.bob).update(expires_at=now() - timedelta(days=1))
    browser = Client()
    browser.force_login(team.alice)
    assert clean_up() == {"refresh_families": 1, "invitations": 0, "sessions": 0, "user_sessions": 0}
    assert browser.get("/api/v1/auth/profile/").status_code == 200
    Session.objects.update(expire_date=now() - timedelta(seconds=1))
    assert clean_up()["sessions"] == 1
    assert RefreshFamily.objects.get().user == team.alice
