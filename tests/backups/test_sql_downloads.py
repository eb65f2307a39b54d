"""Some tables of a backup as SQL: what comes, what is refused, and that what is not what was stored never ends well. On real
servers: tests/uploads/test_postgresql and test_mysql."""

from __future__ import annotations

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.db import connection

from accounts.models import AuditEvent
from backups.archive import CorruptArchive
from backups.models import Backup, StorageTarget
from backups.services import downloads
from projects.engines import mysql_sql, postgresql_sql, sql_parts
from projects.engines.foreign import ForeignRefused
from projects.models import Project
from projects.runtimes.process_binaries import bundled_places
from tests.backups.test_api_backups import body_of, make, project  # noqa: F401
from tests.backups.test_pages import browser
from tests.factories import Team, api_client
from tests.uploads.test_archives import custom

pytestmark = pytest.mark.django_db
ARCHIVE = custom(0, b"2\n" * 500_000 + b"\\.\n\n\n")


@pytest.fixture
def backup(project: Project, target: StorageTarget) -> Backup:  # noqa: F811
    tables = {"public.t": [2, "x"], "public.gone": [0, "x"]}
    return make(project, target, ARCHIVE, manifest={"contents": {"tables": tables, "facts": []}})


def get(client: Any, backup: Backup, query: str) -> Any:
    return client.get(f"/api/v1/backups/{backup.pk}/download/?as=sql{query}")


def free() -> bool:
    return bool(downloads.slots._value == downloads.slots._initial_value)  # type: ignore[attr-defined]


def test_tables_come_as_sql(team: Team, backup: Backup) -> None:
    answer = get(api_client(team.bob), backup, "&tables=t")
    assert answer.status_code == 200 and "Content-Length" not in answer
    assert answer["Content-Disposition"].endswith('.sql"')
    said = body_of(answer)
    lines = said.splitlines()
    assert lines[0].startswith(b"-- Of the backup ") and b"last line is `" + lines[-1] + b"`" in lines[1]
    assert b"CREATE TABLE public.t (a int);" in said and said.count(b"2\n") > 499_999
    event = AuditEvent.objects.get(action="backup.downloaded")
    assert event.data["tables"] == ["public.t"] and event.data["decrypted"] is True
    packed = get(api_client(team.bob), backup, "&tables=public.t&compress=zstd")
    assert packed["Content-Disposition"].endswith('.sql.zst"')
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(body_of(packed))
    assert unpacked == said and free()


def test_schemas_and_long_lists(team: Team, backup: Backup) -> None:
    client, path = api_client(team.bob), f"/api/v1/backups/{backup.pk}/download/"
    whole = body_of(get(client, backup, "&schemas=public"))
    assert whole.startswith(b"-- Of the backup ") and whole.count(b"2\n") > 499_999
    assert whole.endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    assert AuditEvent.objects.get(action="backup.downloaded").data["schemas"] == ["public"]
    for body in ({"schemas": ["public"]}, {"tables": ["t"], "compress": "none"}):
        answer = client.post(path, body, format="json", headers={"Accept": "application/octet-stream"})
        assert answer.status_code == 200 and body_of(answer).count(b"2\n") > 499_999
    assert client.options(path).json()["actions"]["POST"]["schemas"]["required"] is False
    packed = client.post(path, {"tables": ["t"], "compress": "zstd"}, format="json")
    assert zstandard.ZstdDecompressor().decompressobj().decompress(body_of(packed)).endswith(whole[-30:])
    for body, field, code in (
        ({}, "tables", "required"), ({"schemas": ["x"]}, "schemas", "unknown"), ({"tables": "t"}, "tables", "not_a_list"),
        ({"tables": ["t"], "schemas": ["public"]}, "schemas", "invalid"), ({"as": "sql"}, "as", "unknown"),
        ({"tables": ["t"] * 201}, "tables", "too_many"), ({"tables": ["t"], "compress": "lz4"}, "compress", "invalid_choice"),
    ):  # fmt: skip
        answer = client.post(path, body, format="json")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), answer.json()
        assert answer.json()["errors"][0]["code"] == code, answer.json()
    assert client.get(f"{path}?schemas=public").json()["errors"][0]["field"] == "schemas"
    assert api_client(team.vera).post(path, {"schemas": ["public"]}, format="json").status_code == 403
    assert api_client(team.charlie).post(path, {"schemas": ["public"]}, format="json").status_code == 404
    Backup.objects.filter(pk=backup.pk).update(engine="mariadb", version="11.8")
    refused = get(client, backup, "&schemas=public").json()["errors"][0]
    assert (refused["field"], refused["code"]) == ("schemas", "not_available") and "no schemas" in refused["detail"]
    assert free()


