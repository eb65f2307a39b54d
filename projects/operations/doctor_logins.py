"""Whether the stored passwords log in: the doctor's part that talks to servers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from novastack.common.secrets import SecretUnreadable
from projects import domain, registry
from projects.models import (
    DatabaseRole,
    DatabaseServer,
    DatabaseSlot,
    DesiredStatus,
    Project,
    RoleKind,
    ServerDesired,
    ServerKind,
)
from projects.operations import wiring
from projects.operations.doctor_findings import Finding, Report, of

PARALLEL = 8
LOGINS = (RoleKind.CONTROL, RoleKind.LOGIN, RoleKind.READ_ONLY)


@dataclass(frozen=True, slots=True)
class _Login:
    row: DatabaseServer
    endpoint: domain.Endpoint
    who: str
    candidates: tuple[domain.Credentials, ...]


def check(
    rows: dict[UUID, DatabaseServer],
    described: dict[UUID, domain.Description],
    projects: dict[UUID, Project],
    report: Report,
) -> list[Finding]:
    """Real logins with every stored password (rule 19), of servers that run and should. One that is being rotated has two
    candidates, and one of them must work (rule 20)."""
    up = {
        pk: row
        for pk, row in rows.items()
        if row.desired_state == ServerDesired.RUNNING and pk in described and described[pk].running
    }
    where = {pk: row.control_endpoint for pk, row in up.items() if row.initialised_at}
    logins: list[_Login] = []
    found: list[Finding] = []

    def add(row: DatabaseServer, who: str, candidates: Callable[[], Iterable[domain.Credentials]]) -> None:
        try:
            logins.append(_Login(row, where[row.pk], who, tuple(candidates())))
        except SecretUnreadable:
            found.append(
                of(row, "login.unreadable", f"No key of this install opens the stored password ({who}).",
                    "Add the key that sealed it to NOVASTACK_SECRET_KEYS again.")
            )  # fmt: skip

    for pk in where:
        add(up[pk], "admin", functools.partial(wiring.admin_candidates, up[pk]))
    roles = DatabaseRole.objects.filter(
        server__in=list(where), kind__in=LOGINS, database__slot=DatabaseSlot.CURRENT, database__project__ready_at__isnull=False,
        database__locked_at=None,
    ).select_related("database")  # fmt: skip
    for role in roles:
        project = projects.get(role.database.project_id)
        if role.secret is None or project is None or project.recycled_at is not None:
            continue  # those of a project in the recycle bin are locked
        if up[role.server_id].kind == ServerKind.POOL and project.desired_status != DesiredStatus.RUNNING:
            continue  # on a pool that is how one is stopped
        add(up[role.server_id], role.kind, functools.partial(_candidates, role))
    report.looked["logins"] += len(logins)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="doctor") as pool:
        answers = list(pool.map(_try, logins))
    silent: set[UUID] = set()
    for login, answer in zip(logins, answers, strict=True):
        if isinstance(answer, domain.LoginRefused):
            name = login.candidates[0].username
            found.append(
                of(login.row, "login.refused", f"The server refuses the stored password of {name} ({login.who}).",
                    _LOGIN_ADVICE.get(login.who, "Rotate the password of the project."))
            )  # fmt: skip
        elif isinstance(answer, domain.TlsNotTrusted) and login.row.pk not in silent:
            silent.add(login.row.pk)
            found.append(
                of(login.row, "tls.not_trusted", f"What answers at its port does not prove itself: {answer}",
                    "Restart the project; it gets its certificate again. If it stays: look who holds the port.")
            )  # fmt: skip
        elif answer is not None and login.row.pk not in silent:
            silent.add(login.row.pk)
            found.append(
                of(login.row, "server.silent", f"It runs, and no login could be tried: {answer}",
                    "Look at its log; restart the project.")
            )  # fmt: skip
    return found


def _candidates(role: DatabaseRole) -> list[domain.Credentials]:
    return [domain.Credentials(role.name, secret, role.database.name) for secret in wiring.role_candidates(role)]


_LOGIN_ADVICE = {
    "admin": "Its password was changed past NovaStack. Set it back in the server, from inside its container.",
    "control": "NovaStack's own role was changed past it: set its password back in the server.",
}


def _try(login: _Login) -> domain.EngineError | None:
    """Runs in a thread: no ORM here. None when one of the candidates works, or the server is merely full."""
    engine, last = registry.engine(login.row.engine), None
    for credentials in login.candidates:
        try:
            engine.probe(login.endpoint, credentials)
        except domain.ServerBusy:
            return None
        except domain.EngineError as error:
            last = error
        else:
            return None
    return last
