"""`/api/v1/`: backups and what is around them."""

from django.urls import include, path

from backups.api import backups

backup = [
    path("", backups.BackupView.as_view(), name="backup-detail"),
    path("download/", backups.BackupDownloadView.as_view(), name="backup-download"),
    path("pin/", backups.BackupPinView.as_view(), name="backup-pin"),
    path("unpin/", backups.BackupUnpinView.as_view(), name="backup-unpin"),
]

urlpatterns = [
    path("projects/<uuid:pk>/backups/", backups.ProjectBackupsView.as_view(), name="project-backups"),
    path("backups/", backups.BackupListView.as_view(), name="backup-list"),
    path("backups/<uuid:pk>/", include(backup)),
]
