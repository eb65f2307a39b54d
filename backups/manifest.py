"""What is known of a backup, kept beside it: signed by the install, sealed for the same recipients as the dump (rule 30).

The object is the dump's twin: `age -d | zstd -d` gives a line `novastack-manifest 1 <public key> <signature>` and then the
JSON that was signed, to its last byte. So people read it without us, and nobody without the install's key makes one.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from backups.archive import CorruptArchive, Opener, Sealer
from projects.domain import Fingerprint, TableContent

FORMAT = 1
MOST_BYTES = 512 << 20  # of the JSON; a database with a million objects has about 200 MB
_MAGIC = b"novastack-manifest"
_FIRST_LINE_BYTES = 256
_LATER = frozenset({"trigger"})  # fields that the first manifests did not have


class ManifestError(Exception):
    """`code`: `bad_signature` (nobody whom we know signed it), `wrong_key` (no identity opens it), `damaged`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Manifest:
    """Times are ISO 8601 in UTC, sizes bytes. Holds no secret, but names of tables: it is sealed as the dump is."""

    install: str
    organization: str
    project: Mapping[str, str]  # id, name, slug
    backup: str
    key: str  # of the dump's object
    engine: str
    version: str
    server_version: str
    image: str
    tool: str  # and its version
    taken_at: str
    finished_at: str
    dump: Mapping[str, Any]  # format, bytes
    stored: Mapping[str, Any]  # bytes, sha256, compressed, encrypted, recipients
    database: Mapping[str, Any]  # name, bytes, encoding …
    names: Mapping[str, str]  # owner, group, login, control
    contents: Fingerprint | None
    around: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trigger: str = ""  # what it was taken for; older ones do not say
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` makes the same again."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "contents"}
        return {
            **json.loads(json.dumps(plain)),
            "contents": None if self.contents is None else contents_to_json(self.contents),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Manifest:
        """`ManifestError("damaged")` for what lacks something, or was made by a newer version."""
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            raise ManifestError("damaged", "It is no manifest, or a newer NovaStack made it.")
        known = {f.name for f in fields(cls)}
        try:
            values = {name: plain[name] for name in known - _LATER} | {n: plain[n] for n in _LATER & plain.keys()}
            contents = values.pop("contents")
            made = cls(**values, contents=None if contents is None else contents_from_json(contents))
            if not isinstance(made.notes, list | tuple):
                raise TypeError("notes are no list")
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError("damaged", f"The manifest lacks something: {error}.") from None
        for f in fields(cls):
            value = getattr(made, f.name)
            if f.type == "str" and not isinstance(value, str):
                raise ManifestError("damaged", f"The manifest's {f.name} is no text.")
            if f.type.startswith(("Mapping", "dict")) and not isinstance(value, Mapping):
                raise ManifestError("damaged", f"The manifest's {f.name} is no object.")
        object.__setattr__(made, "notes", tuple(str(note) for note in made.notes))
        return made


def contents_to_json(contents: Fingerprint) -> dict[str, Any]:
    """`{"tables": {name: [rows, digest]}, "facts": [[kind, name, state]]}`, in a fixed order."""
    return {
        "tables": {name: [table.rows, table.digest] for name, table in sorted(contents.tables.items())},
        "facts": [[kind, name, state] for (kind, name), state in sorted(contents.facts.items())],
    }


def contents_from_json(plain: Mapping[str, Any]) -> Fingerprint:
    """What `contents_to_json` was made of. `ManifestError("damaged")`."""
    try:
        return Fingerprint(
            tables={
                str(name): TableContent(int(rows), str(digest)) for name, (rows, digest) in plain["tables"].items()
            },
            facts={(str(kind), str(name)): str(state) for kind, name, state in plain["facts"]},
        )
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestError("damaged", f"The manifest's contents can't be read: {error}.") from None


def seal(manifest: Manifest, recipients: Sequence[str] | None, signing_key: Ed25519PrivateKey) -> bytes:
    """What is stored. `recipients`: as of the dump, None for a target that is not encrypted."""
    body = json.dumps(manifest.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    signature = base64.b64encode(signing_key.sign(body))
    public = base64.b64encode(signing_key.public_key().public_bytes_raw())
    into = io.BytesIO()
    sealer = Sealer(into, recipients, threads=0)
    sealer.feed(b"%b %d %b %b\n" % (_MAGIC, FORMAT, public, signature))
    sealer.feed(body)
    sealer.finish()
    return into.getvalue()


def open_(data: bytes, identities: Sequence[str] | None, public_keys: Sequence[str]) -> Manifest:
    """The manifest, if one of `public_keys` (base64) signed it. `identities` None: it is not encrypted."""
    manifest, signer = open_of_anybody(data, identities)
    if signer not in public_keys:
        raise ManifestError("bad_signature", "It is signed by no install that is known here.")
    return manifest


def open_of_anybody(data: bytes, identities: Sequence[str] | None) -> tuple[Manifest, str]:
    """(manifest, base64 of the key that signed it): unchanged since, but nothing says whose that key is."""
    pieces, size = [], 0
    try:
        with Opener(io.BytesIO(data), identities, compressed=True) as opener:
            for piece in opener:
                size += len(piece)
                if size > MOST_BYTES:
                    raise ManifestError("damaged", f"The manifest has more than {MOST_BYTES} bytes.")
                pieces.append(piece)
    except CorruptArchive as error:
        raise ManifestError("wrong_key" if error.code == "wrong_key" else "damaged", error.detail) from None
    line, _, body = b"".join(pieces).partition(b"\n")
    words = line[:_FIRST_LINE_BYTES].decode("ascii", "replace").split(" ")
    if len(words) != 4 or words[0].encode() != _MAGIC:
        raise ManifestError("damaged", "It is no manifest.")
    if words[1] != str(FORMAT):
        raise ManifestError("damaged", "A newer NovaStack made it.")
    if not _signed(words[2], words[3], body):
        raise ManifestError("bad_signature", "It was changed since it was signed.")
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError):
        raise ManifestError("damaged", "It is no manifest.") from None
    return Manifest.from_json(plain), words[2]


def is_sealed(data: bytes) -> bool:
    """Whether it is an age file: what to open it with."""
    return data.startswith(b"age-encryption.org/")


def _signed(public: str, signature: str, body: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(base64.b64decode(signature, validate=True), body)
    except (InvalidSignature, ValueError):
        return False
    return True