def psql(script: bytes) -> str:
    """What it says, as the file's own command runs it."""
    place = connection.settings_dict
    program = next(bundled_places()).bin / "psql"
    done = subprocess.run(
        [program, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--host={place['HOST']}", f"--port={place['PORT']}",
         f"--username={place['USER']}", f"--dbname={place['NAME']}", "--tuples-only", "--no-align", "--file=-"],
        input=script, env={**os.environ, "PGPASSWORD": place["PASSWORD"]}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).decode()


def test_one_that_is_cut_off_commits_nothing(team: Team, backup: Backup) -> None:
    """For psql the end of a file ends the rows of COPY as well."""
    script = body_of(get(api_client(team.bob), backup, "&tables=t"))
    there = b"SELECT to_regclass('public.t');"
    for cut in (
        script[: script.index(b"2\n2\n") + 200],
        script[: script.rindex(b"2\n") + 2],
        script[: script.index(b"COMMIT")],
    ):
        psql(cut)
        assert psql(there).strip() == ""
    try:
        psql(script)
        assert psql(b"SELECT count(*) FROM public.t;").strip() == "500000"
    finally:
        psql(b"DROP TABLE IF EXISTS public.t;")


def test_what_is_refused(
    team: Team, backup: Backup, project: Project, target: StorageTarget,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = api_client(team.bob)
    for query, field, code in (
        ("", "tables", "required"), ("&tables=nowhere", "tables", "unknown"), ("&tables=t&compress=lz4", "compress", "invalid"),
        ("&tables=gone", "tables", "unknown"),  # the manifest has it, the archive does not
    ):  # fmt: skip
        answer = get(client, backup, query)
        assert answer.status_code == 400, answer
        (error,) = answer.json()["errors"]
        assert (error["field"], error["code"]) == (field, code), query
        head = client.head(f"/api/v1/backups/{backup.pk}/download/?as=sql{query}")
        assert head.status_code == (200 if "gone" in query else 400), query  # what needs the archive HEAD can't know
    answer = client.get(f"/api/v1/backups/{backup.pk}/download/?tables=t")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "tables")
    assert get(api_client(team.vera), backup, "&tables=t").status_code == 403
    assert get(api_client(team.charlie), backup, "&tables=t").status_code == 404
    head = client.head(f"/api/v1/backups/{backup.pk}/download/?as=sql&tables=t")
    assert head.status_code == 200 and "Content-Length" not in head
    other = make(project, target, b"no archive" * 99, manifest=backup.manifest)
    answer = get(client, other, "&tables=t")
    assert (answer.status_code, answer.json()["code"]) == (409, "backup_corrupt")
    monkeypatch.setattr(postgresql_sql._Some, "MOST_BYTES", 99)
    answer = get(client, backup, "&tables=t")
    assert (answer.status_code, answer.json()["code"]) == (409, "sql_too_large")
    Backup.objects.filter(pk=backup.pk).update(engine="ferretdb", version="1.24")
    assert get(client, backup, "&tables=t").json()["errors"][0]["code"] == "not_available"
    assert not AuditEvent.objects.filter(action="backup.downloaded").exists(), "nothing left the house"
    Backup.objects.filter(pk=backup.pk).update(status="corrupt")
    assert get(client, backup, "&tables=t").json()["code"] == "action_not_allowed"
    assert free()


def test_a_trigger_of_which_nobody_can_tell_the_table_is_no_damage(
    team: Team, project: Project, target: StorageTarget,  # noqa: F811
) -> None:  # fmt: skip
    dump = (
        b"CREATE TABLE `t` (a int);\nCREATE TABLE `u` (a int);\nDELIMITER ;;\nCREATE TRIGGER x BEFORE INSERT ON t FOR ALL ;;\n"
        b"DELIMITER ;\n-- Dump completed\n"
    )
    tables = {"t": [0, "x"], "u": [0, "x"]}
    backup = make(project, target, dump, manifest={"contents": {"tables": tables, "facts": []}})
    Backup.objects.filter(pk=backup.pk).update(engine="mysql", version="9.7")
    answer = get(api_client(team.bob), backup, "&tables=t")
    assert (answer.status_code, answer.json()["code"]) == (409, "sql_unclear")
    assert b"CREATE TABLE `u`" in body_of(get(api_client(team.bob), backup, "&tables=u"))
    assert free()


