"""What is stored of a dump: zstd, then age, hashed on the way; and the way back. In constant memory, whatever the size.

A stored object is what the ordinary tools read: `age -d -i identities.txt OBJECT | zstd -d` gives the engine's archive
(docs/recovery.md). age runs in a thread of its own, since pyrage pulls from a file and pushes into another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import pyrage
import zstandard

from backups.streams import BLOCK_BYTES, Channel, Closed, Gathered
from backups.zstd_frames import FrameWalker, NotZstd
from projects.engines.framing import PIECE_BYTES

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_LOG = 25  # 32 MB: the largest window of a stream that we open; ours have 2 MB
_JOB_BYTES = 2 << 20  # of each of zstd's threads; its default would be four windows and more memory


class Takes(Protocol):
    """Where sealed bytes go; `backups.storage.base.Writer` is one."""

    def write(self, piece: bytes, /) -> int: ...


class CorruptArchive(Exception):
    """What is stored is not what was stored. `code`: `hash_mismatch` (the bytes are others), `wrong_key` (no identity opens
    it), `truncated` (it ends too early), `bad_archive` (no age file, no zstd stream)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Sealed:
    """`dump_bytes`: as fed (of a stream that came compressed, its compressed size); `size_bytes` and `sha256` (hex) of what
    is stored."""

    dump_bytes: int
    size_bytes: int
    sha256: str
    compressed: bool
    encrypted: bool


