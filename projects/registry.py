"""Name → class; the only reader of driver settings. A registry dict, no ladders (style.md)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from django.conf import settings

from projects.domain import RuntimeEndpoint
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


def _docker(install_id: str, config: Mapping[str, Any], endpoint: RuntimeEndpoint) -> Runtime:
    from projects.runtimes.docker import DockerRuntime  # docker-py is slow to import; only who needs it pays

    return DockerRuntime(install_id, endpoint=engine_endpoint(config, endpoint), network_name=config.get("network", ""))


def engine_endpoint(config: Mapping[str, Any], endpoint: RuntimeEndpoint) -> RuntimeEndpoint:
    """The region's own endpoint; without one, that of the settings, which may be a proxy on an internal network."""
    if endpoint.url or config.get("base_url"):
        return replace(endpoint, url=endpoint.url or str(config["base_url"]))
    return RuntimeEndpoint(settings.NOVASTACK_DOCKER_URL, plain=True)


def _swarm(install_id: str, config: Mapping[str, Any], endpoint: RuntimeEndpoint) -> Runtime:
    from projects.runtimes.swarm import SwarmRuntime

    return SwarmRuntime(install_id, config, endpoint=engine_endpoint(config, endpoint))


def _process(install_id: str, config: Mapping[str, Any], endpoint: RuntimeEndpoint) -> Runtime:
    root = Path(config.get("root") or settings.NOVASTACK_SERVERS_ROOT)
    programs = {name: engine.server_program for name, engine in ENGINES.items()}
    return ProcessRuntime(install_id, root, programs=programs, search=search_path(settings.NOVASTACK_PROGRAM_FOLDERS))


def _memory(install_id: str, config: Mapping[str, Any], endpoint: RuntimeEndpoint) -> Runtime:
    return MemoryRuntime(install_id)


HERE = RuntimeEndpoint()
RUNTIMES: dict[str, Callable[[str, Mapping[str, Any], RuntimeEndpoint], Runtime]] = {
    "docker": _docker,
    "swarm": _swarm,
    "process": _process,
    "memory": _memory,
}
_built: dict[str, Runtime] = {}
_of_region: dict[tuple[str, str], str] = {}
_lock = threading.Lock()


DEFAULT_ENGINE = PostgreSQL.name  # what is made when nobody says which


def engine(name: str) -> Engine:
    """The engine of this name; `KeyError` if there is none."""
    return ENGINES[name]


def engines() -> Mapping[str, Engine]:
    return ENGINES


def runtime(
    name: str, *, install_id: str, config: Mapping[str, Any], endpoint: RuntimeEndpoint = HERE, region: str = ""
) -> Runtime:
    """The driver for one runtime endpoint; one object per (name, install, config, endpoint) and process. A region that is
    given (by its id) has one at a time: what an earlier endpoint of it held open is closed."""
    secret = hashlib.sha256(repr(astuple(endpoint)).encode()).hexdigest()
    key = json.dumps([name, install_id, config, region, secret], sort_keys=True, default=str)
    with _lock:
        if key not in _built:
            _built[key] = RUNTIMES[name](install_id, config, endpoint)
            before = _of_region.get((install_id, region)) if region else None
            if before in _built:
                _built.pop(before).close()
            if region:
                _of_region[install_id, region] = key
        return _built[key]


def image_override(engine_name: str, version: str) -> str:
    """What NOVASTACK_IMAGES says for `<engine>:<version>`, or for the engine alone; empty if nothing."""
    images = settings.NOVASTACK_IMAGES
    return str(images.get(f"{engine_name}:{version}") or images.get(engine_name) or "")
