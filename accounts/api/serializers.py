"""What goes in and what comes out; inputs and outputs apart. The rules themselves are the services'."""

from __future__ import annotations

from typing import Any, cast

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from accounts.models import (
    ApiToken,
    AuditEvent,
    Invitation,
    Membership,
    Organization,
    QuotaDefaults,
    Role,
    Scope,
    Theme,
    User,
)

MAX_SECRET = 256


class OrganizationSerializer(serializers.ModelSerializer[Organization]):
    role = serializers.CharField(read_only=True, help_text="The caller's role here.")
    member_count = serializers.IntegerField(read_only=True)
    max_projects = serializers.IntegerField(read_only=True)
    max_memory_bytes = serializers.IntegerField(read_only=True)
    max_storage_bytes = serializers.IntegerField(read_only=True)
    max_backups = serializers.IntegerField(read_only=True)
    max_backup_bytes = serializers.IntegerField(read_only=True)

    class Meta:
        model = Organization
        fields = [
            "id", "name", "slug", "personal", "role", "member_count", "max_projects", "max_memory_bytes",
            "max_storage_bytes", "max_backups", "max_backup_bytes", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields

    def to_representation(self, instance: Organization) -> dict[str, Any]:
        """With the numbers that count; the install's are read once for all rows."""
        shared = cast("dict[str, Any]", self.context)
        if "quota_defaults" not in shared:
            shared["quota_defaults"] = QuotaDefaults.load()
        return {**super().to_representation(instance), **instance.quotas(shared["quota_defaults"])}


class OrganizationCreateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=80)
    slug = serializers.CharField(max_length=63, required=False, help_text="Made from the name if missing; immutable.")


class OrganizationUpdateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=80)


class OrganizationBriefSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    slug = serializers.CharField()
    personal = serializers.BooleanField()
    role = serializers.CharField()
    default = serializers.BooleanField(help_text="Meant when a call names none.")


class ProfileSerializer(serializers.ModelSerializer[User]):
    organizations = serializers.SerializerMethodField()

    class Meta:
        model = User
        fields = ["id", "email", "full_name", "time_zone", "theme", "is_operator", "mfa_enabled", "organizations"]
        read_only_fields = fields

    is_operator = serializers.BooleanField(read_only=True)
    mfa_enabled = serializers.SerializerMethodField()

    def get_mfa_enabled(self, user: User) -> bool:
        from allauth.mfa.utils import is_mfa_enabled

        return bool(is_mfa_enabled(user))

    @extend_schema_field(OrganizationBriefSerializer(many=True))
    def get_organizations(self, user: User) -> list[dict[str, Any]]:
        principal = self.context["principal"]
        rows = Organization.objects.for_principal(principal).order_by("-personal", "name")
        return [
            {
                "id": str(o.pk), "name": o.name, "slug": o.slug, "personal": o.personal,
                "role": principal.role_in(o.pk), "default": o.pk == user.default_organization_id,
            }
            for o in rows
        ]  # fmt: skip


class ProfileUpdateSerializer(serializers.Serializer[Any]):
    email = serializers.EmailField(
        required=False, help_text="Only the present one: it is changed where it is verified."
    )
    full_name = serializers.CharField(max_length=120, allow_blank=True, required=False)
    time_zone = serializers.CharField(max_length=64, required=False, help_text="IANA, such as Europe/Zurich.")
    theme = serializers.ChoiceField(choices=Theme.choices, required=False)


