"""`/api/v1/`: backups and what is around them."""

from django.urls import include, path

from backups.api import backups, downloads, restores, schedules, storages, uploads

backup = [
    path("", backups.BackupView.as_view(), name="backup-detail"),
    path("download/", downloads.BackupDownloadView.as_view(), name="backup-download"),
    path("pin/", backups.BackupPinView.as_view(), name="backup-pin"),
    path("unpin/", backups.BackupUnpinView.as_view(), name="backup-unpin"),
    path("tables/", restores.BackupTablesView.as_view(), name="backup-tables"),
    path("restore/", restores.BackupRestoreView.as_view(), name="backup-restore"),
]
restore = [
    path("", restores.RestoreView.as_view(), name="restore-detail"),
    path("undo/", restores.RestoreUndoView.as_view(), name="restore-undo"),
]
storage = [
    path("", storages.StorageView.as_view(), name="storage-detail"),
    path("test/", storages.StorageTestView.as_view(), name="storage-test"),
]
schedule = [
    path("", schedules.ScheduleView.as_view(), name="schedule-detail"),
    path("run/", schedules.ScheduleRunView.as_view(), name="schedule-run"),
    path("runs/", schedules.ScheduleRunsView.as_view(), name="schedule-runs"),
    path("retention/", schedules.RetentionView.as_view(), name="schedule-retention"),
]

urlpatterns = [
    path("projects/<uuid:pk>/backups/", backups.ProjectBackupsView.as_view(), name="project-backups"),
    path("projects/<uuid:pk>/uploads/", uploads.ProjectUploadsView.as_view(), name="project-uploads"),
    path("backups/", backups.BackupListView.as_view(), name="backup-list"),
    path("backups/<uuid:pk>/", include(backup)),
    path("storages/", storages.StorageListView.as_view(), name="storage-list"),
    path("storages/<uuid:pk>/", include(storage)),
    path("projects/<uuid:pk>/schedules/", schedules.ScheduleListView.as_view(), name="project-schedules"),
    path("schedules/<uuid:pk>/", include(schedule)),
    path("", include("backups.api.proof_urls")),
    path("restores/", restores.RestoreListView.as_view(), name="restore-list"),
    path("restores/<uuid:pk>/", include(restore)),
]
