"""Who acts in the admin, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.models import User
from accounts.permissions import OperatorPrincipal, client_ip
from novastack.common.errors import Problem


def operator_of(request: HttpRequest) -> OperatorPrincipal:
    """Who acts here. `PermissionDenied` for anybody but an operator."""
    assert isinstance(request.user, User)  # noqa: S101  (the admin lets in nobody else)
    return OperatorPrincipal(user=request.user, ip=client_ip(request), request_id=getattr(request, "request_id", ""))


def act_on(request: HttpRequest, rows: QuerySet[Any], act: Callable[[OperatorPrincipal, Any], Any], done: str,
           see: str = " See Operations.") -> None:  # fmt: skip
    """One after the other; a refusal of one is said and does not stop the others."""
    operator, made = operator_of(request), 0
    for row in rows:
        try:
            act(operator, row)
        except Problem as problem:
            messages.warning(request, f"{row}: {problem.detail}")
        else:
            made += 1
    if made:
        messages.success(request, f"{done}: {made}.{see}")
