"""FerretDB: the engine contract and what is particular to it, on a real server in a container."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from projects.domain import ConnectionInfo, Credentials, DataPolicy, EngineError, LoginRefused, TableCount
from projects.engines.ferretdb import FerretDB, FerretDBAdmin, scram_sha_256
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import Place, search_path
from tests.contracts.engine_contract import HOSTILE, SNIPPETS, EngineContract, LiveServer, Tenant, new_names
from tests.contracts.engine_servers import docker_server, small_spec, wait_ready

BINARY = Path(__file__).parents[2] / "images/ferretdb/binary"
MONGODB_SNIPPETS = SNIPPETS - {"sqlalchemy", "jdbc", "prisma"} | {"python"}


@contextlib.contextmanager
def client(server: LiveServer, credentials: Credentials) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        server.endpoint.host, server.endpoint.port, username=credentials.username, password=credentials.password,
        authSource=credentials.database or "admin", directConnection=True, serverSelectionTimeoutMS=5000,
        uuidRepresentation="standard",
    ) as found:  # fmt: skip
        yield found


class TestSCRAM:
    def test_the_verifier_of_the_standards_example(self) -> None:
        """RFC 7677 gives password, salt and proofs; the stored key is what a proof is checked with."""
        import base64
        import hashlib
        import hmac

        found = scram_sha_256("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 15_000)
        key = hmac.digest(salted, b"Client Key", "sha256")
        assert base64.b64decode(found["storedKey"]) == hashlib.sha256(key).digest()

    def test_what_it_can_not_prepare_is_refused(self) -> None:
        with pytest.raises(ValueError, match="ASCII"):
            scram_sha_256("pässword", b"salt")


class FerretDBContract(EngineContract):
    engine = FerretDB()
    version: ClassVar[str] = "1.24"
    empty_size_bytes = 0
    snippets = MONGODB_SNIPPETS

    def fill(self, server: LiveServer, tenant: Tenant, table: str, rows: int) -> None:
        with client(server, tenant.login) as session:
            collection = session[tenant.names.database][table]
            for number in range(min(rows, 60)):
                collection.insert_one({"number": number})
            if rows > 60:
                collection.insert_many([{"number": number} for number in range(60, rows)])
            collection.find().to_list()

    def test_of_a_large_database_only_names_are_told(
        self, server: LiveServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Counting would analyse all of it, under a lock."""
        self.fill(server, tenant, "things", 100)
        monkeypatch.setattr("projects.engines.ferretdb.COUNTED_BYTES", 1)
        assert self.table_counts(server, tenant).tables == (TableCount("things", None, None),)

    # --- logins -------------------------------------------------------------------------------------------------------
    def test_nothing_without_a_login(self, server: LiveServer) -> None:
        with MongoClient[dict[str, Any]](server.endpoint.host, server.endpoint.port, directConnection=True) as stranger:
            for database, command in (
                ("shop", {"find": "things"}), ("admin", {"find": "system.users"}), ("admin", {"listDatabases": 1}),
                ("admin", {"usersInfo": 1}), ("shop", {"insert": "things", "documents": [{"a": 1}]}),
                ("admin", {"createUser": "me", "pwd": "me", "roles": []}), ("admin", {"serverStatus": 1}),
            ):  # fmt: skip
                with pytest.raises(OperationFailure, match="requires authentication"):
                    stranger[database].command(command)

    def test_no_password_reaches_the_server_in_the_clear(self, server: LiveServer) -> None:
        """Whoever logs in can read what it keeps: verifiers, with salts of their own."""
        tenant = self.make(server, new_names())
        with client(server, tenant.login) as session:
            users = {user["_id"]: user for user in session["admin"]["system.users"].find()}
        kept = [users[f"{tenant.names.database}.{name}"] for name in (tenant.names.login, tenant.names.control)]
        assert all(set(user["credentials"]) == {"SCRAM-SHA-256"} for user in kept)
        assert len({user["credentials"]["SCRAM-SHA-256"]["salt"] for user in kept}) == 2
        assert tenant.control_password not in str(users) + server.log_text()
        self.drop(server, tenant.names)

    def test_a_login_that_was_locked_gets_its_new_password_and_stays_locked(
        self, server: LiveServer, tenant: Tenant
    ) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.lock_tenant(tenant.names, locked=True)
            admin.set_password(tenant.names.login, "another")
            new = Credentials(tenant.names.login, "another", tenant.names.database)
            with pytest.raises(LoginRefused):
                self.engine.probe(server.endpoint, new)
            admin.lock_tenant(tenant.names, locked=False)
        self.engine.probe(server.endpoint, new)

    def test_a_lock_shuts_out_logins_that_the_tenant_made(self, server: LiveServer, tenant: Tenant) -> None:
        name = f"mine_{uuid.uuid4().hex[:6]}"
        with client(server, tenant.login) as session:
            session["elsewhere"].command({"createUser": name, "pwd": "mine", "roles": []})
        with self.engine.admin(server.endpoint, server.admin) as admin:
            self.engine.probe(server.endpoint, Credentials(name, "mine", "elsewhere"))
            admin.lock_tenant(tenant.names, locked=True)
            with pytest.raises(LoginRefused):
                self.engine.probe(server.endpoint, Credentials(name, "mine", "elsewhere"))
            admin.lock_tenant(tenant.names, locked=False)
        self.engine.probe(server.endpoint, Credentials(name, "mine", "elsewhere"))

    def test_open_sessions_go_on(self, server: LiveServer, tenant: Tenant) -> None:
        """Why END_SESSIONS is not among its capabilities: this must be known, not hoped."""
        with client(server, tenant.login) as session:
            things = session[tenant.names.database]["things"]
            things.insert_one({"a": 1})
            with self.engine.admin(server.endpoint, server.admin) as admin:
                admin.lock_tenant(tenant.names, locked=True)
                admin.set_password(tenant.names.login, "another")
                assert things.count_documents({}) == 1
                admin.lock_tenant(tenant.names, locked=False)

    def test_there_are_no_rights(self, server: LiveServer, tenant: Tenant) -> None:
        """Why POOL is not among its capabilities."""
        other = self.make(server, new_names())
        with client(server, other.login) as session:
            session[other.names.database]["secrets"].insert_one({"word": "mine"})
        with client(server, tenant.login) as session:
            assert session[other.names.database]["secrets"].find_one({}, {"_id": 0}) == {"word": "mine"}
        self.drop(server, other.names)

    def test_a_tenant_that_changed_its_own_password(self, server: LiveServer, tenant: Tenant) -> None:
        with client(server, tenant.login) as session:
            session[tenant.names.database].command({"updateUser": tenant.names.login, "pwd": "my-own-choice"})
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, tenant.login)
        assert "my-own-choice" not in server.log_text()
        with self.engine.admin(server.endpoint, server.admin) as admin:
            admin.set_password(tenant.names.login, tenant.password)
        self.engine.probe(server.endpoint, tenant.login)

    @pytest.mark.parametrize("part", [{"_id", "user", "db", "roles"}, {"_id"}])
    def test_what_a_crash_left_half_made_is_completed(self, server: LiveServer, part: set[str]) -> None:
        names = new_names()
        whole = {"_id": f"{names.database}.{names.login}", "user": names.login, "db": names.database, "roles": []}
        with client(server, server.admin) as session:
            session["admin"]["system.users"].insert_one({key: whole[key] for key in part} | {"credentials": {}})
        with pytest.raises(LoginRefused):
            self.engine.probe(server.endpoint, Credentials(names.login, "x", names.database))
        tenant = self.make(server, names)
        self.engine.verify_tenant(server.endpoint, names, tenant.password)
        self.drop(server, names)

    def test_nothing_of_a_dropped_tenant_is_left(self, server: LiveServer) -> None:
        tenant = self.make(server, new_names())
        with client(server, tenant.login) as session:
            session[tenant.names.database]["things"].insert_one({"a": 1})
        self.drop(server, tenant.names)
        with client(server, server.admin) as session:
            assert tenant.names.database not in session.list_database_names()
            assert session["admin"]["system.users"].count_documents({"db": tenant.names.database}) == 0

    def test_a_password_for_a_login_that_is_not_there(self, server: LiveServer) -> None:
        with self.engine.admin(server.endpoint, server.admin) as admin, pytest.raises(EngineError, match="not exist"):
            admin.set_password("nobody_here", "x")

    # --- figures ------------------------------------------------------------------------------------------------------
    def test_the_size_is_the_files_and_measured_as_rarely_as_it_is_dear(
        self, server: LiveServer, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = tenant.names.database
        monkeypatch.setattr(FerretDBAdmin, "_sizes", {})
        with self.engine.admin(server.endpoint, tenant.control) as admin:
            assert admin.stats(database).size_bytes == 0
            with client(server, tenant.login) as session:
                session[database]["things"].insert_many([{"word": "x" * 1000} for _ in range(2000)])
            time.sleep(1)  # more than twenty times what it took
            size = admin.stats(database).size_bytes
            assert 2_000_000 < size < 8_000_000
            for key, (at, _, kept) in FerretDBAdmin._sizes.items():
                FerretDBAdmin._sizes[key] = (at, 60.0, kept + 7)
            assert admin.stats(database).size_bytes == size + 7
            assert admin.stats(database).connections is None

    # --- snippets, by the clients that are here -----------------------------------------------------------------------
    def info(self, server: LiveServer, tenant: Tenant) -> ConnectionInfo:
        place = server.endpoint
        return ConnectionInfo(
            self.engine.name, place.host, place.port, tenant.names.database, tenant.names.login, tenant.password
        )

    def test_the_uri(self, server: LiveServer, tenant: Tenant) -> None:
        with MongoClient[dict[str, Any]](self.engine.urls(self.info(server, tenant))["uri"]) as session:
            database = session.get_default_database()
            assert database.name == tenant.names.database
            database["things"].insert_one({"word": "naïve 🐬"})
            assert database["things"].find_one({}, {"_id": 0}) == {"word": "naïve 🐬"}

    @pytest.mark.parametrize("name", ["python", "django"])
    def test_python(self, server: LiveServer, tenant: Tenant, name: str) -> None:
        names: dict[str, Any] = {}
        exec(self.engine.snippets(self.info(server, tenant))[name], names)  # noqa: S102
        database = names["database"] if name == "python" else names["MONGODB"]
        with database.client:
            assert database.command("connectionStatus")["authInfo"]["authenticatedUsers"] == [
                {"user": tenant.names.login, "db": tenant.names.database}
            ]

    @pytest.mark.parametrize("name", ["node", "go", "compose", "cli"])
    def test_others_carry_the_same_uri(self, server: LiveServer, tenant: Tenant, name: str) -> None:
        info = self.info(server, tenant)
        uri = self.engine.urls(info)["uri"]
        assert (f"'{uri}'" if name == "cli" else json.dumps(uri)) in self.engine.snippets(info)[name]

    def test_env_lines_can_be_sourced(self) -> None:
        info = ConnectionInfo(self.engine.name, "127.0.0.1", 20001, "shop", "app", HOSTILE)
        script = f'set -a\n{self.engine.snippets(info)["env"]}\nprintf %s "$MONGODB_PASSWORD"'
        assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode() == HOSTILE


@pytest.mark.docker
class TestFerretDBInAContainer(FerretDBContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        yield from docker_server(cls.engine, cls.version)


@pytest.mark.process
class TestFerretDBAsAProcess(FerretDBContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        built = subprocess.run([BINARY], capture_output=True, text=True, timeout=500, check=False)
        if built.returncode:
            pytest.skip(built.stderr.strip()[-300:])
        root = Path(tempfile.mkdtemp(prefix="nvs-ferretdb-", dir="/tmp"))
        root.chmod(0o711)
        search = search_path([Path(built.stdout.strip()).parent])
        runtime = ProcessRuntime(f"test{uuid.uuid4().hex[:10]}", root / "state", search=search)
        password = uuid.uuid4().hex
        spec = small_spec(cls.engine, cls.version, "ferretdb-1.24.2", password)
        try:
            handle = runtime.ensure(spec, data=DataPolicy.CREATE)
            admin = Credentials(cls.engine.bootstrap_username, password)
            wait_ready(cls.engine, spec.publish, admin)
            yield LiveServer(spec.publish, admin, lambda: b"\n".join(runtime.logs(handle, tail=5000)).decode())
            runtime.destroy(handle, delete_data=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)


def test_a_machine_without_the_tools_says_which(tmp_path: Path) -> None:
    (tmp_path / "mongodump").write_text("#!/bin/sh\n")
    (tmp_path / "mongodump").chmod(0o755)
    runtime = ProcessRuntime("test", tmp_path / "root", search=lambda _: iter([Place(tmp_path, tmp_path.parent, ())]))
    assert runtime.lacks_programs(FerretDB.tool_programs) == "this machine has no mongorestore"
    assert runtime.lacks_programs(("mongodump", "sh")) == ""
