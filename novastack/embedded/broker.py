"""Celery's broker when there is none: folders in `NOVASTACK_HOME`. Importing this module makes `filesystem://` mean it.

What differs from kombu's own transport: a folder per queue; a message appears whole or not at all (rename); bindings
live in memory (every process declares what it uses); an idle consumer asks one `stat` per queue and poll, so that 20 ms
between polls cost 1-2 % of a core. A message is a hint: one that was taken by a killed worker is lost, and the
reconciler sends it again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

POLL_SECONDS = 0.02
_SETTLE_SECONDS = 0.05  # folders' times advance in ticks of 1-10 ms: a younger one may still hide a second message
_RELIST_SECONDS = 2.0

_QUEUE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

TRANSPORT_ALIASES["filesystem"] = "novastack.embedded.broker:Transport"


def transport_options(home: Path) -> dict[str, Any]:
    """`CELERY_BROKER_TRANSPORT_OPTIONS` for a home. Pure: makes no folder."""
    return {"folder": str(Path(home) / "broker"), "polling_interval": POLL_SECONDS}


def prepare(home: Path) -> None:
    """Make the folders, and drop messages of an earlier life: the rows are the truth, the reconciler hints again."""
    root = Path(home) / "broker"
    for name in ("queues", "taken"):
        (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    drop_messages(home, older_than_seconds=0)


def drop_messages(home: Path, *, older_than_seconds: float) -> int:
    """Remove messages of that age, and what crashed readers and writers left behind. Returns how many."""
    root = Path(home) / "broker"
    limit = time.time() - older_than_seconds
    dropped = 0
    for path in itertools.chain(root.glob("queues/*/*"), root.glob("taken/*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime <= limit:
                path.unlink()
                dropped += 1
    return dropped


class Channel(virtual.Channel):
    """See the module. Queue names are ours (letters, digits, `-`, `_`, `.`)."""

    supports_fanout = False
    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known_empty: dict[str, tuple[int, float]] = {}

    def _queue_folder(self, queue: str) -> Path:
        if not _QUEUE.fullmatch(queue):
            raise ValueError(f"not a queue name: {queue!r}")
        return Path(self.connection.client.transport_options["folder"]) / "queues" / queue

    def _new_queue(self, queue: str, **_: Any) -> None:
        self._queue_folder(queue).mkdir(parents=True, exist_ok=True, mode=0o700)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self._queue_folder(queue).is_dir()

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        folder = self._queue_folder(queue)
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}"
        temporary = folder / f".{name}"
        data = dumps(payload).encode()
        try:
            temporary.write_bytes(data)
        except FileNotFoundError:
            self._new_queue(queue)
            temporary.write_bytes(data)
        temporary.rename(folder / name)

    def _get(self, queue: str, timeout: Any = None) -> Any:
        folder = self._queue_folder(queue)
        try:
            changed = folder.stat().st_mtime_ns
        except FileNotFoundError:
            raise Empty from None
        now = time.time()
        if (known := self._known_empty.get(queue)) and known[0] == changed and now - known[1] < _RELIST_SECONDS:
            raise Empty
        for name in self._names(folder):
            taken = folder.parent.parent / "taken" / name
            try:
                (folder / name).rename(taken)  # whoever renames it has it
            except FileNotFoundError:
                if not taken.parent.is_dir():
                    taken.parent.mkdir(parents=True, exist_ok=True)
                continue
            payload = taken.read_bytes()
            taken.unlink(missing_ok=True)
            return loads(bytes_to_str(payload))
        if now - changed / 1e9 > _SETTLE_SECONDS:
            self._known_empty[queue] = (changed, now)
        raise Empty

    @staticmethod
    def _names(folder: Path) -> list[str]:
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def _size(self, queue: str) -> int:
        return len(self._names(self._queue_folder(queue)))

    def _purge(self, queue: str) -> int:
        folder = self._queue_folder(queue)
        count = 0
        for name in self._names(folder):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
                count += 1
        return count


class Transport(virtual.Transport):
    Channel = Channel
    polling_interval = POLL_SECONDS
    driver_type = "filesystem"
    driver_name = "novastack"
