"""Control groups, version 1 and 2, where this process may make them: limits for a server with all its children."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from projects.domain import Limits

_PERIOD = 100_000  # microseconds


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """A folder per server below `base` in each usable controller. `folders` is empty when nothing can be limited."""

    folders: dict[str, Path]
    unified: bool

    @property
    def limits_memory(self) -> bool:
        return "memory" in self.folders

    @property
    def limits_cpu(self) -> bool:
        return "cpu" in self.folders

    def make(self, name: str, limits: Limits) -> list[Path]:
        """Fresh groups for one start of a server (so that old kill counts are gone), with its limits."""
        self.remove(name)
        made = []
        for folder in dict.fromkeys(self.folders.values()):
            with contextlib.suppress(OSError):
                (folder / name).mkdir(exist_ok=True)
                made.append(folder / name)
        self.set(name, limits)
        return made

    def set(self, name: str, limits: Limits) -> None:
        """Write limits to the server's groups, also while it runs; what can't be written is left as it is."""
        quota = max(1000, int(limits.cpus * _PERIOD))
        memory = str(limits.memory_bytes)
        wanted = (
            [("memory", "memory.max", memory), ("memory", "memory.swap.max", "0"),
             ("cpu", "cpu.max", f"{quota} {_PERIOD}"), ("pids", "pids.max", str(limits.pids))]
            if self.unified
            else [("memory", "memory.limit_in_bytes", memory), ("memory", "memory.memsw.limit_in_bytes", memory),
                  ("cpu", "cpu.cfs_period_us", str(_PERIOD)), ("cpu", "cpu.cfs_quota_us", str(quota)),
                  ("pids", "pids.max", str(limits.pids))]
        )  # fmt: skip
        for _ in range(2):  # raising: the combined limit must go up before the plain one, lowering: after it
            for controller, file, value in wanted:
                if controller in self.folders:
                    with contextlib.suppress(OSError):
                        (self.folders[controller] / name / file).write_text(value)

    def memory_limit(self, name: str) -> int | None:
        file = "memory.max" if self.unified else "memory.limit_in_bytes"
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int((self.folders["memory"] / name / file).read_text())
        return None

    def cpu_limit(self, name: str) -> float | None:
        """Cores; 0 is unlimited, None not known."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            folder = self.folders["cpu"] / name
            if self.unified:
                quota, _, period = (folder / "cpu.max").read_text().partition(" ")
                return 0.0 if quota == "max" else int(quota) / int(period)
            quota = (folder / "cpu.cfs_quota_us").read_text()
            return max(0, int(quota)) / int((folder / "cpu.cfs_period_us").read_text())
        return None

    def oom_kills(self, name: str) -> int:
        """How many of the server's processes the kernel killed for memory since its last start."""
        file = "memory.events" if self.unified else "memory.oom_control"
        with contextlib.suppress(OSError, ValueError, KeyError):
            for line in (self.folders["memory"] / name / file).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def remove(self, name: str) -> None:
        """Remove the server's groups; the kernel needs a moment after the last process has gone."""
        for folder in dict.fromkeys(self.folders.values()):
            for _ in range(20):
                try:
                    (folder / name).rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
                else:
                    break


NO_GROUPS = ControlGroups({}, unified=False)


def find_control_groups(install: str, root: Path = Path("/sys/fs/cgroup")) -> ControlGroups:
    """What can be used here, found by trying: a group is made in each controller, and stays."""
    base = f"novastack-{install[:12]}"
    if (root / "cgroup.controllers").is_file():
        return _unified(root, base)
    folders = {}
    for controller, file in (
        ("memory", "memory.limit_in_bytes"),
        ("cpu", "cpu.cfs_quota_us"),
        ("pids", "cgroup.procs"),
    ):
        with contextlib.suppress(OSError):
            folder = root / controller / base
            folder.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                (folder / "memory.use_hierarchy").write_text("1")
            if (folder / file).is_file():
                folders[controller] = folder
    return ControlGroups(folders, unified=False)


def _unified(root: Path, base: str) -> ControlGroups:
    folder = root / base
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        for parent in (root, folder):
            for controller in ("memory", "cpu", "pids"):
                with contextlib.suppress(OSError):  # a group with processes of its own refuses: no limits then
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        enabled = (folder / "cgroup.subtree_control").read_text().split()
        return ControlGroups({name: folder for name in ("memory", "cpu", "pids") if name in enabled}, unified=True)
    return NO_GROUPS
