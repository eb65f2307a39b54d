"""Pages of backups."""

from django.urls import path

from backups.views import (
    detail,
    downloads,
    kit,
    lists,
    objectives,
    parts,
    protection,
    restoring,
    retention,
    schedules,
    storages,
    tab,
    uploads,
)

app_name = "backups"
_project = "projects/<uuid:project_id>/backups/"
_one = "backups/<uuid:backup_id>/"
_target = "backup-storages/<uuid:storage_id>/"

urlpatterns = [
    path(_project, tab.project_backups, name="tab"),
    path(_project + "new/", tab.backup_new, name="new"),
    path(_project + "upload/", uploads.upload_new, name="upload"),
    path(_project + "policy/", objectives.policy, name="policy"),
    path(_project + "schedules/new/", schedules.schedule_new, name="schedule-new"),
    path(_project + "schedules/preview/", schedules.schedule_preview, name="schedule-preview"),
    path(_project + "schedules/<uuid:schedule_id>/retention/", retention.retention, name="retention"),
    path(_project + "schedules/<uuid:schedule_id>/<slug:action>/", schedules.schedule_act, name="schedule-act"),
    path(_project + "drills/new/", objectives.drill_edit, name="drill-new"),
    path(_project + "drills/<uuid:drill_id>/", objectives.drill_edit, name="drill"),
    path(_project + "drills/<uuid:drill_id>/<slug:action>/", objectives.drill_act, name="drill-act"),
    path("backups/", lists.backup_list, name="list"),
    path("backups/protection/", protection.protection, name="protection"),
    path("operator/protection/", protection.install_protection, name="install-protection"),
    path(_one, detail.backup_detail, name="detail"),
    path(_one + "delete/", detail.backup_remove, name="delete"),
    path(_one + "download/", downloads.backup_download, name="download"),
    path(_one + "download/tables/", downloads.tables_download, name="download-tables"),
    path(_one + "restore/", restoring.restore, name="restore"),
    path(_one + "restore/tables/", parts.restore_parts, name="parts"),
    path(_one + "restore/preflight/", restoring.preflight, name="preflight"),
    path(_one + "actions/<slug:action>/", detail.backup_act, name="act"),
    path("restores/<uuid:restore_id>/", restoring.restore_progress, name="restore-progress"),
    path("restores/<uuid:restore_id>/undo/", restoring.restore_undo, name="restore-undo"),
    path("backup-storages/", storages.storage_list, name="storages"),
    path("operator/storages/", storages.install_list, name="install-storages"),
    path(_target, storages.storage_edit, name="storage"),
    path(_target + "take-over/", storages.storage_claim, name="storage-claim"),
    path(_target + "remove/", storages.storage_remove, name="storage-remove"),
    path(_target + "actions/<slug:action>/", storages.storage_act, name="storage-act"),
    path("recovery-kit/", kit.kit, name="kit"),
    path("recovery-kit/download/", kit.kit_download, name="kit-download"),
    path("recovery-kit/prove/", kit.kit_prove, name="kit-prove"),
    path("recovery-kit/keys/rotate/", kit.rotate, name="key-rotate"),
    path("recovery-kit/recipients/", kit.recipient_new, name="recipient-new"),
    path("recovery-kit/recipients/<uuid:recipient_id>/remove/", kit.recipient_drop, name="recipient-drop"),
]
