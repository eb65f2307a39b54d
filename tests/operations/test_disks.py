"""How full the disks are: levels, what is written and said, and the ballast."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from projects import tasks
from projects.models import Project, Region
from projects.operations import disks, fences
from projects.runtimes.memory import MemoryRuntime
from tests.factories import api_client, make_catalogue
from tests.operations.conftest import create

DiskUsage = namedtuple("DiskUsage", "total used free")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(disks, "_roots", {})
    monkeypatch.setattr(fences, "_acted", {})


@pytest.fixture
def disk(monkeypatch):
    """Sets how full every disk is, in percent of what we may have."""
    monkeypatch.setattr(MemoryRuntime, "data_root", lambda self: "/")

    def fill(percent):
        usage = DiskUsage(1_000_000, round(percent * 9_000), round((100 - percent) * 9_000))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        disks.measure()
        return Region.objects.get(slug="local")

    return fill


def test_the_disk_of_the_data_is_measured_where_the_runtime_says(db, monkeypatch):
    region, _ = make_catalogue()
    monkeypatch.setattr(MemoryRuntime, "data_root", lambda self: "/nowhere")
    disks.measure()  # a worker that can't see it says nothing
    region.refresh_from_db()
    assert region.disk == {}
    assert region.has_room
    disks._roots.clear()
    monkeypatch.setattr(MemoryRuntime, "data_root", lambda self: "/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: DiskUsage(1000, 90, 10))  # a quota: 900 are not ours
    disks.measure()
    region.refresh_from_db()
    assert region.disk.pop("at") <= time.time()
    assert region.disk == {"total_bytes": 1000, "free_bytes": 10, "used_percent": 90.0, "level": "closed"}


def test_a_disk_that_nobody_sees_any_more_fences_nobody_for_ever(db, disk, monkeypatch):
    """Another folder in the configuration, a worker that lost its door, a control database restored elsewhere."""
    make_catalogue()
    real, began = time.time, time.time()
    assert disk(97).disk_level == "fenced"

    def blind(later):
        monkeypatch.setattr(time, "time", lambda: began + later)
        monkeypatch.setattr(MemoryRuntime, "data_root", lambda self: "")
        disks._roots.clear()
        disks.measure()
        return Region.objects.get(slug="local")

    assert blind(300).disk_level == "fenced"  # another worker may see it
    monkeypatch.setattr(MemoryRuntime, "data_root", lambda self: "/")
    disk(97)  # and says so
    assert blind(800).disk_level == "fenced"
    region = blind(1000)
    assert (region.disk_level, region.disk_used_percent, region.has_room) == ("ok", None, True)
    monkeypatch.setattr(time, "time", real)


def test_a_worker_without_docker_s_folder_measures_at_its_own_door(db, monkeypatch, settings):
    make_catalogue()
    asked = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or DiskUsage(1000, 10, 990))
    settings.NOVASTACK_DOCKER_DISK = "/door"

    class Local:
        def data_root(self):
            return "/var/lib/docker"

    class Remote:
        def data_root(self):
            return ""

    Region.objects.update(runtime="docker")
    monkeypatch.setattr(disks.wiring, "runtime_of", lambda _: Remote())
    disks.measure()
    assert asked == []  # an engine on another machine has another disk
    monkeypatch.setattr(disks.wiring, "runtime_of", lambda _: Local())
    disks.measure()
    Region.objects.update(config={"data_root": "/given"})
    disks.measure()
    assert asked == ["/door", "/given"]


@pytest.mark.parametrize(
    ("used", "before", "level"),
    [
        (79.9, "ok", "ok"), (80, "ok", "warn"), (78, "warn", "warn"), (77.9, "warn", "ok"), (89.9, "ok", "warn"),
        (90, "ok", "closed"), (94.9, "closed", "closed"), (95, "closed", "fenced"), (90, "fenced", "fenced"),
        (89.9, "fenced", "warn"), (50, "fenced", "ok"), (100, "ok", "fenced"),
    ],
)  # fmt: skip
def test_levels(used, before, level):
    assert disks.level_of(used, before) == level


def test_only_what_changed_is_written_and_only_a_new_level_is_said(db, disk, monkeypatch):
    make_catalogue()
    said = []
    monkeypatch.setattr(disks.log, "warning", lambda event, **facts: said.append((facts["before"], facts["level"])))
    monkeypatch.setattr(disks.log, "info", lambda event, **facts: said.append((facts["before"], facts["level"])))
    for percent in (50, 50.3, 82, 82.2, 83, 96, 96, 92, 89, 60):
        with CaptureQueriesContext(connection) as captured:
            region = disk(percent)
        if percent in {50.3, 82.2}:
            assert [q["sql"].split()[0] for q in captured] == ["SELECT", "SELECT"]
        else:
            assert region.disk_used_percent == percent
    assert said == [("ok", "warn"), ("warn", "fenced"), ("fenced", "warn"), ("warn", "ok")]


def test_above_90_percent_nothing_new_is_made(team, runtime, disk):
    from projects.services.creation import NoRoom

    disk(89)
    create(team, "Fits")
    disk(90)
    with pytest.raises(NoRoom, match="90 % full") as refused:
        create(team, "Too late")
    assert (refused.value.status, refused.value.code) == (409, "capacity_exhausted")
    Region.objects.create(slug="roomy", name="Roomy", runtime="memory", port_start=40000, port_end=41000)
    assert create(team, "Elsewhere").region.slug == "roomy"  # who names no region gets one that has room


def test_a_tick_with_nothing_new_reads_a_little_and_writes_nothing(ready, disk, settings):
    settings.NOVASTACK_BALLAST_FOLDER = ""
    disk(50)
    tasks.guard_disks()
    with CaptureQueriesContext(connection) as captured:
        tasks.guard_disks()
    assert [q["sql"].split()[0] for q in captured] == ["SELECT"] * 4


# --- the ballast --------------------------------------------------------------------------------------------------------


def test_the_ballast_is_given_up_at_95_percent_and_made_again_below_85(tmp_path, monkeypatch):
    ballast = tmp_path / "ballast"

    def at(percent):
        usage = DiskUsage(1000 * MIB, percent * 10 * MIB, (100 - percent) * 10 * MIB)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        disks.keep_ballast(str(tmp_path), 4 * MIB)
        return ballast.exists()

    assert [at(p) for p in (86, 84, 94, 95, 90, 85, 84)] == [False, True, True, False, False, False, True]
    assert ballast.stat().st_size == 4 * MIB
    assert ballast.stat().st_blocks * 512 >= 4 * MIB  # room that is really taken
    assert ballast.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["ballast"]


def test_the_ballast_is_at_most_a_hundredth_of_the_disk_and_can_be_none(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(100 * MIB, MIB, 99 * MIB))
    disks.keep_ballast(str(tmp_path), 4 * MIB)
    assert (tmp_path / "ballast").stat().st_size == MIB
    disks.keep_ballast(str(tmp_path), 0)
    assert list(tmp_path.iterdir()) == []
    disks.keep_ballast(str(tmp_path), 0)
    disks.keep_ballast("", 4 * MIB)
    disks.keep_ballast(str(tmp_path / "gone"), 4 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_a_ballast_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(1000 * MIB, MIB, 999 * MIB))
    monkeypatch.setattr("os.posix_fallocate", full)
    disks.keep_ballast(str(tmp_path), MIB)
    assert list(tmp_path.iterdir()) == []


def test_the_ballast_needs_no_control_database(tmp_path, monkeypatch, settings):
    """This test has no database: the look at the regions fails, the ballast is given up all the same."""
    settings.NOVASTACK_BALLAST_FOLDER = str(tmp_path)
    (tmp_path / "ballast").write_bytes(b"x")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(1000, 990, 10))
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        tasks.guard_disks()
    assert not (tmp_path / "ballast").exists()


def test_make_run_keeps_it_beside_the_control_database(tmp_path, monkeypatch):
    from novastack.embedded.install import Home

    monkeypatch.delenv("NOVASTACK_BALLAST_FOLDER", raising=False)
    home = Home(tmp_path / "home")
    try:
        own = home.environment(database_url="postgresql://own", bind="127.0.0.1", port=1)
        assert own["NOVASTACK_BALLAST_FOLDER"] == str(home.state / "control-db")
        foreign = home.environment(database_url=None, bind="127.0.0.1", port=1)
        assert "NOVASTACK_BALLAST_FOLDER" not in foreign
    finally:
        shutil.rmtree(home.state, ignore_errors=True)
    assert django_settings.NOVASTACK_BALLAST_FOLDER == ""
    assert Path(own["NOVASTACK_HOME"]) == home.path


# --- how it is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "wording", "detail"),
    [
        (50, "50 %", ""),
        (82, "badge-warn", "the disk is 82 % full"),
        (91, "Nothing new is made", "the disk is 91 % full, nothing new is made"),
        (96, "Writers fenced until below 90 %", "the disk is 96 % full, writers are fenced"),
    ],
)
def test_operators_see_it(client, team, ready, disk, settings, percent, wording, detail):
    settings.NOVASTACK_BALLAST_FOLDER = "/"  # the control database's disk, which is as full
    disk(percent)
    tasks.fences.keep()
    team.bob.is_staff = True
    team.bob.save()
    client.force_login(team.bob)
    text = client.get("/operator/").content.decode()
    assert wording in text
    assert ("The control database: its disk is" in text) == bool(detail)
    api = api_client(team.bob)
    check = api.get("/api/v1/health/").json()["checks"]["storage"]
    assert check["status"] == ("degraded" if detail else "healthy")
    assert (f"local: {detail}" if detail else "") in check["detail"]
    shown = next(r for r in api.get("/api/v1/regions/").json()["results"] if r["slug"] == "local")
    assert shown["available"] == (percent < 90)
    assert bool(shown["reason"]) == (percent >= 90)
    metrics = client.get("/metrics").content.decode()
    assert f'novastack_region_disk_used_ratio{{region="local"}} {percent / 100}' in metrics
    assert ('novastack_projects_fenced{reason="disk"} 1.0' in metrics) == (percent >= 95)


def test_the_api_and_the_page_refuse_at_once(client, team, runtime, disk):
    disk(92)
    answer = api_client(team.alice).post("/api/v1/projects/", {"name": "Shop"}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "capacity_exhausted")
    assert "92 % full" in answer.json()["detail"]
    client.force_login(team.alice)
    form = client.get("/projects/new/").content.decode()
    assert "Its disk is almost full" in form
    page = client.post("/projects/new/", {"name": "Shop", "engine": "postgresql", "region": "local", "plan": "small"})
    assert page.status_code == 400
    assert "92 % full: nothing new is made there" in page.content.decode()
    assert not Project.objects.exists()
