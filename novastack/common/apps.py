from django.apps import AppConfig


class CommonConfig(AppConfig):
    """The kernel: what every app may use, and what knows no app."""

    name = "novastack.common"
    label = "common"
    verbose_name = "Kernel"

    def ready(self) -> None:
        from novastack.common import checks  # noqa: F401  (registers the deploy checks)
