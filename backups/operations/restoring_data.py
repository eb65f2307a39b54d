"""A stored backup into an empty database: storage → hash, age, zstd (`Opener`) → frames → the engine's restore tool beside
the server, and then what a dump leaves out. Constant memory; nothing on a disk.

What is stored is believed only when its hash was seen to be right: the last piece is handed out after that, and the tool
is told that the dump is whole after the last piece. A tool that fails on what it got is not taken at its word either: what
is left of the object is read to its end first, since damage is the likelier cause.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol

import structlog

from backups import manifest as manifests
from backups.archive import CorruptArchive, Opener
from backups.manifest import Manifest, ManifestError
from backups.models import Backup
from backups.operations import keys, storages
from backups.storage.base import Storage, StorageError
from projects import domain
from projects.engines import framing
from projects.engines.foreign import ForeignRefused
from projects.operations import copying, stages, wiring
from projects.operations.base import StepFailed
from projects.operations.context import Context
from projects.operations.move_sides import admitted, admitted_to_restore, given_back, side_of

log = structlog.get_logger(__name__)
MANIFEST_MOST_BYTES = 256 << 20
# Hash, decryption or content (rule 51): these codes say that the backup itself is bad, and no others do.
CORRUPT = frozenset(
    {
        "hash_mismatch", "wrong_key", "truncated", "bad_archive", "bad_signature", "manifest_damaged",
        "manifest_mismatch", "content_differs",
    }
)  # fmt: skip
_LOOK_SECONDS = 0.25
_END_SECONDS = 20.0


class BackupCorrupt(StepFailed):
    """The backup is not what was stored, or not what was dumped. `code` is one of `CORRUPT`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail[:500], retryable=False)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back. `tool`: a login for reading the copy until it is dismissed. The tenant's is locked."""

    manifest: Manifest
    tool: domain.Credentials
    dump_bytes: int
    seconds: float


class storage_errors:
    """A storage's errors as a step's: its codes, and whether trying again may help."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, StorageError):
            raise StepFailed(error.code, error.detail[:500], retryable=error.retryable) from error


def read_manifest(backup: Backup, storage: Storage | None = None) -> Manifest:
    """The signed manifest out of the storage, which must be this backup's, and say what the row says. Raises
    `BackupCorrupt`, or `StepFailed` when it can't be read."""
    with storage_errors():
        storage = storage or storages.storage_of(backup.storage)
        with contextlib.closing(storage.open(backup.manifest_key)) as stream:
            data = stream.read(MANIFEST_MOST_BYTES + 1)
    if len(data) > MANIFEST_MOST_BYTES:
        raise BackupCorrupt("manifest_damaged", "The manifest is larger than any manifest can be.")
    try:
        identities = keys.identities_of(backup.organization_id) if backup.encrypted else None
        found = manifests.open_(data, identities, keys.public_keys())
    except ManifestError as error:
        code = "manifest_damaged" if error.code == "damaged" else error.code
        raise BackupCorrupt(code, f"Its manifest can't be read: {error}") from error
    wrong = [
        what
        for what, mine, theirs in (
            ("backup", str(backup.pk), str(found.backup)),
            ("object", backup.object_key, found.key),
            ("engine", backup.engine, found.engine),
            ("hash", backup.sha256, found.stored.get("sha256")),
        )
        if mine != theirs
    ]
    if wrong:
        raise BackupCorrupt("manifest_mismatch", f"The manifest in the storage is another one's: {', '.join(wrong)}.")
    return found


def check_size(backup: Backup, manifest: Manifest, storage: Storage) -> None:
    """The object is there, and as long as it was: said before anything is begun for it. Raises as `read_manifest`."""
    with storage_errors():
        stored = storage.head(backup.object_key)
    if stored is None:
        raise StepFailed("object_missing", "The storage has no such object.", retryable=False)
    wanted = int(manifest.stored["bytes"])
    if stored.size_bytes != wanted:
        raise BackupCorrupt("truncated", f"The object has {stored.size_bytes} bytes instead of {wanted}.")


def restore_into(
    side: Context, names: domain.TenantNames, backup: Backup, *, stem: str, pulse: Callable[[int], None]
) -> Restored:
    """Fill the empty database of `names` on the side's server with what the backup holds, and set around it what a dump
    leaves out. `names` must be those of the manifest: rights in the dump name them (rename afterwards).

    `stem` names the tool (`copying.tool_names(stem)[1]`; one that a killed worker left is removed first). `pulse` gets the
    dump's bytes so far several times a second, and ends it by raising. Raises `BackupCorrupt`, or `StepFailed` with
    `restore_failed`, `target_lost`, `target_full`, `tool_out_of_memory`, `tool_killed` and a storage's codes, and what
    runtimes raise. In no case a tool is left running, unless its runtime can't be reached. Nothing is dismissed here: the
    tool's login stays, so that the copy can be read.
    """
    began = time.monotonic()
    with storage_errors():
        storage = storages.storage_of(backup.storage)
    manifest = read_manifest(backup, storage)
    check_size(backup, manifest, storage)
    copying.remove_tools(None, side.runtime, stem)
    taker = admitted_to_restore(side, names)
    opener = open_archive(backup, manifest, storage)
    restoring = side.engine.restoring()
    moved = feed(side, side_of(side, taker), opener, name=copying.tool_names(stem)[1], pulse=pulse, hear=restoring.hear)
    side.guard()
    restoring.finish(side.server.control_endpoint, taker, names, pulse=lambda: pulse(moved))
    given_back(side, names)
    tool = admitted(side, names)
    with wiring.admin_session(side.engine, side.server) as admin:
        admin.put_around(names, dict(manifest.around))
    return Restored(manifest, tool, moved, time.monotonic() - began)


