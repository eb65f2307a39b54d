"""The encrypted file of several: whole or refused, whatever was done to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novastack.common import vault
from novastack.common.vault import CHUNK_BYTES, VaultError, WrongPassphrase, is_encrypted, read_vault, write_vault

PASS = "a long enough passphrase"
NAMES = frozenset({"a.json", "big.bin"})


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a key that is cheap to derive: the file says how, and many of them are read here."""
    monkeypatch.setattr(vault, "_SCRYPT", {**vault._SCRYPT, "n": 1 << 14})
    big = tmp_path / "source.bin"
    big.write_bytes(os.urandom(2 * CHUNK_BYTES + 4321))
    path = tmp_path / "file.novastack"
    write_vault(path, {"a.json": b'{"secret": "hunter2"}', "big.bin": big}, passphrase=PASS)
    return path


def read(path: Path, passphrase: str | None = PASS) -> Path:
    into = path.parent / f"out-{os.urandom(4).hex()}"
    into.mkdir()
    read_vault(path, into, passphrase=passphrase, names=NAMES)
    return into


def test_a_round_trip(made: Path) -> None:
    into = read(made)
    assert (into / "a.json").read_bytes() == b'{"secret": "hunter2"}'
    assert (into / "big.bin").read_bytes() == (made.parent / "source.bin").read_bytes()
    assert made.stat().st_mode & 0o777 == 0o600
    assert is_encrypted(made)
    assert b"hunter2" not in made.read_bytes()
    assert [p.name for p in made.parent.glob(".*")] == []


def test_deriving_its_key_is_dear(tmp_path: Path) -> None:
    path = tmp_path / "file.novastack"
    write_vault(path, {"a.json": b"{}", "big.bin": b""}, passphrase=PASS)
    assert json.loads(path.read_bytes().splitlines()[1])["n"] == 1 << 16
    assert (read(path) / "a.json").read_bytes() == b"{}"


def test_a_wrong_passphrase_and_none(made: Path) -> None:
    with pytest.raises(WrongPassphrase):
        read(made, "another passphrase")
    with pytest.raises(WrongPassphrase):
        read(made, None)


def test_an_existing_file_is_not_replaced(made: Path) -> None:
    before = made.read_bytes()
    with pytest.raises(FileExistsError):
        write_vault(made, {"a.json": b"{}"}, passphrase=PASS)
    assert made.read_bytes() == before


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_anywhere_is_refused(made: Path, where: float, bit: int) -> None:
    data = bytearray(made.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    bad = made.with_name(f"bad-{os.urandom(4).hex()}")
    bad.write_bytes(data)
    with pytest.raises(VaultError):
        read(bad)


@pytest.mark.parametrize("keep", [0, 10, 200, CHUNK_BYTES, CHUNK_BYTES * 2 + 400, -1, -CHUNK_BYTES])
def test_a_cut_off_file_is_refused(made: Path, keep: int) -> None:
    bad = made.with_name("cut")
    bad.write_bytes(made.read_bytes()[:keep])
    with pytest.raises(VaultError):
        read(bad)


def test_chunks_can_not_change_places(made: Path) -> None:
    data = made.read_bytes()
    start = data.index(b"\n", data.index(b"\n") + 1) + 1
    size = CHUNK_BYTES + 16
    one, two, rest = data[start : start + size], data[start + size : start + 2 * size], data[start + 2 * size :]
    bad = made.with_name("swapped")
    bad.write_bytes(data[:start] + two + one + rest)
    with pytest.raises(VaultError):
        read(bad)


def test_without_encryption_it_is_readable_and_still_checked(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    write_vault(path, {"a.json": b"clear", "big.bin": b"x" * 5000}, passphrase=None)
    assert not is_encrypted(path)
    assert (read(path, None) / "a.json").read_bytes() == b"clear"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(VaultError):
        read(path, None)


def test_members_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    write_vault(path, {"a.json": b"1", "big.bin": b"2", "../evil": b"3"}, passphrase=PASS)
    with pytest.raises(VaultError, match="unexpected"):
        read(path)
    assert not (tmp_path / "evil").exists()
