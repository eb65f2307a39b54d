"""Operations: durable jobs with named steps. Importing a kind's module registers it."""


def register_all() -> None:
    """Register every kind of this app; called once from `AppConfig.ready()`."""
    from projects.operations import (  # noqa: F401
        lifecycle,
        moving,
        pool_removal,
        pooled,
        pools,
        provision,
        registration,
        removal,
        rotate,
        standbys,
        tls,
    )
