"""Forms of the accounts' pages."""

from __future__ import annotations

from typing import Any

from allauth.account.forms import SignupForm as AllauthSignupForm
from django import forms
from django.conf import settings
from django.db import IntegrityError, transaction
from django.http import HttpRequest

from accounts.models import User
from accounts.services.invitations import invitation_remembered
from accounts.services.users import welcome
from accounts.validation import clean_line
from novastack.common.errors import Conflict, Invalid


class SignupForm(AllauthSignupForm):
    """Sign-up: address and password, and if wanted a name and the organization's. One transaction makes it all."""

    full_name = forms.CharField(
        label="Your name", max_length=120, required=False, widget=forms.TextInput(attrs={"autocomplete": "name"})
    )
    organization_name = forms.CharField(
        label="Organization", max_length=80, required=False,
        widget=forms.TextInput(attrs={"autocomplete": "organization"}),
    )  # fmt: skip
    field_order = ["full_name", "email", "password1", "organization_name"]

    def clean_full_name(self) -> str:
        return self._line("full_name", 120)

    def clean_organization_name(self) -> str:
        return self._line("organization_name", 80)

    def _line(self, field: str, max_length: int) -> str:
        """What the API's registration refuses is refused here: control characters would break mails, for one."""
        try:
            return clean_line(field, self.cleaned_data[field], max_length=max_length, required=False)
        except Invalid as problem:
            raise forms.ValidationError(problem.detail) from None

    def clean(self) -> dict[str, Any]:
        from allauth.core import context

        cleaned: dict[str, Any] = super().clean()
        if settings.NOVASTACK_REGISTRATION == "invite" and cleaned.get("email"):
            invitation = invitation_remembered(context.request)
            if invitation is None or invitation.email != cleaned["email"]:
                self.add_error("email", "The invitation is for another address.")
        return cleaned

    def save(self, request: HttpRequest) -> User:
        try:
            with transaction.atomic():
                user: User = super().save(request)
                user.full_name = self.cleaned_data.get("full_name", "").strip()
                user.save(update_fields=["full_name", "updated_at"])
                welcome(
                    user=user, organization_name=self.cleaned_data.get("organization_name", "").strip(),
                    invitation=invitation_remembered(request), request=request,
                )  # fmt: skip
                return user
        except IntegrityError as error:  # the same address, twice at once
            raise Conflict("This address was registered a moment ago; sign in.") from error
