"""Fixtures of the fault tests and of backups, by import: the same sites and storages."""

from tests.backups.conftest import backup_root, target  # noqa: F401
from tests.faults.conftest import _fresh, docker_site, process_site  # noqa: F401
