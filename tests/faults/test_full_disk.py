"""Real PostgreSQL on a real, small disk: what happens to its tenants and to us as it fills (rules 16, 50)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.conf import settings

from projects import tasks
from projects.models import DISK_WARN_PERCENT, Project, Region
from projects.operations import disks, fences, watch
from projects.runtimes.process_binaries import find
from projects.services.creation import NoRoom
from tests.faults.conftest import VERSION, Site

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        find("postgres", VERSION) is None, reason=f"PostgreSQL {VERSION} is neither installed nor bundled"
    ),
]
MIB = 1 << 20
DISK_MIB = 400


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_roots", {})
    monkeypatch.setattr(fences, "_acted", {})


@pytest.fixture
def small_disk(_fresh: None) -> Iterator[Path]:
    """A file system of its own, 400 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = Path(tempfile.mkdtemp(prefix="nvs-disk-", dir="/tmp"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0711", "novastack-test", str(disk)],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"no mount: {done.stderr}"
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


@pytest.fixture
def cramped_site(small_disk: Path) -> Iterator[Site]:
    """A process install that keeps its servers on the small disk."""
    site = Site("process", small_disk / "state")
    try:
        yield site
    finally:
        site.clean_up()
        shutil.rmtree(small_disk / "state", ignore_errors=True)


def fill(disk: Path, percent: float) -> None:
    """Make or shrink a file so that so much is used."""
    filler = disk / "filler"
    usage = shutil.disk_usage(disk)
    others = usage.used - (filler.stat().st_blocks * 512 if filler.exists() else 0)
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, round(usage.total * percent / 100) - others))
    assert abs(disks.used_percent(shutil.disk_usage(disk)) - percent) < 1


def tick() -> None:
    """What beat sends, with a health check that is due and fences that are to be held."""
    Project.objects.update(health_checked_at=None)
    watch.check_health()
    fences._acted.clear()
    tasks.guard_disks()


def refused(site: Site, project: Project, statement: str) -> str | None:
    """The SQLSTATE by which a new session of the tenant's is refused."""
    try:
        with site.login(project) as session:
            session.execute(statement)  # type: ignore[call-overload]
    except psycopg.Error as error:
        return error.sqlstate
    return None


INSERT = "INSERT INTO orders SELECT n FROM generate_series(1, 10) n"


def test_a_disk_that_fills_up_and_is_emptied(cramped_site: Site, small_disk: Path, settings: object) -> None:
    site, ballast = cramped_site, small_disk / "ballast"
    settings.NOVASTACK_BALLAST_FOLDER = str(small_disk)  # type: ignore[attr-defined]
    settings.NOVASTACK_BALLAST_BYTES = 2 * MIB  # type: ignore[attr-defined]
    project = site.ready()
    tick()
    assert ballast.stat().st_size == 2 * MIB
    region = Region.objects.get()
    assert region.disk_used_percent == pytest.approx(disks.used_percent(shutil.disk_usage(small_disk)), abs=1)
    assert region.disk_level == "ok"

    fill(small_disk, DISK_WARN_PERCENT + 2)
    tick()
    assert Region.objects.get().disk_level == "warn"
    site.create("Still fits")

    fill(small_disk, 92)
    tick()
    with pytest.raises(NoRoom, match=r"9[123] % full"):
        site.create("Too late")
    assert refused(site, project, INSERT) is None
    assert ballast.exists()

    with site.login(project) as open_before:
        open_before.execute("SELECT 1")
        fill(small_disk, 96)
        tick()
        assert not ballast.exists()
        with pytest.raises(psycopg.OperationalError):
            open_before.execute(INSERT)
    project.refresh_from_db()
    assert (project.write_fence, project.write_fence_applied) == ("disk", True)
    assert refused(site, project, INSERT) == "25006"
    assert site.rows_of(project) == 1010

    # Who gets around it on purpose is ended in the middle; a quick DROP or TRUNCATE passes.
    with pytest.raises(psycopg.OperationalError), site.login(project) as session:
        session.execute("SET transaction_read_only = off")
        session.execute(INSERT)
        tick()
        session.execute("SELECT 1")
    assert site.rows_of(project) == 1010

    fill(small_disk, 92)
    tick()
    assert refused(site, project, INSERT) == "25006"
    fill(small_disk, 83)
    tick()
    assert refused(site, project, INSERT) is None
    project.refresh_from_db()
    assert (project.write_fence, project.write_fence_applied) == ("", False)
    assert ballast.stat().st_size == 2 * MIB
    (small_disk / "filler").unlink()


def test_a_tenant_above_its_storage_limit_frees_space_and_goes_on(process_site: Site) -> None:
    site = process_site
    project = site.ready()
    tick()
    project.refresh_from_db()
    assert project.size_bytes
    Project.objects.filter(pk=project.pk).update(storage_bytes=project.size_bytes + 4 * MIB)
    tick()
    assert refused(site, project, INSERT) is None

    assert (
        refused(
            site, project, "CREATE TABLE large AS SELECT repeat(md5(n::text), 30) t FROM generate_series(1, 9000) n"
        )
        is None
    )
    tick()
    project.refresh_from_db()
    assert (project.write_fence, project.write_fence_applied) == ("storage", True)
    assert refused(site, project, INSERT) == "25006"
    assert refused(site, project, "CREATE TABLE more (n int)") == "25006"
    assert site.rows_of(project) == 1010

    # As the page says: a session that says so may write, to free space.
    with site.login(project) as session:
        session.autocommit = True
        session.execute("SET default_transaction_read_only = off")
        session.execute("DELETE FROM large WHERE t LIKE 'a%'")
        session.execute("VACUUM FULL large")
        tick()
        session.execute("DROP TABLE large")
    tick()
    project.refresh_from_db()
    assert (project.write_fence, project.write_fence_applied) == ("", False)
    assert refused(site, project, INSERT) is None


def test_a_fence_stays_over_a_restart_and_a_new_password(process_site: Site) -> None:
    from projects.services import project_action

    site = process_site
    project = site.ready()
    Project.objects.filter(pk=project.pk).update(storage_bytes=1 * MIB)
    tick()
    for action in ("restart", "rotate_password"):
        operation = project_action(principal=site.alice, project=project, action=action)
        assert site.finish(operation).state == "succeeded", operation.error
        assert refused(site, project, INSERT) == "25006"
    project.refresh_from_db()
    assert (project.status, project.write_fence, project.write_fence_applied) == ("running", "storage", True)
    assert settings.NOVASTACK_BALLAST_FOLDER == ""
