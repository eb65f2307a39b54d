"""Throw-away servers: made for one operation, and gone with it, whichever way it ends."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest
from django.db import transaction

from backups.models import Backup, StorageTarget
from backups.operations import scratch
from backups.operations.queueing import backup_operation_create
from projects import domain
from projects.models import DatabaseServer, DataTombstone, Operation, Project, Region, ServerKind
from projects.operations import doctor, janitor, reconciler, watch
from projects.operations.base import Step, StepFailed
from projects.operations.context import Context
from tests.factories import Team
from tests.operations.conftest import (  # noqa: F401
    Killed,
    drive,
    kind,
    once,
    paper,
    ready,
    runtime,
    shop,
    team,
)  # fmt: skip

pytestmark = pytest.mark.django_db
NAMES = {"database": "shop", "owner": "shop_owner", "group": "shop_group", "login": "shop", "control": "nvs_shop"}


def make_backup(team: Team, project: Project | None = None) -> Backup:  # noqa: F811
    target = StorageTarget.objects.create(name="t", kind="filesystem", config={"path": "x"})
    return Backup.objects.create(
        organization_id=team.organization.pk, project_uuid=project.pk if project else uuid4(), project_name="Shop",
        project_slug="shop", engine="postgresql", version="18", storage=target, status="stored",
    )  # fmt: skip


@pytest.fixture
def lane(team, runtime, kind) -> Callable[..., Operation]:  # type: ignore[no-untyped-def]  # noqa: F811
    """Begins an operation of three steps, the last of which does as told."""
    seen: dict[str, object] = {}

    def plan(ctx: Context) -> None:
        backup = Backup.objects.get(pk=ctx.operation.params["backup"])
        scratch.plan(ctx, region=scratch.region_for(backup), engine="postgresql", version="18")
        scratch.describe(ctx, names=NAMES, image=str(ctx.operation.params.get("pin", "")))

    def start(ctx: Context) -> None:
        side = ctx.seen_as(scratch.Scratch)
        scratch.start(side)
        scratch.make_database(side)

    def last(ctx: Context) -> None:
        seen["do"](ctx.seen_as(scratch.Scratch))  # type: ignore[operator]

    kind(
        "try_scratch",
        Step("plan", "Plan", plan, scratch.remove),
        Step("server", "Start", start, back_to="server"),
        Step("last", "Last", last),
        Step("clean_up", "Clean up", scratch.remove),
        cancellable=True, region=lambda _: None,
    )  # fmt: skip

    def begin(do: Callable[[scratch.Scratch], None], project: Project | None = None, **params: object) -> Operation:
        seen["do"] = do
        with transaction.atomic():
            return backup_operation_create(backup=make_backup(team, project), kind="try_scratch", params=params)

    return begin


def nothing_left(runtime) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    assert not DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).exists()
    assert not DataTombstone.objects.filter(deleted_at=None).exists()
    assert runtime.world.servers == {} and runtime.world.volumes == {}


def test_it_is_there_for_one_operation_and_goes_with_its_data(lane, runtime, paper) -> None:  # noqa: F811
    def look(side: scratch.Scratch) -> None:
        server = side.server
        assert server.kind == ServerKind.SCRATCH and server.initialised_at and server.project_uuid is None
        assert server.memory_bytes == 512 << 20 and not server.databases.exists()
        spec = next(iter(runtime.world.servers.values())).spec
        assert spec.isolated and "shop" in paper.of(server.control_endpoint).databases
        assert "shop" in paper.of(server.control_endpoint).shut
        # The rest of the house does not stumble over it.
        reconciler.reconcile()
        watch.collect_usage()
        assert not [f for f in doctor.examine().findings if f.region], doctor.examine().findings
        assert side.engine.name == "postgresql" and scratch.sweep() == 0
        assert server.port in set(range(20000, 30000))

    operation = drive(lane(look))
    assert operation.state == "succeeded", operation.error
    nothing_left(runtime)
    assert not Operation.objects.filter(kind="remove_scratch").exists()


def test_a_failure_and_a_cancel_take_it_away(lane, runtime) -> None:  # noqa: F811
    def fail(side: scratch.Scratch) -> None:
        raise StepFailed("nope", "It does not work.", retryable=False)

    assert drive(lane(fail)).error["code"] == "nope"
    nothing_left(runtime)

    def cancel(side: scratch.Scratch) -> None:
        from novastack.common.clock import now

        Operation.objects.filter(pk=side.operation.pk).update(cancel_requested_at=now())
        side.guard()

    StorageTarget.objects.all().update(name="other")
    assert drive(lane(cancel)).state == "cancelled"
    nothing_left(runtime)


def test_a_killed_worker_s_is_found_and_used_again(lane, runtime) -> None:  # noqa: F811
    seen: list[object] = []

    def die_once(side: scratch.Scratch) -> None:
        seen.append((side.server.pk, side.server.incarnation))
        if len(seen) == 1:
            raise Killed

    operation = lane(die_once)
    with pytest.raises(Killed):
        once(operation)
    assert drive(operation).state == "succeeded"
    assert len(seen) == 2 and seen[0] == seen[1]
    nothing_left(runtime)


def test_one_that_is_lost_is_made_anew_under_another_name(lane, runtime) -> None:  # noqa: F811
    seen: list[int] = []

    def lose_once(side: scratch.Scratch) -> None:
        seen.append(side.server.incarnation)
        if len(seen) == 1:
            runtime.crash(side.server.handle)
            raise Killed

    def start(side: scratch.Scratch) -> None:
        lose_once(side)
        if len(seen) == 2:
            with pytest.raises(domain.ServerNotReady):
                scratch.make_database(side)
            scratch.start(side)
            scratch.make_database(side)
            seen.append(side.server.incarnation)

    operation = lane(start)
    with pytest.raises(Killed):
        once(operation)
    assert drive(operation).state == "succeeded"
    assert seen == [1, 1, 2]
    nothing_left(runtime)


def test_what_an_ended_operation_left_is_swept(lane, runtime) -> None:  # noqa: F811
    """A definition that changed, a fifth crash: nobody undoes it."""

    def die(side: scratch.Scratch) -> None:
        raise Killed

    operation = lane(die)
    with pytest.raises(Killed):
        once(operation)
    assert scratch.sweep() == 0  # its operation lives
    Operation.objects.filter(pk=operation.pk).update(state="failed")
    assert scratch.sweep() == 1 and scratch.sweep() == 0
    assert drive(Operation.objects.get(kind="remove_scratch")).state == "succeeded"
    nothing_left(runtime)
    assert scratch.sweep() == 0


def test_data_that_can_t_be_deleted_now_is_the_janitor_s(lane, runtime) -> None:  # noqa: F811
    def break_it(side: scratch.Scratch) -> None:
        runtime.fail("data_exists", domain.RuntimeUnreachable("away"))

    operation = lane(break_it)
    assert drive(operation).state == "succeeded"
    tomb = DataTombstone.objects.get(deleted_at=None)
    assert tomb.reason == janitor.THROWN_AWAY
    DataTombstone.objects.update(due_at=tomb.created_at)
    assert janitor.delete_due_data() == 1
    nothing_left(runtime)


def test_it_runs_where_the_project_is_or_anywhere_once_that_is_gone(team, ready) -> None:  # noqa: F811
    mine = make_backup(team, ready)
    assert scratch.region_for(mine) == ready.region
    Region.objects.filter(pk=ready.region_id).update(enabled=False)
    with pytest.raises(StepFailed) as failed:
        scratch.region_for(mine)
    assert failed.value.code == "no_scratch_region" and failed.value.retryable
    other = Region.objects.create(name="Other", slug="other", runtime="memory", port_start=31000, port_end=31099)
    mine.project_uuid = uuid4()
    assert scratch.region_for(mine) == other
    Region.objects.filter(pk=other.pk).update(lacks={"postgresql": {"18": "no image"}})
    with pytest.raises(StepFailed, match="no image"):
        scratch.region_for(mine)


def test_no_room_is_said_before_anything_is_made() -> None:
    region = Region(name="Full", disk={"free_bytes": 12 << 30, "total_bytes": 100 << 30, "used_percent": 88})
    scratch.room_for(region, 1 << 30)
    with pytest.raises(StepFailed) as failed:
        scratch.room_for(region, 2 << 30)
    assert failed.value.code == "capacity_exhausted"
    scratch.room_for(Region(name="Unknown"), 1 << 40)


def test_a_copy_s_size_is_looked_at_by_time_and_by_what_went_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it can't outgrow its bound by more than a bounded number of bytes, however fast the disk is; and a server that
    never says its size does not go on for ever."""
    from types import SimpleNamespace
    from typing import Any, cast

    from backups.operations import proving_steps

    looks, answers = [], [True]

    def look(_side: Any, database_bytes: int) -> bool:
        looks.append(database_bytes)
        return answers[0]

    monkeypatch.setattr(scratch, "check_growth", look)
    monkeypatch.setattr(proving_steps, "SIZE_EVERY_SECONDS", 1e9)
    side = cast(Any, SimpleNamespace(pulse=lambda: None, guard=lambda: None, record=lambda **_: None))
    pulse, step = proving_steps.watched(side, 1), proving_steps.SIZE_EVERY_BYTES
    for moved in (0, step - 1, step, step + 1, 2 * step - 1, 2 * step):
        pulse(moved)
    assert looks == [1, 1]
    follows = proving_steps.watched(side, step + 5, follow=True)  # as of a file whose archive is compressed within
    for moved in (step, 2 * step, 9 * step):
        follows(moved)
    assert looks[2:] == [step + 5, 2 * step, 9 * step]
    del looks[2:]
    monkeypatch.setattr(proving_steps, "SIZE_EVERY_SECONDS", 0)
    answers[0] = False
    with pytest.raises(StepFailed) as told:
        for _ in range(proving_steps.SILENT_MOST * 2):
            pulse(2 * step)
    assert told.value.code == "server_not_ready" and told.value.retryable
    assert len(looks) == 2 + proving_steps.SILENT_MOST
