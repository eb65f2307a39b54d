"""What an operation left behind, and whether that is all."""

from __future__ import annotations

from projects import domain
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    Orphan,
    Project,
    RoleKind,
)
from projects.operations import janitor, orphans, reconciler
from projects.services import (
    project_purge,
)
from tests.operations.conftest import (
    let_lease_expire,
    let_time_pass,
    once,
    states,
)


def server_of(project: Project) -> DatabaseServer:
    return DatabaseServer.objects.get(project_uuid=project.pk)


def login_of(project: Project) -> DatabaseRole:
    return DatabaseRole.objects.get(database__project=project, kind=RoleKind.LOGIN)


def logs_in(paper, project: Project) -> None:
    """The stored password is the one that works, and none is pending."""
    login = login_of(project)
    assert login.pending_secret is None
    project.endpoint.refresh_from_db()
    endpoint = domain.Endpoint("127.0.0.1", project.endpoint.port)
    paper.probe(endpoint, domain.Credentials(login.name, login.secret.open()))
    server = server_of(project)
    assert server.admin_pending_secret is None
    paper.probe(endpoint, domain.Credentials(server.admin_username, server.admin_secret.open()))


def exactly_one(runtime, project: Project, state: str | None) -> None:
    """One server (or none) and one volume of the project's, known by the row, and nothing that no row knows."""
    server = server_of(project)
    of_it = {n: s for n, s in runtime.world.servers.items() if str(server.pk) in n}
    if state is None:
        assert not of_it
    else:
        assert list(of_it) == [server.handle.name]
        assert of_it[server.handle.name].state == state
        assert of_it[server.handle.name].handle.ref == server.runtime_ref
    orphans.find(project.region, runtime, reconciler.Install.load())
    assert not Orphan.objects.filter(resolved_at=None).exists()


def purge(project, alice):
    operation = project_purge(principal=alice, project=project, confirm=project.slug)
    once(operation)
    return operation


def clear_out(operation: Operation) -> Operation:
    """Workers, ticks and the janitor after its grace."""
    for _ in range(12):
        let_time_pass(operation)
        let_lease_expire(operation)
        once(operation)
        DataTombstone.objects.filter(deleted_at=None).update(due_at=operation.created_at)
        janitor.delete_due_data()
        if not operation.live:
            return operation
    raise AssertionError(states(operation))


def nothing_left(runtime, key) -> None:
    assert not Project.objects.filter(pk=key).exists()
    assert not DatabaseServer.objects.filter(project_uuid=key).exists()
    assert not Database.objects.exists()
    assert not DatabaseRole.objects.exists()
    assert not runtime.world.servers
    assert not runtime.world.volumes
    port = Endpoint.objects.get(project_uuid=key)
    assert port.project is None
    assert port.reserved_until
