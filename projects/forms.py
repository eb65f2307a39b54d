"""Forms of the pages. They carry what was typed and where a refusal belongs; what is allowed is decided by the services."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django import forms

from accounts.page_forms import EXPIRIES
from novastack.common.clock import now
from projects import registry
from projects.models import Exposure, KeyScope, Project

MIB = 1024**2


class NewProjectForm(forms.Form):
    """`POST projects/new/`. Long texts reach the service, which names the real limit."""

    name = forms.CharField(max_length=200)
    engine = forms.CharField(max_length=40, initial=registry.DEFAULT_ENGINE)
    version = forms.CharField(max_length=40, required=False)
    region = forms.CharField(max_length=80, required=False)
    plan = forms.CharField(max_length=80, required=False)
    description = forms.CharField(max_length=500, required=False)
    database_name = forms.CharField(max_length=200, required=False)
    username = forms.CharField(max_length=200, required=False)
    public = forms.BooleanField(required=False)
    tls_required = forms.BooleanField(required=False)
    deletion_protection = forms.BooleanField(required=False)

    def as_request(self) -> dict[str, Any]:
        """The keyword arguments of a `ProjectRequest`; empty means the default."""
        values = dict(self.cleaned_data)
        values["exposure"] = Exposure.PUBLIC if values.pop("public") else Exposure.LOCAL
        for name in ("version", "region", "plan", "database_name", "username"):
            values[name] = values[name] or None
        return values


class ProjectSettingsForm(forms.Form):
    """Name, description and labels; labels as lines of `key=value`."""

    name = forms.CharField(max_length=200)
    description = forms.CharField(
        max_length=500, required=False, widget=forms.Textarea(attrs={"rows": 2}), help_text="What it is for."
    )
    labels = forms.CharField(
        required=False, max_length=8000, widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
        help_text="One per line, such as team=payments.",
    )  # fmt: skip

    @staticmethod
    def values_of(project: Project) -> dict[str, Any]:
        lines = "\n".join(f"{key}={value}" for key, value in sorted(project.labels.items()))
        return {"name": project.name, "description": project.description, "labels": lines}

    def clean_labels(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in self.cleaned_data["labels"].splitlines():
            if not line.strip():
                continue
            key, mark, value = line.partition("=")
            if not mark:
                raise forms.ValidationError("Write each label as key=value, one per line.")
            found[key.strip()] = value.strip()
        return found


class LimitsForm(forms.Form):
    """Memory in MB and CPU in cores, up to the plan's."""

    memory_mb = forms.IntegerField(label="Memory, MB", min_value=128)
    cpus = forms.DecimalField(label="CPU, cores", min_value=Decimal("0.1"), max_digits=5, decimal_places=2)

    @staticmethod
    def values_of(project: Project) -> dict[str, Any]:
        return {"memory_mb": project.memory_bytes // MIB, "cpus": project.cpus.normalize()}

    def as_limits(self) -> dict[str, Any]:
        return {"memory_bytes": self.cleaned_data["memory_mb"] * MIB, "cpus": self.cleaned_data["cpus"]}


class TlsForm(forms.Form):
    tls_required = forms.BooleanField(required=False)


class ProtectionForm(forms.Form):
    deletion_protection = forms.BooleanField(required=False)


class KeyForm(forms.Form):
    """A new API key."""

    name = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    expires = forms.ChoiceField(choices=list(EXPIRIES.items()), required=False, initial="90")
    begins_with = forms.CharField(
        max_length=200, required=False, widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text="Your own mark, such as shop; pk if empty.",
    )  # fmt: skip
    scopes = forms.MultipleChoiceField(choices=KeyScope.choices, required=False)

    def as_fields(self) -> dict[str, Any]:
        """The keyword arguments of `key_create`."""
        days = self.cleaned_data["expires"]
        return {
            "name": self.cleaned_data["name"], "scopes": self.cleaned_data["scopes"],
            "prefix": self.cleaned_data["begins_with"],
            "expires_at": now() + timedelta(days=int(days)) if days else None,
        }  # fmt: skip


class ConfirmForm(forms.Form):
    """The typed slug. The service compares it again."""

    confirm = forms.CharField(max_length=80, required=False, label="Type to confirm")


class UndeleteForm(forms.Form):
    """A new name, when the old one was given away since."""

    name = forms.CharField(max_length=200, label="New name")
