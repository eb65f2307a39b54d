"""The install's figures for Prometheus, read from the database at each scrape. No tenant is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.utils import floatToGoString

from projects.services import fleet
from projects.services.operation_figures import Durations, operation_figures

_others: list[Callable[[], Iterable[Metric]]] = []


def collect_also(figures: Callable[[], Iterable[Metric]]) -> None:
    """Other apps' figures, from their `AppConfig.ready()`; bounded in queries and in lines."""
    if figures not in _others:
        _others.append(figures)


class FleetCollector:
    """Registered once, in `novastack.urls`."""

    def collect(self) -> Iterator[Metric]:
        figures = fleet.figures()
        yield InfoMetricFamily("novastack", "This install", value={"version": figures["version"]})
        yield _counts("novastack_projects", "Projects", ["engine", "status"], figures["projects"])
        yield _counts("novastack_servers", "Database servers", ["engine", "state"], figures["servers"])
        yield _counts("novastack_operations", "Operations on record", ["kind", "state"], figures["operations"])
        yield GaugeMetricFamily("novastack_database_size_bytes", "All databases", value=figures["size_bytes"])
        yield GaugeMetricFamily("novastack_connections", "Sessions on all databases", value=figures["connections"])
        told = "Of all running databases, where the engine counts them"
        for name, text, key in (
            ("novastack_transactions_per_second", told, "transactions"),
            ("novastack_queries_per_second", told, "queries"),
            ("novastack_cache_hit_ratio", "Mean over databases", "hits"),
        ):  # fmt: skip
            values = {(engine,): value for engine, value in figures["rates"][key].items()}
            yield _counts(name, text, ["engine"], values)
        regions = {(slug,): int(reachable) for slug, reachable in figures["regions"].items()}
        yield _counts("novastack_region_reachable", "1 when the runtime answers", ["region"], regions)
        disks = {(slug,): used / 100 for slug, used in figures["disks"].items()}
        yield _counts("novastack_region_disk_used_ratio", "Of the disk that holds the data", ["region"], disks)
        fenced = {(reason,): count for reason, count in figures["fenced"].items()}
        yield _counts("novastack_projects_fenced", "Projects whose writers are fenced", ["reason"], fenced)
        for key, text in (
            ("databases", "Places of a pool that are taken"),
            ("max_databases", "Places of a pool"),
            ("healthy", "1 when a pool is healthy, 0 when not"),
            ("size_bytes", "All databases of a pool, as last measured"),
        ):  # fmt: skip
            values = {pool: found[key] for pool, found in figures["pools"].items() if found[key] is not None}
            yield _counts(f"novastack_pool_{key}", text, ["region", "engine", "version", "pool"], values)
        kept, labels = figures["standbys"], ["region", "engine", "version", "plan"]
        ready = {key: numbers[0] for key, numbers in kept.items()}
        wanted = {key: numbers[1] for key, numbers in kept.items()}
        yield _counts("novastack_standbys_ready", "Warm standbys that a project could take now", labels, ready)
        yield _counts("novastack_standbys_wanted", "Warm standbys that operators want", labels, wanted)
        beats = {(name,): at.timestamp() for name, at in figures["heartbeats"].items()}
        yield _counts("novastack_heartbeat_timestamp_seconds", "Last sign of life", ["process"], beats)
        yield from _operations()
        for other in _others:
            yield from other()


def _operations() -> Iterator[Metric]:
    """Counters: operations are kept, so these only grow."""
    found = operation_figures()
    yield _totals("novastack_operations_ended", "Operations by how they ended", ["kind", "state"], found.ended)
    yield _totals("novastack_operation_failures", "Ended with an error, by its code", ["kind", "code"], found.failures)
    yield _totals("novastack_step_retries", "Tries of steps after a failure", ["kind", "step"], found.retries)
    asked = "Of those that succeeded, from being asked for"
    yield _histogram("novastack_operation_duration_seconds", asked, ["kind"], found.operations)
    begun = "Of those that succeeded, from their first begin, retries included"
    yield _histogram("novastack_step_duration_seconds", begun, ["kind", "step"], found.steps)


def _totals(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, labels: list[str], values: Mapping[Any, Durations]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, each in sorted(values.items()):
        buckets = [(floatToGoString(le), float(number)) for le, number in each.buckets.items()]
        family.add_metric(key, buckets=[*buckets, ("+Inf", float(each.count))], sum_value=each.seconds)
    return family


def _counts(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
