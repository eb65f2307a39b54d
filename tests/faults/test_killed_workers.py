"""A worker is killed before, inside and after each step. Within a minute of another one's being back the operation has
ended truthfully, exactly the right things exist, and nothing was done twice.

`NOVASTACK_FAULTS=all` tries every point on every engine and runtime; by default a sample over all of them that changes
with the day, the same for all who run it then (`NOVASTACK_FAULTS_SEED` sets another, `NOVASTACK_FAULTS_SAMPLE` how many
points of each engine on each runtime).
"""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.core.cache import cache

from novastack.common import pki
from projects import domain, registry
from projects.models import (
    ApiKey,
    Database,
    DatabaseRole,
    DatabaseServer,
    Endpoint,
    Operation,
    OperationLock,
    Project,
    ServerKind,
)
from projects.operations import base, reconciler, register_all
from projects.services import project_action
from tests.faults.clients import ROWS, password_of, role_of, server_of
from tests.faults.evidence import Witness
from tests.faults.lanes import BEGIN, KEYS, KIND_OF, LANES, Lane, Lanes, kinds_of

# The mark has the database made; whose rows those are is the lane's matter: they outlive a test.
pytestmark = pytest.mark.django_db(transaction=True)
register_all()
WHEN = ("before", "inside:2", "inside:4", "later:0.15", "after")
LONG = ("inside:7", "later:0.6")  # for steps in which there is more to do
LONG_STEPS = {"server", "secure", "database", "apply", "ready"}
WORST = (
    "provision:server:later:0.15", "provision:server:after", "provision:secure:inside:4", "provision:database:later:0.15",
    "start:server:after", "restart:server:later:0.15", "rotate_password:apply:after", "rotate_password:prove:inside:4",
    "delete:stop:later:0.15", "purge:server:later:0.15", "purge:rows:inside:4",
)  # fmt: skip
SEED = os.environ.get("NOVASTACK_FAULTS_SEED", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
ALL = os.environ.get("NOVASTACK_FAULTS") == "all"
SAMPLE = int(os.environ.get("NOVASTACK_FAULTS_SAMPLE", "3"))
PROMISE_SECONDS = 60
# Steps that these projects have no use for: they never moved, have no storage for backups, come from no backup.
NOT_ASKED = {"copies", "restore_names", "restore_data", "prove_data"}
NAMES = {"claim": "provision from a standby"}


def points_of(kind: str) -> list[str]:
    """A claim differs from another provisioning in these two steps; it skips those between them."""
    known = [step.name for step in base.latest_definition(KIND_OF.get(kind, kind)).steps]
    steps = [name for name in known if name not in NOT_ASKED and not name.startswith("final_")]
    if kind == "claim":
        steps = ["server", "database"]
    return [f"{kind}:{name}:{when}" for name in steps for when in WHEN + (LONG if name in LONG_STEPS else ())]


def points_on(engine: str, runtime: str) -> list[str]:
    kinds = {kind: points_of(kind) for kind in kinds_of(engine, runtime)}
    if not ALL:
        # One of those where a bad resume would hurt most, and others of any kind.
        chance = random.Random(f"{SEED} {engine} {runtime}")
        first = chance.choice(WORST)
        others = [point for points in kinds.values() for point in points if point != first]
        return [first, *chance.sample(others, SAMPLE - 1)]
    # A purge takes what a provision made.
    turns = zip(kinds["provision"], [*kinds["purge"], *[""] * len(kinds["provision"])], strict=False)
    rest = [p for kind, points in kinds.items() if kind not in {"provision", "purge"} for p in points]
    return [point for turn in turns for point in turn if point] + rest


def cases() -> list[object]:
    return [
        pytest.param((engine, runtime), point, id=f"{engine}-{runtime}-{point}", marks=getattr(pytest.mark, runtime))
        for engine, runtime in LANES
        for point in points_on(engine, runtime)
    ]


@pytest.fixture
def _django_db_helper() -> None:
    """pytest-django's own would empty every table after each test."""


@pytest.fixture(scope="module")
def lanes(django_db_setup: None, django_db_blocker) -> Iterator[Lanes]:
    with django_db_blocker.unblock(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_built", {})
        patch.setattr(reconciler, "_looked", {})
        patch.setattr(settings, "NOVASTACK_DATA_GRACE_SECONDS", 0)
        cache.clear()
        lanes = Lanes()
        yield lanes
        lanes.close()


@pytest.fixture
def lane(request: pytest.FixtureRequest, lanes: Lanes) -> Lane:
    return lanes.enter(*request.param)


@pytest.mark.parametrize(("lane", "point"), cases(), indirect=["lane"])
def test_a_killed_worker_leaves_nothing_half_made(lane: Lane, point: str) -> None:
    try:
        play(lane, point)
    except BaseException:
        lane.close()
        raise


@pytest.mark.process
@pytest.mark.parametrize("lane", [("postgresql", "process")], indirect=True)
@pytest.mark.parametrize("point", ["provision:server:later:0.3", *(["purge:server:after"] if ALL else [])])
def test_the_promise_of_sixty_seconds_without_any_help(lane: Lane, point: str) -> None:
    """Lease, tick and hint as they are: nobody expires anything by hand here."""
    assert play(lane, point, help_it=False) > 5, "the lease of the dead one was respected"


def play(lane: Lane, point: str, *, help_it: bool = True) -> float:
    """Seconds from the successor's start to the operation's end, the dead one's lease included."""
    kind, rest = point.split(":", 1)
    made = kind in {"provision", "claim"}
    site = lane.site
    with site.fault(f"worker killed: {NAMES.get(kind, kind.replace('_', ' '))}", point=point) as run:
        if not made:
            lane.project()
        before = password_of(role_of(lane.project())) if kind == "rotate_password" else ""
        project, operation = BEGIN[kind](lane)
        port = project.endpoint.port
        witness = Witness(site, project)
        try:
            site.die_at(f"{KIND_OF.get(kind, kind)}:{rest}")
            then = witness.moment(kind)
            spared = site.expire_lease(operation) if help_it else 0
            run.recovering()
            site.worker()
            site.wait_ended(operation, PROMISE_SECONDS - spared)
            run.ended(spared=spared)
            assert operation.state == "succeeded", operation.error
            assert not OperationLock.objects.exists()
            witness.check_once(kind, operation, then)
            if kind == "purge":
                check_gone(lane, project)
                witness.check_deeds(kind)
                run.lost_rows = 0  # it was to lose them
            else:
                wanted = {"stop": "stopped", "delete": "recycled"}.get(kind, "running")
                site.wait_status(project, wanted, 20)
                site.stop_workers()
                site.check_exactly(*{*lane.projects, project})
                witness.check_deeds(kind)
                if wanted != "running":
                    undo = "start" if wanted == "stopped" else "undelete"
                    site.finish(project_action(principal=site.alice, project=project, action=undo))
                    project.refresh_from_db()
                if made:
                    site.client.fill(project)
                run.lost_rows = ROWS - site.rows_of(project)
                assert run.lost_rows == 0
                address = Endpoint.objects.get(project=project)
                assert address.port == server_of(project).port
                assert made or address.port == port, "its address is the one that it had"
                witness.check_things(kind, site.check_things(project), then)
                CHECKS.get(kind, lambda *_: None)(lane, project, before)
                if made:
                    lane.drop_standbys()
                    lane.keep(project)
        finally:
            witness.close()
            site.stop_workers()
    assert run.seconds is not None
    return run.seconds


def check_gone(lane: Lane, project: Project) -> None:
    """No row but the reserved port, no server, no data."""
    lane.site.stop_workers()
    assert not Project.objects.filter(pk=project.pk).exists()
    assert not DatabaseServer.objects.filter(project_uuid=project.pk).exists()
    assert not Database.objects.exclude(project__in=lane.projects).exists()
    assert not DatabaseRole.objects.exclude(database__project__in=lane.projects).exists()
    assert Endpoint.objects.get(project=None).reserved_until
    Endpoint.objects.filter(project=None).delete()
    lane.site.check_exactly(*lane.projects)


def check_rotated(lane: Lane, project: Project, before: str) -> None:
    """The new one logs in (it has been used above); the one before does not."""
    server, role = server_of(project), role_of(project)
    assert password_of(role) != before
    old = domain.Credentials(role.name, before, role.database.name)
    with pytest.raises(domain.LoginRefused):
        registry.engine(lane.engine).probe(server.control_endpoint, old)


def check_resized(lane: Lane, project: Project, _: str) -> None:
    server = server_of(project)
    project.refresh_from_db()
    assert server.memory_bytes == project.memory_bytes
    described = lane.site.runtime.describe([server.handle])[server.handle]
    if domain.RuntimeFeature.MEMORY_LIMIT in lane.site.runtime.features:
        assert described.memory_bytes == project.memory_bytes


def check_tls(lane: Lane, project: Project, _: str) -> None:
    """The server shows the certificate of its row, and takes plain logins or not, as wanted."""
    server, engine = server_of(project), registry.engine(lane.engine)
    project.refresh_from_db()
    assert lane.site.client.gets_in_plainly(project) is not project.tls_required
    assert engine.peer_certificate(server.control_endpoint) == pki.der_of(server.tls_certificate)
    assert server.tls_not_after is not None
    assert server.tls_not_after > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)


def check_provisioned(lane: Lane, project: Project, _: str) -> None:
    """The keys that were shown with it work, and there are no others."""
    assert [key.activated_at is not None for key in ApiKey.objects.filter(project=project)] == [True] * KEYS


def check_claimed(lane: Lane, project: Project, _: str) -> None:
    """One server is the project's; a standby that is not it is nobody's, still."""
    check_provisioned(lane, project, _)
    operation = Operation.objects.get(project_uuid=project.pk, kind="provision")
    claimed = operation.steps.get(name="server").data.get("standby")
    free = DatabaseServer.objects.filter(kind=ServerKind.STANDBY)
    if claimed:
        assert str(server_of(project).pk) == claimed
        assert not free.exists()
    else:
        assert free.get().project_uuid is None


CHECKS = {
    "provision": check_provisioned, "claim": check_claimed,
    "rotate_password": check_rotated, "resize": check_resized, "change_tls": check_tls, "renew_certificate": check_tls,
}  # fmt: skip
