"""`database/`: the allocation service, below `/api/v1/` and, the same, below `/api/`."""

from django.urls import include, path

from projects.api import allocation, pools

database = [
    path("allocate/", allocation.AllocationView.as_view(), name="database-allocate"),
    path("provision-dedicated/", allocation.DedicatedView.as_view(), name="database-provision-dedicated"),
    path("admin/pools/", pools.PoolListView.as_view(), name="database-pools"),
    path("admin/pools/<uuid:pool_id>/", pools.PoolView.as_view(), name="database-pool"),
    path("admin/pools/<uuid:pool_id>/health-check/", pools.PoolCheckView.as_view(), name="database-pool-check"),
    path("admin/pools/<uuid:pool_id>/drain/", pools.PoolDrainView.as_view(), name="database-pool-drain"),
    path("admin/stats/", pools.PoolStatsView.as_view(), name="database-stats"),
    path("health/", allocation.AllocationHealthView.as_view(), name="database-health"),
]

urlpatterns = [path("database/", include(database))]
