from django.apps import AppConfig


class BackupsConfig(AppConfig):
    """Backups: taken in the engine's own archive, proven by restoring them, kept and restored."""

    name = "backups"
    verbose_name = "Backups"

    def ready(self) -> None:
        from backups.operations import register_all
        from backups.services import quotas as counted
        from projects.services import quotas

        quotas.count_also(counted.used)
        register_all()
