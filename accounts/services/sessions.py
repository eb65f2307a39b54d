"""Signing in through the API: access tokens of minutes, refresh tokens that rotate within a family (rule 48).

The family row is the blacklist: nothing but its `current_jti` refreshes. The one before is forgiven for 10 seconds and
gets the *current* token again, so that parallel refreshes of one client all end with the same valid pair. Anything older
is a copy in somebody else's hands: the family ends, and with it the access tokens that name it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils.crypto import constant_time_compare
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, Token

from accounts.models import RefreshFamily, User
from accounts.permissions import Principal
from accounts.services.audit import record
from novastack.common.clock import now
from novastack.common.errors import NotAuthenticated

GRACE = timedelta(seconds=10)
ACCESS_LIFE: timedelta = settings.SIMPLE_JWT["ACCESS_TOKEN_LIFETIME"]
REFRESH_LIFE: timedelta = settings.SIMPLE_JWT["REFRESH_TOKEN_LIFETIME"]
FAMILY_CLAIM = "fam"
PASSWORD_CLAIM = "pwd"  # noqa: S105  (a keyed hash; changes with the password, however it was changed)


class RefreshToken(Token):
    """Names its family and its turn; opens nothing but `auth/refresh` and `auth/logout`."""

    token_type = "refresh"  # noqa: S105
    lifetime = REFRESH_LIFE


@dataclass(frozen=True, slots=True)
class TokenPair:
    access: str
    refresh: str
    expires_in_seconds: int


def password_mark(user: User) -> str:
    return user.get_session_auth_hash()[:32]


def _pair(family: RefreshFamily, user: User) -> TokenPair:
    access = AccessToken()
    access["user_id"] = str(user.pk)
    access[FAMILY_CLAIM] = str(family.pk)
    access[PASSWORD_CLAIM] = password_mark(user)
    refresh = RefreshToken()
    refresh["jti"] = family.current_jti
    refresh[FAMILY_CLAIM] = str(family.pk)
    refresh[PASSWORD_CLAIM] = password_mark(user)
    refresh["exp"] = int(family.expires_at.timestamp())
    return TokenPair(str(access), str(refresh), int(ACCESS_LIFE.total_seconds()))


@transaction.atomic
def session_start(*, user: User, ip: str | None = None, user_agent: str = "", request_id: str = "") -> TokenPair:
    """A new family and its first pair. The caller has authenticated the user, second factor included."""
    family = RefreshFamily.objects.create(
        user=user, current_jti=uuid.uuid4().hex, expires_at=now() + REFRESH_LIFE, ip=ip, user_agent=user_agent[:200]
    )
    user.last_login = now()
    user.save(update_fields=["last_login"])
    record(Principal(user=user, ip=ip, request_id=request_id), "auth.login", target=user.email, data={"via": "api"})
    return _pair(family, user)


def _read(refresh: str) -> RefreshToken:
    try:
        return RefreshToken(refresh)  # type: ignore[arg-type]  # simplejwt calls its text argument a Token
    except TokenError as error:
        raise NotAuthenticated("This refresh token is not valid, or has expired; sign in again.") from error


def _locked_family(token: RefreshToken) -> RefreshFamily | None:
    return (
        RefreshFamily.objects.select_for_update(of=("self",))
        .select_related("user")
        .filter(pk=token.get(FAMILY_CLAIM))
        .first()
    )


def session_refresh(*, refresh: str, at: datetime | None = None, ip: str | None = None) -> TokenPair:
    """A new pair for a current refresh token. `NotAuthenticated` otherwise; a reused old one ends the family."""
    token = _read(refresh)
    moment = at or now()
    refused = NotAuthenticated("This refresh token is not valid any more; sign in again.")
    # Not one big atomic block: ending the family must stay although the caller gets an error.
    with transaction.atomic():
        family = _locked_family(token)
        if family is None or family.revoked_at or family.expires_at <= moment or not family.user.is_active:
            raise refused
        if not constant_time_compare(token.get(PASSWORD_CLAIM, ""), password_mark(family.user)):
            raise refused
        if token["jti"] == family.current_jti:
            family.previous_jti, family.current_jti = family.current_jti, uuid.uuid4().hex
            family.rotated_at, family.expires_at = moment, moment + REFRESH_LIFE
            family.save(update_fields=["previous_jti", "current_jti", "rotated_at", "expires_at", "updated_at"])
            return _pair(family, family.user)
        if token["jti"] == family.previous_jti and moment - family.rotated_at <= GRACE:
            return _pair(family, family.user)
        family.revoked_at, family.revoked_reason = moment, "reused"
        family.save(update_fields=["revoked_at", "revoked_reason", "updated_at"])
        record(Principal(user=family.user, ip=ip), "auth.refresh_reused", target=family.user.email)
    raise refused


@transaction.atomic
def session_end(*, refresh: str, ip: str | None = None, user: User | None = None) -> None:
    """End the family of this token, with its access tokens. Harmless when it ended before.

    With `user`, a token of somebody else is refused: signed in as one, nobody ends another's session.
    """
    token = _read(refresh)
    family = _locked_family(token)
    if family is None or (user is not None and family.user_id != user.pk):
        raise NotAuthenticated("This refresh token is not valid, or has expired; sign in again.")
    if family.revoked_at is None:
        family.revoked_at, family.revoked_reason = now(), "logout"
        family.save(update_fields=["revoked_at", "revoked_reason", "updated_at"])
        record(Principal(user=family.user, ip=ip), "auth.logout", target=family.user.email, data={"via": "api"})
