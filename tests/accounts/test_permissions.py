"""The table itself, and the outcome for outsiders, under-privileged and allowed."""

from __future__ import annotations

import pytest
from django.test import RequestFactory

from accounts.models import Role, Scope
from accounts.permissions import (
    ROLE_CAPABILITIES,
    SCOPE_CAPABILITIES,
    Capability,
    Principal,
    allows,
    principal_from,
    require,
    require_operator,
)
from novastack.common.errors import NotAuthenticated, NotFound, PermissionDenied
from tests.factories import Team, make_token


def test_every_role_and_scope_stands_in_the_table() -> None:
    assert set(ROLE_CAPABILITIES) == set(Role.values)
    assert set(SCOPE_CAPABILITIES) == set(Scope.values)


def test_roles_grow_from_viewer_to_owner() -> None:
    viewer, member, admin, owner = (ROLE_CAPABILITIES[r] for r in ("viewer", "member", "admin", "owner"))
    assert viewer < member < admin < owner == frozenset(Capability)


def test_viewers_never_see_passwords_whatever_the_scopes(team: Team) -> None:
    token, _ = make_token(team.vera)
    principal = Principal(user=team.vera, token=token, scopes=frozenset(token.scopes))
    assert not allows(principal, team.organization, Capability.CONNECT)


def test_write_includes_read_and_nothing_but_connect_shows_passwords() -> None:
    assert SCOPE_CAPABILITIES[Scope.READ] < SCOPE_CAPABILITIES[Scope.WRITE]
    assert [s for s in Scope.values if Capability.CONNECT in SCOPE_CAPABILITIES[s]] == [Scope.CONNECT]


def test_an_outsider_finds_nothing_and_a_member_without_the_right_is_refused(team: Team) -> None:
    with pytest.raises(NotFound):
        require(Principal.of(team.charlie), team.organization, Capability.PROJECT_VIEW)
    with pytest.raises(PermissionDenied):
        require(Principal.of(team.vera), team.organization, Capability.PROJECT_CREATE)
    require(Principal.of(team.bob), team.organization, Capability.PROJECT_CREATE)


def test_a_token_is_role_and_scopes_whichever_is_less(team: Team) -> None:
    token, _ = make_token(team.alice, scopes=["read"])
    principal = Principal(user=team.alice, token=token, scopes=frozenset(token.scopes))
    require(principal, team.organization, Capability.PROJECT_VIEW)
    with pytest.raises(PermissionDenied, match="scopes"):
        require(principal, team.organization, Capability.PROJECT_DELETE)


def test_a_token_bound_to_an_organization_sees_only_that_one(team: Team) -> None:
    from tests.factories import MembershipFactory

    MembershipFactory(organization=team.elsewhere, user=team.alice, role=Role.OWNER)
    token, _ = make_token(team.alice, organization=team.organization)
    principal = Principal(user=team.alice, token=token, scopes=frozenset(token.scopes))
    assert principal.organization_ids() == [team.organization.pk]
    with pytest.raises(NotFound):
        require(principal, team.elsewhere, Capability.PROJECT_VIEW)


def test_an_operator_sees_infrastructure_but_no_tenant(team: Team) -> None:
    team.charlie.is_staff = team.charlie.is_superuser = True
    team.charlie.save()
    principal = Principal.of(team.charlie)
    require_operator(principal)
    with pytest.raises(NotFound):
        require(principal, team.organization, Capability.PROJECT_VIEW)


def test_a_bound_or_narrow_token_of_an_operator_is_no_operator(team: Team) -> None:
    team.alice.is_staff = True
    team.alice.save()
    narrow, _ = make_token(team.alice, scopes=["read", "write"])
    bound, _ = make_token(team.alice, organization=team.organization)
    for token in (narrow, bound):
        with pytest.raises(PermissionDenied):
            require_operator(Principal(user=team.alice, token=token, scopes=frozenset(token.scopes)))


def test_memberships_are_read_once(team: Team, django_assert_num_queries) -> None:
    principal = Principal.of(team.alice)
    with django_assert_num_queries(1):
        for capability in Capability:
            allows(principal, team.organization, capability)
        principal.organization_ids()


def test_the_principal_is_made_once_per_request_and_anonymous_has_none(team: Team) -> None:
    from django.contrib.auth.models import AnonymousUser

    request = RequestFactory().get("/")
    request.user = team.alice
    assert principal_from(request) is principal_from(request)
    request.user = AnonymousUser()
    with pytest.raises(NotAuthenticated):
        principal_from(request)
