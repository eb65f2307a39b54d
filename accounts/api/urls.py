"""`/api/v1/`: auth, organizations, invitations. `organizations/{ref}/usage` needs projects and is theirs."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from accounts.api import auth, organizations, tokens

router = SimpleRouter(use_regex_path=False)
router.register("auth/tokens", tokens.ApiTokenViewSet, basename="token")
router.register("organizations", organizations.OrganizationViewSet, basename="organization")

urlpatterns = [
    path("auth/register/", auth.RegisterView.as_view(), name="auth-register"),
    path("auth/login/", auth.LoginView.as_view(), name="auth-login"),
    path("auth/refresh/", auth.RefreshView.as_view(), name="auth-refresh"),
    path("auth/logout/", auth.LogoutView.as_view(), name="auth-logout"),
    path("auth/profile/", auth.ProfileView.as_view(), name="auth-profile"),
    path("auth/password/", auth.PasswordView.as_view(), name="auth-password"),
    path("invitations/accept/", organizations.InvitationAcceptView.as_view(), name="invitation-accept"),
    path("", include(router.urls)),
    path(
        "organizations/<slug:ref>/",
        include(
            [
                path("members/", organizations.MemberListView.as_view(), name="organization-members"),
                path("members/<uuid:user_id>/", organizations.MemberView.as_view(), name="organization-member"),
                path("invitations/", organizations.InvitationListView.as_view(), name="organization-invitations"),
                path("invitations/<uuid:pk>/", organizations.InvitationView.as_view(), name="organization-invitation"),
                path("audit-events/", organizations.AuditEventListView.as_view(), name="organization-audit-events"),
            ]
        ),
    ),
]
