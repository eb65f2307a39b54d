"""The recovery kit: one text file that opens an organization's backups when NovaStack is gone.

It is an ordinary file of age identities (`age -d -i recovery-kit.txt`): everything else in it are comments, the last of
which carries the same for machines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
_DATA = "# novastack-kit-1: "
_FINGERPRINT = "# Fingerprint: "
MOST_BYTES = 4 << 20


class KitError(ValueError):
    """The file is no kit, or not whole. The text is for people."""


@dataclass(frozen=True, slots=True)
class Kit:
    """`identities`: of age, all of the organization's, the offline one first. `storages`: where backups are, with the keys
    where the one who exported may have them. `signing_key`: private, base64, of operators' kits only. `also`: where else its
    objects are, `<install>/<organization>`: what was adopted keeps the names that the install before gave it."""

    install: str
    organization: Mapping[str, str]  # id, name, slug
    made_at: str
    made_by: str
    identities: tuple[str, ...] = field(repr=False)
    public_keys: tuple[str, ...]
    storages: tuple[Mapping[str, Any], ...] = field(repr=False)
    signing_key: str = field(default="", repr=False)
    also: tuple[str, ...] = ()


def render(kit: Kit) -> tuple[str, str]:
    """(the file's text, its fingerprint). The fingerprint stands in the file's first lines and is of all the rest."""
    body = _body(kit)
    fingerprint = fingerprint_of(body)
    title = f"# NovaStack recovery kit of {_line(kit.organization['name'])}, {kit.made_at} by {_line(kit.made_by)}"
    return f"{title}\n{_FINGERPRINT}{fingerprint}\n{body}", fingerprint


def fingerprint_of(body: str) -> str:
    """80 bits in five groups: short enough to type, too long to guess."""
    digest = hashlib.sha256(body.encode()).hexdigest()[:20]
    return "-".join(textwrap.wrap(digest, 4))


def normal(fingerprint: str) -> str:
    """As it is compared: whatever people put between the groups."""
    return re.sub(r"[^0-9a-f]", "", fingerprint.lower())


def read(text: str) -> Kit:
    """The kit in a file. `KitError` when it is none, or was changed or cut off."""
    lines = text.replace("\r\n", "\n").split("\n", 2)
    if len(lines) < 3 or not lines[1].startswith(_FINGERPRINT):
        raise KitError("This is no recovery kit of NovaStack.")
    if normal(lines[1].removeprefix(_FINGERPRINT)) != normal(fingerprint_of(lines[2])):
        raise KitError("The recovery kit is damaged: its fingerprint is not that of its content.")
    data = next((line for line in lines[2].split("\n") if line.startswith(_DATA)), "")
    try:
        plain = json.loads(base64.b64decode(data.removeprefix(_DATA), validate=True))
        return Kit(
            install=str(plain["install"]), organization=dict(plain["organization"]), made_at=str(plain["made_at"]),
            made_by=str(plain["made_by"]), identities=tuple(map(str, plain["identities"])),
            public_keys=tuple(map(str, plain["public_keys"])), storages=tuple(map(dict, plain["storages"])),
            signing_key=str(plain["signing_key"]), also=tuple(map(str, plain.get("also", ()))),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise KitError("The recovery kit was made by another version of NovaStack.") from error


def _body(kit: Kit) -> str:
    plain = {
        "install": kit.install, "organization": dict(kit.organization), "made_at": kit.made_at, "made_by": kit.made_by,
        "identities": list(kit.identities), "public_keys": list(kit.public_keys), "storages": list(kit.storages),
        "signing_key": kit.signing_key, "also": list(kit.also),
    }  # fmt: skip
    lines = [
        "#",
        "# Whoever has this file can read every backup of this organization. Keep it offline, away from the installation.",
        "# Type the fingerprint back on the page Recovery kit, so that it is known that the file was saved.",
        "#",
        "# It is a file of age identities. By hand, without NovaStack (docs/recovery.md says more):",
        "#   age -d -i recovery-kit.txt OBJECT | zstd -d > dump",
        "#",
        f"# Installation {kit.install}, organization {kit.organization['id']}: objects are named",
        f"#   {kit.install}/{kit.organization['id']}/<backup>/<attempt>, with a manifest beside each (.manifest).",
        *(f"#   Those of an installation before it: {prefix}/<backup>/<attempt>" for prefix in kit.also),
        "#",
        *_storages(kit.storages),
        *(f"# Signing key (public): {key}" for key in kit.public_keys),
        *([f"# Signing key (private): {kit.signing_key}"] if kit.signing_key else []),
        "#",
        "# Identities, the newest first; the first is kept nowhere but here.",
        *kit.identities,
        "#",
        f"{_DATA}{base64.b64encode(json.dumps(plain, sort_keys=True).encode()).decode()}",
    ]
    return "\n".join(lines) + "\n"


def _storages(storages: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for storage in storages:
        lines.append(f"# Storage {_line(storage['name'])} ({storage['kind']}):")
        lines += [f"#   {name}: {_line(value)}" for name, value in sorted(storage["config"].items())]
        lines += [f"#   {name}: {_line(value)}" for name, value in sorted((storage.get("secret") or {}).items())]
    return [*lines, "#"] if lines else []


def _line(value: object) -> str:
    return " ".join(str(value).split())
