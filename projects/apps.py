from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    """Projects: databases, the servers they live on, and the operations that change them."""

    name = "projects"
    verbose_name = "Projects"

    def ready(self) -> None:
        # Other apps add kinds and steps in their own ready() (rule 6).
        from projects import checks  # noqa: F401
        from projects.operations import register_all

        register_all()
