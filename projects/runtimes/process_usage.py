"""CPU and memory of many servers, each with all its children, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from projects.runtimes.process_table import ProcessRef, Stat, family

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FIRST_SAMPLE_SECONDS = 0.1


class UsageMeter:
    """Remembers the last CPU reading of each server: a percentage needs two."""

    def __init__(self) -> None:
        self._last: dict[ProcessRef, tuple[float, float]] = {}

    def measure(self, refs: Sequence[ProcessRef]) -> dict[ProcessRef, tuple[float | None, int | None]]:
        """CPU in percent of one core since the last reading (or over 0.1 s), memory in bytes."""
        if not refs:
            return {}
        if any(ref not in self._last for ref in refs):
            self._sample(refs)
            time.sleep(_FIRST_SAMPLE_SECONDS)
        before = dict(self._last)
        members = self._sample(refs)
        answer: dict[ProcessRef, tuple[float | None, int | None]] = {}
        for ref in refs:
            (then, used_then), (now, used_now) = before[ref], self._last[ref]
            percent = max(0.0, used_now - used_then) / max(now - then, 0.001) * 100
            answer[ref] = (round(percent, 1), _memory(members[ref.pid]))
        self._last = {ref: reading for ref, reading in self._last.items() if ref in refs}
        return answer

    def _sample(self, refs: Sequence[ProcessRef]) -> dict[int, list[Stat]]:
        members = family([ref.pid for ref in refs])
        now = time.monotonic()
        for ref in refs:
            self._last[ref] = (now, sum(stat.cpu_seconds for stat in members[ref.pid]))
        return members


def _memory(members: Sequence[Stat]) -> int:
    """Private memory of all of them, plus what they share, once."""
    private = shared = 0
    for stat in members:
        try:
            resident, common = map(int, Path(f"/proc/{stat.pid}/statm").read_text().split()[1:3])
        except (OSError, ValueError):
            continue
        private += (resident - common) * _PAGE
        shared = max(shared, common * _PAGE)
    return private + shared
