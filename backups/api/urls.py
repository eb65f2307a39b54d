"""`/api/v1/`: backups and what is around them."""

from django.urls import include, path

from backups.api import backups, storages

backup = [
    path("", backups.BackupView.as_view(), name="backup-detail"),
    path("download/", backups.BackupDownloadView.as_view(), name="backup-download"),
    path("pin/", backups.BackupPinView.as_view(), name="backup-pin"),
    path("unpin/", backups.BackupUnpinView.as_view(), name="backup-unpin"),
]
storage = [
    path("", storages.StorageView.as_view(), name="storage-detail"),
    path("test/", storages.StorageTestView.as_view(), name="storage-test"),
]

urlpatterns = [
    path("projects/<uuid:pk>/backups/", backups.ProjectBackupsView.as_view(), name="project-backups"),
    path("backups/", backups.BackupListView.as_view(), name="backup-list"),
    path("backups/<uuid:pk>/", include(backup)),
    path("storages/", storages.StorageListView.as_view(), name="storage-list"),
    path("storages/<uuid:pk>/", include(storage)),
]
