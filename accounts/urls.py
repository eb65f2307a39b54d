"""Pages of accounts. Sign-in, passwords, second factors and sessions are allauth's, below `accounts/`."""

from django.urls import path

from accounts.views import activity, organizations, people, tokens

app_name = "accounts"

urlpatterns = [
    path("activity/", activity.activity, name="activity"),
    path("members/", organizations.members, name="members"),
    path("members/<uuid:user_id>/role/", organizations.member_change, name="member-role"),
    path("members/<uuid:user_id>/remove/", organizations.member_end, name="member-remove"),
    path("members/invitations/<uuid:invitation_id>/withdraw/", organizations.invitation_end, name="invitation-end"),
    path("invitations/<str:token>/", people.invitation, name="invitation"),
    path("organization/", organizations.organization_settings, name="organization"),
    path("organization/delete/", organizations.organization_remove, name="organization-delete"),
    path("organizations/new/", organizations.organization_new, name="organization-new"),
    path("organizations/<slug:slug>/select/", organizations.organization_choose, name="organization-select"),
    path("tokens/", tokens.tokens, name="tokens"),
    path("tokens/<uuid:token_id>/revoke/", tokens.token_end, name="token-revoke"),
    path("profile/", people.profile, name="profile"),
    path("theme/", people.theme, name="theme"),
]
