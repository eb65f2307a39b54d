"""Some tables out of an archive of pg_dump, as SQL for psql: with their rows, and with what belongs to them and can be there
without what was not chosen; or schemas, with all in them that can. Nothing runs: the archive is read as it
passes (`postgresql_reader`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from projects.domain import EngineError, Selection
from projects.engines.foreign import Pull
from projects.engines.postgresql_archive import MOST_BYTES, Entry
from projects.engines.postgresql_reader import FIRST, LEFT_OUT, PREAMBLE, SILENT, Reader, named
from projects.engines.sql_parts import Gone, Title, TooLarge, remarks, waiting

# What belongs to a table, in whatever section it stands.
_OF_TABLES = {
    "DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "INDEX", "INDEX ATTACH", "TABLE ATTACH", "STATISTICS",
    "RULE", "TRIGGER", "POLICY", "ROW SECURITY", "SEQUENCE", "SEQUENCE OWNED BY", "SEQUENCE SET", "COMMENT",
}  # fmt: skip
_ROWS = {
    "TABLE",
    "VIEW",
    "MATERIALIZED VIEW",
    "FOREIGN TABLE",
}  # what a choice is about: never drawn in by something else
# Named after their table: another one's may need a chosen one.
_OF_ONE = {"DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "RULE", "TRIGGER", "POLICY"}
# Of the database, though they are named after a schema's tables.
_NEVER = {*LEFT_OUT, *SILENT, "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"}
_PART = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')


def script(pieces: Iterable[bytes], chosen: Selection, title: Title) -> Iterator[bytes]:
    """Names as the server quotes them, tables with their schema. Raises `Gone` for what the archive does not hold, and
    `EngineError` when it is none; all of it is read, to its end."""
    return _Some(Pull(pieces), chosen, title).script()


def unquoted(name: str) -> tuple[str, str]:
    """Schema and table."""
    parts = [quoted.replace('""', '"') or plain for quoted, plain in _PART.findall(name)]
    schema, table = parts if len(parts) == 2 else ("public", name)
    return schema, table


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


class _Some(Reader):
    """Of our own: whatever pg_dump of ours was taken as a backup (`postgresql_archive`) can be taken apart."""

    MOST_BYTES = MOST_BYTES
    MOST_ENTRIES = None

    def __init__(self, pull: Pull, chosen: Selection, title: Title) -> None:
        super().__init__(pull)
        self._wanted, self._title = chosen, title

    def script(self) -> Iterator[bytes]:
        entries = self._contents()
        found = _Choice(entries, self._wanted)
        yield remarks(self._title, found.remarks(), "psql --set=ON_ERROR_STOP=1 --file=FILE")
        yield b"BEGIN;\n"  # a file that is cut off commits nothing, also within COPY, where its end is one for psql
        yield PREAMBLE
        for entry in entries:
            if entry.kind in FIRST:
                yield entry.definition.encode(errors="surrogateescape") + b"\n"
        before, after = _halves(entries, found.taken)
        for entry in before:
            yield from self._whole(entry)
        yield from self._rows_of({entry.id: entry for entry in entries if entry.has_data}, found.names)
        for entry in after:
            yield from self._whole(entry)
        yield f"COMMIT;\n\n{self._title.end}\n".encode()

    def _not_taken(self, *, too_large: bool) -> EngineError:
        if too_large:
            return TooLarge(f"Its table of contents has more than {self.MOST_BYTES >> 20} MiB")
        return super()._not_taken(too_large=False)

    def _whole(self, entry: Entry) -> Iterator[bytes]:
        for piece in self._defined(entry):
            yield (
                piece.replace(b"CREATE SCHEMA ", b"CREATE SCHEMA IF NOT EXISTS ", 1)
                if entry.kind == "SCHEMA"
                else piece
            )

    def _rows_of(self, wanted: dict[int, Entry], chosen: set[tuple[str, str]]) -> Iterator[bytes]:
        skipped = 0
        while kind := self._pull.one():
            entry = self._block(kind, wanted)
            if entry.kind == "TABLE DATA" and (entry.schema, entry.name) in chosen:
                yield from self._rows(entry, self._unpacked())
                continue
            for size in self._passed(entry):
                skipped, line = waiting(skipped, size)
                yield line
        self._ended(wanted)

    def _passed(self, entry: Entry) -> Iterator[int]:
        """Sizes of what is passed over."""
        if entry.kind != "BLOBS":
            yield from map(len, self._chunks())
            return
        while self._number():
            yield from map(len, self._chunks())


def _halves(entries: list[Entry], taken: set[int]) -> tuple[list[Entry], list[Entry]]:
    """What is made before the rows come, and after. Comments and the like have no section: they stand behind what they are
    about."""
    before: list[Entry] = []
    after: list[Entry] = []
    section = 2
    for entry in entries:
        section = entry.section if entry.section > 1 else section
        if entry.id in taken and not entry.has_data:
            (before if section < 3 else after).append(entry)
    return before, after


class _Choice:
    """Which entries come. `chosen`: tables with rows; `taken`: these, what they need, and what belongs to them."""

    def __init__(self, entries: list[Entry], wanted: Selection) -> None:
        self._by_id = {entry.id: entry for entry in entries}
        tables = {(entry.schema, entry.name): entry.id for entry in entries if entry.kind == "TABLE"}
        names = {unquoted(name): name for name in wanted.tables}
        if missing := [shown for name, shown in names.items() if name not in tables]:
            raise Gone(f"The backup does not have {', '.join(missing[:5])}.")
        self._within = self._in_schemas(entries, wanted.schemas)  # all of it is asked for, not only what tables need
        self.chosen = {tables[name] for name in names} | {pk for pk in self._within if self._is(pk, {"TABLE"})}
        self._with_parts(entries)
        self.taken: set[int] = set()
        self._left: list[Entry] = []
        self._bare: set[int] = set()  # tables that are there without their rows
        for pk in self.chosen:
            self._take(pk, bare=True)
        of_tables = [
            entry for entry in entries if (entry.kind in _OF_TABLES or entry.id in self._within) and not entry.has_data
        ]
        before = -1
        while before != len(self.taken):
            before = len(self.taken)
            self._left = []
            for entry in of_tables:
                if entry.id not in self.taken and self._belongs(entry) and not self._take(entry.id, bare=False):
                    self._left.append(entry)

    def _in_schemas(self, entries: list[Entry], schemas: Iterable[str]) -> set[int]:
        shown = {_plain(schema): schema for schema in schemas}
        mine = {
            entry.id: entry.name if entry.kind == "SCHEMA" else entry.schema
            for entry in entries if entry.kind not in _NEVER and not entry.has_data
        }  # fmt: skip
        found = {pk for pk, schema in mine.items() if schema in shown}
        there = set(mine.values())
        if missing := [name for schema, name in shown.items() if schema not in there]:
            raise Gone(f"The backup does not have {', '.join(missing[:5])}.", field="schemas")
        return found

    def _with_parts(self, entries: list[Entry]) -> None:
        """The rows of a partitioned table are those of its partitions."""
        attached = [entry for entry in entries if entry.kind == "TABLE ATTACH"]
        by_name = {(entry.schema, entry.name): entry.id for entry in entries if entry.kind == "TABLE"}
        before = -1
        while before != len(self.chosen):
            before = len(self.chosen)
            for entry in attached:
                child = by_name.get((entry.schema, entry.name))
                if child is not None and self.chosen.intersection(set(entry.needs) - {child}):
                    self.chosen.add(child)

    def _belongs(self, entry: Entry) -> bool:
        if entry.kind == "TABLE ATTACH":
            tables = {need for need in entry.needs if self._is(need, {"TABLE"})}
            return tables <= self.taken and not self.chosen.isdisjoint(tables)
        if entry.id in self._within or (entry.kind == "COMMENT" and not self._within.isdisjoint(entry.needs)):
            return True
        return any(need in self.chosen or (need in self.taken and self._is(need, _OF_TABLES)) for need in entry.needs)

    def _is(self, pk: int, kinds: set[str]) -> bool:
        return pk in self._by_id and self._by_id[pk].kind in kinds

    def _take(self, pk: int, *, bare: bool) -> bool:
        """With all that it needs, or not at all. `bare`: other tables that it needs come without their rows."""
        more: set[int] = set()
        waiting = [pk]
        while waiting:
            entry = self._by_id.get(waiting.pop())
            if entry is None or entry.id in self.taken or entry.id in more:
                continue
            if entry.id != pk and entry.kind in _ROWS and not bare:
                return False
            more.add(entry.id)
            for need in entry.needs:
                # A sequence that a table's column owns does without that table.
                if entry.kind == "SEQUENCE" and entry.definition.startswith("CREATE") and self._is(need, {"TABLE"}):
                    continue
                waiting.append(need)
        self.taken |= more
        self._bare |= {pk for pk in more if self._is(pk, _ROWS)} - self.chosen
        return True

    @property
    def names(self) -> set[tuple[str, str]]:
        """Of tables whose rows come."""
        return {(self._by_id[pk].schema, self._by_id[pk].name) for pk in self.chosen}

    def remarks(self) -> list[str]:
        told = [f"Without rows, as others need it: {named(self._by_id[pk])}" for pk in sorted(self._bare)]
        mine = [entry for entry in self._left if self._is_own(entry)]
        told += [f"Not attached to {', '.join(parents)}: TABLE {where}" for where, parents in self._alone()]
        told += self._parts()
        besides = "publications" if self._within else "views and publications"
        told.append(f"Rights (GRANT) and owners are left out, and {besides} of these tables.")
        return told + [f"Left out, as it needs what was not chosen: {named(entry)}" for entry in mine]

    def _parts(self) -> Iterator[str]:
        for entry in self._by_id.values():
            if entry.kind == "TABLE ATTACH" and entry.id in self.taken and self._bare.intersection(entry.needs):
                yield f"Triggers, foreign keys and policies of what it is a part of are left out: {named(entry)}"

    def _alone(self) -> Iterator[tuple[str, list[str]]]:
        """Partitions that come without what they are a part of."""
        for entry in self._by_id.values():
            if entry.kind != "TABLE ATTACH" or entry.id in self.taken:
                continue
            tables = [self._by_id[need] for need in entry.needs if self._is(need, {"TABLE"})]
            mine = [table for table in tables if (table.schema, table.name) == (entry.schema, entry.name)]
            if mine and mine[0].id in self.chosen:
                yield (
                    f"{entry.schema}.{entry.name}",
                    [f"{table.schema}.{table.name}" for table in tables if table not in mine],
                )

    def _is_own(self, entry: Entry) -> bool:
        """Of a chosen table, or schema; else it is another one's, about a chosen one."""
        if entry.id in self._within:
            return True
        if entry.kind not in _OF_ONE:
            return not self.chosen.isdisjoint(entry.needs)
        tables = [self._by_id[pk] for pk in self.chosen.intersection(entry.needs)]
        return any(table.schema == entry.schema and entry.name.startswith(table.name + " ") for table in tables)
