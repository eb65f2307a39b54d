"""Figures of backups for Prometheus: four queries and a bounded number of lines, whatever there is. No tenant is named."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from backups.services.figures import BUCKETS, figures


def collect() -> Iterator[Metric]:
    found = figures()
    backups = GaugeMetricFamily("novastack_backups", "Backups on record", labels=["engine", "status"])
    for key, number in sorted(found.backups.items()):
        backups.add_metric(key, number)
    yield backups
    size = GaugeMetricFamily("novastack_backup_stored_bytes", "As stored, by engine", labels=["engine"])
    for engine, stored in sorted(found.stored_bytes.items()):
        size.add_metric([engine], stored)
    yield size
    ages = HistogramMetricFamily(
        "novastack_backup_last_verified_age_seconds", "Of projects with backups: how old the newest verified one is"
    )
    buckets = [(floatToGoString(le), float(number)) for le, number in found.ages.items()]
    ages.add_metric([], buckets=[*buckets, ("+Inf", float(found.projects_verified))], sum_value=found.ages_seconds)
    yield ages
    yield GaugeMetricFamily(
        "novastack_backup_last_verified_age_max_seconds", "The oldest of those", value=found.oldest_seconds
    )
    yield GaugeMetricFamily(
        "novastack_backup_projects_unverified", "Projects with backups of which none is verified",
        value=found.projects_unverified,
    )  # fmt: skip
    proofs = CounterMetricFamily("novastack_backup_proofs", "Proofs by how they ended", labels=["kind", "state"])
    for key, number in sorted(found.proofs.items()):
        proofs.add_metric(key, number)
    yield proofs
    durations = HistogramMetricFamily(
        "novastack_backup_verify_duration_seconds", "Of proofs that passed: restore and comparison", labels=["kind"]
    )
    for kind, (counts, number, seconds) in sorted(found.durations.items()):
        told = [(floatToGoString(le), float(count)) for le, count in zip(BUCKETS, counts, strict=True)]
        durations.add_metric([kind], buckets=[*told, ("+Inf", float(number))], sum_value=seconds)
    yield durations
