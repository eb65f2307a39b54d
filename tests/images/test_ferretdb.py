"""Our FerretDB image, tried from outside with `docker` and PyMongo, without any of our code in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tests.images.conftest import docker, eventually, need_image

pytestmark = pytest.mark.docker
IMAGE = "novastack-ferretdb:1.24"
HARDENED = [
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "128m",
]


@pytest.fixture(autouse=True)
def _image() -> None:
    need_image(IMAGE)


def run(name: str, *arguments: str) -> None:
    docker("run", "--detach", "--name", name, "--volume", f"{name}:/var/lib/ferretdb", "--publish",
           "127.0.0.1::27017", *arguments)  # fmt: skip


def client(name: str, password: str = "", username: str = "boss") -> MongoClient[dict[str, Any]]:
    port = int(docker("port", name, "27017/tcp").stdout.split()[0].rpartition(":")[2])
    login = {"username": username, "password": password, "authSource": "admin"} if password else {}
    return MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=1000, **login)  # type: ignore[arg-type]


def ready(name: str, password: str) -> bool:
    def logs_in() -> bool:
        try:
            with client(name, password) as session:
                session.admin.command("ping")
        except PyMongoError:
            return False
        return True

    return eventually(logs_in, seconds=30)


def processes(name: str) -> str:
    return docker("top", name, "-eo", "pid,args").stdout


@pytest.mark.parametrize("tool", ["mongodump", "mongorestore"])
def test_it_has_the_tools_of_backups(name: str, tool: str) -> None:
    assert "version: 100." in docker("run", "--rm", "--name", name, IMAGE, tool, "--version").stdout


@pytest.mark.parametrize("options", [[], ["--user", "ferretdb", *HARDENED]])
def test_the_first_login_by_a_file_and_data_that_stays(name: str, options: list[str], shared_folder: Path) -> None:
    secret = shared_folder / "first"
    secret.write_text("first-and-secret")
    arguments = [
        *options, "--volume", f"{secret}:/run/secrets/first:ro", "--env", "FERRETDB_SETUP_USERNAME=boss",
        "--env", "FERRETDB_SETUP_PASSWORD_FILE=/run/secrets/first", IMAGE,
    ]  # fmt: skip
    run(name, *arguments)
    assert ready(name, "first-and-secret"), docker("logs", name).stderr
    with client(name, "first-and-secret") as session:
        session.shop.things.insert_one({"word": "kept"})
    with client(name) as stranger, pytest.raises(OperationFailure, match="requires authentication"):
        stranger.shop.things.find_one()
    with client(name, "wrong") as wrong, pytest.raises(OperationFailure, match="Authentication failed"):
        wrong.shop.things.find_one()
    assert "first-and-secret" not in processes(name) + docker("logs", name).stderr
    environment = docker("exec", "--user", "ferretdb", name, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout
    assert "SETUP" not in environment, "the server must not carry what only the first start needs"
    assert "ferretdb" in docker("exec", name, "stat", "-c", "%U", "/proc/1").stdout
    docker("rm", "--force", name)
    secret.write_text("")  # a second start asks for nothing
    run(name, *arguments)
    assert ready(name, "first-and-secret")
    with client(name, "first-and-secret") as session:
        assert session.shop.things.find_one({}, {"_id": 0}) == {"word": "kept"}


def test_a_first_start_that_was_cut_off_is_begun_anew(name: str) -> None:
    docker("run", "--rm", "--volume", f"{name}:/var/lib/ferretdb", "--entrypoint", "sh", IMAGE, "-c",
           "mkdir -p /var/lib/ferretdb/data.new && echo rubbish >/var/lib/ferretdb/data.new/admin.sqlite")  # fmt: skip
    run(name, "--env", "FERRETDB_SETUP_USERNAME=boss", "--env", "FERRETDB_SETUP_PASSWORD=whole", IMAGE)
    assert ready(name, "whole"), docker("logs", name).stderr


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "there is no first login"),
        (["FERRETDB_SETUP_USERNAME=boss"], "there is no first login"),
        (["FERRETDB_SETUP_USERNAME=boss", "FERRETDB_SETUP_PASSWORD=a", "FERRETDB_SETUP_PASSWORD_FILE=/b"], "both"),
    ],
)
def test_what_it_can_not_work_with_is_said(name: str, settings: list[str], reason: str) -> None:
    options = [word for setting in settings for word in ("--env", setting)]
    done = docker("run", "--name", name, *options, IMAGE, check=False)
    assert done.returncode == 1
    assert reason in done.stderr


def test_it_stops_politely_and_other_commands_run(name: str) -> None:
    assert "v1.24.2" in docker("run", "--rm", "--entrypoint", "ferretdb", IMAGE, "--version").stdout
    assert docker("run", "--rm", IMAGE, "sh", "-c", "command -v flock").stdout.strip()
    run(name, "--env", "FERRETDB_SETUP_USERNAME=boss", "--env", "FERRETDB_SETUP_PASSWORD=whole", IMAGE)
    assert ready(name, "whole")
    docker("stop", "--time", "10", name)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"
