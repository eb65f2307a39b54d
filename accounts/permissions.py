"""Who may do what: the one table role → capability, the one table scope → capability, and the `Principal`.

A right is role ∩ scopes (rule 46). An outsider gets 404, a member without the right 403.
An operator (`user.is_staff`) sees infrastructure; that alone opens no tenant's data.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest

from accounts.models import ApiToken, Membership, Organization, Role, Scope, User
from novastack.common.errors import NotAuthenticated, NotFound, PermissionDenied

if TYPE_CHECKING:
    from rest_framework.request import Request


class Capability(StrEnum):
    ORG_VIEW = "org_view"
    ORG_CHANGE = "org_change"
    ORG_DELETE = "org_delete"
    MEMBER_VIEW = "member_view"
    MEMBER_MANAGE = "member_manage"
    AUDIT_VIEW = "audit_view"
    TOKEN_MANAGE = "token_manage"  # noqa: S105  (tokens limited to this organization)
    PROJECT_VIEW = "project_view"
    PROJECT_LOGS = "project_logs"  # a failed statement may be in there, with the tenants' data
    PROJECT_CREATE = "project_create"
    PROJECT_CHANGE = "project_change"  # rename, labels, limits, protection
    PROJECT_ACT = "project_act"  # start, stop, restart, rotate, retry, cancel
    PROJECT_DELETE = "project_delete"  # into the recycle bin, and back
    PROJECT_PURGE = "project_purge"  # for good
    CONNECT = "connect"  # see passwords
    API_KEY_MANAGE = "api_key_manage"  # of a project, for its own services


C = Capability
_VIEWER = frozenset({C.ORG_VIEW, C.MEMBER_VIEW, C.PROJECT_VIEW, C.TOKEN_MANAGE})
_MEMBER = _VIEWER | {
    C.AUDIT_VIEW, C.CONNECT, C.PROJECT_LOGS, C.PROJECT_CREATE, C.PROJECT_CHANGE, C.PROJECT_ACT, C.PROJECT_DELETE,
    C.API_KEY_MANAGE,
}  # fmt: skip
_ADMIN = _MEMBER | {C.PROJECT_PURGE, C.MEMBER_MANAGE, C.ORG_CHANGE}
_OWNER = _ADMIN | {C.ORG_DELETE}

ROLE_CAPABILITIES: Mapping[str, frozenset[Capability]] = {
    Role.OWNER: _OWNER,
    Role.ADMIN: _ADMIN,
    Role.MEMBER: _MEMBER,
    Role.VIEWER: _VIEWER,
}

_READ = frozenset({C.ORG_VIEW, C.MEMBER_VIEW, C.PROJECT_VIEW, C.PROJECT_LOGS, C.AUDIT_VIEW})
SCOPE_CAPABILITIES: Mapping[str, frozenset[Capability]] = {
    Scope.READ: _READ,
    Scope.WRITE: _READ | {
        C.PROJECT_CREATE, C.PROJECT_CHANGE, C.PROJECT_ACT, C.PROJECT_DELETE, C.PROJECT_PURGE, C.API_KEY_MANAGE,
    },
    Scope.CONNECT: frozenset({C.CONNECT}),
    Scope.ADMIN: _READ | {C.MEMBER_MANAGE, C.ORG_CHANGE, C.ORG_DELETE, C.TOKEN_MANAGE},
}  # fmt: skip

# Who may give which role, and touch a member who holds it.
MANAGEABLE_ROLES: Mapping[str, frozenset[str]] = {
    Role.OWNER: frozenset(Role.values),
    Role.ADMIN: frozenset({Role.ADMIN, Role.MEMBER, Role.VIEWER}),
}


# What an operator may do to any project in the Django admin: run it and bin it, never read it (rule 46).
OPERATOR_CAPABILITIES = frozenset({C.PROJECT_VIEW, C.PROJECT_CHANGE, C.PROJECT_ACT, C.PROJECT_DELETE})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts, with what, from where. Made once per request; the memberships are read once.

    `scopes` is None for people (browser session or JWT): all that the role allows.
    """

    user: User
    token: ApiToken | None = None
    scopes: frozenset[str] | None = None
    ip: str | None = None
    request_id: str = ""
    _roles: dict[uuid.UUID, str] = field(default_factory=dict, repr=False, compare=False)
    _read: list[bool] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, user: User) -> Principal:
        """A person outside of a request: management commands, the first start, tests."""
        return cls(user=user)

    @property
    def label(self) -> str:
        """For people: the email address, with the token's name when one is used."""
        return f"{self.user.email} ({self.token.name})" if self.token else self.user.email

    @property
    def is_operator(self) -> bool:
        """Infrastructure rights: only people, or tokens with the admin scope that are not bound to an organization."""
        if self.token is not None and (self.token.organization_id or Scope.ADMIN not in (self.scopes or ())):
            return False
        return self.user.is_operator

    def _memberships(self) -> dict[uuid.UUID, str]:
        if not self._read:
            rows = Membership.objects.filter(user_id=self.user.pk)
            if self.token is not None and self.token.organization_id:
                rows = rows.filter(organization_id=self.token.organization_id)
            self._roles.update(rows.values_list("organization_id", "role"))
            self._read.append(True)
        return self._roles

    def forget_memberships(self) -> None:
        """Read them again: after this request changed them."""
        self._roles.clear()
        self._read.clear()

    def role_in(self, organization_id: uuid.UUID | None) -> str | None:
        """The role there; None for outsiders and for tokens bound elsewhere."""
        return self._memberships().get(organization_id) if organization_id else None

    def organization_ids(self, capability: Capability | None = None) -> list[uuid.UUID]:
        """Where the principal is a member and, if asked, may do `capability`."""
        return [pk for pk in self._memberships() if capability is None or capability in self.capabilities_in(pk)]

    def capabilities_in(self, organization_id: uuid.UUID | None) -> frozenset[Capability]:
        """Role ∩ scopes; empty for outsiders."""
        role = self.role_in(organization_id)
        if role is None:
            return frozenset()
        allowed = ROLE_CAPABILITIES[role]
        return allowed if self.scopes is None else allowed & capabilities_of_scopes(self.scopes)

    def has_scope(self, scope: str) -> bool:
        """For what belongs to the user alone (profile, tokens): people always; tokens by scope, `write` includes `read`."""
        if self.scopes is None:
            return True
        return scope in self.scopes or (scope == Scope.READ and bool(self.scopes & {Scope.WRITE, Scope.ADMIN}))