def test_what_is_not_what_was_stored_never_ends_well(team: Team, backup: Backup, backup_root: Path) -> None:
    """All of it is hashed before its last line, also what stands behind the chosen table."""
    Backup.objects.filter(pk=backup.pk).update(sha256="0" * 64)
    answer = get(api_client(team.bob), backup, "&tables=t")
    came = b""
    if answer.status_code == 200:
        with pytest.raises(CorruptArchive):
            for piece in answer.streaming_content:
                came += piece
    else:
        assert answer.json()["code"] == "backup_corrupt"
    assert b"\n-- End" not in came and free()


def test_a_cut_off_archive_never_ends_well(team: Team, project: Project, target: StorageTarget) -> None:  # noqa: F811
    cut = make(project, target, ARCHIVE[:-3000], manifest={"contents": {"tables": {"public.t": [2, "x"]}, "facts": []}})
    answer = get(api_client(team.bob), cut, "&tables=t")
    assert answer.status_code == 200
    with pytest.raises(ForeignRefused):
        body_of(answer)
    assert free()


def test_who_waits_for_a_table_behind_others_sees_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(downloads.time, "monotonic", lambda: next(clock))
    skipped, lines = 0, []
    for _ in range(10):
        skipped, line = sql_parts.waiting(skipped, sql_parts.WAIT_BYTES // 2)
        lines.append(line)
    assert [bool(line) for line in lines] == [False, True] * 5
    for packed in (False, True):
        came = list(downloads._flowing(iter(lines), packed))
        assert len([piece for piece in came if piece]) >= 5
        whole = b"".join(came)
        assert (zstandard.ZstdDecompressor().decompressobj().decompress(whole) if packed else whole) == b"-- \n" * 5


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_statement_is_in_memory_once(packed: bool) -> None:
    size = 16 << 20

    def dump() -> Iterator[bytes]:
        yield b"CREATE TABLE `t` (a longblob);\n"
        for _ in range(3):
            yield b"INSERT INTO `t` VALUES ('"
            yield from (b"x" * (1 << 18) for _ in range(0, size, 1 << 18))
            yield b"');\n"
        yield b"-- Dump completed\n"

    came = longest = 0
    tracemalloc.start()
    try:
        for piece in downloads._flowing(mysql_sql.script(dump(), ["t"], sql_parts.Title("x", "y"), "mysql"), packed):
            came, longest = came + len(piece), max(longest, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert came > (1000 if packed else 3 * size) and longest <= 2 * downloads.FLOW_BYTES
    assert peak < 1.6 * size


def test_the_page(team: Team, backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    client, url = browser(team.bob), f"/backups/{backup.pk}/download/tables/"
    assert url in client.get(f"/backups/{backup.pk}/download/").content.decode()
    page = client.get(url)
    assert page.status_code == 200 and "public.gone" in page.content.decode()
    found = client.get(url, {"search": "GONE", "tables": ["public.t"]}, HTTP_HX_REQUEST="true").content.decode()
    assert found.count('name="tables"') == 2 and 'value="public.t" checked' in found
    assert 'name="schemas" value="public"' in page.content.decode()
    both = client.post(url, {"tables": ["public.t"], "schemas": ["public"]})
    assert both.status_code == 400 and "not both" in both.content.decode()
    for tables in ([], ["public.gone"]):
        refused = client.post(url, {"tables": tables})
        assert refused.status_code == 400 and 'role="alert"' in refused.content.decode()
    assert not AuditEvent.objects.filter(action="backup.downloaded").exists()
    with monkeypatch.context() as others:
        others.setattr(downloads, "slots", threading.BoundedSemaphore(1))
        with downloads.slots:
            refused = client.post(url, {"tables": ["public.t"]})
    assert (refused.status_code, refused["Retry-After"]) == (429, "60") and 'role="alert"' in refused.content.decode()
    assert body_of(client.post(url, {"schemas": ["public"]})).endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    answer = client.post(url, {"tables": ["public.t"], "packed": "on"})
    assert answer.status_code == 200 and answer["Content-Disposition"].endswith('.sql.zst"')
    whole = zstandard.ZstdDecompressor().decompressobj().decompress(body_of(answer))
    assert whole.endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    assert browser(team.vera).get(url).status_code == 403 and browser(team.charlie).post(url).status_code == 404
    Backup.objects.filter(pk=backup.pk).update(engine="ferretdb", version="1.24")
    assert url not in client.get(f"/backups/{backup.pk}/download/").content.decode()
    assert client.get(url).status_code in {400, 403, 409} and free()
