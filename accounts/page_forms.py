"""Forms of the account pages. What is allowed is decided by the services."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms

from accounts.models import Role, Scope, Theme
from accounts.models.users import time_zone_names
from novastack.common.clock import now
from novastack.common.errors import Problem

EXPIRIES = {"90": "In 90 days", "30": "In 30 days", "365": "In 1 year", "": "Never"}
SCOPE_HINTS = {
    Scope.READ: "Projects, status, logs",
    Scope.WRITE: "Create, change, start, stop",
    Scope.CONNECT: "See passwords",
    Scope.ADMIN: "Members, tokens",
}


class TokenForm(forms.Form):
    name = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    expires = forms.ChoiceField(choices=list(EXPIRIES.items()), required=False, initial="90")
    scopes = forms.MultipleChoiceField(choices=Scope.choices, required=False)

    def expires_at(self) -> Any:
        days = self.cleaned_data["expires"]
        return now() + timedelta(days=int(days)) if days else None


class InviteForm(forms.Form):
    email = forms.CharField(max_length=254)
    role = forms.ChoiceField(choices=Role.choices, initial=Role.MEMBER)


class OrganizationForm(forms.Form):
    name = forms.CharField(max_length=200, help_text="Such as the name of your team or company.")


class ProfileForm(forms.Form):
    full_name = forms.CharField(
        label="Name", max_length=200, required=False, widget=forms.TextInput(attrs={"autocomplete": "name"})
    )
    time_zone = forms.CharField(
        label="Time zone", max_length=64, help_text="Times on these pages are shown in it.",
        widget=forms.TextInput(attrs={"list": "time-zones", "autocomplete": "off", "spellcheck": "false"}),
    )  # fmt: skip
    theme = forms.ChoiceField(label="Theme", choices=Theme.choices)

    @staticmethod
    def zones() -> list[str]:
        return sorted(
            zone for zone in time_zone_names() if "/" in zone and not zone.startswith(("Etc/", "posix/", "right/"))
        )


def add_problem(form: forms.Form, problem: Problem, *, field: str | None = None) -> None:
    """Put a service's refusal where its field is; what has none goes to `field`, or on top of the form."""
    for error in problem.errors:
        form.add_error(error.field if error.field in form.fields else None, error.detail)
    if not problem.errors:
        form.add_error(field if field in form.fields else None, problem.detail)
