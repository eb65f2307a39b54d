"""What is stored of a dump, and the way back: nothing whole is believed that is not what was stored."""

from __future__ import annotations

import hashlib
import io
import random
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyrage
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from backups.archive import CorruptArchive, Opener, Sealer
from backups.storage.base import StorageError
from backups.zstd_frames import FrameWalker, NotZstd
from projects.engines.framing import PIECE_BYTES


class Shelf(io.BytesIO):
    """A storage's writer."""


def identity() -> tuple[str, str]:
    made = pyrage.x25519.Identity.generate()
    return str(made), str(made.to_public())


def seal(dump: bytes, recipients: list[str] | None, *, step: int = 100_000, **options: Any) -> tuple[bytes, Any]:
    shelf = Shelf()
    sealer = Sealer(shelf, recipients, **options)
    for start in range(0, len(dump), step):
        sealer.feed(dump[start : start + step])
    sealed = sealer.finish()
    return shelf.getvalue(), sealed


def opened(stored: bytes, identities: list[str] | None, sha256: str = "", *, compressed: bool = True) -> bytes:
    with Opener(io.BytesIO(stored), identities, compressed=compressed, sha256=sha256) as opener:
        pieces = list(opener)
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def words(size: int, seed: int = 7) -> bytes:
    made = random.Random(seed)
    return b"".join(b"%d some words that compress %d\n" % (made.getrandbits(60), n) for n in range(size // 40))


DUMP = words(9_000_000)


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_is_sealed_comes_out_again_and_is_described(encrypted: bool) -> None:
    secret, public = identity()
    stored, sealed = seal(DUMP, [public] if encrypted else None)
    assert (sealed.dump_bytes, sealed.size_bytes) == (len(DUMP), len(stored))
    assert sealed.sha256 == hashlib.sha256(stored).hexdigest()
    assert sealed.compressed
    assert sealed.encrypted is encrypted
    assert len(stored) < len(DUMP) / 2
    assert (b"some words" in stored) is False
    assert opened(stored, [secret] if encrypted else None, sealed.sha256) == DUMP


@settings(max_examples=25, deadline=None)
@given(dump=st.binary(max_size=3000), step=st.integers(1, 700), encrypted=st.booleans())
def test_every_content_in_every_cut_goes_round(dump: bytes, step: int, encrypted: bool) -> None:
    secret, public = identity()
    if dump[:4] == b"\x28\xb5\x2f\xfd":
        return
    stored, sealed = seal(dump, [public] if encrypted else None, step=step)
    assert opened(stored, [secret] if encrypted else None, sealed.sha256) == dump


def test_a_stream_that_comes_compressed_is_stored_as_it_is() -> None:
    packed = zstandard.compress(DUMP) + zstandard.compress(b"and another frame")
    stored, sealed = seal(packed, None, step=3)
    assert stored == packed
    assert sealed.dump_bytes == len(packed)
    assert opened(stored, None, sealed.sha256) == DUMP + b"and another frame"


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_compressed_stream_that_was_cut_off_is_never_sealed(encrypted: bool) -> None:
    sealer = Sealer(Shelf(), [identity()[1]] if encrypted else None)
    sealer.feed(zstandard.compress(DUMP)[:-1])
    with pytest.raises(CorruptArchive) as refused:
        sealer.finish()
    assert refused.value.code == "truncated"


def test_every_recipient_can_open_it_and_nobody_else() -> None:
    (mine, my_public), (offline, offline_public), (other, _) = identity(), identity(), identity()
    stored, sealed = seal(b"secret" * 1000, [my_public, offline_public])
    for secret in (mine, offline):
        assert opened(stored, [other, secret], sealed.sha256) == b"secret" * 1000
    with pytest.raises(CorruptArchive) as refused:
        opened(stored, [other], sealed.sha256)
    assert refused.value.code == "wrong_key"


def test_sealing_for_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody"):
        Sealer(Shelf(), [])


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("where", [0, 3, 40, 100, 5_000, -40, -1])
@pytest.mark.parametrize("known_hash", [True, False])
def test_a_flipped_byte_is_found_wherever_it_is(encrypted: bool, where: int, known_hash: bool) -> None:
    secret, public = identity()
    stored, sealed = seal(DUMP[:400_000], [public] if encrypted else None)
    flipped = bytearray(stored)
    flipped[where] ^= 0x10
    with pytest.raises(CorruptArchive) as refused:
        opened(bytes(flipped), [secret] if encrypted else None, sealed.sha256 if known_hash else "")
    assert refused.value.code == "hash_mismatch" if known_hash else refused.value.code != "hash_mismatch"


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("size", [0, 3, 50, 30_000, -70_000, -1])
def test_an_object_that_was_cut_off_is_found_even_without_its_hash(encrypted: bool, size: int) -> None:
    secret, public = identity()
    stored, sealed = seal(DUMP[:400_000], [public] if encrypted else None)
    cut = stored[:size]
    with pytest.raises(CorruptArchive) as refused:
        opened(cut, [secret] if encrypted else None)
    assert refused.value.code == "truncated" or (
        size == 50 and refused.value.code == "bad_archive"
    )  # half an age header
    with pytest.raises(CorruptArchive) as refused:
        opened(cut, [secret] if encrypted else None, sealed.sha256)
    assert refused.value.code == "hash_mismatch"


def test_another_whole_object_in_its_place_is_found_before_its_last_piece() -> None:
    secret, public = identity()
    _, sealed = seal(DUMP, [public])
    swapped, _ = seal(words(9_000_000, seed=8), [public])
    got = []
    with (
        pytest.raises(CorruptArchive) as refused,
        Opener(io.BytesIO(swapped), [secret], compressed=True, sha256=sealed.sha256) as opener,
    ):
        got.extend(opener)
    assert refused.value.code == "hash_mismatch"
    assert sum(map(len, got)) < len(words(9_000_000, seed=8))


def test_bytes_after_the_end_are_found() -> None:
    stored, sealed = seal(DUMP[:50_000], None)
    with pytest.raises(CorruptArchive) as refused:
        opened(stored + b"more", None, sealed.sha256)
    assert refused.value.code == "hash_mismatch"
    with pytest.raises(CorruptArchive) as refused:
        opened(stored + b"more", None)
    assert refused.value.code == "bad_archive"


class Breaks(io.BytesIO):
    """A storage that goes away in the middle."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 500_000:
            raise StorageError("storage_unreachable", "gone")
        return super().read(100_000)


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_storage_that_goes_away_says_nothing_about_the_archive(encrypted: bool) -> None:
    secret, public = identity()
    stored, sealed = seal(DUMP, [public] if encrypted else None)
    with pytest.raises(StorageError) as failed, Opener(
        Breaks(stored), [secret] if encrypted else None, compressed=True, sha256=sealed.sha256
    ) as opener:  # fmt: skip
        list(opener)
    assert failed.value.code == "storage_unreachable"


class Full(io.BytesIO):
    def write(self, piece: Any) -> int:
        if self.tell() > 300_000:
            raise StorageError("storage_full", "full")
        return super().write(piece)


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_storage_that_is_full_is_told_to_who_feeds(encrypted: bool) -> None:
    sealer = Sealer(Full(), [identity()[1]] if encrypted else None)
    noise = random.Random(1)
    with pytest.raises(StorageError) as failed:
        for _ in range(200):
            sealer.feed(noise.randbytes(1_000_000))
    assert failed.value.code == "storage_full"
    sealer.abort()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("age-")]


def test_who_gives_up_leaves_no_thread_behind() -> None:
    secret, public = identity()
    sealer = Sealer(Shelf(), [public])
    sealer.feed(DUMP)
    sealer.abort()
    stored, _ = seal(DUMP, [public])
    opener = Opener(io.BytesIO(stored), [secret], compressed=True)
    assert next(iter(opener))
    opener.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("age-")]


def test_a_small_object_that_would_fill_the_memory_is_read_in_pieces() -> None:
    bomb = zstandard.compress(b"\0" * (600 << 20))
    assert len(bomb) < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Opener(io.BytesIO(bomb), None, compressed=True) as opener:
        assert sum(map(len, opener)) == 600 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    ).compressobj()
    with pytest.raises(CorruptArchive) as refused:
        opened(window.compress(words(60_000_000)) + window.flush(), None)
    assert refused.value.code == "bad_archive"


MEASURE = """
import io, random, resource, sys
from backups.archive import Opener, Sealer
import pyrage
key = pyrage.x25519.Identity.generate()
class Count:
    def __init__(self): self.size = 0
    def write(self, piece): self.size += len(piece); self.file.write(piece); return len(piece)
made = random.Random(1)
block = b"".join(made.randbytes(400) + b"a row of text that repeats itself " * 24 for _ in range(3000))
count = Count(); count.file = open(sys.argv[1], "wb")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
base = peak()
sealer = Sealer(count, [str(key.to_public())])
for n in range(int(sys.argv[2])): sealer.feed(block)
sealed = sealer.finish(); count.file.close()
sealing = peak() - base
with Opener(open(sys.argv[1], "rb"), [str(key)], compressed=True, sha256=sealed.sha256) as opener:
    assert sum(map(len, opener)) == len(block) * int(sys.argv[2])
print(sealing, peak() - base)
"""


def test_memory_does_not_grow_with_the_size(tmp_path: Path) -> None:
    """Peak growth in kB of a process that seals, and then opens as well, 30 and 300 MB."""
    grown = []
    for blocks in (8, 80):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "object"), str(blocks)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        grown.append([int(value) for value in done.stdout.split()])
    assert max(grown[1]) < 64_000, grown
    assert max(grown[1]) - max(grown[0]) < 16_000, grown


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the zstd program (Debian: zstd)")
def test_the_ordinary_tool_reads_it() -> None:
    stored, _ = seal(DUMP, None)
    assert subprocess.run(["zstd", "-dc"], input=stored, capture_output=True, check=True).stdout == DUMP


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.binary(max_size=400), min_size=1, max_size=4), cut=st.integers(1, 5), checksum=st.booleans())
def test_frames_are_walked_to_their_end(data: list[bytes], cut: int, checksum: bool) -> None:
    one = zstandard.ZstdCompressor(write_checksum=checksum)
    stream = b"".join(one.compress(part * 3000) for part in data) + b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    walker = FrameWalker()
    for start in range(0, len(stream), 777):
        walker.feed(stream[start : start + 777])
    assert walker.complete
    short = FrameWalker()
    short.feed(stream[:-cut])
    assert not short.complete
    with pytest.raises(NotZstd):
        walker.feed(b"none")