@dataclass(frozen=True, slots=True)
class OperatorPrincipal(Principal):
    """An operator at work in the Django admin, where people are not members. Services audit what is done."""

    def __post_init__(self) -> None:
        if not self.user.is_operator or self.token is not None:
            raise PermissionDenied("Only operators of this install may do this.")

    @property
    def label(self) -> str:
        return f"{self.user.email} (operator)"

    def role_in(self, organization_id: uuid.UUID | None) -> str | None:
        return Principal.role_in(self, organization_id) or "operator"

    def capabilities_in(self, organization_id: uuid.UUID | None) -> frozenset[Capability]:
        own = ROLE_CAPABILITIES.get(Principal.role_in(self, organization_id) or "", frozenset())
        return own | OPERATOR_CAPABILITIES


def capabilities_of_scopes(scopes: frozenset[str]) -> frozenset[Capability]:
    return frozenset().union(*(SCOPE_CAPABILITIES.get(scope, frozenset()) for scope in scopes))


def _pk(organization: Organization | uuid.UUID) -> uuid.UUID:
    return organization.pk if isinstance(organization, Organization) else organization


def allows(principal: Principal, organization: Organization | uuid.UUID, capability: Capability) -> bool:
    return capability in principal.capabilities_in(_pk(organization))


def require(principal: Principal, organization: Organization | uuid.UUID, capability: Capability) -> None:
    """`NotFound` when not a member (or a token bound elsewhere), `PermissionDenied` when role or scopes lack it."""
    role = principal.role_in(_pk(organization))
    if role is None:
        raise NotFound
    if capability in principal.capabilities_in(_pk(organization)):
        return
    if capability in ROLE_CAPABILITIES.get(role, frozenset()):
        raise PermissionDenied("This token's scopes do not allow this.")
    raise PermissionDenied(f"Your role here ({role}) does not allow this.")


def require_scope(principal: Principal, scope: str) -> None:
    """For what belongs to the user alone."""
    if not principal.has_scope(scope):
        raise PermissionDenied(f"This token's scopes do not allow this; it needs `{scope}`.")


def require_operator(principal: Principal) -> None:
    """`PermissionDenied` unless the principal may see infrastructure."""
    if not principal.is_operator:
        raise PermissionDenied("Only operators of this install may do this.")


def client_ip(request: HttpRequest) -> str | None:
    """The caller's address, behind `NOVASTACK_TRUSTED_PROXIES` proxies; None when it can't be told."""
    from allauth.account.adapter import get_adapter

    try:
        return get_adapter(request).get_client_ip(request) or None
    except Exception:  # allauth raises PermissionDenied for an address it can't parse
        return None


def principal_from(request: HttpRequest | Request) -> Principal:
    """The request's principal, for Django and DRF requests alike; made once. `NotAuthenticated` for anonymous ones."""
    django_request: HttpRequest = getattr(request, "_request", request)
    user = request.user
    if not user.is_authenticated:
        raise NotAuthenticated
    token = getattr(request, "auth", None)
    token = token if isinstance(token, ApiToken) else None
    cached: tuple[Any, Any, Principal] | None = getattr(django_request, "_principal", None)
    if cached and cached[0] == user.pk and cached[1] == (token.pk if token else None):
        return cached[2]
    principal = Principal(
        user=user,
        token=token,
        scopes=frozenset(token.scopes) if token else None,
        ip=client_ip(django_request),
        request_id=getattr(django_request, "request_id", ""),
    )
    django_request._principal = (user.pk, token.pk if token else None, principal)  # type: ignore[attr-defined]
    return principal
