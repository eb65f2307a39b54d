"""control_backup, control_restore, read_only, for real: a NovaStack restored elsewhere finds its servers again and touches
nothing. The second one runs in processes of its own, on a database of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from allauth.account.forms import default_token_generator
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from psycopg import sql

from accounts.models import RefreshFamily
from accounts.permissions import Principal
from accounts.services import member_invite, token_create
from novastack.common.clock import now
from novastack.common.models import Install
from novastack.common.secrets import Sealed, new_key
from projects import registry
from projects.models import Database, DatabaseServer, Operation, Plan, Project, Region
from projects.operations import orphans, reconciler, runner, wiring
from projects.runtimes.process_binaries import find
from projects.services import install, key_create
from projects.services.actions import project_action
from projects.services.control_backup import control_backup
from projects.services.control_database import ControlError
from projects.services.creation import ProjectRequest, project_create
from projects.services.read_only import RuntimesAway, read_only_off, read_only_on, state
from tests.factories import make_team

PASS = "a long enough passphrase"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.django_db(transaction=True)]
needs_binaries = pytest.mark.skipif(
    find("postgres", "18") is None, reason="PostgreSQL 18 is neither installed nor bundled"
)


@pytest.fixture(autouse=True)
def own_keys(settings: Any) -> None:
    """Unlike those of anybody else, so that a restore has to bring them."""
    settings.NOVASTACK_SECRET_KEYS = [new_key()]
    settings.SECRET_KEY = "of-the-first-install-" + "x" * 40
    reconciler._looked.clear()


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def region(request: pytest.FixtureRequest) -> Iterator[Region]:
    """A region on a runtime that really runs servers; everything of it is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="nvs-test-", dir="/tmp"))
    folder.chmod(0o711)
    config = {"root": str(folder / "servers")} if request.param == "process" else {}
    install.catalogue_prepare()
    region = Region.objects.get(slug="local")
    region.runtime, region.config = request.param, config
    region.port_start, region.port_end = (28400, 28449) if request.param == "process" else (28450, 28499)
    region.save()
    runtime = wiring.runtime_of(region)
    try:
        runtime.ping()
        engine = registry.engine("postgresql")
        runtime.resolve_image(engine.name, version_for(request.param), engine.official_image)
    except Exception as error:
        shutil.rmtree(folder)
        (
            pytest.fail
            if request.param == "docker" and os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1"
            else pytest.skip
        )(f"{request.param}: {error}")
    yield region
    for handle in {*runtime.managed(), *runtime.managed_data()}:
        runtime.destroy(handle, delete_data=True)
    if request.param == "docker":
        remove_install(wiring.install_id())
    shutil.rmtree(folder)


def remove_install(install_id: str) -> None:
    """What an install keeps for good: the volume with its epoch, and its network."""
    label = f"label=io.novastack.install={install_id}"
    for kind in ("volume", "network"):
        found = subprocess.run(
            ["docker", kind, "ls", "-q", "--filter", label], capture_output=True, text=True, check=True
        )
        for name in found.stdout.split():
            subprocess.run(["docker", kind, "rm", name], capture_output=True, check=True)


def version_for(runtime: str) -> str:
    return "18" if runtime == "process" else "17"


def finish(operation: Operation) -> None:
    for _ in range(100):
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
        runner.run(operation.pk)
        operation.refresh_from_db()
        if not operation.live:
            break
    assert operation.state == "succeeded", (operation.error, list(operation.steps.values("name", "state", "detail")))


def connect(project: Project) -> psycopg.Connection[Any]:
    info = wiring.connection_info(project, Database.objects.get(project=project, slot="current"))
    return psycopg.connect(
        host=info.host, port=info.port, dbname=info.database, user=info.username, password=info.password
    )


def made_project(region: Region) -> Project:
    team = make_team()
    project = project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Orders", version=version_for(region.runtime), region=region.slug),
    )  # fmt: skip
    finish(Operation.objects.get(project_uuid=project.pk))
    with connect(project) as session:
        session.execute("CREATE TABLE orders AS SELECT n FROM generate_series(1, 1000) n")
    reconciler.reconcile()
    project.refresh_from_db()
    assert project.status == "running"
    return project


