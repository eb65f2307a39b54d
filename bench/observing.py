"""One tick of the reconciler over 1,000 servers on the memory runtime: ≤ 200 ms, and no write when nothing changed."""

from __future__ import annotations

from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from bench import stats
from bench.fixtures import many_projects, person
from projects import domain, registry
from projects.models import DatabaseServer, Region
from projects.operations import disks, fences, reconciler, wiring

COUNT = 1_000


class _Rollback(Exception):
    pass


def run() -> list[str]:
    """Lines for the report."""
    lines: list[str] = []
    try:
        with transaction.atomic():
            Region.objects.update(enabled=False)
            _, organization = person()
            many_projects(organization, COUNT)
            where = Region.objects.get(slug="bench")
            Region.objects.filter(pk=where.pk).update(enabled=True)
            runtime = wiring.runtime_of(where)
            engine = registry.engine("postgresql")
            for server in DatabaseServer.objects.filter(region=where):
                spec = engine.server_spec(
                    domain.ServerRequest(
                        handle=server.handle, version="18", image="bench",
                        publish=domain.Endpoint("127.0.0.1", server.port or 0),
                        limits=wiring.limits_of(server), max_connections=30,
                        admin=domain.Credentials("novastack", "x"),
                    )
                )  # fmt: skip
                handle = runtime.ensure(spec, data=domain.DataPolicy.CREATE)
                DatabaseServer.objects.filter(pk=server.pk).update(runtime_ref=handle.ref)
            first = reconciler.reconcile()
            reconciler.reconcile()
            with CaptureQueriesContext(connection) as captured:
                reconciler.reconcile()
            writes = [q["sql"] for q in captured if q["sql"].split()[0] in {"UPDATE", "INSERT", "DELETE"}]
            durations = stats.timed(reconciler.reconcile, 30)
            p95 = stats.percentile(durations, 0.95) * 1000
            lines.append(
                f"observing {first.observed:,} servers: {stats.summary(durations)}, {len(captured)} queries, "
                f"{len(writes)} writes (bounds: 200 ms {stats.verdict(p95, 200)}, 0 writes "
                f"{stats.verdict(len(writes), 0)})"
            )
            lines += [f"    write: {sql[:150]}" for sql in writes]
            lines += _guarding()
            raise _Rollback
    except _Rollback:
        pass
    return lines


def _guarding() -> list[str]:
    """The tick that looks at disks and storage limits, over the same projects."""

    def tick() -> None:
        disks.measure()
        fences.keep()

    tick()
    with CaptureQueriesContext(connection) as captured:
        tick()
    writes = sum(q["sql"].split()[0] in {"UPDATE", "INSERT", "DELETE"} for q in captured)
    return [
        f"guarding disks and limits of {COUNT:,} projects: {stats.summary(stats.timed(tick, 30))}, {len(captured)} "
        f"queries, {writes} writes (bound: 0 writes {stats.verdict(writes, 0)})"
    ]
