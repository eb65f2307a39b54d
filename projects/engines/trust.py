"""A CA's certificate as a file, for drivers that take nothing else."""

from __future__ import annotations

import atexit
import os
import tempfile
import threading
from pathlib import Path

_kept: dict[str, tuple[int, tuple[int, int]]] = {}  # PEM → descriptor, and which file that is
_lock = threading.Lock()


def ca_file(pem: str) -> str:
    """A path at which this process, and what it forks, finds `pem`. It is in memory, so nobody else can change it."""
    with _lock:
        if pem not in _kept or not _is_still(*_kept[pem]):
            _kept[pem] = _make(pem)
        return f"/proc/self/fd/{_kept[pem][0]}" if _in_memory() else _paths[_kept[pem][0]]


def _make(pem: str) -> tuple[int, tuple[int, int]]:
    if _in_memory():
        descriptor = os.memfd_create("novastack-ca")
    else:
        descriptor, _paths[descriptor] = _temporary()
    os.write(descriptor, pem.encode())
    info = os.fstat(descriptor)
    return descriptor, (info.st_dev, info.st_ino)


def _is_still(descriptor: int, identity: tuple[int, int]) -> bool:
    """Somebody may have closed all descriptors, as daemons do; the number may be another file's by now."""
    try:
        info = os.fstat(descriptor)
    except OSError:
        return False
    return (info.st_dev, info.st_ino) == identity


def _in_memory() -> bool:
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


_paths: dict[int, str] = {}  # systems other than Linux: descriptor → path


def _temporary() -> tuple[int, str]:
    descriptor, path = tempfile.mkstemp(prefix="nvs-ca-", suffix=".pem")
    maker = os.getpid()
    atexit.register(lambda: Path(path).unlink(missing_ok=True) if os.getpid() == maker else None)
    return descriptor, path
