"""Names become drivers; settings are read nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from projects import registry
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.memory import MemoryRuntime


def test_engines_by_name() -> None:
    assert registry.engine("postgresql").title == "PostgreSQL"
    assert set(registry.engines()) >= {"postgresql"}
    with pytest.raises(KeyError):
        registry.engine("oracle")


def test_a_runtime_is_built_once_per_configuration() -> None:
    one = registry.runtime("memory", install_id="a", config={})
    assert isinstance(one, MemoryRuntime)
    assert registry.runtime("memory", install_id="a", config={}) is one
    assert registry.runtime("memory", install_id="b", config={}) is not one
    assert registry.runtime("memory", install_id="a", config={"x": 1}) is not one


def test_docker_takes_its_address_from_the_region_then_from_settings(settings: Any) -> None:
    settings.NOVASTACK_DOCKER_URL = "tcp://10.0.0.1:2375"
    from_settings = registry.runtime("docker", install_id="t1", config={})
    from_region = registry.runtime("docker", install_id="t1", config={"base_url": "tcp://127.0.0.2:2375"})
    assert isinstance(from_settings, DockerRuntime)
    assert isinstance(from_region, DockerRuntime)
    assert from_settings.base_url == "tcp://10.0.0.1:2375"
    assert from_region.base_url == "tcp://127.0.0.2:2375"


def test_image_override(settings: Any) -> None:
    settings.NOVASTACK_IMAGES = {"postgresql:17": "mirror/pg:17", "mysql": "mirror/mysql"}
    assert registry.image_override("postgresql", "17") == "mirror/pg:17"
    assert registry.image_override("postgresql", "18") == ""
    assert registry.image_override("mysql", "9.7") == "mirror/mysql"
