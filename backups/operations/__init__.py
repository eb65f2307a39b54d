"""The kinds of operations of backups. Each module registers its own when it is imported."""


def register_all() -> None:
    """Make the kinds known; other apps' kinds are known already."""
    from backups.operations import importing, proving, queueing, restoring, scratch, taking  # noqa: F401
    from backups.operations import deleting  # noqa: F401  # isort: skip
    from backups.operations import extracting  # noqa: F401  # isort: skip
    from backups.operations import final  # noqa: F401  # isort: skip
