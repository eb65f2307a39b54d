"""What a database holds, told so that two can be compared, and parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TableContent:
    """Rows of one table and a hash over their values that does not depend on their order."""

    rows: int
    digest: str


# The digest of a table whose rows the server removes by itself when their time has come: it is not compared.
EXPIRES = "expires"
# Facts of these kinds are definitions as text, told as two hashes: of the text, and of what a restore can't respell of it.
TEXT = "text of "
TEXTS = ("texts", "compared")  # the fact that names the kinds of them that are told; older fingerprints tell none
EXTENSION_VERSION = "version of extension"
# What a sequence gives next, where its definition has that as well. Older fingerprints don't tell it by itself.
NEXT_VALUE = "next value of sequence"
# Facts of these kinds are data as rows are: no version spells them otherwise.
DATA = frozenset({"value of sequence", NEXT_VALUE, "content of large object"})


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a database holds, so told that equal databases give equal fingerprints and others don't: every table's rows,
    and everything else by name and state (columns, indexes, constraints, sequences' values, routines, triggers, views,
    rights, definitions …). `facts`: (kind, name) → state."""

    tables: Mapping[str, TableContent]
    facts: Mapping[tuple[str, str], str]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    @property
    def data(self) -> Fingerprint:
        """What is neither a definition nor a right: what servers of all versions must hold alike."""
        return Fingerprint(self.tables, {key: state for key, state in self.facts.items() if key[0] in DATA})

    def differences(self, copy: Fingerprint) -> list[str]:
        """In what `copy` is not the same, for people, tables first. It names things, and shows no value of a row."""
        found = []
        for name in sorted(self.tables.keys() | copy.tables.keys()):
            mine, theirs = self.tables.get(name), copy.tables.get(name)
            if mine is None or theirs is None:
                found.append(f"table {name} is {'missing' if theirs is None else 'there only in the copy'}")
            elif self._untold(copy, name):
                continue
            elif mine.rows != theirs.rows:
                found.append(f"table {name} has {theirs.rows} rows instead of {mine.rows}")
            elif mine.digest != theirs.digest:
                found.append(f"table {name} has other values")
        for kind, name, state, other in self._facts_beside(copy):
            if state is None or other is None:
                found.append(f"{kind} {name} is {'missing' if other is None else 'there only in the copy'}")
            elif state != other and not _respelled(kind, state, other):
                found.append(f"{kind} {name} differs")
        return found

    def remarks(self, copy: Fingerprint) -> list[str]:
        """In what `copy` is not the same without being wrong, and what could not be compared; for people."""
        found = []
        if (mine := self._texts) != (theirs := copy._texts):
            untold = sorted(mine ^ theirs)
            found.append(f"Not compared, since another version of NovaStack took it: the text of {', '.join(untold)}.")
        if gone := sorted(name for name in self.tables.keys() & copy.tables.keys() if self._untold(copy, name)):
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            found.append(
                "Not compared, since the server removes their documents by itself when their time has come:"
                f" {', '.join(gone[:5])}{more}."
            )
        versions = {name: v for (kind, name), v in copy.facts.items() if kind == EXTENSION_VERSION}
        for (kind, name), version in sorted(self.facts.items()):
            if kind == EXTENSION_VERSION and versions.get(name, version) != version:
                found.append(
                    f"Extension {name} is {versions[name]} in the copy, and was {version}: its own default there."
                )
        respelled = [
            f"{kind.removeprefix(TEXT)} {name}" for kind, name, state, other in self._facts_beside(copy)
            if state is not None and other is not None and _respelled(kind, state, other)
        ]  # fmt: skip
        if respelled:
            more = f" and {len(respelled) - 5} more" if len(respelled) > 5 else ""
            found.append(
                "After a restore the server spells otherwise, with all the same words but for casts, parentheses and"
                f" aliases: {', '.join(respelled[:5])}{more}."
            )
        return found

    def _untold(self, copy: Fingerprint, name: str) -> bool:
        return EXPIRES in (self.tables[name].digest, copy.tables[name].digest)

    @property
    def _texts(self) -> set[str]:
        return {kind for kind in self.facts.get(TEXTS, "").split(",") if kind}

    def _facts_beside(self, copy: Fingerprint) -> Iterator[tuple[str, str, str | None, str | None]]:
        """(kind, name, mine, the copy's) of all that both would tell if they had it."""
        told = {TEXT + kind for kind in self._texts & copy._texts}
        values = all(any(kind == NEXT_VALUE for kind, _ in side.facts) for side in (self, copy))
        for kind, name in sorted(self.facts.keys() | copy.facts.keys()):
            if kind in (EXTENSION_VERSION, TEXTS[0]) or (kind.startswith(TEXT) and kind not in told):
                continue
            if kind == NEXT_VALUE and not values:
                continue
            yield kind, name, self.facts.get((kind, name)), copy.facts.get((kind, name))


def _respelled(kind: str, state: str, other: str) -> bool:
    """The same definition but for casts and parentheses."""
    return kind.startswith(TEXT) and state != other and state.partition(" ")[2] == other.partition(" ")[2] != ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Parts of a database: tables by the names that fingerprints give them, or whole schemas of products that have them."""

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetApart:
    """What was chosen of a copy, as it stands there now: by itself. `tables`: its tables with rows, name before → now.
    `places`: what it takes in a target, schemas or tables. `needs`: what it uses of the rest, by (kind, name): the target
    must have it. `notes`: what was left out, for people."""

    tables: Mapping[str, str]
    places: tuple[str, ...]
    needs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    size_bytes: int