class UserSerializer(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields = ["id", "email", "full_name", "time_zone", "theme", "is_operator"]
        read_only_fields = fields

    is_operator = serializers.BooleanField(read_only=True)


class RegisterSerializer(serializers.Serializer[Any]):
    email = serializers.EmailField(max_length=254)
    password = serializers.CharField(max_length=MAX_SECRET, trim_whitespace=False, write_only=True)
    full_name = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    organization_name = serializers.CharField(max_length=80, required=False, allow_blank=True, default="")
    invitation = serializers.CharField(
        max_length=100, required=False, allow_blank=True, default="", help_text="The token of an invitation's link."
    )


class TokenPairSerializer(serializers.Serializer[Any]):
    access = serializers.CharField()
    refresh = serializers.CharField()
    expires_in_seconds = serializers.IntegerField(help_text="Of the access token.")


class RegisteredSerializer(serializers.Serializer[Any]):
    """With verification on, only `verification_required` is there."""

    user = UserSerializer(required=False)
    organization = OrganizationBriefSerializer(required=False)
    access = serializers.CharField(required=False)
    refresh = serializers.CharField(required=False)
    expires_in_seconds = serializers.IntegerField(required=False)
    verification_required = serializers.BooleanField(required=False)


class LoginSerializer(serializers.Serializer[Any]):
    email = serializers.CharField(max_length=254)
    password = serializers.CharField(max_length=MAX_SECRET, trim_whitespace=False, write_only=True)
    code = serializers.CharField(
        max_length=32, required=False, allow_blank=True, default="", help_text="Second factor: TOTP or recovery code."
    )


class LoggedInSerializer(TokenPairSerializer):
    user = UserSerializer()


class RefreshSerializer(serializers.Serializer[Any]):
    refresh = serializers.CharField(max_length=4096)


class PasswordSerializer(serializers.Serializer[Any]):
    current_password = serializers.CharField(max_length=MAX_SECRET, trim_whitespace=False, write_only=True)
    new_password = serializers.CharField(max_length=MAX_SECRET, trim_whitespace=False, write_only=True)


class ApiTokenSerializer(serializers.ModelSerializer[ApiToken]):
    organization: Any = serializers.SlugRelatedField(slug_field="slug", read_only=True, allow_null=True)

    class Meta:
        model = ApiToken
        fields = ["id", "name", "prefix", "scopes", "organization", "expires_at", "last_used_at", "created_at"]
        read_only_fields = fields


class ApiTokenCreatedSerializer(ApiTokenSerializer):
    token = serializers.CharField(allow_null=True, help_text="This once; null in a replay.")
    already_shown = serializers.BooleanField(required=False)

    class Meta(ApiTokenSerializer.Meta):
        fields = [*ApiTokenSerializer.Meta.fields, "token", "already_shown"]
        read_only_fields = fields


class ApiTokenCreateSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=80)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices), min_length=1, max_length=len(Scope.values)
    )
    organization = serializers.CharField(
        max_length=63, required=False, allow_null=True, allow_blank=True, default=None,
        help_text="Slug or id: the token sees nothing but this one.",
    )  # fmt: skip
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)


class MemberSerializer(serializers.ModelSerializer[Membership]):
    id = serializers.UUIDField(source="user_id", read_only=True, help_text="The user's id.")
    email = serializers.EmailField(source="user.email", read_only=True)
    full_name = serializers.CharField(source="user.full_name", read_only=True)
    joined_at = serializers.DateTimeField(source="created_at", read_only=True)

    class Meta:
        model = Membership
        fields = ["id", "email", "full_name", "role", "joined_at"]
        read_only_fields = fields


class MemberUpdateSerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=Role.choices)


class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    invited_by = serializers.CharField(source="invited_by.email", read_only=True, default=None, allow_null=True)

    class Meta:
        model = Invitation
        fields = ["id", "email", "role", "invited_by", "expires_at", "accepted_at", "created_at"]
        read_only_fields = fields


class InvitationCreatedSerializer(InvitationSerializer):
    link = serializers.CharField(allow_null=True, help_text="Pass it on; this once, null in a replay.")
    already_shown = serializers.BooleanField(required=False)

    class Meta(InvitationSerializer.Meta):
        fields = [*InvitationSerializer.Meta.fields, "link", "already_shown"]
        read_only_fields = fields


class InvitationCreateSerializer(serializers.Serializer[Any]):
    email = serializers.EmailField(max_length=254)
    role = serializers.ChoiceField(choices=Role.choices, default=Role.MEMBER)


class InvitationAcceptSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=100, help_text="The last part of the invitation's link.")


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    id = serializers.UUIDField(source="event_id", read_only=True)
    sequence = serializers.IntegerField(source="pk", read_only=True, help_text="Ascends; for polling forward.")
    organization = serializers.UUIDField(source="organization_id", read_only=True, allow_null=True)
    project = serializers.UUIDField(source="project_id", read_only=True, allow_null=True)
    actor = serializers.CharField(source="actor_label", read_only=True)
    data = serializers.DictField(read_only=True)  # type: ignore[assignment]  # a field that is called data

    class Meta:
        model = AuditEvent
        fields = [
            "id", "sequence", "action", "actor", "token_prefix", "organization", "organization_name", "project",
            "project_name", "target", "ip", "request_id", "data", "created_at",
        ]  # fmt: skip
        read_only_fields = fields
