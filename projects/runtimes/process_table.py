"""Processes known by (pid, start time, boot): a number alone may belong to somebody else by now."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Stat:
    pid: int
    state: str
    parent: int
    session: int
    cpu_seconds: float
    threads: int
    start_ticks: int
    rss_bytes: int


def boot_id() -> str:
    """Changes with every boot of the machine, so that start times can't be confused."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]


def read_stat(pid: int | str) -> Stat | None:
    """One process from /proc/<pid>/stat; None if there is none."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    head, _, tail = raw.rpartition(b")")
    fields = tail.split()
    if len(fields) < 22:
        return None
    return Stat(
        pid=int(head.split(b" ", 1)[0]),
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_seconds=sum(map(int, fields[11:15])) / _TICKS,  # its own, and that of children that have ended
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE,
    )


def all_stats() -> Iterator[Stat]:
    """Every process of the machine, in one walk over /proc."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit() and (found := read_stat(entry.name)):
                yield found


@dataclass(frozen=True, slots=True)
class ProcessRef:
    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        found = read_stat(pid)
        return cls(pid, found.start_ticks, boot_id()) if found else None

    @classmethod
    def parse(cls, text: str) -> ProcessRef | None:
        """The reverse of `str()`; None for anything else."""
        pid, _, rest = text.partition(":")
        ticks, _, boot = rest.partition(":")
        return cls(int(pid), int(ticks), boot) if pid.isdigit() and ticks.isdigit() and boot else None

    def __str__(self) -> str:
        return f"{self.pid}:{self.start_ticks}:{self.boot}"

    def alive(self) -> bool:
        """Whether exactly this process still runs. A zombie does not, unless threads of it still hold its files."""
        found = read_stat(self.pid)
        return (
            found is not None
            and (found.state not in "ZX" or found.threads > 1)
            and found.start_ticks == self.start_ticks
            and self.boot == boot_id()
        )

    def wait_reaped(self, seconds: float) -> bool:
        """Wait until the pid is free: some servers take a zombie of their last run for a living rival."""
        deadline = time.monotonic() + seconds
        while (found := read_stat(self.pid)) and found.start_ticks == self.start_ticks and self.boot == boot_id():
            if time.monotonic() >= deadline:
                return False
            with contextlib.suppress(ChildProcessError, OSError):
                os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.01)
        return True

    def started_at(self) -> float:
        """Seconds since the epoch."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + self.start_ticks / _TICKS

    def send(self, number: int) -> bool:
        """Signal exactly this process. False if it is gone."""
        if not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def wait_gone(self, seconds: float, *, pause: float = 0.01) -> bool:
        """Wait until it has ended; also reaps it, if it is our child. False when it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ChildProcessError, OSError):
                os.waitpid(self.pid, os.WNOHANG)
            if not self.alive():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on the TCP port: to connect would also succeed at somebody else's server."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if str(Path(entry.path).readlink()) in sockets:
                    return True
    return False


def family(leaders: Iterable[int], stats: Iterable[Stat] | None = None) -> dict[int, list[Stat]]:
    """Every leader with its descendants and the members of its session, in one walk over /proc.

    By parent as well as by session: PostgreSQL makes every backend the leader of a session of its own.
    """
    found = {stat.pid: stat for stat in (all_stats() if stats is None else stats)}
    wanted = set(leaders)
    owner: dict[int, int] = {}

    def owner_of(pid: int) -> int:
        path: list[int] = []
        answer = 0
        while pid in found and pid not in path:
            if pid in owner or pid in wanted:
                answer = owner.get(pid, pid)
                break
            path.append(pid)
            session = found[pid].session
            if session in wanted:
                answer = session
                break
            pid = found[pid].parent
        for each in path:
            owner[each] = answer
        return answer

    answer: dict[int, list[Stat]] = {leader: [] for leader in wanted}
    for pid, stat in found.items():
        if (leader := owner_of(pid)) in wanted:
            answer[leader].append(stat)
    return answer


def stop_family(ref: ProcessRef, *, polite: int, grace_seconds: float) -> bool:
    """Ask the leader with `polite`; after the grace SIGKILL it with all its descendants.

    Returns whether it went by itself.
    """
    if ref.send(polite) and ref.wait_gone(grace_seconds):
        return True
    if not ref.alive():
        return True
    kill_family(ref)
    return False


def kill_family(ref: ProcessRef) -> None:
    """SIGKILL exactly this process and its descendants; returns when they are gone (at most 3 s)."""
    if not ref.alive():
        return
    members = [ProcessRef(stat.pid, stat.start_ticks, ref.boot) for stat in family([ref.pid])[ref.pid]]
    ref.send(signal.SIGKILL)
    for member in members:
        member.send(signal.SIGKILL)
    for member in (ref, *members):
        member.wait_gone(3)
