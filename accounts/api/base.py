"""What API views share."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from accounts.permissions import Principal, principal_from

if TYPE_CHECKING:
    from rest_framework.views import APIView as _View
else:
    _View = object


class PrincipalMixin(_View):
    """`self.principal` of an authenticated view."""

    @cached_property
    def principal(self) -> Principal:
        return principal_from(self.request)
