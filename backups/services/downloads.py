"""The bytes of a backup for who may have them: as stored, or decrypted. One piece in hand, and nothing believed that was
not hashed: a decrypted stream that turns out wrong breaks off before its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import structlog
import zstandard
from django.conf import settings

from backups.archive import CorruptArchive, Opener
from backups.models import Backup
from backups.operations import keys, storages
from backups.storage.base import StorageError
from novastack.common.errors import Conflict, Invalid, Problem
from projects import registry
from projects.domain import EngineError, Selection
from projects.engines.sql_parts import Gone, Title, TooLarge, Unclear

log = structlog.get_logger(__name__)
PIECE_BYTES = 1 << 20
FLOW_BYTES, FLOW_SECONDS = 256 << 10, 5.0  # of SQL
_MARK_LETTERS = 16  # of the hash over all that is stored: no row can hold what is known only after it was
# Each holds a thread of the web server for as long as its reader takes.
slots = threading.BoundedSemaphore(max(1, settings.NOVASTACK_WEB_THREADS // 2))


class StorageUnavailable(Problem):
    status, code, title = 503, "storage_unavailable", "The storage can't be read now"


class BackupCorrupt(Conflict):
    code, title = "backup_corrupt", "The backup is not what was stored"


class SqlTooLarge(Conflict):
    code, title = "sql_too_large", "Its tables can't be taken out of it"


class SqlUnclear(Conflict):
    code, title = "sql_unclear", "Its tables can't be taken out of it"


class ObjectMissing(Conflict):
    code, title = "object_missing", "What was stored is not there any more"


class TooManyDownloads(Problem):
    status, code, title = 429, "throttled", "Too many downloads at a time"


@dataclass(frozen=True, slots=True)
class Download:
    """`pieces` is to be iterated to its end or closed. It raises when what comes is not what was stored: then whoever
    passes it on must not end well. `size_bytes` None: not known before."""

    pieces: Iterator[bytes]
    size_bytes: int | None

    def close(self) -> None:
        close = getattr(self.pieces, "close", None)
        if close is not None:
            close()


def stored(backup: Backup, *, offset: int = 0, length: int | None = None) -> Download:
    """A part of the object as it lies in the storage, after its first byte was seen. Raises `StorageUnavailable`,
    `ObjectMissing`, `TooManyDownloads`."""
    size = (backup.size_bytes or 0) - offset if length is None else length

    def pieces() -> Iterator[bytes]:
        left = size
        source = storages.storage_of(backup.storage).open(backup.object_key, offset=offset, length=length)
        with contextlib.closing(source):
            while left and (piece := source.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece
        if left:
            raise StorageError("storage_failed", "The object is shorter than it was.")

    return Download(_begun(backup, pieces()), size)


def decrypted(backup: Backup) -> Download:
    """The engine's archive. Raises as `stored`, and `BackupCorrupt`."""

    def pieces() -> Iterator[bytes]:
        source = storages.storage_of(backup.storage).open(backup.object_key)
        identities = keys.identities_of(backup.organization_id) if backup.encrypted else None
        with contextlib.closing(
            Opener(source, identities, compressed=backup.compressed, sha256=backup.sha256)
        ) as opener:  # fmt: skip
            yield from opener

    return Download(_begun(backup, pieces()), backup.dump_bytes)


def sql(backup: Backup, chosen: Selection, *, packed: bool) -> Download:
    """Some tables, or schemas, by their names in the manifest, as SQL for the product's own client; `packed`: with zstd.
    Its last line says that it is the end. Raises as `decrypted`, `Invalid` for what the archive does not hold, `SqlTooLarge`
    and `SqlUnclear`."""
    taken, product = backup.started_at or backup.created_at, registry.engine(backup.engine).title
    title = Title(
        f"Of the backup {backup.pk} of {backup.project_name}, {taken:%Y-%m-%d %H:%M} UTC ({product} {backup.version})",
        backup.sha256[:_MARK_LETTERS],
    )

    def pieces() -> Iterator[bytes]:
        source = storages.storage_of(backup.storage).open(backup.object_key)
        identities = keys.identities_of(backup.organization_id) if backup.encrypted else None
        with contextlib.closing(
            Opener(source, identities, compressed=backup.compressed, sha256=backup.sha256)
        ) as opener:  # fmt: skip
            yield from _flowing(registry.engine(backup.engine).sql_of(opener, chosen, title), packed)

    return Download(_begun(backup, pieces()), None)


def _flowing(script: Iterator[bytes], packed: bool) -> Iterator[bytes]:
    """Put together, and packed; what came is passed on after some seconds, however little it is: proxies wait no longer."""
    packer = zstandard.ZstdCompressor(level=3).compressobj() if packed else None
    held, count, since = [], 0, time.monotonic()
    for piece in chain.from_iterable(map(_parts, script)):
        held.append(piece)
        count += len(piece)
        if count >= FLOW_BYTES or (count and time.monotonic() - since > FLOW_SECONDS):
            whole, held, count, since = b"".join(held), [], 0, time.monotonic()
            if packer is not None:
                whole = packer.compress(whole) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            yield whole
    whole = b"".join(held)
    yield whole if packer is None else packer.compress(whole) + packer.flush()


def _parts(piece: bytes) -> Iterator[bytes]:
    """Of a statement that is long: else packing, and the web server, would each copy all of it."""
    if len(piece) <= FLOW_BYTES:
        yield piece
        return
    for at in range(0, len(piece), FLOW_BYTES):
        yield piece[at : at + FLOW_BYTES]


def _begun(backup: Backup, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """With the first piece read: what is wrong from the beginning is an answer, and no broken stream."""
    if not slots.acquire(blocking=False):
        raise TooManyDownloads("Other downloads are running; try again in a minute.", retry_after_seconds=60)
    try:
        first = next(pieces, b"")
    except BaseException as error:
        slots.release()
        raise _told(error) from error
    return _Held(backup, first, pieces)


def _told(error: BaseException) -> BaseException:
    if isinstance(error, StorageError):
        if error.code == "object_missing":
            return ObjectMissing("What was stored is not in the storage any more.")
        return StorageUnavailable(error.detail)
    if isinstance(error, Gone):
        return Invalid.field(error.field, "unknown", str(error))
    if isinstance(error, TooLarge):
        return SqlTooLarge(f"It can't be read a table at a time: {error}. Download all of it, or restore these tables.")
    if isinstance(error, Unclear):
        return SqlUnclear(f"{error}. Download all of it, or restore these tables.")
    if isinstance(error, EngineError):
        return BackupCorrupt(f"Its archive can't be read: {error}")
    return BackupCorrupt(error.detail) if isinstance(error, CorruptArchive) else error


class _Held(Iterator[bytes]):
    """Gives its slot back however it ends: also closed before the first piece was asked for."""

    def __init__(self, backup: Backup, first: bytes, pieces: Iterator[bytes]) -> None:
        self._backup, self._first, self._pieces = backup, first, pieces
        self._open = True

    def __next__(self) -> bytes:
        if self._first:
            piece, self._first = self._first, b""
            return piece
        if not self._open:
            raise StopIteration
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise
        except BaseException as error:
            self.close()
            log.warning(
                "a download broke off", backup=str(self._backup.pk), error=type(error).__name__, detail=str(error)
            )
            raise

    def close(self) -> None:
        if self._open:
            self._open = False
            slots.release()
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()

    def __del__(self) -> None:
        self.close()


def name_of(backup: Backup, ending: str) -> str:
    """Of the file."""
    return f"{backup.project_slug}-{backup.created_at:%Y%m%d-%H%M%S}{ending}"
