"""Samples of what a project uses, and what they are thinned to."""

from __future__ import annotations

from django.db import models

from projects.models.projects import Project


class MetricSample(models.Model):
    """One reading of one project: percent of one core, bytes, counts. Raw: moved into `MetricRollup` when
    NOVASTACK_METRICS_RAW_HOURS are over."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="metrics", db_index=False)
    at = models.DateTimeField()
    cpu_percent = models.FloatField(null=True)
    memory_bytes = models.BigIntegerField(null=True)
    size_bytes = models.BigIntegerField(null=True)
    connections = models.PositiveIntegerField(null=True)
    transactions_per_second = models.FloatField(null=True)
    queries_per_second = models.FloatField(null=True)
    cache_hit_percent = models.FloatField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["project", "-at"], name="metric_project_at"),
            models.Index(fields=["at"], name="metric_at"),
        ]

    def __str__(self) -> str:
        return f"{self.project_id} {self.at}"


class MetricRollup(models.Model):
    """What one project used in the `step` seconds from `at` on: sums, counts and peaks, so that merging two is exact.

    A reading is either in `MetricSample` or in one row of this table, never in both (`projects.operations.metrics`).
    Without a constraint on the project: thinning must not stand in the way of a project that is purged meanwhile.
    """

    project = models.ForeignKey(
        Project, on_delete=models.CASCADE, related_name="metric_rollups", db_constraint=False, db_index=False
    )
    step = models.PositiveSmallIntegerField(help_text="Seconds: 300 or 3600.")
    at = models.DateTimeField(help_text="Where it begins; a multiple of `step`.")
    cpu_sum = models.FloatField(default=0)
    cpu_max = models.FloatField(null=True)
    cpu_count = models.PositiveIntegerField(default=0)
    memory_sum = models.BigIntegerField(default=0)
    memory_max = models.BigIntegerField(null=True)
    memory_count = models.PositiveIntegerField(default=0)
    connections_sum = models.BigIntegerField(default=0)
    connections_max = models.PositiveIntegerField(null=True)
    connections_count = models.PositiveIntegerField(default=0)
    transactions_sum = models.FloatField(default=0)
    transactions_max = models.FloatField(null=True)
    transactions_count = models.PositiveIntegerField(default=0)
    queries_sum = models.FloatField(default=0)
    queries_max = models.FloatField(null=True)
    queries_count = models.PositiveIntegerField(default=0)
    cache_hit_sum = models.FloatField(default=0)
    cache_hit_max = models.FloatField(null=True)
    cache_hit_count = models.PositiveIntegerField(default=0)
    size_bytes = models.BigIntegerField(null=True, help_text="The largest.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "at", "step"], name="rollup_once")]
        indexes = [models.Index(fields=["step", "at"], name="rollup_step_at")]

    def __str__(self) -> str:
        return f"{self.project_id} {self.at} {self.step} s"


class TableSnapshot(models.Model):
    """The largest tables of a project's database, as estimated when last looked: `[name, rows, bytes]`, null where the
    engine can't tell. The current state only."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, primary_key=True, related_name="table_snapshot")
    tried_at = models.DateTimeField()
    at = models.DateTimeField(null=True, help_text="When it was last read; later tries failed.")
    total = models.PositiveIntegerField(default=0)
    tables = models.JSONField(default=list)

    def __str__(self) -> str:
        return f"{self.project_id} {self.total}"
