"""Pages of projects."""

from django.urls import path

from projects.views import (
    acting,
    activity,
    connecting,
    creating,
    detail,
    keys,
    lists,
    logs,
    operator,
    pools,
    regions,
    services,
    settings,
)

app_name = "projects"
_one = "projects/<uuid:project_id>/"

urlpatterns = [
    path("", lists.home, name="home"),
    path("projects/", lists.project_list, name="list"),
    path("projects/new/", creating.project_new, name="new"),
    path("projects/new/preview/", creating.project_new_preview, name="new-preview"),
    path("recycle-bin/", lists.recycle_bin, name="bin"),
    path("usage/", lists.usage, name="usage"),
    path("search/", lists.search, name="search"),
    path("operator/", operator.operator, name="operator"),
    path("operator/regions/new/", regions.region_new, name="region-new"),
    path("operator/regions/<slug:region>/", regions.region_detail, name="region"),
    path("operator/regions/<slug:region>/<slug:action>/", regions.region_act, name="region-act"),
    path("operator/pools/", pools.pool_list, name="pools"),
    path("operator/pools/new/", pools.pool_new, name="pool-new"),
    path("operator/pools/<uuid:pool_id>/", pools.pool_detail, name="pool"),
    path("operator/pools/<uuid:pool_id>/<slug:action>/", pools.pool_act, name="pool-act"),
    path("operator/doctor/", operator.doctor, name="operator-doctor"),
    path("operator/versions/", operator.versions, name="operator-versions"),
    path(_one, detail.project_detail, name="detail"),
    path(_one + "live/", detail.project_live, name="live"),
    path(_one + "tables/", detail.project_tables, name="tables"),
    path(_one + "logs/", logs.project_logs, name="logs"),
    path(_one + "activity/", activity.project_activity, name="activity"),
    path(_one + "keys/", keys.project_keys, name="keys"),
    path(_one + "keys/<uuid:key_id>/revoke/", keys.project_key_revoke, name="key-revoke"),
    path(_one + "keys/<uuid:key_id>/confirm/", keys.project_key_confirm, name="key-confirm"),
    path(_one + "services/", services.project_services, name="services"),
    path(_one + "settings/", settings.project_settings, name="settings"),
    path(_one + "connect/", connecting.connect, name="connect"),
    path(_one + "connect/password/", connecting.connect_password, name="connect-password"),
    path(_one + "connect/secret/", connecting.connect_secret, name="connect-secret"),
    path(_one + "rotate/", acting.project_rotate, name="rotate"),
    path(_one + "delete/", acting.project_remove, name="delete"),
    path(_one + "purge/", acting.project_purge_now, name="purge"),
    path(_one + "undelete/", acting.project_undelete, name="undelete"),
    path(_one + "actions/<slug:action>/", acting.project_act, name="act"),
    path(_one + "operations/<uuid:operation_id>/log/", detail.operation_log, name="operation-log"),
    path(_one + "operations/<uuid:operation_id>/<slug:action>/", acting.operation_act, name="operation-act"),
]
