"""Which of the copies that moves kept are removed at a daily look, by rows alone."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from novastack.common.clock import now
from novastack.common.models import Install
from projects.models import Database, DatabaseServer, DatabaseSlot, Operation, Project
from projects.operations import moving
from projects.tasks import purge_due
from tests.factories import make_project, make_team

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    team = make_team()
    made = make_project(team.alice, team.organization, "Shop")
    Operation.objects.filter(project_uuid=made.pk).update(state="succeeded")
    Operation.objects.get(project_uuid=made.pk).locks.all().delete()
    Project.objects.filter(pk=made.pk).update(ready_at=now(), status="running", health="healthy")
    DatabaseServer.objects.filter(project_uuid=made.pk).update(initialised_at=now())
    return made


def keep(project: Project, days_over: int) -> str:
    """A kept copy whose time is over for that long."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    server.pk, server.project_uuid, server.port = uuid4(), None, None
    server._state.adding = True
    server.save(force_insert=True)
    copy = Database.objects.create(
        project=project, server=server, slot=DatabaseSlot.PREVIOUS, name="copy",
        keep_until=now() - timedelta(days=days_over),
    )  # fmt: skip
    return str(copy.pk)


def test_many_at_once_go_in_several_looks(project: Project) -> None:
    """More than may go at once are due: the oldest go, the others are next."""
    made = [keep(project, days) for days in range(5, 0, -1)]
    first = moving.copies_due([])
    assert (first.databases, first.later) == ([], "")
    due = moving.copies_due(first.seen)
    assert [str(row.pk) for row in due.databases] == made[:3]
    assert due.later == "5 old copies are due: 3 go now, 2 at the next looks."
    Database.objects.filter(pk__in=made[:3]).delete()
    due = moving.copies_due(due.seen)
    assert ([str(row.pk) for row in due.databases], due.later) == (made[3:], "")


def test_the_daily_look_begins_with_the_oldest(project: Project) -> None:
    made = [keep(project, days) for days in range(5, 0, -1)]
    Install.load()
    Install.merge_notes(copies_due_seen=made)
    purge_due()
    begun = Operation.objects.filter(kind=moving.DISCARD)
    assert [row.params["database"] for row in begun] == made[:1]  # one at a time of one project
    assert Install.load().notes["copies_due_later"]
