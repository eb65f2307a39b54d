"""Fixtures of the fault tests, by import: the same sites."""

from tests.faults.conftest import _fresh, docker_site, process_site  # noqa: F401
