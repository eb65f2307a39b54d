"""A stream that is read ahead: everything, in order, no more than a few mebibytes at a time, and errors at their place."""

from __future__ import annotations

import io
import random
import threading

import pytest

from projects.operations.ahead import Ahead

MIB = 1 << 20
WAIT_SECONDS = 60.0


def test_everything_comes_in_order_and_small_pieces_together() -> None:
    chance = random.Random(4)
    whole = chance.randbytes(9 * MIB)
    source = io.BytesIO(whole)
    with Ahead(lambda size: source.read(min(size, chance.choice([1000, 65_536, MIB]))), name="x") as pieces:
        found = list(pieces)
    assert b"".join(found) == whole
    assert all(0 < len(piece) <= MIB for piece in found)


def test_no_more_is_held_than_a_few_mebibytes() -> None:
    reads, taken, over = [0], [0], []

    def read(size: int) -> bytes:
        reads[0] += 1
        if reads[0] > 40:
            return b""
        if (reads[0] - 1 - taken[0]) * MIB > 7 * MIB:  # in a queue of 4, in hand, on its way
            over.append(reads[0])
        return bytes(size)

    with Ahead(read, name="x") as pieces:
        for piece in pieces:
            taken[0] += len(piece) // MIB
            threading.Event().wait(0.01)
    assert taken[0] == 40 and over == []


def test_an_error_comes_after_what_was_read_before() -> None:
    answers = [b"first", b"second"]

    def read(_size: int) -> bytes:
        if answers:
            return answers.pop(0)
        raise OSError("the connection broke")

    found = []
    with Ahead(read, name="x") as pieces, pytest.raises(OSError, match="broke"):
        for piece in pieces:
            found.append(piece)  # noqa: PERF402 - it is what came before the error
    assert b"".join(found) == b"firstsecond"


def test_its_thread_ends_with_who_takes_from_it() -> None:
    with Ahead(lambda size: bytes(size), name="endless") as pieces:
        next(iter(pieces))
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "ahead-endless")
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
