"""MariaDB and MySQL on images that have no `flock` program: the server's own locks keep a second server away (rule 10)."""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from projects.domain import Credentials, DataPolicy
from projects.engines.base import Engine
from projects.engines.mariadb import MariaDB
from projects.engines.mysql import MySQL
from projects.runtimes.docker import DockerRuntime
from tests.contracts.engine_servers import image_of, small_spec, wait_ready
from tests.images.conftest import docker, eventually

pytestmark = pytest.mark.docker


@pytest.fixture(params=[(MariaDB(), "11.8"), (MySQL(), "9.7")], ids=["mariadb", "mysql"])
def bare(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, str, str]]:
    """The engine, its version, and its image without flock."""
    engine, version = request.param
    image = image_of(engine, version, DockerRuntime("probe"))
    tag = f"novastack-test-no-flock:{uuid.uuid4().hex[:10]}"
    recipe = f"FROM {image}\nUSER root\nRUN rm /usr/bin/flock\nUSER mysql\n"
    subprocess.run(["docker", "build", "-q", "-t", tag, "-"], input=recipe.encode(), check=True, capture_output=True)
    yield engine, version, tag
    docker("rmi", "-f", tag)


def test_a_second_server_on_the_same_data_is_refused(bare: tuple[Engine, str, str]) -> None:
    engine, version, image = bare
    runtime, password = DockerRuntime(f"test{uuid.uuid4().hex[:10]}"), uuid.uuid4().hex
    spec = small_spec(engine, version, image, password)
    handle = runtime.ensure(spec, data=DataPolicy.CREATE)
    admin = Credentials(engine.bootstrap_username, password)
    try:
        wait_ready(engine, spec.publish, admin)
        with engine.admin(spec.publish, admin) as session:
            session.harden()
        docker(
            "run", "--detach", "--name", f"{handle.name}-second", "--user", "mysql", "--network", "none",
            "-v", f"{handle.name}-data:/var/lib/mysql", "--entrypoint", engine.server_program, image,
            "--datadir=/var/lib/mysql/data", "--innodb-buffer-pool-size=16M", "--performance-schema=OFF",
        )  # fmt: skip

        def said() -> str:
            log = docker("logs", f"{handle.name}-second")
            return log.stdout + log.stderr

        # It asks again and again, for half a minute and more, before it gives up. MariaDB meets Aria's lock first.
        refusal = re.compile(r"Unable to lock \./ibdata1|Can't lock aria control file .* error: 11")
        assert eventually(lambda: bool(refusal.search(said())), seconds=20), said()
        assert "ready for connections" not in said()
        engine.probe(spec.publish, admin)
    finally:
        docker("rm", "--force", f"{handle.name}-second", check=False)
        runtime.destroy(handle, delete_data=True)
        runtime.remove_network()
