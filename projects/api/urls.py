"""`/api/v1/`: catalogue, projects, operations, allocation, health."""

from django.urls import include, path

from projects.api import (
    catalogue,
    certificates,
    details,
    health,
    keys,
    moving,
    operations,
    overview,
    projects,
    services,
)

project = [
    path("", projects.ProjectView.as_view(), name="project-detail"),
    path("action/", projects.ActionView.as_view(), name="project-action"),
    path("move/", moving.MoveView.as_view(), name="project-move"),
    path("connection/", details.ConnectionView.as_view(), name="project-connection"),
    path("status/", details.StatusView.as_view(), name="project-status"),
    path("metrics/", details.MetricsView.as_view(), name="project-metrics"),
    path("tables/", details.TablesView.as_view(), name="project-tables"),
    path("logs/", details.LogsView.as_view(), name="project-logs"),
    path("activity/", details.ActivityView.as_view(), name="project-activity"),
    path("api-keys/", keys.KeyListView.as_view(), name="project-api-keys"),
    path("api-keys/<uuid:key_id>/", keys.KeyView.as_view(), name="project-api-key"),
    path("api-keys/<uuid:key_id>/confirm/", keys.KeyConfirmView.as_view(), name="project-api-key-confirm"),
    path("services/", services.ServiceListView.as_view(), name="project-services"),
    path("services/<slug:service>/", services.ServiceView.as_view(), name="project-service"),
    path("resources/", services.ResourceListView.as_view(), name="project-resources"),
    path("operations/", operations.ProjectOperationListView.as_view(), name="project-operations"),
]
operation = [
    path("", operations.OperationView.as_view(), name="operation-detail"),
    path("retry/", operations.OperationRetryView.as_view(), name="operation-retry"),
    path("cancel/", operations.OperationCancelView.as_view(), name="operation-cancel"),
]

urlpatterns = [
    path("ca/", certificates.AuthorityView.as_view(), name="ca"),
    path("engines/", catalogue.EngineListView.as_view(), name="engine-list"),
    path("regions/", catalogue.RegionListView.as_view(), name="region-list"),
    path("plans/", catalogue.PlanListView.as_view(), name="plan-list"),
    path("organizations/<slug:ref>/usage/", catalogue.UsageView.as_view(), name="organization-usage"),
    path("projects/", projects.ProjectListView.as_view(), name="project-list"),
    path("projects/stats/overview/", overview.OverviewView.as_view(), name="project-overview"),
    path("projects/<uuid:pk>/", include(project)),
    path("api-keys/verify/", keys.KeyVerifyView.as_view(), name="api-key-verify"),
    path("operations/", operations.OperationListView.as_view(), name="operation-list"),
    path("operations/<uuid:pk>/", include(operation)),
    path("health/", health.HealthView.as_view(), name="api-health"),
    path("", include("projects.api.database_urls")),
]
