"""The catalogue of versions as data: its form, what is wrong with a given one, and the one that is shipped. Pure."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from projects.domain import EngineVersion, Offer
from projects.engines.base import Engine

SHIPPED = Path(__file__).with_name("catalogue.toml")
KEYS = {"version", "image", "digest", "default", "deprecated", "end_of_life", "offer"}
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,3})(?:\.(?:0|[1-9][0-9]{0,3}))*", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
# What Docker calls a reference: host and port, folders, a tag; no digest, which has a field of its own.
_IMAGE = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][\w.-]{0,127})?",
    re.ASCII,
)
_EARLIEST, _LATEST = date(2000, 1, 1), date(2100, 1, 1)

Catalogue = Mapping[str, tuple[EngineVersion, ...]]


class CatalogueInvalid(ValueError):
    """A given catalogue can't be taken; `problems` are sentences that name the place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def problems_of(engine: Engine, entry: EngineVersion) -> list[tuple[str, str]]:
    """What is wrong with one entry: (field, sentence). The engine's class must be able to drive the version."""
    found = []
    least, most = engine.version_parts
    if not _VERSION.fullmatch(entry.version) or not least <= entry.version.count(".") + 1 <= most:
        counts = f"{least} to {most} numbers" if least != most else f"{least} numbers"
        found.append(
            ("version", f"A version of {engine.title} is {counts} with dots between, such as {engine.oldest_version}.")
        )
    elif _key(entry.version) < _key(engine.oldest_version):
        found.append(("version", f"NovaStack drives {engine.title} from {engine.oldest_version} on."))
    elif engine.below_version and _key(entry.version) >= _key(engine.below_version):
        found.append(("version", f"NovaStack drives {engine.title} below {engine.below_version} only."))
    if entry.image and (len(entry.image) > 180 or not _IMAGE.fullmatch(entry.image)):
        found.append(("image", "Give an image as `name`, `name:tag` or `registry.example/name:tag`, without a digest."))
    if entry.digest and not _DIGEST.fullmatch(entry.digest):
        found.append(("digest", "A digest is `sha256:` and 64 digits from 0 to f."))
    if entry.end_of_life is not None and not _EARLIEST <= entry.end_of_life <= _LATEST:
        found.append(("end_of_life", "Give a date between 2000-01-01 and 2100-01-01."))
    if entry.default and entry.deprecated:
        found.append(("default", "A deprecated version can't be the default one."))
    if entry.default and entry.offer is Offer.NEVER:
        found.append(("default", "A version that is never offered can't be the default one."))
    return found


def parse(text: str, engines: Mapping[str, Engine]) -> Catalogue:
    """A catalogue in TOML or JSON: a list of entries for each engine. `CatalogueInvalid` names everything that is wrong."""
    raw = _load(text)
    problems: list[str] = []
    found: dict[str, tuple[EngineVersion, ...]] = {}
    for name, rows in raw.items():
        engine = engines.get(name)
        if engine is None:
            problems.append(f"{name!r} is no engine; use one of: {', '.join(sorted(engines))}.")
            continue
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            problems.append(f"{name}: give a list of entries.")
            continue
        entries = [_entry(f"{name}, entry {place}", engine, row, problems) for place, row in enumerate(rows, 1)]
        found[name] = tuple(entry for entry in entries if entry is not None)
        problems += _together(name, found[name])
    if not raw and not problems:
        problems.append("There is no entry.")
    if problems:
        raise CatalogueInvalid(problems)
    return found


