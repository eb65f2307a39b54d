"""allauth's account adapter: who may sign up, what is audited, what a new password ends."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core import context
from django.contrib.auth.models import AbstractBaseUser
from django.http import HttpRequest

from accounts.models import User
from accounts.permissions import Principal, client_ip
from accounts.services import membership_ensure, record, registration_open, user_sign_out_everywhere
from accounts.services.invitations import invitation_remembered


def _acting(request: HttpRequest | None, user: Any) -> Principal:
    return Principal(
        user=user, ip=client_ip(request) if request else None, request_id=getattr(request, "request_id", "")
    )


class AccountAdapter(DefaultAccountAdapter):
    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return registration_open(invitation_remembered(request))

    def login(self, request: HttpRequest, user: AbstractBaseUser) -> None:
        super().login(request, user)
        assert isinstance(user, User)  # noqa: S101  (allauth types the base class)
        membership_ensure(user)
        record(_acting(request, user), "auth.login", target=str(user), data={"via": "browser"})

    def logout(self, request: HttpRequest) -> None:
        if request.user.is_authenticated:
            record(_acting(request, request.user), "auth.logout", target=str(request.user), data={"via": "browser"})
        super().logout(request)

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        """One row either way, so that both take the same time. What strangers type may be anything, a password included:
        only an address that exists is written down."""
        email = str(credentials.get("email") or "").strip().lower()
        known = "\0" not in email and User.objects.filter(email=email).exists()
        record(None, "auth.login_failed", target=email if known else "unknown address", ip=client_ip(request),
               request_id=getattr(request, "request_id", ""))  # fmt: skip

    def set_password(self, user: AbstractBaseUser, password: str) -> None:
        """Change, set and reset of a password all come here: every other session and token pair ends (rule 48)."""
        super().set_password(user, password)
        assert isinstance(user, User)  # noqa: S101  (allauth types the base class)
        request = context.request
        own = request is not None and getattr(request, "user", None) == user
        user_sign_out_everywhere(
            user=user, keep_session_key=request.session.session_key if own else None, reason="password_changed"
        )
        record(_acting(request, user), "auth.password_changed", target=user.email)
