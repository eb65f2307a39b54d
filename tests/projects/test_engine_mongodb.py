"""MongoDB: what can be said without its server, and the engine contract where its official image is on the host.

Where this was written the image could not be had, so the tests on a server have never run. Without it they are not
collected (conftest.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from projects.domain import Tls
from projects.engines.mongodb import MongoDB
from tests.contracts.engine_contract import EngineContract, LiveServer, Tenant, request
from tests.contracts.engine_servers import docker_server
from tests.projects.test_engine_ferretdb import MONGODB_SNIPPETS

# What the official entrypoint does is in its own words at github.com/docker-library/mongo.


def test_the_official_entrypoint_gets_name_and_password_or_neither() -> None:
    """It ends with an error when one is empty and the other is not; ours are emptied together after the first start."""
    spec = MongoDB().server_spec(request(MongoDB(), "8", "sesame"))
    assert spec.env == {
        "MONGO_INITDB_ROOT_USERNAME_FILE": "/data/db/.novastack/username",
        "MONGO_INITDB_ROOT_PASSWORD_FILE": "/data/db/.novastack/bootstrap",
    }
    assert spec.secret_files == {"username": b"novastack", "bootstrap": b"sesame"}
    assert "--auth" in spec.argv  # which it only adds while it has a password


def test_its_data_has_a_place_of_its_own_that_the_entrypoint_knows() -> None:
    spec = MongoDB().server_spec(request(MongoDB(), "7", "sesame"))
    assert spec.argv[:3] == ("mongod", "--dbpath", "/data/db/data")  # the first word must be `mongod`
    assert (spec.mount_path, spec.data_subdir) == ("/data/db", "data")
    assert "--directoryperdb" in spec.argv and spec.completed_file == "novastack"
    cache = float(spec.argv[spec.argv.index("--wiredTigerCacheSizeGB") + 1])
    assert 0.25 <= cache <= 256  # the product's bounds


def test_tls_is_in_a_file_of_ours_which_the_entrypoint_leaves_out_of_the_first_start() -> None:
    asked = request(MongoDB(), "8", "sesame")
    assert "--config" not in MongoDB().server_spec(asked).argv
    for required, mode in ((False, "preferTLS"), (True, "requireTLS")):
        spec = MongoDB().server_spec(dataclasses.replace(asked, tls=Tls(b"pair", required, b"ca")))
        place = "/data/db/.novastack/files"
        assert spec.argv[-2:] == ("--config", f"{place}/mongod.conf") and "tls" not in " ".join(spec.argv).lower()
        assert spec.files["server.pem"] == b"pair"
        config = spec.files["mongod.conf"].decode()
        assert f"mode: {mode}\n" in config and f"certificateKeyFile: {place}/server.pem\n" in config


class TestMongoDB(EngineContract):
    engine = MongoDB()
    version: ClassVar[str] = "8"
    empty_size_bytes = 0
    snippets = MONGODB_SNIPPETS
    fence_ends_sessions = False

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[LiveServer]:
        yield from docker_server(cls.engine, cls.version)

    def test_a_fence_holds_for_open_sessions(self, server: LiveServer, tenant: Tenant) -> None:
        uri = f"mongodb://{server.endpoint.host}:{server.endpoint.port}/?directConnection=true"
        names = tenant.names
        with (
            MongoClient[dict[str, Any]](
                uri, username=names.login, password=tenant.password, authSource=names.database
            ) as client,
            self.engine.admin(server.endpoint, server.admin) as admin,
        ):
            things = client[names.database]["things"]
            things.insert_one({"a": 1})
            admin.fence_writers(names, fenced=True)
            assert admin.stats(names.database).fenced
            with pytest.raises(OperationFailure, match="not authorized"):
                things.insert_one({"a": 2})
            assert things.delete_many({}).deleted_count == 1
            admin.fence_writers(names, fenced=False)
            things.insert_one({"a": 3})
