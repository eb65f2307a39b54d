"""Of proofs, drills and objectives; part of `backups.api.urls`."""

from django.urls import path

from backups.api import proofs

urlpatterns = [
    path("backups/<uuid:pk>/verify/", proofs.BackupVerifyView.as_view(), name="backup-verify"),
    path("backups/<uuid:pk>/proofs/", proofs.BackupProofsView.as_view(), name="backup-proofs"),
    path("projects/<uuid:pk>/backup-policy/", proofs.PolicyView.as_view(), name="project-backup-policy"),
    path("projects/<uuid:pk>/drills/", proofs.DrillListView.as_view(), name="project-drills"),
    path("drills/<uuid:pk>/", proofs.DrillView.as_view(), name="drill-detail"),
    path("drills/<uuid:pk>/run/", proofs.DrillRunView.as_view(), name="drill-run"),
    path("drills/<uuid:pk>/runs/", proofs.DrillRunsView.as_view(), name="drill-runs"),
]
