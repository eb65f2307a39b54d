"""Name → class; the only reader of driver settings. A registry dict, no ladders (style.md)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from django.conf import settings

from projects.engines.base import Engine
from projects.engines.ferretdb import FerretDB
from projects.engines.mariadb import MariaDB
from projects.engines.mongodb import MongoDB
from projects.engines.mysql import MySQL
from projects.engines.postgresql import PostgreSQL
from projects.runtimes.base import Runtime
from projects.runtimes.memory import MemoryRuntime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import search_path

ENGINES: dict[str, Engine] = {e.name: e for e in (PostgreSQL(), MariaDB(), MySQL(), MongoDB(), FerretDB())}


def _docker(install_id: str, config: Mapping[str, Any]) -> Runtime:
    from projects.runtimes.docker import DockerRuntime  # docker-py is slow to import; only who needs it pays

    return DockerRuntime(
        install_id,
        base_url=config.get("base_url") or settings.NOVASTACK_DOCKER_URL,
        network_name=config.get("network", ""),
        tls=config.get("tls"),
    )


def _process(install_id: str, config: Mapping[str, Any]) -> Runtime:
    root = Path(config.get("root") or settings.NOVASTACK_SERVERS_ROOT)
    programs = {name: engine.server_program for name, engine in ENGINES.items()}
    return ProcessRuntime(install_id, root, programs=programs, search=search_path(settings.NOVASTACK_PROGRAM_FOLDERS))


def _memory(install_id: str, config: Mapping[str, Any]) -> Runtime:
    return MemoryRuntime(install_id)


RUNTIMES: dict[str, Callable[[str, Mapping[str, Any]], Runtime]] = {
    "docker": _docker,
    "process": _process,
    "memory": _memory,
}
_built: dict[str, Runtime] = {}
_lock = threading.Lock()


DEFAULT_ENGINE = PostgreSQL.name  # what is made when nobody says which


def engine(name: str) -> Engine:
    """The engine of this name; `KeyError` if there is none."""
    return ENGINES[name]


def engines() -> Mapping[str, Engine]:
    return ENGINES


def runtime(name: str, *, install_id: str, config: Mapping[str, Any]) -> Runtime:
    """The driver for one runtime endpoint; one object per (name, install, config) and process."""
    key = json.dumps([name, install_id, config], sort_keys=True, default=str)
    with _lock:
        if key not in _built:
            _built[key] = RUNTIMES[name](install_id, config)
        return _built[key]


def image_override(engine_name: str, version: str) -> str:
    """What NOVASTACK_IMAGES says for `<engine>:<version>`, or for the engine alone; empty if nothing."""
    images = settings.NOVASTACK_IMAGES
    return str(images.get(f"{engine_name}:{version}") or images.get(engine_name) or "")
