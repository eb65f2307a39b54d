"""Samples of what a project uses."""

from __future__ import annotations

from django.db import models

from projects.models.projects import Project


class MetricSample(models.Model):
    """One reading of one project: percent of one core, bytes, counts. Kept raw for 24 h (a later issue thins them)."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="metrics")
    at = models.DateTimeField()
    cpu_percent = models.FloatField(null=True)
    memory_bytes = models.BigIntegerField(null=True)
    size_bytes = models.BigIntegerField(null=True)
    connections = models.PositiveIntegerField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["project", "-at"], name="metric_project_at"),
            models.Index(fields=["at"], name="metric_at"),
        ]

    def __str__(self) -> str:
        return f"{self.project_id} {self.at}"
