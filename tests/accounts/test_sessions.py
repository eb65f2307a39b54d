"""Refresh families (rule 48): rotation, grace, reuse, parallel refreshes, logout, password change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from rest_framework_simplejwt.tokens import AccessToken

from accounts.models import AuditEvent, RefreshFamily
from accounts.permissions import Principal
from accounts.services import password_change, session_end, session_refresh, session_start
from novastack.common.clock import now
from novastack.common.errors import NotAuthenticated
from tests.factories import PASSWORD, Team, UserFactory, api_client

pytestmark = pytest.mark.django_db


def profile(access: str) -> int:
    client = api_client()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {access}")
    return client.get("/api/v1/auth/profile/").status_code


def test_a_refresh_gives_a_new_pair_and_uses_up_the_old_one(team: Team) -> None:
    first = session_start(user=team.alice)
    second = session_refresh(refresh=first.refresh)
    assert second.refresh != first.refresh
    assert profile(second.access) == 200


def test_parallel_refreshes_within_the_grace_end_with_the_same_valid_token(team: Team) -> None:
    first = session_start(user=team.alice)
    second = session_refresh(refresh=first.refresh)
    parallel = session_refresh(refresh=first.refresh, at=now() + timedelta(seconds=8))
    third = session_refresh(refresh=parallel.refresh)
    assert third.refresh not in (first.refresh, second.refresh)
    assert RefreshFamily.objects.get().revoked_at is None


def test_reuse_after_the_grace_ends_the_family_and_its_access_tokens(team: Team) -> None:
    first = session_start(user=team.alice)
    second = session_refresh(refresh=first.refresh)
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=first.refresh, at=now() + timedelta(seconds=11))
    assert RefreshFamily.objects.get().revoked_reason == "reused"
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=second.refresh)
    assert profile(second.access) == 401
    assert AuditEvent.objects.filter(action="auth.refresh_reused", actor=team.alice).exists()


def test_a_token_two_turns_old_ends_the_family_at_once(team: Team) -> None:
    first = session_start(user=team.alice)
    session_refresh(refresh=session_refresh(refresh=first.refresh).refresh)
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=first.refresh)
    assert RefreshFamily.objects.get().revoked_at is not None


def test_logout_ends_refresh_and_access(team: Team) -> None:
    pair = session_start(user=team.alice)
    assert profile(pair.access) == 200
    session_end(refresh=pair.refresh)
    assert profile(pair.access) == 401
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=pair.refresh)


def test_a_password_change_ends_everything_of_every_family(team: Team) -> None:
    pairs = [session_start(user=team.alice), session_start(user=team.alice)]
    password_change(principal=Principal.of(team.alice), current_password=PASSWORD, new_password="another-long-one-9")
    for pair in pairs:
        assert profile(pair.access) == 401
        with pytest.raises(NotAuthenticated):
            session_refresh(refresh=pair.refresh)


def test_a_password_set_behind_our_back_ends_them_too(team: Team) -> None:
    pair = session_start(user=team.alice)
    team.alice.set_password("by-the-changepassword-command")
    team.alice.save()
    assert profile(pair.access) == 401
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=pair.refresh)


def test_a_deactivated_person_is_out(team: Team) -> None:
    pair = session_start(user=team.alice)
    team.alice.is_active = False
    team.alice.save()
    assert profile(pair.access) == 401


def test_kinds_of_tokens_are_not_interchangeable(team: Team) -> None:
    pair = session_start(user=team.alice)
    assert profile(pair.refresh) == 401
    with pytest.raises(NotAuthenticated):
        session_refresh(refresh=pair.access)
    forged = AccessToken()
    forged["user_id"] = str(team.alice.pk)
    assert profile(str(forged)) == 401


@pytest.mark.django_db(transaction=True)
def test_eight_clients_at_once_get_one_next_token() -> None:
    first = session_start(user=UserFactory())

    def refresh(_: int) -> str:
        try:
            return session_refresh(refresh=first.refresh).refresh
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(refresh, range(8)))
    family = RefreshFamily.objects.get()
    assert family.revoked_at is None
    assert len(set(tokens)) <= 2  # same turn; the expiry may differ by a second
    session_refresh(refresh=tokens[-1])