@dataclass
class Elsewhere:
    """A second NovaStack: another database, other processes; keys only from where they were restored to."""

    url: str
    keys: Path
    home: Path

    def manage(self, *arguments: str, check: bool = True, restored: bool = True) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"], "NOVASTACK_MODE": "test", "DATABASE_URL": self.url,
            "NOVASTACK_HOME": str(self.home), "NOVASTACK_BACKUP_PASSPHRASE": PASS, "NOVASTACK_ENV_FILE": "/dev/null",
        }  # fmt: skip
        if "DOCKER_HOST" in os.environ:
            env["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
        if restored:
            env["SECRET_KEY_FILE"] = str(self.keys / "secret-key")
            env["NOVASTACK_SECRET_KEYS_FILE"] = str(self.keys / "secret-keys")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(ROOT / "manage.py"), *arguments],
            env=env, capture_output=True, text=True, check=False, cwd=ROOT, timeout=180,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
        return done

    def run(self, code: str) -> Any:
        """Python in the second NovaStack; what it leaves in `answer`."""
        done = self.manage(
            "shell", "--no-imports", "-c", f"{code}\nimport json\nprint('\\n' + json.dumps(answer, default=str))"
        )
        return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    given = connection.settings_dict
    name = f"{given['NAME']}_elsewhere"
    parameters = {
        k: given[v] for k, v in {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}.items()
    }
    with psycopg.connect(**parameters, dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    address = f"{quote(given['USER'])}:{quote(given['PASSWORD'])}@{given['HOST']}:{given['PORT']}"
    yield Elsewhere(f"postgresql://{address}/{name}", tmp_path / "keys", tmp_path / "home")
    with psycopg.connect(**parameters, dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


RECONCILE = """
from projects.models import *
from projects.operations import reconciler, runner
from novastack.common.models import Install
report = reconciler.reconcile()
server = DatabaseServer.objects.get()
answer = {"observed": report.observed, "started": report.started, "orphans": Orphan.objects.count(),
          "server": server.observed_state, "desired": server.desired_state, "project": Project.objects.get().status,
          "read_only": Install.load().read_only}
"""


@needs_binaries
def test_restored_elsewhere_it_finds_its_server_and_touches_nothing(
    region: Region, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    project = made_project(region)
    runtime = wiring.runtime_of(region)
    epoch, server = runtime.read_epoch(), Database.objects.get().server
    seen = runtime.observe([server.handle])[server.handle]
    assert epoch == str(Install.load().epoch)

    made = control_backup(output=tmp_path, passphrase=PASS)
    content = made.path.read_bytes()
    for secret in (settings.SECRET_KEY, settings.NOVASTACK_SECRET_KEYS[0], project.slug, "alice@example.test"):
        assert secret.encode() not in content
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.manifest["tables"]["projects_project"] == 1
    assert made.manifest["secrets"]["stored"] >= 3 and made.manifest["secrets"]["unreadable"] == 0

    refused = elsewhere.manage("control_restore", str(made.path), check=False, restored=False)
    assert refused.returncode == 1 and "--keys-to" in refused.stderr
    said = elsewhere.manage("control_restore", str(made.path), "--keys-to", str(elsewhere.keys), restored=False)
    assert "READ-ONLY" in said.stdout and settings.SECRET_KEY not in said.stdout
    assert (elsewhere.keys / "secret-keys").read_text() == settings.NOVASTACK_SECRET_KEYS[0]
    assert (elsewhere.keys / "secret-keys").stat().st_mode & 0o777 == 0o600
    again = elsewhere.manage("control_restore", str(made.path), "--keys-to", str(elsewhere.keys), check=False)
    assert again.returncode == 1 and "not empty" in again.stderr

    # The old one is still there: it works on, and the new one only looks.
    found = elsewhere.run(RECONCILE)
    assert found == {
        "observed": 1, "started": 0, "orphans": 0, "server": "running", "desired": "running", "project": "running",
        "read_only": True,
    }  # fmt: skip
    assert runtime.read_epoch() == epoch
    assert runtime.observe([server.handle])[server.handle] == seen
    reconciler._looked.clear()
    reconciler.reconcile()
    assert not Install.load().read_only

    # What people ask of it waits, whatever it is; the stored password still opens.
    waiting = elsewhere.run(
        """
from accounts.models import User
from accounts.permissions import Principal
from projects.models import *
from projects.operations import runner, wiring
from projects.services import install, key_create
from projects.services.actions import project_action
project = Project.objects.get()
principal = Principal.of(User.objects.get(email="alice@example.test"))
operation = project_action(principal=principal, project=project, action="rotate_password")
runner.run(operation.pk)
operation.refresh_from_db()
info = wiring.connection_info(project, Database.objects.get())
import psycopg
with psycopg.connect(host=info.host, port=info.port, dbname=info.database, user=info.username, password=info.password) as c:
    rows = c.execute("SELECT count(*) FROM orders").fetchone()[0]
answer = {"state": operation.state, "steps": list(operation.steps.values_list("state", flat=True)), "rows": rows}
"""
    )
    assert waiting["rows"] == 1000
    assert waiting["state"] == "running" and "waiting" in waiting["steps"], waiting
    with connect(project) as session:  # with the password that the first one knows
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (1000,)

    # An operator decides for the new one: it writes its epoch, and the old one becomes read-only by itself.
    assert "Writes are allowed" in elsewhere.manage("read_only", "off").stdout
    assert runtime.read_epoch() not in {epoch, ""}
    reconciler._looked.clear()
    reconciler.reconcile()
    assert Install.load().read_only and "another state of this install" in Install.load().read_only_reason
    found = elsewhere.run(RECONCILE)
    assert (found["read_only"], found["orphans"], found["project"]) == (False, 0, "running")

    # The rotation that waited is done by the new one now; the old one could not any more.
    elsewhere.run(
        """
from projects.models import *
from projects.operations import runner
operation = Operation.objects.live().get()
Operation.objects.update(next_attempt_at=None)
runner.run(operation.pk)
operation.refresh_from_db()
assert operation.state == "succeeded", (operation.error, list(operation.steps.values("name", "state", "detail")))
answer = True
"""
    )
    with pytest.raises(psycopg.OperationalError, match="password"):
        connect(project)


@needs_binaries
def test_read_only_holds_back_every_action_and_lets_go_of_it(region: Region) -> None:
    project = made_project(region)
    runtime = wiring.runtime_of(region)
    server = Database.objects.get().server
    read_only_on(reason="Testing.")
    assert state().read_only and state().epochs[region.slug] == state().epoch
    alice = project.created_by
    assert alice is not None
    operation = project_action(principal=Principal.of(alice), project=project, action="stop")
    runner.run(operation.pk)
    operation.refresh_from_db()
    assert operation.live
    assert runtime.observe([server.handle])[server.handle].state.value == "running"
    assert "Testing." in operation.steps.get(state="waiting").detail
    epoch = read_only_off()
    assert runtime.read_epoch() == epoch == str(Install.load().epoch)
    finish(operation)
    assert runtime.observe([server.handle])[server.handle].state.value == "stopped"


def test_lifting_waits_for_a_runtime_that_is_away() -> None:
    install.catalogue_prepare()
    Region.objects.filter(slug="local").update(runtime="docker", config={"base_url": "unix:///nowhere.sock"})
    read_only_on(reason="Testing.")
    before = Install.load().epoch
    with pytest.raises(RuntimesAway, match="local"):
        read_only_off()
    assert Install.load().read_only and Install.load().epoch == before
    with pytest.raises(CommandError, match="--without"):
        call_command("read_only", "off")
    read_only_off(without=frozenset({"local"}))
    assert not Install.load().read_only


def test_what_an_older_epoch_saw_does_not_count() -> None:
    stale = Install.load()
    Install.objects.update(epoch=uuid.uuid4())
    orphans.make_read_only(stale, "seen before")
    assert not Install.load().read_only
    orphans.make_read_only(Install.load(), "seen now")
    assert Install.load().read_only


@pytest.mark.parametrize("keeping", [False, True], ids=["by default", "keep tokens"])
def test_credentials_end_and_nothing_is_due_at_once(elsewhere: Elsewhere, tmp_path: Path, keeping: bool) -> None:
    team = make_team()
    install.catalogue_prepare()
    region = Region.objects.get(slug="local")
    RefreshFamily.objects.create(user=team.alice, current_jti="x", expires_at=now() + timedelta(days=1))
    owner = Principal.of(team.alice)
    _, clear = token_create(principal=owner, name="CI", scopes=["read"])
    member_invite(principal=owner, organization=team.organization, email="new@example.test")
    link = default_token_generator.make_token(team.alice)
    assert default_token_generator.check_token(team.alice, link)
    common: dict[str, Any] = {
        "organization": team.organization, "engine": "postgresql", "version": "17", "region": region,
        "plan": Plan.objects.get(is_default=True), "memory_bytes": 1, "cpus": 1, "storage_bytes": 1,
    }  # fmt: skip
    Project.objects.create(
        name="Old", slug="old", desired_status="recycled", status="recycled", recycled_at=now(), recycle_until=now(),
        **common,
    )  # fmt: skip
    shop = Project.objects.create(
        name="Shop", slug="shop", desired_status="running", status="running", ready_at=now(), **common
    )
    _, project_key = key_create(principal=owner, project=shop, name="web")
    made = control_backup(output=tmp_path / "one.novastack", passphrase=PASS)
    keep = ["--keep-tokens"] if keeping else []
    said = elsewhere.manage("control_restore", str(made.path), "--keys-to", str(elsewhere.keys), *keep, restored=False)
    assert ("Revoked: 1 API tokens and 1 open invitations" in said.stdout) is not keeping
    assert ("Suspended: 1 API keys of projects" in said.stdout) is not keeping
    found = elsewhere.run(
        f"""
from accounts.models import ApiToken, Invitation, RefreshFamily, AuditEvent, User
from allauth.account.forms import default_token_generator
from rest_framework.test import APIClient
ask = APIClient(headers={{"Authorization": "Bearer {clear}"}}).get("/api/v1/auth/profile/")
alice = User.objects.get(pk="{team.alice.pk}")
from projects.models import Project
from projects.services.keys import key_verify
from novastack.common.clock import now
answer = {{"project_key": key_verify(clear="{project_key}").code,
          "open": RefreshFamily.objects.filter(revoked_at=None).count(),
          "token": [ask.status_code, ask.json().get("detail", "")],
          "tokens": ApiToken.objects.filter(revoked_at=None).count(),
          "invitations": Invitation.objects.filter(revoked_at=None).count(),
          "reset": default_token_generator.check_token(alice, "{link}"),
          "undo_destroys": Project.objects.filter(credentials_shown_at=None).exists(),
          "days": (Project.objects.get(slug="old").recycle_until - now()).days,
          "audit": AuditEvent.objects.get(action="install.control_restore").data["tokens_revoked"]}}
"""
    )
    status, detail = found.pop("token")
    assert status == (200 if keeping else 401)
    assert keeping or "restored from a backup" in detail
    kept = int(keeping)
    assert found.pop("project_key") == ("" if keeping else "suspended")
    assert found == {"open": 0, "undo_destroys": False, "days": 6, "audit": 1 - kept, "tokens": kept,
                     "invitations": kept, "reset": False}  # fmt: skip


def test_refusals(elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOVASTACK_BACKUP_PASSPHRASE", raising=False)
    with pytest.raises(CommandError, match="No passphrase"):
        call_command("control_backup", "--output", str(tmp_path))
    with pytest.raises(ControlError, match="too short"):
        control_backup(output=tmp_path, passphrase="short")
    with pytest.raises(ControlError, match="not a folder"):
        control_backup(output=tmp_path / "missing" / "x", passphrase=PASS)
    call_command("control_backup", "--output", str(tmp_path / "clear.novastack"), "--no-encryption")
    assert settings.SECRET_KEY.encode() in (tmp_path / "clear.novastack").read_bytes()
    with pytest.raises(ControlError, match="exists"):
        control_backup(output=tmp_path / "clear.novastack", passphrase=PASS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clear.novastack"]

    damaged = tmp_path / "damaged"
    data = bytearray((tmp_path / "clear.novastack").read_bytes())
    data[-20000] ^= 1  # inside the dump: only the hash can tell
    damaged.write_bytes(data)
    done = elsewhere.manage(
        "control_restore", str(damaged), "--keys-to", str(elsewhere.keys), check=False, restored=False
    )
    assert done.returncode == 1 and "damaged" in done.stderr
    assert not elsewhere.keys.exists()
    done = elsewhere.manage("control_restore", str(ROOT / "manage.py"), check=False, restored=False)
    assert done.returncode == 1 and "not a file that NovaStack made" in done.stderr


def test_a_newer_version_s_backup_is_refused(elsewhere: Elsewhere, tmp_path: Path) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('projects', '9999_later', now())")
    try:
        made = control_backup(output=tmp_path / "newer.novastack", passphrase=PASS)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE name = '9999_later'")
    done = elsewhere.manage(
        "control_restore", str(made.path), "--keys-to", str(elsewhere.keys), check=False, restored=False
    )
    assert done.returncode == 1 and "newer NovaStack" in done.stderr and "9999_later" in done.stderr


def test_keys_that_open_nothing_make_no_backup(tmp_path: Path, settings: Any) -> None:
    install.catalogue_prepare()
    DatabaseServer.objects.create(
        region=Region.objects.get(slug="local"), engine="postgresql", version="17", memory_bytes=1, cpus=1,
        admin_username="postgres", admin_secret=Sealed.of("x"),
    )  # fmt: skip
    settings.NOVASTACK_SECRET_KEYS = [new_key()]
    with pytest.raises(ControlError, match="open none"):
        control_backup(output=tmp_path, passphrase=PASS)
    assert list(tmp_path.iterdir()) == []
