"""The manifest: signed, sealed, read again as it was, and believed only then."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backups import manifest as manifests
from backups.archive import Opener, Sealer
from backups.manifest import Manifest, ManifestError
from projects.domain import Fingerprint, TableContent

CONTENTS = Fingerprint(
    tables={'public."odd, name"': TableContent(3, "00ff"), "public.ünïcode\n\u2028": TableContent(0, "")},
    facts={("index", "public.a b"): "valid", ("sequence", "s"): "41 t"},
)


def made(**changes: Any) -> Manifest:
    plain: dict[str, Any] = {
        "install": "i", "organization": "o", "project": {"id": "p", "name": "Shop", "slug": "shop"}, "backup": "b",
        "key": "i/o/b/1", "engine": "postgresql", "version": "17", "server_version": "17.6", "image": "postgres:17",
        "tool": "pg_dump 17.6", "taken_at": "2026-11-20T12:00:00Z", "finished_at": "2026-11-20T12:01:00Z",
        "dump": {"format": "custom", "bytes": 10}, "stored": {"bytes": 5, "sha256": "ab", "recipients": ["age1x"]},
        "database": {"name": "shop", "bytes": 99}, "names": {"owner": "a", "group": "b", "login": "c", "control": "d"},
        "contents": CONTENTS, "around": {"settings": [["", True, "a", "b"]], "comment": ""}, "notes": ("one", "two"),
    }  # fmt: skip
    return Manifest(**(plain | changes))


class Keys:
    def __init__(self) -> None:
        identity = pyrage.x25519.Identity.generate()
        self.identity, self.recipient = str(identity), str(identity.to_public())
        self.signing = Ed25519PrivateKey.generate()
        self.public = base64.b64encode(self.signing.public_key().public_bytes_raw()).decode()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.mark.parametrize("encrypted", [True, False])
def test_it_comes_out_as_it_went_in(keys: Keys, encrypted: bool) -> None:
    stored = manifests.seal(made(), [keys.recipient] if encrypted else None, keys.signing)
    assert manifests.is_sealed(stored) is encrypted
    assert (b"odd, name" in stored) is False
    back = manifests.open_(stored, [keys.identity] if encrypted else None, ["other", keys.public])
    assert back == made()
    assert back.contents is not None
    assert not CONTENTS.differences(back.contents)


def test_who_signed_it_must_be_known(keys: Keys) -> None:
    stored = manifests.seal(made(), [keys.recipient], Ed25519PrivateKey.generate())
    with pytest.raises(ManifestError) as refused:
        manifests.open_(stored, [keys.identity], [keys.public])
    assert refused.value.code == "bad_signature"


def resealed(stored: bytes, keys: Keys, change: tuple[bytes, bytes]) -> bytes:
    """What somebody makes who knows the recipient, which is no secret, and has not the signing key."""
    with Opener(io.BytesIO(stored), [keys.identity], compressed=True) as opener:
        plain = b"".join(opener)
    assert plain.count(change[0]) == 1
    into = io.BytesIO()
    sealer = Sealer(into, [keys.recipient])
    sealer.feed(plain.replace(*change))
    sealer.finish()
    return into.getvalue()


@pytest.mark.parametrize(
    "change",
    [(b'"sha256":"ab"', b'"sha256":"cd"'), (b'"key":"i/o/b/1"', b'"key":"i/o/b/2"'), (b'"backup":"b"', b'"backup":"c"')],
)  # fmt: skip
def test_nothing_of_what_was_signed_can_be_changed(keys: Keys, change: tuple[bytes, bytes]) -> None:
    stored = resealed(manifests.seal(made(), [keys.recipient], keys.signing), keys, change)
    with pytest.raises(ManifestError) as refused:
        manifests.open_(stored, [keys.identity], [keys.public])
    assert refused.value.code == "bad_signature"


def test_a_wrong_key_and_damage_are_told_apart(keys: Keys) -> None:
    stored = manifests.seal(made(), [keys.recipient], keys.signing)
    with pytest.raises(ManifestError) as refused:
        manifests.open_(stored, [Keys().identity], [keys.public])
    assert refused.value.code == "wrong_key"
    for damaged in (stored[:-1], b"", stored[:200], b"{}", stored[:-30] + b"x" + stored[-29:]):
        with pytest.raises(ManifestError) as refused:
            manifests.open_(damaged, [keys.identity], [keys.public])
        assert refused.value.code == "damaged"


def test_what_a_newer_version_made_is_refused_and_said_so(keys: Keys) -> None:
    stored = manifests.seal(replace(made(), format=2), [keys.recipient], keys.signing)
    with pytest.raises(ManifestError, match="newer NovaStack"):
        manifests.open_(stored, [keys.identity], [keys.public])


@pytest.mark.parametrize("missing", ["contents", "key", "stored"])
def test_json_that_lacks_something_is_damaged(missing: str) -> None:
    plain = made().to_json()
    assert Manifest.from_json(plain) == made()
    for changed in ({k: v for k, v in plain.items() if k != missing}, plain | {missing: 5}):
        with pytest.raises(ManifestError) as refused:
            Manifest.from_json(changed)
        assert refused.value.code == "damaged"


def test_an_old_one_does_not_say_what_it_was_taken_for() -> None:
    plain = made(trigger="upload").to_json()
    assert Manifest.from_json(plain).trigger == "upload"
    del plain["trigger"]
    assert Manifest.from_json(plain) == made()


@pytest.mark.skipif(
    not (shutil.which("age") and shutil.which("zstd")), reason="needs the programs age and zstd (Debian: age, zstd)"
)
def test_people_read_it_with_the_ordinary_tools(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "identities.txt").write_text(keys.identity + "\n")
    (tmp_path / "manifest").write_bytes(manifests.seal(made(), [keys.recipient], keys.signing))
    done = subprocess.run(
        ["sh", "-ec", "age -d -i identities.txt manifest | zstd -d | tail -n +2"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == made().to_json()
