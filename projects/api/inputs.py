"""Bodies of requests. They check shapes and types; what is allowed is decided by the services."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from projects import registry
from projects.api.fields import Cores, Flag, Input, Text, Whole
from projects.models import Exposure, Placement
from projects.services import ProjectRequest
from projects.services.actions import ACTIONS

LONG = 200  # far above what any name may have: the services name the real limit


class LimitsInput(Input):
    memory_bytes = Whole(required=False, help_text="At most the plan's.")
    cpus = Cores(required=False, help_text="Cores, such as 0.5; at most the plan's.")


class ServicesInput(Input):
    auth = Flag(required=False)
    realtime = Flag(required=False)
    storage = Flag(required=False)


class ApiKeysInput(Input):
    count = Whole(required=False, min_value=0, max_value=100, help_text="Made with the project; at most the plan's.")
    prefix = Text(required=False, max_length=20, help_text="What they begin with; `pk` if missing.")


class ProjectCreate(Input):
    name = Text(max_length=LONG, help_text="1 to 63 printable characters; unique in the organization.")
    engine = Text(required=False, default=registry.DEFAULT_ENGINE, max_length=LONG, help_text="See `engines/`.")
    version = Text(required=False, allow_null=True, max_length=LONG, help_text="The engine's default one if missing.")
    description = Text(required=False, default="", allow_blank=True, max_length=500)
    region = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; see `regions/`.")
    plan = Text(required=False, allow_null=True, max_length=LONG, help_text="Slug; see `plans/`.")
    organization = Text(
        required=False, allow_null=True, max_length=LONG,
        help_text="Slug or id. Missing: the token's, else your default one.",
    )  # fmt: skip
    placement = serializers.ChoiceField(
        choices=Placement.choices, required=False, allow_null=True,
        help_text="`dedicated`: a server of its own; `pool`: a database on a server that others share. The plan's if missing.",
    )  # fmt: skip
    database_name = Text(required=False, allow_null=True, allow_blank=True, max_length=LONG)
    username = Text(required=False, allow_null=True, allow_blank=True, max_length=LONG)
    limits = LimitsInput(required=False)
    labels = serializers.DictField(required=False, child=Text(max_length=LONG, allow_blank=True))
    exposure = serializers.ChoiceField(choices=Exposure.choices, required=False, default=Exposure.LOCAL)
    tls_required = Flag(
        required=False, help_text="Refuse connections without TLS. Left out: false, or true for engines with TLS only."
    )
    deletion_protection = Flag(required=False, default=False)
    services = ServicesInput(required=False, help_text="To be registered with. Missing: none.")
    api_keys = ApiKeysInput(required=False, help_text="To be made, and shown in the answer, this once.")
    bootstrap_schema = Flag(
        required=False, default=True,
        help_text="Begin with the tables (collections) `schema_migrations`, `settings` and `audit_logs`.",
    )  # fmt: skip

    backups = Flag(required=False, default=False, help_text="Daily backups, as of the preset `daily` of its schedules.")

    def request(self) -> ProjectRequest:
        """What the service takes. What this release can't give is refused, not forgotten."""
        values: dict[str, Any] = dict(self.validated_data)
        values.pop("organization", None)
        services, keys = values.pop("services", {}), values.pop("api_keys", {})
        values["services"] = frozenset(name for name, on in services.items() if on)
        values |= {"api_keys": keys.get("count", 0), "api_key_prefix": keys.get("prefix")}
        return ProjectRequest(**values)


class ProjectChange(Input):
    """What PATCH takes."""

    name = Text(required=False, max_length=LONG)
    description = Text(required=False, allow_blank=True, max_length=500)
    labels = serializers.DictField(required=False, child=Text(max_length=LONG, allow_blank=True))
    limits = LimitsInput(required=False, help_text="New limits start an operation `resize`.")
    tls_required = Flag(required=False, help_text="Refuse connections without TLS. Starts an operation `change_tls`.")
    deletion_protection = Flag(required=False)
    plan = Text(
        required=False, max_length=LONG,
        help_text="Slug. Starts an operation `change_plan`, or the `move` that the plan implies; alone in a request.",
    )  # fmt: skip


class MoveTarget(Input):
    placement = serializers.ChoiceField(
        choices=[(Placement.DEDICATED.value, Placement.DEDICATED.label), (Placement.POOL.value, Placement.POOL.label)],
        required=False, help_text="Missing: the new plan's, or as it is.",
    )  # fmt: skip
    region = Text(required=False, max_length=LONG, help_text="Slug. Missing: as it is.")
    plan = Text(required=False, max_length=LONG, help_text="Slug. Missing: as it is.")


class MoveInput(Input):
    target = MoveTarget(required=False, help_text="Empty: another server of the same kind at the same place.")
    dry_run = Flag(required=False, default=False, help_text="Only say what would happen.")


class ProjectReplace(ProjectChange):
    """What PUT takes: `name` at least. What is left out stays."""

    name = Text(max_length=LONG)


class ActionInput(Input):
    action = serializers.ChoiceField(choices=[(action, action) for action in ACTIONS])
    name = Text(required=False, max_length=LONG, help_text="`undelete`: a new name, when the old one was taken since.")
    end_sessions = Flag(
        required=False, default=False, help_text="`rotate_password`: also end sessions opened with the old one."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for field, action in (("name", "undelete"), ("end_sessions", "rotate_password")):
            if field in self.initial_data and attrs["action"] != action:
                raise serializers.ValidationError(
                    {field: serializers.ErrorDetail(f"Only for the action `{action}`.", code="invalid")}
                )
        return attrs


class Nothing(Input):
    """An empty body, or none."""