class Sealer:
    """Raw dump in, stored bytes out into `writer`. A stream that begins as zstd's does is passed through as it is.

    `recipients`: age recipients, None for no encryption. What `writer` raises comes out of `feed` or `finish` as it is.
    Used by one thread; `writer` is called from another one while there are recipients. Does not commit or abort `writer`.
    """

    def __init__(
        self, writer: Takes, recipients: Sequence[str] | None, *, level: int = 3, threads: int = 2
    ) -> None:  # fmt: skip
        self._writer, self._level, self._threads = writer, level, threads
        self._digest = hashlib.sha256()
        self._fed = self._stored = 0
        self._head = b""
        self._compressor: zstandard.ZstdCompressionObj | None = None
        self._walker: FrameWalker | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._sink = Gathered(self._store)
        self._into: Callable[[bytes], object] = self._sink.write
        if recipients is not None:
            keys = [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
            if not keys:
                raise ValueError("nobody could open what is sealed for no recipient")
            self._channel = Channel()
            self._gather = Gathered(self._channel.write)
            self._into = self._gather.write
            self._thread = threading.Thread(target=self._encrypt, args=(keys,), name="age-seal", daemon=True)
            self._thread.start()

    def feed(self, piece: bytes) -> None:
        self._fed += len(piece)
        if self._compressor is None and self._walker is None:
            self._head += piece
            if len(self._head) < len(ZSTD_MAGIC):
                return
            piece, self._head = self._head, b""
            self._begin(piece)
        self._pass(piece)

    def finish(self) -> Sealed:
        """All came. `CorruptArchive("truncated")` when a stream that came compressed is not whole."""
        if self._compressor is None and self._walker is None:
            self._begin(self._head)
            self._pass(self._head)
        if self._walker is not None and not self._walker.complete:
            self.abort()
            raise CorruptArchive("truncated", "The compressed dump ends too early.")
        if self._compressor is not None:
            self._send(self._compressor.flush())
        if self._thread is not None:
            self._guarded(self._gather.flush_rest)
            self._channel.end()
            self._thread.join()
            self._raise()
        else:
            self._sink.flush_rest()
        return Sealed(self._fed, self._stored, self._digest.hexdigest(), True, self._thread is not None)

    def abort(self) -> None:
        """End the thread. Never raises; what was stored so far is for the writer's owner to throw away."""
        if self._thread is not None:
            self._channel.close()
            self._thread.join(60)

    def _begin(self, head: bytes) -> None:
        if head[: len(ZSTD_MAGIC)] == ZSTD_MAGIC:
            self._walker = FrameWalker()
        else:
            self._compressor = compressor(self._level, self._threads).compressobj()

    def _pass(self, piece: bytes) -> None:
        if self._walker is not None:
            try:
                self._walker.feed(piece)
            except NotZstd as error:
                self.abort()
                raise CorruptArchive("bad_archive", f"The compressed dump is no zstd stream: {error}.") from None
            self._send(piece)
            return
        assert self._compressor is not None  # noqa: S101 - one of the two since `_begin`
        for start in range(0, len(piece), PIECE_BYTES):
            self._send(self._compressor.compress(piece[start : start + PIECE_BYTES]))

    def _send(self, piece: bytes) -> None:
        if piece:
            self._guarded(lambda: self._into(piece))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Closed:
            self._raise()
            raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _encrypt(self, keys: list[pyrage.x25519.Recipient]) -> None:
        try:
            pyrage.encrypt_io(self._channel, self._sink, keys)
            self._sink.flush_rest()
        except BaseException as error:  # raised again by who feeds
            self._error = self._error or error
        finally:
            self._channel.close()

    def _store(self, block: bytes) -> None:
        self._digest.update(block)
        self._stored += len(block)
        try:
            self._writer.write(block)
        except Exception as error:
            self._error = error  # pyrage would hand on its text only
            raise


class _Source:
    """A stored object as it is read: hashed; what its storage raises is kept apart from what is wrong with its content."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._digest = hashlib.sha256()
        self._block = memoryview(b"")
        self.error: Exception | None = None
        self.ended = False
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        if not self._block:
            self._block = memoryview(self._read_block())
        taken = self._block if size < 0 else self._block[:size]
        self._block = self._block[len(taken) :]
        return bytes(taken)

    def drain(self) -> None:
        """To the end, for the hash."""
        while self._read_block():
            pass

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _read_block(self) -> bytes:
        if self.closed:
            raise Closed
        try:
            block = self._source.read(BLOCK_BYTES)
        except Exception as error:
            self.error = error
            raise
        self._digest.update(block)
        self.ended = not block
        return block


class _Walked:
    """A compressed stream on its way to the decompressor, which itself takes a cut-off stream for a whole one."""

    def __init__(self, source: _Source | Channel) -> None:
        self._source = source
        self.walker = FrameWalker()

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size)
        self.walker.feed(piece)
        return piece


class Opener:
    """The engine's archive out of a stored object, in pieces of at most `framing.PIECE_BYTES`, none empty.

    Iterate it once. The last piece is handed out only when everything was found well: decrypted to its end, a whole zstd
    stream, and, with `sha256`, the bytes that were stored. Else `CorruptArchive`; what `source` raises (a storage that is
    away) comes out as it is. `identities`: None for what is not encrypted. `close` ends the thread and closes `source`.
    """

    def __init__(
        self, source: IO[bytes], identities: Sequence[str] | None, *, compressed: bool, sha256: str = ""
    ) -> None:  # fmt: skip
        self._raw, self._sha256 = source, sha256
        self._source = _Source(source)
        self._channel: Channel | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._walked: _Walked | None = None
        plain: _Source | Channel = self._source
        if identities is not None:
            keys = [pyrage.x25519.Identity.from_str(identity) for identity in identities]
            plain = self._channel = Channel()
            self._thread = threading.Thread(target=self._decrypt, args=(keys,), name="age-open", daemon=True)
            self._thread.start()
        self._plain: _Source | _Walked | Channel | zstandard.ZstdDecompressionReader = plain
        if compressed:
            self._walked = _Walked(plain)
            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
            self._plain = unpacker.stream_reader(self._walked, read_across_frames=True)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[bytes]:
        held = b""
        while piece := self._piece():
            if held:
                yield held
            held = piece
        self._end()
        if held:
            yield held

    def close(self) -> None:
        self._source.closed = True
        if self._channel is not None:
            self._channel.close()
        with contextlib.suppress(Exception):  # it was only read
            self._raw.close()
        if self._thread is not None:
            self._thread.join(60)

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _piece(self) -> bytes:
        try:
            return self._plain.read(PIECE_BYTES)
        except (zstandard.ZstdError, NotZstd) as error:
            self._refuse("bad_archive", f"It is no zstd stream, or damaged: {error}.")
        except Closed:
            self._refuse("bad_archive", "It could not be decrypted.")
        except MemoryError:
            self._refuse("bad_archive", "It asks for more memory than a backup of ours ever does.")
        raise AssertionError("unreachable")

    def _end(self) -> None:
        """The content has ended: was it all, and what was stored?"""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            self._refuse("bad_archive", "It could not be decrypted.")
        if self._walked is not None and not self._walked.walker.complete:
            self._refuse("truncated", "It ends too early.")
        self._source.drain()
        self._compare()

    def _refuse(self, code: str, detail: str) -> None:
        """Raise what is really wrong: the storage, the hash, decryption, or else this."""
        if self._source.error is not None:
            raise self._source.error
        if self._source.closed:
            raise ValueError("read after close")
        undecrypted = self._error  # before the thread is ended, which is an error to it
        if self._channel is not None:
            self._channel.close()
        if self._thread is not None:
            self._thread.join()
        if self._source.error is not None:
            raise self._source.error
        if self._sha256:
            self._source.drain()
            self._compare()
        if undecrypted is not None:
            raise _undecrypted(undecrypted, self._source.ended)
        raise CorruptArchive(code, detail)

    def _compare(self) -> None:
        if self._sha256 and self._source.hexdigest() != self._sha256:
            raise CorruptArchive("hash_mismatch", "What is stored has another SHA-256 than what was stored.")

    def _decrypt(self, keys: list[pyrage.x25519.Identity]) -> None:
        assert self._channel is not None  # noqa: S101 - made before this thread
        into = Gathered(self._channel.write)
        try:
            pyrage.decrypt_io(self._source, into, keys)
            into.flush_rest()
            self._channel.end()
        except BaseException as error:  # raised again by who reads
            self._error = error
            self._channel.close()


def compressor(level: int = 3, threads: int = 2) -> zstandard.ZstdCompressor:
    """zstd with a checksum, in bounded memory. `threads` 0: in the calling thread."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=threads, write_checksum=True, **({"job_size": _JOB_BYTES} if threads else {})
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def _undecrypted(error: BaseException, ended: bool) -> CorruptArchive:
    text = str(error).lower()
    if "no matching keys" in text:
        return CorruptArchive("wrong_key", "None of the known identities opens it.")
    if isinstance(error, pyrage.DecryptError):
        code = "truncated" if "whole buffer" in text else "bad_archive"
        return CorruptArchive(code, f"It is no age file: {error}.")
    if ended:
        return CorruptArchive("truncated", "Its encryption ends too early, or its end was changed.")
    return CorruptArchive("bad_archive", f"It could not be decrypted: {error}.")