def open_archive(backup: Backup, manifest: Manifest, storage: Storage) -> Opener:
    """The engine's archive out of the storage, whose hash is looked at on the way."""
    with storage_errors():
        source = storage.open(backup.object_key)
    stored = manifest.stored
    identities = keys.identities_of(backup.organization_id) if stored["encrypted"] else None
    try:
        return Opener(source, identities, compressed=bool(stored["compressed"]), sha256=str(stored["sha256"]))
    except CorruptArchive as error:
        source.close()
        raise BackupCorrupt(error.code, str(error)) from error


class Archive(Protocol):
    """Pieces of at most `framing.PIECE_BYTES`, to their end; an `Opener` is one."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


def feed(
    side: Context, target: copying.Side, opener: Archive, *, name: str, pulse: Callable[[int], None],
    hear: Callable[[bytes], None] = lambda _: None, command: domain.Command | None = None, read_on: bool = True,
) -> int:  # fmt: skip
    """Run the restore tool (or `command`) on what the opener gives, each piece of which `hear` gets first; returns the
    archive's bytes. The opener is closed in any case. `read_on`: when the tool refuses it, all of it is read, since it may
    be damaged, which says more; else what was wrong first counts."""
    stage: stages.Stage | None = None
    feeder: _Feeder | None = None
    try:
        side.guard()
        tool = target.runtime.run_tool(
            name, target.image, command or side.engine.restore(target.place, target.credentials), beside=target.handle,
            memory_bytes=stages.TOOL_MEMORY_BYTES,
        )  # fmt: skip
        stage = stages.Stage("restore", tool)
        stage.listen()
        feeder = _Feeder(opener, tool.stdin, name, hear)
        feeder.start()
        return _watch(stage, feeder, pulse, read_on)
    finally:
        if feeder is not None:
            feeder.stop.set()
        if stage is not None:
            stage.end()
        opener.close()
        if feeder is not None:
            feeder.join(5)


def _watch(stage: stages.Stage, feeder: _Feeder, pulse: Callable[[int], None], read_on: bool) -> int:
    while feeder.is_alive():
        feeder.join(_LOOK_SECONDS)
        pulse(feeder.moved)
        ended = stage.poll()
        if feeder.broken and not read_on:
            feeder.stop.set()
        if ended is not None and feeder.is_alive() and not feeder.refused.is_set():
            feeder.refused.set()  # nobody takes any more: from here on it only reads, to see what the object is
            if not read_on or stage.failure(ended).code != "restore_failed":
                feeder.stop.set()
    if feeder.error is not None and (read_on or not (feeder.broken or feeder.refused.is_set())):
        raise feeder.error
    if feeder.broken or feeder.refused.is_set():
        ended = stage.awaited(pulse, feeder.moved, seconds=_END_SECONDS)
        if ended.exit_code:
            raise stage.failure(ended)
        raise StepFailed("restore_failed", "The restore tool ended before the dump did.", retryable=False)
    ended = stage.awaited(pulse, feeder.moved, seconds=None)
    if ended != domain.ExitResult(0):
        raise stage.failure(ended)
    return feeder.moved


class _Feeder(threading.Thread):
    """Moves pieces from the opener into the tool. No ORM here."""

    def __init__(self, opener: Archive, sink: IO[bytes], name: str, hear: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True, name=f"feed-{name}")
        self._opener, self._sink, self._hear = opener, sink, hear
        self.stop, self.refused = threading.Event(), threading.Event()
        self.moved = 0
        self.broken = False
        self.misheard: domain.EngineError | None = None
        self.error: StepFailed | None = None

    def run(self) -> None:
        try:
            for piece in self._opener:
                if self.stop.is_set():
                    return
                self._heard(piece)
                self._put(framing.frame(piece))
                self.moved += len(piece)
            if self.misheard is not None:
                self.error = StepFailed("restore_failed", f"This is no dump: {self.misheard}", retryable=False)
            elif not self.stop.is_set():
                self._put(framing.END)
                with contextlib.suppress(OSError, ValueError):
                    self._sink.close()
        except CorruptArchive as error:
            self.error = BackupCorrupt(error.code, str(error))
        except StorageError as error:
            self.error = StepFailed(error.code, error.detail[:500], retryable=error.retryable)
        except ForeignRefused as error:
            self.error = StepFailed(error.code, error.detail[:500], retryable=False)
        except Exception as error:
            if not self.stop.is_set():
                log.error("reading a backup broke", error=type(error).__name__, exc_info=error)
                self.error = StepFailed("storage_failed", f"The stream broke ({type(error).__name__}).")

    def _heard(self, piece: bytes) -> None:
        """What is no dump is read to its end: its hash may be wrong, which nobody has looked at yet."""
        if self.misheard is not None:
            return
        try:
            self._hear(piece)
        except domain.EngineError as error:
            self.misheard = error
            self.refused.set()

    def _put(self, data: bytes) -> None:
        """To the tool, as long as it takes anything."""
        if self.broken or self.refused.is_set():
            return
        try:
            self._sink.write(data)
            self._sink.flush()
        except (OSError, ValueError):
            self.broken = True
