"""Archives that were changed or cut off anywhere: read whole, or refused with a word, and never anything else."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest

from projects.engines.foreign import CODES, ForeignRefused, Left
from projects.engines.postgresql_foreign import recognise, script_of
from projects.engines.postgresql_unpackers import unpacked
from tests.uploads.test_archives import PACK, ROWS, contents, entry, number, pieces, tar

MORE = entry(5, b"BLOB METADATA", b"7", definition=b"7\n", needs=b"4", tar=False)
BLOBS = b"\x03" + number(4) + number(7) + number(5) + b"large" + number(0) + number(0)
WHOLE = {
    "custom": [contents(tar=False, blobs=True, more=MORE) + b"\x01" + number(2) + number(len(ROWS)) + ROWS + number(0) + BLOBS]
    + [
        contents(tar=False, compression=compression) + b"\x01" + number(2) + number(len(packed)) + packed + number(0)
        for compression, packed in ((compression, pack(b"1\n" * 99 + ROWS)) for compression, pack in PACK.items())
    ],
    "tar": [
        tar([("toc.dat", contents(blobs=True)), ("2.dat", ROWS), ("blob_7.dat", b"x" * 9), ("blobs.toc", b"7 blob_7.dat\n")])
    ],
}  # fmt: skip
SEED = 20261122  # the same files each time; another one when something is looked for
CASES = [(kind, at) for kind, archives in WHOLE.items() for at in range(len(archives))]


def broken(data: bytes, chance: random.Random) -> bytes:
    """Cut off, or with some bytes changed, left out, doubled or put in."""
    if chance.random() < 0.2:
        return data[: chance.randrange(len(data))]
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 30))):
        at = chance.randrange(len(found))
        size = chance.choice((1, 1, 4, 60))
        match chance.randrange(4):
            case 0:
                found[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, found[at] ^ 1 << chance.randrange(8)))
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = found[at : at + size]
            case _:
                found[at:at] = chance.choice((chance.randbytes(size), b"9" * size, bytes(size), b"\xff" * size))
        if not found:
            break
    return bytes(found)


def tried(run: Iterator[bytes]) -> bool:
    try:
        for _ in run:
            pass
    except ForeignRefused as refused:
        assert refused.code in CODES
        refused.detail.encode()
        assert "\0" not in refused.detail
        return False
    return True


def recognised(head: bytes) -> Iterator[bytes]:
    yield recognise(head, "18").encode()


@pytest.mark.parametrize(("kind", "at"), CASES)
def test_what_is_broken_is_refused_with_a_word(kind: str, at: int) -> None:
    seed = SEED
    chance, data = random.Random(seed), WHOLE[kind][at]
    assert tried(script_of([data], kind, Left()))
    taken = 0
    tracemalloc.start()
    try:
        for _ in range(300):
            wrong = broken(data, chance)
            tried(recognised(wrong[:4096]))
            taken += tried(script_of(pieces(wrong, chance.choice((3, 700, 1 << 20))), kind, Left()))
        peak = tracemalloc.get_traced_memory()[1]
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, seed
    assert taken < 300, seed


@pytest.mark.parametrize("compression", PACK)
def test_streams_that_are_broken(compression: int) -> None:
    seed = SEED
    chance, packed = random.Random(seed), PACK[compression](random.Random(1).randbytes(300) + bytes(1 << 20))
    tracemalloc.start()
    try:
        for _ in range(300):
            wrong = broken(packed, chance)
            tried(unpacked(compression, pieces(wrong, chance.choice((1, 64, 1 << 20)))))
        peak = tracemalloc.get_traced_memory()[1]
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, seed
