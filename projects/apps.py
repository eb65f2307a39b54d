from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    """Projects: databases, the servers they live on, and the operations that change them."""

    name = "projects"
    verbose_name = "Projects"

    def ready(self) -> None:
        # Other apps add kinds and steps in their own ready() (rule 6).
        from accounts import activity
        from projects import checks, registry  # noqa: F401
        from projects.operations import register_all

        activity.ENGINES.update({engine.name: engine.title for engine in registry.engines().values()})
        register_all()
