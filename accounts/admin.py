"""Accounts in the Django admin. Secrets are never shown, the audit log is read-only, deletions go through services."""

from __future__ import annotations

from typing import Any

from allauth.mfa.admin import AuthenticatorAdmin
from allauth.usersessions.admin import UserSessionAdmin
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm, UserChangeForm
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from accounts.models import (
    ApiToken,
    AuditEvent,
    Invitation,
    Membership,
    Organization,
    QuotaDefaults,
    RefreshFamily,
    User,
)
from accounts.models.organizations import QUOTAS
from accounts.permissions import Principal, client_ip
from accounts.services import personal_organization_ensure, record, user_sign_out_everywhere
from novastack.common.clock import now

# allauth's own pages, for a user model without `username`, and without what proves a second factor.
UserSessionAdmin.search_fields = ["user__email", "ip"]
UserSessionAdmin.exclude = ["session_key", "data"]  # who reads the key is signed in as that person
UserSessionAdmin.has_add_permission = lambda self, request: False  # type: ignore[method-assign]
UserSessionAdmin.has_change_permission = lambda self, request, obj=None: False  # type: ignore[method-assign]
AuthenticatorAdmin.search_fields = ["user__email"]
AuthenticatorAdmin.exclude = ["data"]


def acting(request: HttpRequest) -> Principal:
    assert isinstance(request.user, User)  # noqa: S101  (the admin lets in nobody else)
    return Principal(user=request.user, ip=client_ip(request), request_id=getattr(request, "request_id", ""))


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To look at: nothing is added, changed or deleted here."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NewUserForm(AdminUserCreationForm):
    class Meta:
        model = User
        fields = ["email", "full_name"]
        field_classes: dict[str, type[forms.Field]] = {}

    def clean_email(self) -> str:
        return User.objects.normalize_email(self.cleaned_data["email"])


class ChangeUserForm(UserChangeForm):
    class Meta:
        model = User
        fields = "__all__"
        field_classes: dict[str, type[forms.Field]] = {}


@admin.register(User)
class UserAdmin(DjangoUserAdmin):
    """People are deactivated, not deleted: their organizations would be left without an owner."""

    form = ChangeUserForm
    add_form = NewUserForm
    list_display = ["email", "full_name", "is_active", "is_staff", "last_login", "created_at"]
    list_filter = ["is_active", "is_staff", "is_superuser"]
    search_fields = ["email", "full_name"]
    ordering = ["email"]
    date_hierarchy = "created_at"
    readonly_fields = ["last_login", "created_at", "updated_at"]
    autocomplete_fields = ["default_organization"]
    fieldsets = [
        (None, {"fields": ["email", "password"]}),
        ("Person", {"fields": ["full_name", "time_zone", "theme", "default_organization"]}),
        ("Rights", {"fields": ["is_active", "is_staff", "is_superuser", "groups", "user_permissions"]}),
        ("Dates", {"fields": ["last_login", "created_at", "updated_at"]}),
    ]
    add_fieldsets = [(None, {"fields": ["email", "full_name", "usable_password", "password1", "password2"]})]
    actions = ["sign_out"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        from allauth.account.models import EmailAddress

        super().save_model(request, obj, form, change)
        if not change:
            EmailAddress.objects.create(user=obj, email=obj.email, primary=True, verified=True)
            personal_organization_ensure(user=obj)
        elif "is_active" in form.changed_data and not obj.is_active:
            user_sign_out_everywhere(user=obj, reason="deactivated")
        action = "user.changed_by_operator" if change else "user.created"
        record(acting(request), action, target=obj.email, data={"fields": sorted(form.changed_data)})

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        response = super().user_change_password(request, id, form_url)
        if request.method == "POST" and response.status_code == 302:
            user = User.objects.get(pk=id)
            if user != request.user:
                user_sign_out_everywhere(user=user, reason="password_changed")
            record(acting(request), "auth.password_changed", target=user.email, data={"by_operator": True})
        return response

    @admin.action(description="Sign out everywhere")
    def sign_out(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            user_sign_out_everywhere(user=user, reason="operator")
            record(acting(request), "auth.signed_out_by_operator", target=user.email)


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Membership
    extra = 0
    can_delete = False
    fields = ["user", "role", "created_at"]
    readonly_fields = ["user", "role", "created_at"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Organization)
class OrganizationAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Quotas are the operator's; members are the organization's own business."""

    list_display = ["name", "slug", "personal", *QUOTAS, "created_at"]
    list_filter = ["personal"]
    search_fields = ["name", "slug", "memberships__user__email"]
    date_hierarchy = "created_at"
    readonly_fields = ["id", "slug", "personal", "created_at", "updated_at"]
    inlines = [MembershipInline]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Organization, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        record(acting(request), "organization.quota_changed", organization=obj, target=obj.slug,
               data={"fields": sorted(form.changed_data)})  # fmt: skip


@admin.register(QuotaDefaults)
class QuotaDefaultsAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """One row: it is changed, never added or removed."""

    list_display = ["__str__", *QUOTAS]
    readonly_fields = ["updated_at"]

    def get_queryset(self, request: HttpRequest) -> Any:
        QuotaDefaults.objects.get_or_create(id=1)
        return super().get_queryset(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: QuotaDefaults, form: Any, change: bool) -> None:
        obj.updated_at = now()
        super().save_model(request, obj, form, change)
        record(acting(request), "quota_defaults.changed", target="install", data={"fields": sorted(form.changed_data)})


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    list_display = ["user", "organization", "role", "created_at"]
    list_filter = ["role"]
    list_select_related = ["user", "organization"]
    search_fields = ["user__email", "organization__name", "organization__slug"]


@admin.register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    list_display = ["email", "organization", "role", "invited_by", "expires_at", "accepted_at", "revoked_at"]
    list_filter = ["role"]
    list_select_related = ["organization", "invited_by"]
    search_fields = ["email", "organization__name"]
    date_hierarchy = "created_at"
    exclude = ["token_hash"]


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    list_display = ["name", "prefix", "user", "organization", "scopes", "expires_at", "last_used_at", "revoked_at"]
    list_filter = [("revoked_at", admin.EmptyFieldListFilter)]
    list_select_related = ["user", "organization"]
    search_fields = ["name", "prefix", "user__email"]
    date_hierarchy = "created_at"
    exclude = ["token_hash"]
    actions = ["revoke"]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Revoking changes no field by hand; operators may."""
        return {"revoke": (ApiTokenAdmin.revoke, "revoke", "Revoke")}

    @admin.action(description="Revoke")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        for token in queryset.filter(revoked_at=None).select_related("organization"):
            token.revoked_at = now()
            token.save(update_fields=["revoked_at", "updated_at"])
            record(acting(request), "token.revoked_by_operator", organization=token.organization, target=token.prefix)


@admin.register(RefreshFamily)
class RefreshFamilyAdmin(ReadOnlyAdmin):
    list_display = ["user", "created_at", "rotated_at", "expires_at", "revoked_at", "revoked_reason", "ip"]
    list_filter = ["revoked_reason"]
    list_select_related = ["user"]
    search_fields = ["user__email", "ip"]
    exclude = ["current_jti", "previous_jti"]


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "action", "actor_label", "organization_name", "project_name", "target", "ip"]
    list_filter = ["action"]
    list_select_related = ["actor"]
    search_fields = ["action", "actor_label", "target", "organization_name", "project_name", "request_id"]
    date_hierarchy = "created_at"
    show_full_result_count = False
