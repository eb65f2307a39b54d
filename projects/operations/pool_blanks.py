"""Empty databases that are ready for whoever comes next, on engines where a database takes long to make and can be renamed.

A row comes before its database and goes after it, so that a kill leaves what the next tick completes or removes. A claim
(`placing`) deletes the row and writes the name on the project's database in one transaction: from then on it is no blank.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from novastack.common.clock import now
from novastack.common.ids import uuid7
from novastack.common.models import Install
from novastack.common.secrets import Sealed, random_password
from projects import domain, registry
from projects.engines.admin import BLANK_PREFIX, EngineAdmin
from projects.models import BlankDatabase, Database, DatabaseServer
from projects.operations import pools, wiring

log = structlog.get_logger(__name__)

PLAIN_OF = 4  # each so many-th is without the bootstrap tables, which some projects and all copies do not want
TICK_SECONDS = 3.0  # no blank is begun later than this into a tick
LATER_SECONDS = 60.0  # after a pool has refused
SWEEP_EVERY_SECONDS = 60.0
_later: dict[UUID, float] = {}
_swept: dict[UUID, float] = {}


@dataclass(slots=True)
class Blanks:
    """What one tick did; counts."""

    made: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Pool:
    server: DatabaseServer
    wanted: int
    rows: list[BlankDatabase] = field(default_factory=list)

    @property
    def due(self) -> bool:
        off = len(self.rows) != self.wanted or any(row.ready_at is None for row in self.rows)
        return off and _later.get(self.server.pk, 0.0) <= time.monotonic()


def keep() -> Blanks:
    """One tick: each open pool has `NOVASTACK_POOL_BLANKS` of them, and no more than it has places. A pool that is drained has
    none."""
    done, until = Blanks(), time.monotonic() + TICK_SECONDS
    number = settings.NOVASTACK_POOL_BLANKS
    if not number and not BlankDatabase.objects.exists():
        return done
    if Install.load().read_only:
        return done
    for pool in _pools(number):
        if not pool.due or time.monotonic() > until:
            continue
        try:
            with wiring.admin_session(registry.engine(pool.server.engine), pool.server) as admin:
                _keep(pool, admin, until, done)
        except domain.EngineError as error:
            _later[pool.server.pk] = time.monotonic() + LATER_SECONDS
            log.warning("blanks not kept", pool=pool.server.name, error=str(error)[:200])
    return done


def _pools(number: int) -> list[_Pool]:
    able = [e.name for e in registry.engines().values() if domain.Capability.BLANKS in e.capabilities]
    with_some = Q(pk__in=BlankDatabase.objects.values("server"))
    open_ = Q(pk__in=pools.pools_open().values("pk"))
    rows = pools.pools().filter(
        open_ | with_some, engine__in=able, reconcile=True, initialised_at__isnull=False, observed_state="running",
        region__reachable=True, region__reconcile=True, region__enabled=True, region__gone_at=None,
    )  # fmt: skip
    servers = list(rows.select_related("region"))
    used = pools.used_by_pool(servers)
    blanks: dict[UUID, list[BlankDatabase]] = {}
    for blank in BlankDatabase.objects.filter(server__in=[s.pk for s in servers]).order_by("created_at"):
        blanks.setdefault(blank.server_id, []).append(blank)
    found = []
    for server in servers:
        takes = server.pool_ready_at is not None and server.draining_at is None
        wanted = max(0, min(number, server.max_databases - used.get(server.pk, 0))) if takes else 0
        found.append(_Pool(server, wanted, blanks.get(server.pk, [])))
    return found


def _keep(pool: _Pool, admin: EngineAdmin, until: float, done: Blanks) -> None:
    for row in pool.rows[: pool.wanted]:
        if row.ready_at is None and time.monotonic() <= until:  # a kill came between
            done.made += _make(row, admin)
    for row in pool.rows[pool.wanted :]:
        done.dropped += _drop(row, admin)
    plain = pool.wanted // PLAIN_OF - sum(not row.tables for row in pool.rows[: pool.wanted])
    for number in range(pool.wanted - len(pool.rows)):
        if time.monotonic() > until:
            break
        row = BlankDatabase.objects.create(
            server=pool.server, name=f"{BLANK_PREFIX}{uuid7().hex[-20:]}", tables=number >= plain,
            login_secret=Sealed.of(random_password()), control_secret=Sealed.of(random_password()),
        )  # fmt: skip
        done.made += _make(row, admin)
    done.dropped += _sweep(pool.server, admin)


def _make(row: BlankDatabase, admin: EngineAdmin) -> bool:
    secrets = row.login_secret, row.control_secret
    login, control = (secret.open() if secret else "" for secret in secrets)
    admin.make_blank(row.name, login_password=login, control_password=control, tables=row.tables)
    return bool(BlankDatabase.objects.filter(pk=row.pk, ready_at=None).update(ready_at=now(), updated_at=now()))


def _drop(row: BlankDatabase, admin: EngineAdmin) -> bool:
    """Not ready first, so that nobody claims what goes."""
    with transaction.atomic():
        mine = BlankDatabase.objects.select_for_update(of=("self",), skip_locked=True).filter(pk=row.pk).first()
        if mine is None:
            return False
        BlankDatabase.objects.filter(pk=row.pk).update(ready_at=None, updated_at=now())
    admin.drop_blank(row.name)
    BlankDatabase.objects.filter(pk=row.pk, ready_at=None).delete()
    return True


def _sweep(server: DatabaseServer, admin: EngineAdmin) -> int:
    """Blanks that nobody knows: their rows were lost (a control restore, say). What a project is about to use has its name."""
    if time.monotonic() - _swept.get(server.pk, -SWEEP_EVERY_SECONDS) < SWEEP_EVERY_SECONDS:
        return 0
    _swept[server.pk] = time.monotonic()
    there = admin.blanks()
    known = set(BlankDatabase.objects.filter(server=server).values_list("name", flat=True))
    known |= set(Database.objects.filter(server=server).values_list("made_of", flat=True))
    strange = [name for name in there if name not in known]
    for name in strange:
        admin.drop_blank(name)
    return len(strange)
