"""Dumps of PostgreSQL that others took: told apart, and turned into a script. No pg_restore ever sees one.

An archive is handed on as the plain dump that it would be (`postgresql_reader`, `postgresql_tar`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator

from projects.domain import Command, Credentials, Endpoint, EngineError
from projects.engines import framing, postgresql_copy
from projects.engines.foreign import ForeignRefused, Left, Pull, plain_text
from projects.engines.postgresql_archive import CUSTOM, DIRECTORY, NUMBER, TAR
from projects.engines.postgresql_reader import Reader
from projects.engines.postgresql_script import script
from projects.engines.postgresql_tar import TarReader, contents_of, is_tar

FORMATS = ("custom", "tar", "plain")
_TOLD = re.compile(rb"^-- Dumped from database version (\d+)(\.\d+)?", re.MULTILINE)
_OTHER = re.compile(
    rb"^(?:-- (?:MySQL|MariaDB) dump|/\*M?!\d{5,6}|-- phpMyAdmin|SET @OLD_|.*\bENGINE=(?:InnoDB|MyISAM))", re.MULTILINE
)
_SAID = re.compile(r"psql:<stdin>:(\d+): (?:ERROR|FATAL|error): *(.*)", re.DOTALL)


def recognise(head: bytes, version: str) -> str:
    """`custom`, `tar` or `plain`, for a server of that version. Raises `ForeignRefused`."""
    if head.startswith(b"PGDMP"):
        kind = head[10] if len(head) > 10 else 0
        if kind in {DIRECTORY, TAR}:
            raise ForeignRefused(
                "upload_directory_format",
                "It is the table of contents of a dump in directory format, without its data: take the dump with "
                "--format=custom, or make SQL of the folder with “pg_restore --file=dump.sql FOLDER”, and send that.",
            )
        if kind != CUSTOM:
            raise ForeignRefused("upload_damaged", "It begins as an archive of pg_dump, and is none.")
        if (made := _server_of(Reader(Pull([head])))) is not None:
            _check_version(made, version)
        return "custom"
    if is_tar(head):
        contents_of(head)
        if (made := _server_of(TarReader([head]))) is not None:
            _check_version(made, version)
        return "tar"
    text = plain_text(head)
    if b"-- PostgreSQL database cluster dump" in text:
        raise ForeignRefused(
            "upload_cluster_dump",
            "It is the dump of a whole server (pg_dumpall): take one of one database, with pg_dump.",
        )
    if _OTHER.search(text):
        raise ForeignRefused("upload_wrong_engine", "It is a dump of MySQL or MariaDB; this database is PostgreSQL.")
    if (told := _TOLD.search(text)) is not None:
        _check_version(told[1].decode(), version)
    return "plain"


def _check_version(made: str, version: str) -> None:
    theirs, mine = made.split(".")[0], version.split(".")[0]
    if NUMBER.fullmatch(theirs) and mine.isdigit() and int(theirs) > int(mine):
        raise ForeignRefused(
            "upload_newer_version",
            f"It was taken from PostgreSQL {theirs}, this database is {mine}: an older server can't be sure to understand it.",
        )


def _server_of(found: Reader) -> str | None:
    """The source's version out of an archive's first bytes; None: not all of it is there."""
    try:
        found.begin()
    except EngineError as error:
        if isinstance(error, ForeignRefused):
            if error.code != "upload_truncated":
                raise
            return None
        raise ForeignRefused("upload_newer_version", f"{error}: a newer pg_dump took it, or a very old one.") from None
    return found.server


def script_of(pieces: Iterable[bytes], kind: str, left: Left) -> Iterator[bytes]:
    """What psql is to run. Raises `ForeignRefused`, also in the middle."""
    if kind == "custom":
        pieces = Reader(Pull(pieces), left).script()
    elif kind == "tar":
        pieces = TarReader(pieces, left).script()
    return script(pieces, left)


def run_script(place: Endpoint, credentials: Credentials) -> tuple[Command, bytes]:
    """psql as the tool's login. Its first line takes all commands of its own away from it, until a word comes back that
    nobody knows; a psql that is too old to know that one ends there."""
    argv = framing.unframed(
        "psql", "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-",
    )  # fmt: skip
    # What people write by hand names no schema.
    first = b'\\restrict %b\nSET search_path = "$user", public;\n' % secrets.token_hex(24).encode()
    return postgresql_copy.command(place, credentials, *argv), first


def place_in_script(said: str, kind: str, before: int) -> str:
    if "invalid command \\restrict" in said:
        return "The psql of this database's image is too old to be trusted with uploads: update the image."
    found = _SAID.match(said)
    if found is None:
        return said
    return f"Line {int(found[1]) - before}: {found[2]}" if kind == "plain" else found[2]
