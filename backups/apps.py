from django.apps import AppConfig


class BackupsConfig(AppConfig):
    """Backups: taken in the engine's own archive, proven by restoring them, kept and restored."""

    name = "backups"
    verbose_name = "Backups"

    def ready(self) -> None:
        from accounts.services import organization_delete_guards
        from backups.api import metrics
        from backups.operations import register_all
        from backups.services import figures, installing, organizations, schedules
        from backups.services import quotas as counted
        from projects.api import prometheus
        from projects.services import creation, install, overview, quotas

        prometheus.collect_also(metrics.collect)
        quotas.count_also(("backups", "backup_bytes"), counted.used)
        overview.backups_by(figures.overview_of)
        creation.backups_by(schedules.for_new_project, schedules.lacks_for_new_project)
        install.also_prepare.append(installing.storage_prepare)
        organization_delete_guards.append(organizations.organization_ending)
        register_all()
