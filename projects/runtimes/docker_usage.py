"""CPU and memory of containers: from cgroup files (v1 and v2) when they can be read, else from one-shot statistics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from docker.utils import version_lt

from projects.domain import NovaStackRuntimeError, Usage
from projects.runtimes.docker_client import DockerClients, mapped

CGROUPS = Path("/sys/fs/cgroup")
_V2_PLACES = ("docker/{}", "system.slice/docker-{}.scope")
_WINDOW_SECONDS = 0.2  # between two readings when there is no earlier one
_PARALLEL = 32  # where each answer takes a second: 800 servers between two readings
_ONE_SHOT = "1.41"  # of the engine's API
_FORGET_SECONDS = 600.0


class UsageReader:
    """Keeps the previous CPU reading of each container: its use is the difference over the time between two calls."""

    def __init__(self, clients: DockerClients, root: Path = CGROUPS) -> None:
        self._clients = clients
        self._root = root
        self._previous: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def read(self, ids: list[str]) -> Mapping[str, Usage]:
        """For the containers that run; one that is gone is left out."""
        places = {name: self._place(name) for name in ids} if self._clients.local else {}
        files = {name: place for name, place in places.items() if place is not None}
        result: dict[str, Usage] = {}
        if files:
            if any(name not in self._previous for name in files):
                for name, place in files.items():
                    self._percent(name, place)
                time.sleep(_WINDOW_SECONDS)
            for name, place in files.items():
                with contextlib.suppress(OSError, ValueError):
                    result[name] = self._from_files(name, place)
        missing = [name for name in ids if name not in result]
        if missing:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                asked = zip(missing, pool.map(self._from_engine, missing), strict=True)
                result |= {name: usage for name, usage in asked if usage is not None}
        return result

    def _place(self, container: str) -> tuple[Path, Path] | None:
        """(folder of CPU figures, folder of memory figures)"""
        if (self._root / "cgroup.controllers").exists():
            for pattern in _V2_PLACES:
                folder = self._root / pattern.format(container)
                if folder.is_dir():
                    return folder, folder
            return None
        for pattern in _V2_PLACES:
            cpu, memory = (self._root / name / pattern.format(container) for name in ("cpuacct", "memory"))
            if cpu.is_dir() and memory.is_dir():
                return cpu, memory
        return None

    def _percent(self, container: str, place: tuple[Path, Path]) -> float | None:
        seconds = _cpu_seconds(place[0])
        return None if seconds is None else self._since(container, seconds)

    def _since(self, container: str, seconds: float) -> float | None:
        """Percent of one core since the previous reading of the CPU seconds used; None at the first one."""
        now = time.monotonic()
        with self._lock:
            before = self._previous.get(container)
            self._previous[container] = (now, seconds)
            for name in [name for name, (at, _) in self._previous.items() if now - at > _FORGET_SECONDS]:
                del self._previous[name]
        if before is None or now <= before[0]:
            return None
        return max(0.0, round(100 * (seconds - before[1]) / (now - before[0]), 2))

    def _from_files(self, container: str, place: tuple[Path, Path]) -> Usage:
        folder = place[1]
        if (folder / "memory.current").exists():
            used, limit, cache = "memory.current", "memory.max", "inactive_file"
        else:
            used, limit, cache = "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"
        # Page cache that can be dropped at once is not use (the same sum as `docker stats`).
        droppable = _field(folder / "memory.stat", cache) or 0
        most = (folder / limit).read_text().strip()
        return Usage(
            cpu_percent=self._percent(container, place),
            memory_bytes=max(0, int((folder / used).read_text()) - droppable),
            memory_limit_bytes=int(most) if most.isdigit() and int(most) < 1 << 60 else None,
        )

    def _from_engine(self, container: str) -> Usage | None:
        try:
            stats = self._statistics(container)
            percent = self._percent_of(container, stats)
            if percent is None and stats.get("memory_stats"):
                time.sleep(_WINDOW_SECONDS)
                stats = self._statistics(container)
                percent = self._percent_of(container, stats)
        except NovaStackRuntimeError:
            return None
        memory = stats.get("memory_stats") or {}
        if "usage" not in memory:
            return None
        details = memory.get("stats") or {}
        droppable = details.get("total_inactive_file", details.get("inactive_file", 0))
        return Usage(percent, max(0, memory["usage"] - droppable), memory.get("limit"))

    def _percent_of(self, container: str, stats: Mapping[str, Any]) -> float | None:
        """Of an answer with two readings their difference, else the difference to the last answer."""
        now, before = stats.get("cpu_stats") or {}, stats.get("precpu_stats") or {}
        if not now.get("system_cpu_usage"):
            return None
        since = self._since(container, now["cpu_usage"]["total_usage"] / 1e9)
        if not before.get("system_cpu_usage"):
            return since
        total = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
        system = now["system_cpu_usage"] - before["system_cpu_usage"]
        return round(100 * (now.get("online_cpus") or 1) * total / system, 2) if system > 0 else None

    def _statistics(self, container: str) -> dict[str, Any]:
        """One reading. Older engines (20.10 among them) take two, a second apart, before they answer."""
        with mapped():
            client = self._clients.get()
            once = None if version_lt(client.api_version, _ONE_SHOT) else True
            found: dict[str, Any] = client.stats(container, stream=False, one_shot=once)
        return found


def _cpu_seconds(folder: Path) -> float | None:
    try:
        if (folder / "cpu.stat").exists() and (micro := _field(folder / "cpu.stat", "usage_usec")) is not None:
            return micro / 1e6
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None
