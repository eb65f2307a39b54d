"""The same sites and storages as backups have."""

from tests.backups.conftest import _empty_cache, backup_root, target, team  # noqa: F401
from tests.faults.conftest import _fresh, docker_site, process_site  # noqa: F401
