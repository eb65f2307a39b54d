"""docs/recovery.md for MariaDB and MySQL, word for word: their own clients, another server, and nothing of NovaStack."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from accounts.permissions import Principal
from backups import manifest as manifests
from backups.archive import Sealer
from backups.operations import keys
from backups.services.kits import kit_export
from novastack.common.models import Install
from projects.domain import Credentials
from tests.backups.test_recovery import blocks, follow
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server
from tests.engines.test_copies_mysql import ENGINES, HOSTILE, MARIADB, run
from tests.engines.test_moment_mysql import taken
from tests.factories import Team

pytestmark = [pytest.mark.docker, pytest.mark.django_db]
CLIENTS = {"mariadb": ("mariadb", "mariadb-admin"), "mysql": ("mysql", "mysqladmin")}


@pytest.fixture(scope="module", params=["mariadb-11.8", "mysql-9.7"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[CopyServer, CopyServer]]:
    engine, _, version = request.param.partition("-")
    with docker_copy_server(ENGINES[engine], version) as source, docker_copy_server(ENGINES[engine], version) as other:
        yield source, other


def stored(copier: Copier, team: Team, folder: Path) -> tuple[str, manifests.Manifest]:
    """A backup as it lies in a storage, of what the source holds; its name."""
    install, backup = str(Install.load().install_id), str(uuid4())
    organization, key = team.organization, f"{install}/{team.organization.pk}/{backup}/1"
    dump, contents, _ = taken(copier, copier.source)
    recipients, into = keys.recipients_of(organization.pk), io.BytesIO()
    sealer = Sealer(into, recipients)
    sealer.feed(dump)
    sealed = sealer.finish()
    names = copier.names
    manifest = manifests.Manifest(
        install=install, organization=str(organization.pk), project={"id": "1", "name": "Shop", "slug": "shop"},
        backup=backup, key=key, engine=copier.source.engine.name, version="", server_version="", image="", tool="",
        taken_at="", finished_at="", dump={"format": "sql", "bytes": sealed.dump_bytes},
        stored={"bytes": sealed.size_bytes, "sha256": sealed.sha256, "compressed": True, "encrypted": True,
                "recipients": recipients},
        database={"name": names.database}, contents=contents,
        names={"owner": names.owner, "group": names.group, "login": names.login, "control": names.control},
    )  # fmt: skip
    place = folder / key
    place.parent.mkdir(parents=True)
    place.write_bytes(into.getvalue())
    Path(f"{place}.manifest").write_bytes(manifests.seal(manifest, recipients, keys.signing_key()))
    return key, manifest


def client_of(server: CopyServer, home: Path) -> dict[str, str]:
    """The environment in which the product's own clients find the server, as its administrator: the host's, or, where it
    has none, those of the server's image."""
    (home / "bin").mkdir()
    engine = server.engine.name
    inside = engine == "mysql" or any(shutil.which(program) is None for program in CLIENTS[engine])
    place = ("127.0.0.1", server.engine.default_port) if inside else (server.endpoint.host, server.endpoint.port)
    options = (
        f'[client]\nhost="{place[0]}"\nport={place[1]}\nprotocol=TCP\nuser="{server.admin.username}"\n'
        f'password="{server.admin.password}"\n'
    )
    (home / ".my.cnf").write_text(options)
    if inside:
        container = server.handle.ref or server.handle.name
        copy = ["docker", "exec", "-i", container, "sh", "-c", "cat > /tmp/recovery.cnf && chmod 644 /tmp/recovery.cnf"]
        subprocess.run(copy, input=options.encode(), check=True)
        for program in CLIENTS[engine]:
            wrapper = home / "bin" / program
            wrapper.write_text(
                f'#!/bin/sh\nexec docker exec -i {container} {program} --defaults-extra-file=/tmp/recovery.cnf "$@"\n'
            )
            wrapper.chmod(wrapper.stat().st_mode | stat.S_IEXEC)
    return {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home)}


def test_a_dump_is_restored_by_hand(servers: tuple[CopyServer, CopyServer], team: Team, tmp_path: Path) -> None:
    missing = [name for name in ("age", "zstd", "jq", "openssl") if shutil.which(name) is None]
    assert not missing, f"needs {', '.join(missing)} (Debian packages of these names)"
    source, other = servers
    engine = source.engine.name
    with Copier.between(source, other, new_names()) as copier:
        with source.engine.admin(source.endpoint, source.admin) as theirs:
            theirs.quiet(copier.names, quiet=True)
        run(source, copier.login, *HOSTILE, *(MARIADB if engine == "mariadb" else ()))
        storage = tmp_path / "storage"
        key, manifest = stored(copier, team, storage)
        kit = tmp_path / "recovery-kit.txt"
        kit.write_text(kit_export(principal=Principal.of(team.alice), organization=team.organization).text)
        home = tmp_path / "home"
        home.mkdir()
        env = {"kit": str(kit), "storage": str(storage), "object": key, **client_of(other, home)}
        with contextlib.ExitStack() as stack:
            login = Credentials(copier.names.login, "choose-another-one", "restored")
            stack.callback(
                run,
                other,
                other.admin,
                "DROP DATABASE IF EXISTS restored",
                f"DROP USER IF EXISTS '{login.username}'@'%'",
            )
            said = follow(blocks(engine), home, env)
            assert f"{key}: OK" in said and "Signature Verified Successfully" in said
            copy = source.engine.fingerprint(
                other.endpoint, Credentials(other.admin.username, other.admin.password, "restored")
            )
            wanted = source.engine.fingerprint(source.endpoint, copier.tool)
            assert wanted.differences(copy) == []
            assert manifest.contents is not None
            assert {name: table.rows for name, table in manifest.contents.tables.items()} == {
                name: table.rows for name, table in copy.tables.items()
            }
            # Whose it is: the owner's of the new login, not the administrator's.
            assert run(other, login, "SELECT COUNT(*) FROM a_view")[0][0] >= 0
            makers = run(other, other.admin, "SELECT DISTINCT definer FROM information_schema.views"
                         " WHERE table_schema = 'restored'")  # fmt: skip
            assert makers == ((f"{login.username}@%",),)
