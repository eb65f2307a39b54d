"""What people change on allauth's own pages, second factors and addresses, is in the audit log like everything else.

Those pages are a library's: its signals are the only place where all of them come by.
"""

from __future__ import annotations

from typing import Any

from allauth.account import signals as account
from allauth.mfa import signals as mfa
from django.http import HttpRequest

from accounts.models import User
from accounts.permissions import Principal, client_ip
from accounts.services import record


def _acting(request: HttpRequest | None, user: User) -> Principal:
    ip = client_ip(request) if request is not None else None
    return Principal(user=user, ip=ip, request_id=getattr(request, "request_id", ""))


def _factor(action: str) -> Any:
    def write(request: HttpRequest | None = None, user: Any = None, authenticator: Any = None, **_: Any) -> None:
        record(_acting(request, user), action, target=user.email, data={"factor": str(authenticator.type)})

    return write


def _address(action: str) -> Any:
    def write(request: HttpRequest | None = None, user: Any = None, email_address: Any = None, **more: Any) -> None:
        address = email_address or more["to_email_address"]
        record(_acting(request, user if isinstance(user, User) else address.user), action, target=address.email)

    return write


RECEIVERS = (
    (mfa.authenticator_added, _factor("auth.factor_added")),
    (mfa.authenticator_removed, _factor("auth.factor_removed")),
    (mfa.authenticator_reset, _factor("auth.factor_reset")),
    (account.email_added, _address("auth.address_added")),
    (account.email_removed, _address("auth.address_removed")),
    (account.email_changed, _address("auth.address_changed")),
    (account.email_confirmed, _address("auth.address_confirmed")),
)


def listen() -> None:
    for number, (signal, receiver) in enumerate(RECEIVERS):
        signal.connect(receiver, weak=False, dispatch_uid=f"novastack-audit-{number}")
