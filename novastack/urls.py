"""All routes. Pages at the root, the API below `api/v1/`, the Django admin behind allauth's sign-in."""

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny

from novastack.common import health
from projects.api.prometheus import FleetCollector

admin.autodiscover()
# Rate limits and the second factor hold for operators too.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]
admin.site.site_header = admin.site.site_title = "NovaStack"

health.registry.register(FleetCollector())

handler400 = "novastack.common.views.bad_request"
handler403 = "novastack.common.views.permission_denied"
handler404 = "novastack.common.views.page_not_found"
handler500 = "novastack.common.views.server_error"

_public = {"authentication_classes": [], "permission_classes": [AllowAny]}

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("api/v1/schema/", SpectacularAPIView.as_view(**_public), name="schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema", **_public), name="api-docs"),
    path("api/v1/", include("accounts.api.urls")),
    path("api/", include("projects.api.database_urls")),  # before `v1`, whose addresses are the ones that are told
    path("api/v1/", include("backups.api.urls")),
    path("api/v1/", include("projects.api.urls")),
    path("", include("accounts.urls")),
    path("", include("projects.urls")),
    path("", include("backups.urls")),
]
