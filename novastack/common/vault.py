"""One file that holds several, encrypted with a passphrase: scrypt, then AES-256-GCM in chunks of 1 MiB.

Layout: a magic line, a header line of JSON (which every chunk authenticates), then the chunks of a tar stream. A chunk's
nonce is 7 random bytes, its number (4 bytes) and whether it is the last one, so that chunks can't be left out, swapped
or cut off unseen. Memory use does not depend on the size. Without a passphrase the body is the plain tar stream.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAGIC = b"NOVASTACK-VAULT 1\n"
CHUNK_BYTES = 1 << 20
_SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}  # 64 MiB and about a quarter of a second
_TAG_BYTES = 16


class VaultError(Exception):
    """The file can't be read; the text says why."""


class WrongPassphrase(VaultError):
    """The passphrase is not that of the file, or the file's beginning was changed."""


def write_vault(path: Path, members: Mapping[str, Path | bytes], *, passphrase: str | None) -> None:
    """Make `path` (0600) from `members` in one step: it is there whole, synced to disk, or not at all.

    Refuses to replace an existing file (`FileExistsError`). `passphrase=None` writes everything in the clear.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, members, passphrase)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike rename, it never replaces what appeared meanwhile
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_vault(path: Path, into: Path, *, passphrase: str | None, names: frozenset[str]) -> dict[str, str]:
    """Put the members called `names` into the folder `into` (0600) and return their SHA-256 in hex.

    `WrongPassphrase`, or `VaultError` for anything that is damaged, cut off, unknown or missing.
    """
    with path.open("rb") as file:
        header, raw = _read_header(file)
        source: Any = file
        if header["cipher"] != "none":
            if not passphrase:
                raise WrongPassphrase("the file is encrypted: a passphrase is needed")
            try:
                cipher, prefix = _cipher(header, passphrase), base64.b64decode(header["nonce"])
            except (ValueError, KeyError, TypeError) as error:
                raise VaultError("the file's header is damaged") from error
            source = _Opener(file, cipher, prefix, raw)
        found: dict[str, str] = {}
        try:
            with tarfile.open(fileobj=io.BufferedReader(source, CHUNK_BYTES), mode="r|") as tar:
                for member in tar:
                    if not member.isreg() or member.name not in names or member.name in found:
                        raise VaultError(f"the file holds something unexpected: {member.name[:60]!r}")
                    stream = tar.extractfile(member)
                    assert stream is not None  # noqa: S101 - a regular file has one
                    found[member.name] = _copy(stream, into / member.name)
        except (tarfile.TarError, EOFError) as error:
            raise VaultError(f"the file is damaged: {error}") from error
        if isinstance(source, _Opener):
            source.drain()
    if missing := names - set(found):
        raise VaultError(f"the file lacks {', '.join(sorted(missing))}")
    return found


def is_encrypted(path: Path) -> bool:
    """What the header says. `VaultError` when it is no such file."""
    with path.open("rb") as file:
        return bool(_read_header(file)[0]["cipher"] != "none")


def write_private(path: Path, text: str) -> None:
    """A file for our eyes only (0600), replaced in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(file: IO[bytes], members: Mapping[str, Path | bytes], passphrase: str | None) -> None:
    header: dict[str, Any] = {"cipher": "none"}
    if passphrase is not None:
        header = {
            "cipher": "aes-256-gcm", "kdf": "scrypt", **_SCRYPT, "salt": _text(os.urandom(16)),
            "nonce": _text(os.urandom(7)), "chunk_bytes": CHUNK_BYTES,
        }  # fmt: skip
    raw = MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
    file.write(raw)
    target: Any = file
    if passphrase is not None:
        target = _Sealer(file, _cipher(header, passphrase), base64.b64decode(header["nonce"]), raw)
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o600
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.size = content.stat().st_size
                with content.open("rb") as stream:
                    tar.addfile(entry, stream)
    if isinstance(target, _Sealer):
        target.finish()


def _read_header(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    magic = file.readline(64)
    if magic != MAGIC:
        raise VaultError("this is not a file that NovaStack made, or a newer NovaStack made it")
    line = file.readline(4096)
    try:
        header = json.loads(line)
        known = header["cipher"] == "none" or (
            header["cipher"] == "aes-256-gcm" and header["kdf"] == "scrypt" and header["chunk_bytes"] == CHUNK_BYTES
            and 1 << 14 <= header["n"] <= 1 << 20 and header["r"] == 8 and header["p"] in range(1, 9)
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise VaultError("the file's header is damaged") from error
    if not known:
        raise VaultError("the file is encrypted in a way that this version does not know")
    return header, magic + line


def _cipher(header: Mapping[str, Any], passphrase: str) -> AESGCM:
    kdf = Scrypt(salt=base64.b64decode(header["salt"]), length=32, n=header["n"], r=header["r"], p=header["p"])
    return AESGCM(kdf.derive(passphrase.encode()))


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + (b"\1" if last else b"\0")


class _Sealer:
    """A file to write to. The last chunk is written by `finish`."""

    def __init__(self, file: IO[bytes], cipher: AESGCM, prefix: bytes, header: bytes) -> None:
        self._file, self._cipher, self._prefix, self._header = file, cipher, prefix, header
        self._buffer = bytearray()
        self._number = 0

    def write(self, data: bytes) -> int:
        self._buffer += data
        while len(self._buffer) > CHUNK_BYTES:
            self._put(bytes(self._buffer[:CHUNK_BYTES]), last=False)
            del self._buffer[:CHUNK_BYTES]
        return len(data)

    def finish(self) -> None:
        self._put(bytes(self._buffer), last=True)

    def _put(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._prefix, self._number, last), chunk, self._header))
        self._number += 1


class _Opener(io.RawIOBase):
    """A file to read from. Nothing is given out that was not authenticated."""

    def __init__(self, file: IO[bytes], cipher: AESGCM, prefix: bytes, header: bytes) -> None:
        self._file, self._cipher, self._prefix, self._header = file, cipher, prefix, header
        self._next = file.read(CHUNK_BYTES + _TAG_BYTES)
        self._number = 0
        self._plain = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._plain and not self._ended:
            self._plain = self._open_chunk()
        count = min(len(target), len(self._plain))
        target[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def drain(self) -> None:
        """Read to the end, so that a cut-off or changed end is noticed."""
        while not self._ended:
            self._open_chunk()

    def _open_chunk(self) -> bytes:
        chunk, self._next = self._next, self._file.read(CHUNK_BYTES + _TAG_BYTES)
        self._ended = not self._next
        try:
            plain = self._cipher.decrypt(_nonce(self._prefix, self._number, self._ended), chunk, self._header)
        except (InvalidTag, ValueError) as error:
            if self._number == 0:
                raise WrongPassphrase("the passphrase is wrong, or the file was changed") from error
            raise VaultError("the file is damaged or cut off") from error
        self._number += 1
        return plain


def _copy(stream: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
