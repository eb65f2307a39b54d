"""Registering, signing in and out, the profile."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.models import EmailAddress
from allauth.account.utils import has_verified_email
from allauth.mfa.base.forms import AuthenticateForm
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib.auth import update_session_auth_hash
from django.core.exceptions import ValidationError
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import services
from accounts.api.base import PrincipalMixin
from accounts.api.serializers import (
    LoggedInSerializer,
    LoginSerializer,
    PasswordSerializer,
    ProfileSerializer,
    ProfileUpdateSerializer,
    RefreshSerializer,
    RegisteredSerializer,
    RegisterSerializer,
    TokenPairSerializer,
    UserSerializer,
)
from accounts.models import Organization, User
from accounts.permissions import client_ip, require_scope
from novastack.common.api import AuthThrottle, SecretResponse
from novastack.common.errors import Invalid, NotAuthenticated, PermissionDenied, Throttled


def _start(request: Request, user: User) -> services.TokenPair:
    return services.session_start(
        user=user, ip=client_ip(request._request), user_agent=request.headers.get("User-Agent", ""),
        request_id=getattr(request._request, "request_id", ""),
    )  # fmt: skip


def _pair(pair: services.TokenPair) -> dict[str, Any]:
    return {"access": pair.access, "refresh": pair.refresh, "expires_in_seconds": pair.expires_in_seconds}


class PublicView(APIView):
    """For strangers. No authentication at all: a stale cookie or token must not get in the way of signing in."""

    authentication_classes: list[Any] = []
    permission_classes = [AllowAny]
    throttle_classes = [AuthThrottle]


class RegisterView(PublicView):
    @extend_schema(operation_id="auth_register", tags=["auth"], request=RegisterSerializer,
                   responses={201: RegisteredSerializer})  # fmt: skip
    def post(self, request: Request) -> Response:
        """Register, with a personal organization. When addresses are verified, a known one gets the same answer."""
        serializer = RegisterSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields = serializer.validated_data
        verify = settings.ACCOUNT_EMAIL_VERIFICATION == "mandatory"
        try:
            user, organization = services.user_register(**fields, request=request._request)
        except Invalid as error:
            if not (verify and error.code == "email_taken"):
                raise
            get_adapter().send_account_already_exists_mail(fields["email"].lower())
            return Response({"verification_required": True}, status=201)
        if verify:
            EmailAddress.objects.get(user=user).send_confirmation(request._request, signup=True)
            return Response({"verification_required": True}, status=201)
        body = {
            "user": UserSerializer(user).data, "organization": _brief(organization), **_pair(_start(request, user)),
        }  # fmt: skip
        return SecretResponse(body, status=201)


def _brief(organization: Organization) -> dict[str, Any]:
    return {
        "id": str(organization.pk), "name": organization.name, "slug": organization.slug,
        "personal": organization.personal, "role": "owner", "default": True,
    }  # fmt: skip


class LoginView(PublicView):
    @extend_schema(operation_id="auth_login", tags=["auth"], request=LoginSerializer,
                   responses={200: LoggedInSerializer})  # fmt: skip
    def post(self, request: Request) -> Response:
        """Sign in. 401 `invalid_credentials`, `mfa_required` (send `code`), `invalid_code`; 429 after many failures."""
        serializer = LoginSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields = serializer.validated_data
        user = self._authenticate(request, fields["email"].strip().lower(), fields["password"])
        self._second_factor(user, fields["code"].strip())
        if settings.ACCOUNT_EMAIL_VERIFICATION == "mandatory" and not has_verified_email(user):
            raise PermissionDenied("Confirm your address first: the link is in your mail.", code="email_not_verified")
        services.membership_ensure(user)
        return SecretResponse({**_pair(_start(request, user)), "user": UserSerializer(user).data})

    def _authenticate(self, request: Request, email: str, password: str) -> User:
        """Through allauth's adapter: its rate limits, and the same time for addresses that don't exist."""
        try:
            user = get_adapter().authenticate(request._request, email=email, password=password)
        except ValidationError as error:
            raise Throttled("Too many failed attempts; wait some minutes.", retry_after_seconds=300) from error
        if not isinstance(user, User) or not user.is_active:
            raise NotAuthenticated("Address and password don't match.", code="invalid_credentials")
        return user

    def _second_factor(self, user: User, code: str) -> None:
        if not is_mfa_enabled(user):
            return
        if not code:
            raise NotAuthenticated("Send the code of your second factor as `code`.", code="mfa_required")
        form = AuthenticateForm(data={"code": code}, user=user)
        if not form.is_valid():
            if form.has_error("code", "too_many_login_attempts"):
                raise Throttled("Too many wrong codes; wait some minutes.", retry_after_seconds=300)
            raise NotAuthenticated("This code is not valid now.", code="invalid_code")
        form.authenticator.record_usage()


class RefreshView(PublicView):
    @extend_schema(operation_id="auth_refresh", tags=["auth"], request=RefreshSerializer,
                   responses={200: TokenPairSerializer})  # fmt: skip
    def post(self, request: Request) -> Response:
        """A new pair. The old refresh token is used up; used again later, it ends the whole session."""
        serializer = RefreshSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        pair = services.session_refresh(refresh=serializer.validated_data["refresh"], ip=client_ip(request._request))
        return SecretResponse(_pair(pair))


class LogoutView(PublicView):
    @extend_schema(operation_id="auth_logout", tags=["auth"], request=RefreshSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """End the session of this refresh token, with its access tokens."""
        serializer = RefreshSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        services.session_end(refresh=serializer.validated_data["refresh"], ip=client_ip(request._request))
        return Response(status=204)


class ProfileView(PrincipalMixin, APIView):
    def _answer(self) -> Response:
        return Response(ProfileSerializer(self.principal.user, context={"principal": self.principal}).data)

    @extend_schema(operation_id="auth_profile", tags=["auth"], responses={200: ProfileSerializer})
    def get(self, request: Request) -> Response:
        require_scope(self.principal, "read")
        return self._answer()

    @extend_schema(operation_id="auth_profile_replace", tags=["auth"], request=ProfileUpdateSerializer,
                   responses={200: ProfileSerializer})  # fmt: skip
    def put(self, request: Request) -> Response:
        return self._change(request, {"full_name": "", "time_zone": "UTC", "theme": "system"})

    @extend_schema(operation_id="auth_profile_update", tags=["auth"], request=ProfileUpdateSerializer,
                   responses={200: ProfileSerializer})  # fmt: skip
    def patch(self, request: Request) -> Response:
        return self._change(request, {})

    def _change(self, request: Request, defaults: dict[str, Any]) -> Response:
        serializer = ProfileUpdateSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        changes = {**defaults, **serializer.validated_data}
        email = changes.pop("email", None)
        if email is not None and email.lower() != self.principal.user.email:
            raise Invalid.field(
                "email", "read_only", "Change the address in the browser; it has to be confirmed there."
            )
        services.profile_update(principal=self.principal, **changes)
        return self._answer()


class PasswordView(PrincipalMixin, APIView):
    throttle_classes = [AuthThrottle]

    @extend_schema(operation_id="auth_password", tags=["auth"], request=PasswordSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """Change the password. All other sessions and all token pairs end, the calling one's too; API tokens stay."""
        serializer = PasswordSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        session = request._request.session
        services.password_change(
            principal=self.principal, **serializer.validated_data, keep_session_key=session.session_key
        )
        if request.auth is None:  # a browser: it stays signed in
            update_session_auth_hash(request._request, self.principal.user)
        return Response(status=204)