def _load(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both parsers' errors are
        raise CatalogueInvalid([f"Neither TOML nor JSON: {error}"[:300]]) from None
    return raw if isinstance(raw, dict) else {}


def _entry(place: str, engine: Engine, row: dict[str, Any], problems: list[str]) -> EngineVersion | None:
    before = len(problems)
    problems += [f"{place}: {key!r} is no field; use {', '.join(sorted(KEYS))}." for key in sorted(row.keys() - KEYS)]
    for key in ("version", "image", "digest", "offer"):
        if not isinstance(row.get(key, ""), str):
            problems.append(f"{place}: `{key}` must be a text.")
    for key in ("default", "deprecated"):
        if not isinstance(row.get(key, False), bool):
            problems.append(f"{place}: `{key}` must be true or false.")
    if "version" not in row:
        problems.append(f"{place}: `version` is missing.")
    if row.get("offer", "until_end") not in list(Offer):
        problems.append(f"{place}: `offer` is one of {', '.join(Offer)}.")
    end = _date(row.get("end_of_life"))
    if end is None and row.get("end_of_life"):
        problems.append(f"{place}: `end_of_life` is a date such as 2030-11-14.")
    if len(problems) > before:
        return None
    entry = EngineVersion(
        version=row["version"], end_of_life=end, default=row.get("default", False),
        deprecated=row.get("deprecated", False), image=row.get("image", ""), digest=row.get("digest", ""),
        offer=Offer(row.get("offer", "until_end")),
    )  # fmt: skip
    wrong = problems_of(engine, entry)
    problems += [f"{place}: {sentence}" for _, sentence in wrong]
    return None if wrong else entry


def _date(value: Any) -> date | None:
    """A date, or a text that is one."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return date.fromisoformat(value)
    return value if isinstance(value, date) and not isinstance(value, datetime) else None


def _together(name: str, entries: Iterable[EngineVersion]) -> list[str]:
    """What is wrong with entries that are fine each by itself."""
    versions = [entry.version for entry in entries]
    problems = [f"{name}: {v} is there twice." for v in sorted(set(versions)) if versions.count(v) > 1]
    if sum(entry.default for entry in entries) > 1:
        problems.append(f"{name}: only one version can be the default one.")
    return problems


def dump(catalogue: Catalogue) -> str:
    """The same in TOML, as `parse` reads it."""
    lines = []
    for name, entries in sorted(catalogue.items()):
        for entry in entries:
            lines += ["", f"[[{name}]]", f'version = "{entry.version}"']
            lines += [f"{flag} = true" for flag in ("default", "deprecated") if getattr(entry, flag)]
            lines += [f'{field} = "{getattr(entry, field)}"' for field in ("image", "digest") if getattr(entry, field)]
            if entry.end_of_life:
                lines.append(f"end_of_life = {entry.end_of_life.isoformat()}")
            if entry.offer is not Offer.UNTIL_END:
                lines.append(f'offer = "{entry.offer}"')
    return "\n".join(lines).lstrip() + "\n"


def merged(shipped: Iterable[EngineVersion], own: Iterable[EngineVersion], today: date) -> tuple[EngineVersion, ...]:
    """What holds, newest first: the operator's entry for a version replaces the shipped one. Exactly one is the default
    if any is offered: the operator's, else the shipped one, else the newest that is offered and not deprecated."""
    shipped, own = list(shipped), list(own)
    entries = {entry.version: entry for entry in shipped} | {entry.version: entry for entry in own}
    ordered = sorted(entries.values(), key=lambda entry: entry.sort_key, reverse=True)
    wanted = [entry.version for entry in (*own, *shipped) if entry.default]
    wanted += [entry.version for entry in sorted(ordered, key=lambda entry: entry.deprecated)]
    default = next((version for version in wanted if entries[version].offered(today)), "")
    return tuple(_with_default(entry, entry.version == default) for entry in ordered)


def _with_default(entry: EngineVersion, default: bool) -> EngineVersion:
    return EngineVersion(
        entry.version, entry.end_of_life, default, entry.deprecated, entry.image, entry.digest, entry.offer
    )


def _key(version: str) -> tuple[int, ...]:
    """Trailing zeros don't count: 9 is not below 9.0."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


@functools.cache
def _shipped_text() -> str:
    return SHIPPED.read_text()


def shipped(engines: Mapping[str, Engine]) -> Catalogue:
    """The catalogue of this release."""
    return parse(_shipped_text(), engines)
