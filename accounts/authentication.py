"""How API requests say who they are: API token, JWT, browser session. Failures are 401 with `WWW-Authenticate`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils.crypto import constant_time_compare
from rest_framework import authentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken

from accounts.models import ApiToken, RefreshFamily, User
from accounts.models.tokens import REVOKED_BY_RESTORE, TOKEN_MARK, hash_token
from accounts.services.sessions import FAMILY_CLAIM, PASSWORD_CLAIM, password_mark
from novastack.common.clock import now

LAST_USED_EVERY = timedelta(minutes=1)
CHALLENGE = 'Bearer realm="NovaStack API"'


def _bearer(request: Request) -> str | None:
    """The credential of `Authorization: Bearer …`; None when the header is missing or of another scheme."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    credential = credential.strip()
    if not credential or " " in credential:
        raise AuthenticationFailed("Send `Authorization: Bearer <token>`.")
    return credential


class ApiTokenAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer nvs_…` or `X-API-Key: nvs_…`. `request.auth` is the `ApiToken`."""

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        clear = request.headers.get("X-API-Key", "").strip()
        if not clear:
            clear = _bearer(request) or ""
            if not clear.startswith(TOKEN_MARK):
                return None
        token = self._find(clear)
        moment = now()
        if token.last_used_at is None or moment - token.last_used_at > LAST_USED_EVERY:
            stale = Q(last_used_at=None) | Q(last_used_at__lt=moment - LAST_USED_EVERY)
            ApiToken.objects.filter(stale, pk=token.pk).update(last_used_at=moment)
        return token.user, token

    def _find(self, clear: str) -> ApiToken:
        token = None
        if clear.startswith(TOKEN_MARK) and clear.isascii() and len(clear) < 100:
            token = ApiToken.objects.select_related("user").filter(token_hash=hash_token(clear)).first()
        if token is not None and token.revoked_reason == REVOKED_BY_RESTORE and token.user.is_active:
            raise AuthenticationFailed(
                "This API token ended when NovaStack was restored from a backup; make a new one."
            )
        if token is None or token.revoked_at is not None or not token.user.is_active:
            raise AuthenticationFailed("This API token is unknown or revoked.")
        if not token.is_valid:
            raise AuthenticationFailed("This API token has expired.")
        return token


class JWTAuthentication(authentication.BaseAuthentication):
    """An access token of `auth/login`. It lives no longer than its family and the password it was made with."""

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE

    def authenticate(self, request: Request) -> tuple[User, Any] | None:
        raw = _bearer(request)
        if raw is None or raw.startswith(TOKEN_MARK):
            return None
        try:
            token = AccessToken(raw)  # type: ignore[arg-type]
        except TokenError as error:
            raise AuthenticationFailed("This access token is not valid, or has expired.") from error
        family = (
            RefreshFamily.objects.select_related("user").filter(pk=token.get(FAMILY_CLAIM), revoked_at=None).first()
        )
        if family is None or not family.user.is_active:
            raise AuthenticationFailed("This access token's session has ended; sign in again.")
        if not constant_time_compare(token.get(PASSWORD_CLAIM, ""), password_mark(family.user)):
            raise AuthenticationFailed("The password was changed; sign in again.")
        return family.user, token


class SessionAuthentication(authentication.SessionAuthentication):
    """The browser's session, with CSRF."""

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE
