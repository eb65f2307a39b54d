"""Forms of the pages of backups. They carry what was typed and where a refusal belongs; what is allowed, services decide."""

from __future__ import annotations

from typing import Any

from django import forms

from accounts.models import Organization
from accounts.models.users import time_zone_names
from backups.models import BackupPolicy, Drill, Schedule, StorageKind, StorageTarget
from novastack.common.sizes import parse_size

GIB = 1024**3
PRESETS = {  # segmented buttons → what they write into the field
    "hourly": ("Hourly", "0 * * * *"), "4h": ("Every 4 h", "0 */4 * * *"), "daily": ("Daily", "0 2 * * *"),
    "weekly": ("Weekly", "0 2 * * 0"), "cron": ("Cron", ""),
}  # fmt: skip
KEEPS: dict[str, tuple[str, dict[str, int]]] = {
    "gfs": (
        "12 latest, 14 daily, 8 weekly, 12 monthly",
        {"keep_last": 12, "keep_daily": 14, "keep_weekly": 8, "keep_monthly": 12},
    ),
    "week": ("3 latest, 7 daily", {"keep_last": 3, "keep_daily": 7}),
    "days": ("All of the last 30 days", {"keep_days": 30}),
    "last": ("7 latest", {"keep_last": 7}),
    "own": ("As written below", {}),
}
RETENTION = ("keep_last", "keep_days", "keep_daily", "keep_weekly", "keep_monthly")


def preset_of(cron: str) -> str:
    """Which button is pressed."""
    words = " ".join(cron.split())
    return next((name for name, (_, text) in PRESETS.items() if text and text == words), "cron")


def zones() -> list[str]:
    return ["UTC", *sorted(zone for zone in time_zone_names() if "/" in zone and not zone.startswith(("Etc/", "posix/",
            "right/", "SystemV/")))]  # fmt: skip


def targets_of(organization: Organization) -> list[StorageTarget]:
    """The organization's own targets and those for everybody."""
    rows = StorageTarget.objects.filter(organization=None) | StorageTarget.objects.filter(organization=organization)
    return list(rows.order_by("name", "id"))


class StorageChoice(forms.TypedChoiceField):
    """One of `targets`; empty: the default one. They are handed in, so that many forms of a page ask once."""

    def __init__(self, targets: list[StorageTarget]) -> None:
        self.known = {str(target.pk): target for target in targets}
        named = [(pk, f"{t.name}, read-only" if t.read_only_reason else t.name) for pk, t in self.known.items()]
        super().__init__(
            label="Storage", choices=[("", "The default storage"), *named], required=False, empty_value=None,
            coerce=self.known.__getitem__,
        )  # fmt: skip


class BackupForm(forms.Form):
    """One by hand."""

    label = forms.CharField(
        max_length=200, required=False, help_text="What it is for, such as before-price-import.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autofocus": True}),
    )  # fmt: skip
    storage = forms.Field()

    def __init__(self, data: Any, *, organization: Organization) -> None:
        super().__init__(data)
        self.storages = targets_of(organization)
        self.fields["storage"] = StorageChoice(self.storages)


class UploadForm(forms.Form):
    """Beside the file, which is no field: it has gone to the storage before the form is looked at."""

    label = forms.CharField(
        max_length=80, required=False, help_text="Else the file’s name.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )  # fmt: skip


class ScheduleForm(forms.Form):
    """When, and what is kept of it."""

    cron = forms.CharField(
        label="Cron expression", max_length=200, initial="0 2 * * *",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )  # fmt: skip
    time_zone = forms.ChoiceField(label="Time zone")
    storage = forms.Field()
    keep = forms.ChoiceField(
        choices=[(name, words) for name, (words, _) in KEEPS.items()], initial="gfs",
        help_text="Never removes the last verified or a pinned one.",
    )  # fmt: skip
    keep_last = forms.IntegerField(label="Latest", min_value=0, max_value=100_000, required=False)
    keep_days = forms.IntegerField(label="All of the last days", min_value=0, max_value=36_500, required=False)
    keep_daily = forms.IntegerField(label="Daily", min_value=0, max_value=100_000, required=False)
    keep_weekly = forms.IntegerField(label="Weekly", min_value=0, max_value=100_000, required=False)
    keep_monthly = forms.IntegerField(label="Monthly", min_value=0, max_value=100_000, required=False)
    max_bytes = forms.CharField(
        label="At most in all", max_length=40, required=False, help_text="Such as 50 GB; empty: no limit."
    )

    def __init__(
        self, data: Any = None, *, targets: list[StorageTarget], schedule: Schedule | None = None, zone: str = "UTC"
    ) -> None:
        super().__init__(data, initial=self.values_of(schedule) if schedule is not None else {"time_zone": zone})
        self.fields["storage"] = StorageChoice(targets)
        self.fields["time_zone"].choices = [(name, name) for name in zones()]  # type: ignore[attr-defined]

    @staticmethod
    def values_of(schedule: Schedule) -> dict[str, Any]:
        rules = {name: getattr(schedule, name) for name in RETENTION}
        given = {name: value for name, value in rules.items() if value is not None}
        keep = next((name for name, (_, known) in KEEPS.items() if known and known == given), "own")
        if schedule.max_bytes is not None:
            keep = "own"
        return rules | {
            "cron": schedule.cron, "time_zone": schedule.time_zone, "storage": schedule.storage_id,
            "keep": keep, "max_bytes": size_words(schedule.max_bytes),
        }  # fmt: skip

    def clean_max_bytes(self) -> int | None:
        return clean_size(self.cleaned_data["max_bytes"])

    def as_fields(self) -> dict[str, Any]:
        """`cron, time_zone, storage, retention {…}` as the service takes them; rules that were left empty are None."""
        values = self.cleaned_data
        if values["keep"] == "own":
            rules = {name: values[name] for name in (*RETENTION, "max_bytes")}
        else:
            rules = dict.fromkeys((*RETENTION, "max_bytes")) | KEEPS[values["keep"]][1]
        return {
            "cron": values["cron"],
            "time_zone": values["time_zone"],
            "storage": values["storage"],
            "retention": rules,
        }


def kept_words(schedule: Schedule) -> str:
    """What the schedule keeps: `12 latest, 14 daily`; all of it without a rule."""
    names = {"keep_last": "{} latest", "keep_days": "all of {} days", "keep_daily": "{} daily",
             "keep_weekly": "{} weekly", "keep_monthly": "{} monthly"}  # fmt: skip
    told = [
        words.format(getattr(schedule, name)) for name, words in names.items() if getattr(schedule, name) is not None
    ]
    if schedule.max_bytes is not None:
        told.append(f"at most {size_words(schedule.max_bytes)}")
    return ", ".join(told) or "all"


def size_words(value: int | None) -> str:
    """Bytes as `parse_size` reads them back; empty for none."""
    if value is None:
        return ""
    for unit, factor in (("TB", GIB * 1024), ("GB", GIB), ("MB", 1024**2), ("kB", 1024)):
        if value >= factor and value % factor == 0:
            return f"{value // factor} {unit}"
    return str(value)


def clean_size(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise forms.ValidationError(f"{error}.") from error


class PolicyForm(forms.Form):
    """What a project promises about its backups. Hours and minutes here, seconds in the row."""

    rpo_hours = forms.DecimalField(
        label="At most this much may be lost, hours", min_value=0, max_digits=8, decimal_places=2, required=False,
        help_text="How old the last verified backup may be (RPO). Empty: no target.",
    )  # fmt: skip
    rto_minutes = forms.DecimalField(
        label="Back within, minutes", min_value=0, max_digits=8, decimal_places=1, required=False,
        help_text="How long a restore may take (RTO), as verifications measure it. Empty: no target.",
    )  # fmt: skip
    verify_after_backup = forms.BooleanField(required=False)
    reverify_days = forms.IntegerField(
        label="Verify old ones again after, days", min_value=0, max_value=3650,
        help_text="Storage can rot. 0: never by itself.",
    )  # fmt: skip
    heartbeat_url = forms.CharField(
        label="Heartbeat URL", max_length=500, required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "inputmode": "url"}),
        help_text="Called while the objective holds. A dead man's switch elsewhere rings when the calls stop.",
    )  # fmt: skip

    @staticmethod
    def values_of(policy: BackupPolicy | None) -> dict[str, Any]:
        policy = policy or BackupPolicy()
        return {
            "rpo_hours": _trimmed(policy.rpo_seconds, 3600), "rto_minutes": _trimmed(policy.rto_seconds, 60),
            "verify_after_backup": policy.verify_after_backup, "reverify_days": policy.reverify_days,
            "heartbeat_url": policy.heartbeat_url,
        }  # fmt: skip

    def as_changes(self) -> dict[str, Any]:
        """Columns of the policy."""
        values = self.cleaned_data
        hours, minutes = values["rpo_hours"], values["rto_minutes"]
        return {
            "rpo_seconds": round(hours * 3600) if hours else None,
            "rto_seconds": round(minutes * 60) if minutes else None,
            "verify_after_backup": values["verify_after_backup"], "reverify_days": values["reverify_days"],
            "heartbeat_url": values["heartbeat_url"].strip(),
        }  # fmt: skip


def _trimmed(seconds: int | None, unit: int) -> str:
    return "" if seconds is None else f"{seconds / unit:.2f}".rstrip("0").rstrip(".")


class DrillForm(forms.Form):
    """A fire drill: when, and up to `ROWS` questions in SQL."""

    ROWS = 6
    name = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    cron = forms.CharField(
        label="Cron expression", max_length=200, required=False, help_text="Empty: only by hand.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "0 4 1 * *"}),
    )  # fmt: skip
    time_zone = forms.ChoiceField(label="Time zone")

    def __init__(self, data: Any = None, *, drill: Drill | None = None, zone: str = "UTC") -> None:
        initial: dict[str, Any] = {"time_zone": zone}
        if drill is not None:
            initial = {"name": drill.name, "cron": drill.cron, "time_zone": drill.time_zone}
        super().__init__(data, initial=initial)
        self.fields["time_zone"].choices = [(name, name) for name in zones()]  # type: ignore[attr-defined]
        self.asked: list[dict[str, str | None]] = list(drill.assertions) if drill is not None else []
        self.sent: list[int] = []  # the rows that were filled in, as the service counts them
        self.shown = max(3, min(self.ROWS, len(self.asked) + 1))
        for n in range(max(self.ROWS, len(self.asked))):
            known = self.asked[n] if n < len(self.asked) else {}
            for part, label in (("name", "What must hold"), ("sql", "SQL"), ("expect", "Expected")):
                self.fields[f"{part}_{n}"] = forms.CharField(
                    label=label, max_length=4000, required=False, strip=True,
                    initial=known.get(part) if n < len(self.asked) else ("true" if part == "expect" else ""),
                    widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
                )  # fmt: skip

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The questions as bound fields, with some empty ones."""
        count = max(self.ROWS, len(self.asked)) if self.is_bound else max(self.shown, len(self.asked))
        return [{part: self[f"{part}_{n}"] for part in ("name", "sql", "expect")} for n in range(count)]

    def as_fields(self) -> dict[str, Any]:
        """`name, cron, time_zone, assertions`; rows without SQL are left out."""
        values = self.cleaned_data
        asked = []
        self.sent = []
        for n in range(max(self.ROWS, len(self.asked))):
            sql = values.get(f"sql_{n}", "")
            if sql:
                self.sent.append(n)
                asked.append(
                    {
                        "name": values[f"name_{n}"] or f"Check {n + 1}",
                        "sql": sql,
                        "expect": values[f"expect_{n}"] or None,
                    }
                )
        return {"name": values["name"], "cron": values["cron"], "time_zone": values["time_zone"], "assertions": asked}


class StorageForm(forms.Form):
    """A storage target. The secret key is written, never shown: empty keeps the one that is stored."""

    name = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    kind = forms.ChoiceField(choices=StorageKind.choices, initial=StorageKind.S3)
    path = forms.CharField(
        label="Folder", max_length=500, required=False,
        help_text="Below the folder that this installation allows for backups.",
    )  # fmt: skip
    endpoint = forms.CharField(max_length=500, required=False, help_text="Such as https://s3.eu-central-1.example.")
    bucket = forms.CharField(max_length=200, required=False)
    region = forms.CharField(max_length=80, required=False)
    folder = forms.CharField(max_length=200, required=False, help_text="Inside the bucket; may be empty.")
    access_key = forms.CharField(
        label="Access key", max_length=300, required=False, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    secret_key = forms.CharField(
        label="Secret key", max_length=300, required=False, strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Encrypted at rest, never shown again.",
    )  # fmt: skip
    path_style = forms.BooleanField(required=False, initial=True)
    encrypt = forms.BooleanField(required=False, initial=True)
    take_over = forms.BooleanField(required=False)
    owned = False  # somebody else writes there: it may be taken over
    capacity = forms.CharField(
        label="Room", max_length=40, required=False, help_text="As you know it, such as 2 TB; shown only."
    )

    @staticmethod
    def values_of(target: StorageTarget) -> dict[str, Any]:
        config = target.config
        return {
            "name": target.name, "kind": target.kind, "path": config.get("path", ""),
            "endpoint": config.get("endpoint", ""), "bucket": config.get("bucket", ""),
            "region": config.get("region", ""), "folder": config.get("prefix", ""),
            "path_style": config.get("path_style", True), "encrypt": target.encrypt,
            "capacity": size_words(target.capacity_bytes),
        }  # fmt: skip

    def clean_capacity(self) -> int | None:
        return clean_size(self.cleaned_data["capacity"])

    def clean_path(self) -> str:
        return str(self.cleaned_data["path"]).strip().strip("/")

    def config(self) -> dict[str, Any]:
        """The target's `config`, of its kind."""
        values = self.cleaned_data
        if values["kind"] == StorageKind.FILESYSTEM:
            return {"path": values["path"]}
        return {
            "endpoint": values["endpoint"].strip(), "bucket": values["bucket"].strip(),
            "region": values["region"].strip(), "prefix": values["folder"].strip(), "path_style": values["path_style"],
        }  # fmt: skip

    def secret(self) -> dict[str, str] | None:
        """What opens it, or None when nothing was typed."""
        values = self.cleaned_data
        if values["kind"] != StorageKind.S3 or not (values["access_key"] or values["secret_key"]):
            return None
        return {"access_key": values["access_key"].strip(), "secret_key": values["secret_key"]}


class FingerprintForm(forms.Form):
    fingerprint = forms.CharField(
        max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"})
    )


class RecipientForm(forms.Form):
    recipient = forms.CharField(
        label="age recipient", max_length=200,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "age1…"}),
    )  # fmt: skip


class RestoreForm(forms.Form):
    """Where a backup goes."""

    target = forms.CharField(max_length=40, initial="new_project")
    name = forms.CharField(max_length=200, required=False)
    region = forms.CharField(max_length=80, required=False)
    plan = forms.CharField(max_length=80, required=False)
    project = forms.UUIDField(required=False)
    confirm = forms.CharField(max_length=200, required=False)
    no_safety = forms.BooleanField(required=False)


class DeleteForm(forms.Form):
    """A question without a field: that it was sent is the answer."""
