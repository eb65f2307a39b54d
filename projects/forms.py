"""Forms of the pages. They carry what was typed and where a refusal belongs; what is allowed is decided by the services."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.conf import settings

from accounts.page_forms import EXPIRIES
from novastack.common.clock import now
from novastack.common.secrets import Sealed
from projects import domain, registry
from projects.models import Exposure, KeyScope, Plan, Project, Region

MIB = 1024**2


class NewProjectForm(forms.Form):
    """`POST projects/new/`. Long texts reach the service, which names the real limit."""

    name = forms.CharField(max_length=200)
    engine = forms.CharField(max_length=40, initial=registry.DEFAULT_ENGINE)
    version = forms.CharField(max_length=40, required=False)
    region = forms.CharField(max_length=80, required=False)
    plan = forms.CharField(max_length=80, required=False)
    placement = forms.CharField(max_length=40, required=False)
    description = forms.CharField(max_length=500, required=False)
    database_name = forms.CharField(max_length=200, required=False)
    username = forms.CharField(max_length=200, required=False)
    public = forms.BooleanField(required=False)
    tls_required = forms.BooleanField(required=False)
    deletion_protection = forms.BooleanField(required=False)
    bootstrap_schema = forms.BooleanField(required=False)
    backups = forms.BooleanField(required=False)

    def as_request(self) -> dict[str, Any]:
        """The keyword arguments of a `ProjectRequest`; empty means the default."""
        values = dict(self.cleaned_data)
        values["exposure"] = Exposure.PUBLIC if values.pop("public") else Exposure.LOCAL
        values["tls_required"] = values["tls_required"] or None
        for name in ("version", "region", "plan", "placement", "database_name", "username"):
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

    memory_mb = forms.IntegerField(label="Memory, MB", min_value=1, max_value=1 << 30)
    cpus = forms.DecimalField(label="CPU, cores", max_digits=5, decimal_places=2)

    @staticmethod
    def values_of(project: Project) -> dict[str, Any]:
        return {"memory_mb": project.memory_bytes // MIB, "cpus": project.cpus.normalize()}

    def as_limits(self) -> dict[str, Any]:
        return {"memory_bytes": self.cleaned_data["memory_mb"] * MIB, "cpus": self.cleaned_data["cpus"]}


class TlsForm(forms.Form):
    tls_required = forms.BooleanField(required=False)


class ProtectionForm(forms.Form):
    deletion_protection = forms.BooleanField(required=False)


class PlanForm(forms.Form):
    """Another plan, chosen by an operator."""

    plan = forms.ModelChoiceField(Plan.objects.filter(enabled=True), to_field_name="slug")


class MoveForm(forms.Form):
    """Another plan or place. What is left as it is is not part of the target."""

    plan = forms.ChoiceField()
    region = forms.ChoiceField()
    placement = forms.ChoiceField(choices=[("dedicated", "A server of its own"), ("pool", "Shared pool")])

    def __init__(self, data: Any, *, project: Project) -> None:
        super().__init__(
            data,
            initial={"plan": project.plan.slug, "region": project.region.slug, "placement": project.placement},
        )  # fmt: skip
        self.project = project
        plans = Plan.objects.filter(enabled=True) | Plan.objects.filter(pk=project.plan_id)
        regions = Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="")
        self.fields["plan"].choices = [(plan.slug, plan.name) for plan in plans.order_by("position")]  # type: ignore[attr-defined]
        self.fields["region"].choices = [(region.slug, region.name) for region in regions]  # type: ignore[attr-defined]

    def target(self) -> dict[str, str]:
        """What was changed."""
        return {name: value for name, value in self.cleaned_data.items() if value != self.initial[name]}


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
    without_backup = forms.BooleanField(required=False)

    def final_backup(self) -> bool | None:
        """As services take it: False waives it, None takes one where one can be taken."""
        return False if self.cleaned_data["without_backup"] else None


class UndeleteForm(forms.Form):
    """A new name, when the old one was given away since."""

    name = forms.CharField(max_length=200, label="New name")


class PoolForm(forms.Form):
    """A pool by hand. What is left empty is as the settings say."""

    engine = forms.ChoiceField(label="Engine")
    version = forms.CharField(max_length=16, required=False, label="Version", help_text="Empty: the default one.")
    region = forms.ChoiceField(label="Region")
    plan = forms.ChoiceField(label="Plan", required=False, help_text="Whose projects it takes.")
    max_databases = forms.IntegerField(label="Databases", required=False, min_value=0, max_value=100_000)
    memory_mib = forms.IntegerField(label="Memory (MiB)", required=False, min_value=0, max_value=16_777_216)
    cpus = forms.DecimalField(label="CPU cores", required=False, min_value=0, max_value=10_000, decimal_places=2)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared = [e for e in registry.engines().values() if domain.Capability.POOL in e.capabilities]
        regions = Region.objects.filter(enabled=True, gone_at=None).exclude(runtime="")
        choices = {
            "engine": [(engine.name, engine.title) for engine in shared],
            "region": [(region.slug, region.name) for region in regions],
            "plan": [("", "Every plan"), *Plan.objects.filter(enabled=True).values_list("slug", "name")],
        }
        for name, found in choices.items():
            self.fields[name].choices = found  # type: ignore[attr-defined]
        for name, value in (
            ("max_databases", settings.NOVASTACK_POOL_MAX_DATABASES),
            ("memory_mib", settings.NOVASTACK_POOL_MEMORY >> 20),
            ("cpus", f"{settings.NOVASTACK_POOL_CPUS:g}"),
        ):
            self.fields[name].widget.attrs["placeholder"] = value

    def values(self) -> dict[str, Any]:
        """As the service takes them."""
        found = dict(self.cleaned_data)
        memory = found.pop("memory_mib")
        return {
            **found, "version": found["version"] or None, "plan": found["plan"] or None,
            "memory_bytes": None if memory is None else memory << 20,
        }  # fmt: skip


class SecretTextarea(forms.Textarea):
    """What was typed is never sent back, not even with a form that is shown again."""

    def format_value(self, value: Any) -> str:
        return ""


class RegionForm(forms.ModelForm):  # type: ignore[type-arg]
    """A region as operators set it up, on their page and in the admin. The key goes in and never out."""

    runtime = forms.ChoiceField(required=False, help_text="What runs there. None: shown as not available.")
    private_key = forms.CharField(
        label="Private key", required=False, max_length=20_000, strip=False,
        widget=SecretTextarea(attrs={"rows": 4, "spellcheck": "false", "autocomplete": "off"}),
        help_text="PEM, without a passphrase: of the client certificate, or of the SSH user. Kept encrypted, never shown.",
    )  # fmt: skip
    config = forms.JSONField(
        label="Driver options", required=False, initial=dict,
        widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}),
        help_text="JSON: network; Swarm: placement, volume_driver, volume_options, publish, nodes. Never keys.",
    )  # fmt: skip

    class Meta:
        model = Region
        fields = (
            "name", "slug", "runtime", "endpoint_url", "endpoint_ca", "endpoint_certificate",
            "endpoint_host_keys", "bind_address", "public_address", "client_host", "control_host", "port_start", "port_end",
            "config", "enabled", "reconcile",
        )  # fmt: skip
        widgets: ClassVar[dict[str, Any]] = {
            name: forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
            for name in ("endpoint_ca", "endpoint_certificate", "endpoint_host_keys")
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [name for name in registry.RUNTIMES if name != "memory" or self.instance.runtime == "memory"]
        if "runtime" in self.fields:
            self.fields["runtime"].choices = [("", "None"), *((name, name.capitalize()) for name in names)]  # type: ignore[attr-defined]
        if self.instance.pk and not self.instance._state.adding:
            if self.instance.endpoint_key is not None and "private_key" in self.fields:
                self.fields["private_key"].widget.attrs["placeholder"] = "Kept. Paste another one to replace it."
            if self.instance.servers.exists() or self.instance.projects.exists():
                for name in ("slug", "runtime", "config"):
                    if name in self.fields:
                        self.fields[name].disabled = True

    def _update_errors(self, errors: Any) -> None:
        found = getattr(errors, "error_dict", {})
        if "endpoint_key" in found:
            found["private_key"] = found.pop("endpoint_key")
        super()._update_errors(errors)  # type: ignore[misc]

    def clean_config(self) -> dict[str, Any]:
        config = self.cleaned_data["config"] or {}
        if not isinstance(config, dict):
            raise forms.ValidationError("Options are an object: {…}.")
        if "PRIVATE KEY" in str(config):
            raise forms.ValidationError("Keys have a field of their own, which is encrypted.")
        return config

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        url = str(values.get("endpoint_url", ""))
        key = str(values.get("private_key") or "")
        kind = url.partition(":")[0]
        keep = {"tcp": ("endpoint_ca", "endpoint_certificate"), "ssh": ("endpoint_host_keys",)}.get(kind, ())
        for name in ("endpoint_ca", "endpoint_certificate", "endpoint_host_keys"):
            if name not in keep and name in values:
                values[name] = ""  # of another way to reach it
        if kind not in {"tcp", "ssh"}:
            self.instance.endpoint_key = None
        elif key.strip():
            self.instance.endpoint_key = Sealed.of(key.strip() + "\n")
        elif kind != self.instance.endpoint_url.partition(":")[0]:
            self.instance.endpoint_key = None  # that of the other way is not for this one
        return values
