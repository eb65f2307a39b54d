"""`database/`: the allocation service, below `/api/v1/` and, the same, below `/api/`."""

from django.urls import include, path

from projects.api import allocation

database = [
    path("allocate/", allocation.AllocationView.as_view(), name="database-allocate"),
    path("provision-dedicated/", allocation.DedicatedView.as_view(), name="database-provision-dedicated"),
    path("health/", allocation.AllocationHealthView.as_view(), name="database-health"),
]

urlpatterns = [path("database/", include(database))]
