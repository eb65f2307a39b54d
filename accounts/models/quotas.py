"""What an organization may use unless it has numbers of its own."""

from __future__ import annotations

from django.db import models

from novastack.common.clock import now

GIB = 1024**3


class QuotaDefaults(models.Model):
    """One row, the operators'. It counts at once for every organization whose own number is empty."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    max_projects = models.PositiveIntegerField(default=40, help_text="Not counting the recycle bin.")
    max_memory_bytes = models.PositiveBigIntegerField(default=16 * GIB, help_text="The sum of its projects' limits.")
    max_storage_bytes = models.PositiveBigIntegerField(
        default=200 * GIB, help_text="The sum of its projects' limits, with the recycle bin."
    )
    max_backups = models.PositiveIntegerField(default=500)
    max_backup_bytes = models.PositiveBigIntegerField(default=500 * GIB)
    updated_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        verbose_name = verbose_name_plural = "quota defaults"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="quota_defaults_single_row")]

    def __str__(self) -> str:
        return "Quotas of organizations without their own"

    @classmethod
    def load(cls) -> QuotaDefaults:
        """The one row, or (unsaved) what it would begin with."""
        return cls.objects.filter(id=1).first() or cls(id=1)
