"""The client against a whole install: real servers, real databases, real logins; and the example of docs/allocation.md."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import requests

from novastack_client import Allocation, AsyncNovaStack, Conflict, NotFound, NovaStack
from tests.install import CHECKOUT, Install, running_install

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]
EXAMPLE = CHECKOUT / "docs" / "examples"


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Install]:
    # The suite's processes may have one each.
    first = 28300 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with running_install(
        tmp_path_factory.mktemp("install"), ports=f"{first}-{first + 99}", NOVASTACK_POOL_FILL_PERCENT="100",
        NOVASTACK_THROTTLE_PRINCIPAL="6000/min",
    ) as found:  # fmt: skip
        found.manage("shell", "-c", "from accounts.models import Organization; Organization.objects.update(max_projects=500, "
                     "max_memory_bytes=2**50, max_storage_bytes=2**50)")  # fmt: skip
        yield found


@pytest.fixture(scope="module")
def token(install: Install) -> str:
    api = f"{install.url}/api/v1/auth"
    given = {"email": install.email, "password": install.password}
    access = requests.post(f"{api}/login/", json=given, timeout=30).json()["access"]
    made = requests.post(
        f"{api}/tokens/", json={"name": "instances", "scopes": ["write", "connect", "admin"]}, timeout=30,
        headers={"Authorization": f"Bearer {access}"},
    )  # fmt: skip
    return str(made.json()["token"])


@pytest.fixture
def nova(install: Install, token: str) -> Iterator[NovaStack]:
    with NovaStack(install.url, token) as client:
        yield client


def log_in(made: Allocation) -> tuple[str, str]:
    """The database and the user that the server says."""
    assert made.connection is not None and made.connection.uri
    with psycopg.connect(made.connection.uri, connect_timeout=60) as link:
        row = link.execute("SELECT current_database(), session_user").fetchone()
    assert row == (made.connection.database, made.connection.username)
    return row


def test_fifty_at_once_for_one_instance_get_one_database(nova: NovaStack) -> None:
    with ThreadPoolExecutor(50) as pool:
        made = list(pool.map(lambda _: nova.allocate_database("odoo-one", deadline_seconds=240), range(50)))
    assert len({m.project.id for m in made}) == len({m.connection.uri for m in made if m.connection}) == 1
    assert {log_in(m) for m in made[:3]} == {log_in(made[0])}
    assert [p.name for p in nova.list_projects(search="odoo-one")] == ["odoo-one"]
    kinds = [o.kind for o in nova.list_operations(project_id=made[0].project.id)]
    assert kinds == ["provision"]


def test_fifty_instances_at_once_get_fifty_databases(install: Install, token: str) -> None:
    async def all_of_them() -> list[Allocation]:
        async with AsyncNovaStack(install.url, token) as nova:
            return list(
                await asyncio.gather(*(nova.allocate_database(f"many-{n}", deadline_seconds=600) for n in range(50)))
            )

    with ThreadPoolExecutor(1) as own:  # Playwright leaves its event loop running in a test process's main thread
        made = own.submit(asyncio.run, all_of_them()).result()
    assert {m.project.placement for m in made} == {"pool"}
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(log_in, made))) == 50
    with NovaStack(install.url, token) as nova:
        until = time.monotonic() + 240
        while (status := nova.get_pool_status()).status != "healthy":  # its workers tell that they live every 15 s
            assert time.monotonic() < until
            time.sleep(1)
        assert sum(p.databases for p in status.pools) >= 50
        pools = {p.id: nova.get_pool(p.id) for p in nova.list_pools()}
        assert all(p.databases == len(p.members) <= p.max_databases for p in pools.values())
        assert {m.project.id for m in made} <= {m.project for p in pools.values() for m in p.members}


def test_a_server_of_its_own_and_a_life(nova: NovaStack) -> None:
    made = nova.provision_dedicated_server("bank", deadline_seconds=240)
    assert made.project.placement == "dedicated"
    log_in(made)
    with pytest.raises(Conflict) as mixed:
        nova.allocate_database("bank")
    assert mixed.value.code == "allocation_mismatch" and mixed.value.errors[0].field == "placement"
    nova.project_action(made.project.id, "stop", wait=True, deadline_seconds=240)
    with pytest.raises(psycopg.OperationalError):
        log_in(made)
    nova.project_action(made.project.id, "start", wait=True, deadline_seconds=240)
    nova.project_action(made.project.id, "rotate_password", wait=True, deadline_seconds=240)
    with pytest.raises(psycopg.OperationalError):
        log_in(made)
    log_in(nova.provision_dedicated_server("bank"))
    assert nova.delete_project(made.project.id, wait=True, deadline_seconds=240).status == "recycled"
    with pytest.raises(Conflict) as deleted:
        nova.provision_dedicated_server("bank")
    assert deleted.value.code == "allocation_recycled"


def test_a_backup_is_proven_fetched_and_comes_back(nova: NovaStack) -> None:
    made = nova.allocate_database("ledger", deadline_seconds=240)
    assert made.connection is not None and made.connection.uri
    with psycopg.connect(made.connection.uri) as link:
        link.execute("CREATE TABLE entries AS SELECT n FROM generate_series(1, 700) n")
    backup = nova.create_backup(made.project.id, label="by the client", wait=True, deadline_seconds=240)
    assert backup.status in {"stored", "verifying", "verified"} and backup.sha256
    proof = nova.verify_backup(backup.id, wait=True, deadline_seconds=240)
    assert proof.passed and proof.rows is not None and proof.rows >= 700
    backup = nova.get_backup(backup.id)
    assert backup.verified
    file = io.BytesIO()
    assert nova.download_backup(backup.id, file) == len(file.getvalue()) > 700 and file.getvalue().startswith(b"PGDMP")
    restored = nova.restore_backup(backup.id, name="Ledger, again", placement="pool", wait=True, deadline_seconds=240)
    assert restored.status == "succeeded" and restored.project is not None
    connection = nova.project_connection(restored.project)
    assert connection.uri and connection.database != made.connection.database
    with psycopg.connect(connection.uri) as link:
        assert link.execute("SELECT count(*), sum(n) FROM entries").fetchone() == (700, 245350)
    nova.delete_backup(backup.id, wait=True, deadline_seconds=240)
    with pytest.raises(NotFound):
        nova.get_backup(backup.id)


class TestExample:
    @pytest.fixture
    def service(self, install: Install, token: str, tmp_path: Path) -> dict[str, str]:
        """The example's environment, its files in a folder of their own."""
        shutil.copy(EXAMPLE / "instance_service.py", tmp_path)
        broker = tmp_path / "broker"
        broker.mkdir()
        return {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT / "clients" / "python" / "src"),
            "NOVASTACK_URL": install.url, "NOVASTACK_TOKEN": token, "INSTANCE_BROKER_URL": "filesystem://",
            "INSTANCE_BROKER_FOLDER": str(broker), "INSTANCE_STORE": str(tmp_path / "instances.sqlite3"),
        }  # fmt: skip

    @pytest.fixture
    def worker(self, service: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
        with (tmp_path / "worker.log").open("wb") as output:
            started = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "instance_service", "worker", "--pool", "threads", "--concurrency", "2"],
                cwd=tmp_path, env=service, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        yield started
        started.send_signal(signal.SIGTERM)
        started.wait(30)

    def run(self, service: dict[str, str], *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "instance_service.py", *arguments],
            cwd=service["HOME"], env=service, text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def test_an_instance_is_made_by_a_celery_task(
        self, service: dict[str, str], worker: subprocess.Popen[bytes], nova: NovaStack, tmp_path: Path
    ) -> None:
        name = "shop-4711"
        first = self.run(service, "create", name)
        assert first in {"waiting for its database", "running"}
        until = time.monotonic() + 120
        while (said := self.run(service, "show", name)) != "running":
            assert said.startswith("waiting for its database") and worker.poll() is None, said
            assert time.monotonic() < until, (tmp_path / "worker.log").read_text()
            time.sleep(0.5)
        made = nova.allocate_database(name)
        assert made.connection is not None and made.connection.uri
        with psycopg.connect(made.connection.uri) as link:
            assert link.execute("SELECT id FROM instance").fetchall() == [(name,)]
        assert self.run(service, "create", name) == "running"  # again: the same, at once
        with psycopg.connect(made.connection.uri) as link:
            assert link.execute("SELECT count(*) FROM instance").fetchone() == (1,)
        written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
        assert made.connection.password and made.connection.password not in written
        assert service["NOVASTACK_TOKEN"] not in written

    def test_what_a_person_must_see_to_is_written_down(
        self, service: dict[str, str], worker: subprocess.Popen[bytes], nova: NovaStack
    ) -> None:
        self.run(service, "create", "shop-gone")
        made = nova.allocate_database("shop-gone", deadline_seconds=240)
        nova.delete_project(made.project.id, wait=True, deadline_seconds=240)
        program = "import instance_service as s; s.wait_for_database_and_provision.delay('shop-gone')"
        subprocess.run([sys.executable, "-c", program], cwd=service["HOME"], env=service, check=True, timeout=60)
        until = time.monotonic() + 240
        while not (said := self.run(service, "show", "shop-gone")).startswith("failed allocation_recycled: "):
            assert time.monotonic() < until, said
            time.sleep(0.5)
