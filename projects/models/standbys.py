"""How many servers an operator wants to have initialised ahead, unclaimed: warm standbys. None, unless somebody says so."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q

from novastack.common.models import BaseModel
from projects import registry
from projects.models.catalogue import Plan, Region

MAX_STANDBYS = 20  # of one kind; each holds memory and disk of its region


class StandbyTarget(BaseModel):
    """`count` standbys of this region, engine, version and size. The rest is what the upkeep has to say about it."""

    region = models.ForeignKey(Region, on_delete=models.CASCADE, related_name="standby_targets")
    engine = models.CharField(max_length=16)
    version = models.CharField(max_length=16)
    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="standby_targets")
    count = models.PositiveSmallIntegerField(
        default=1, validators=[MaxValueValidator(MAX_STANDBYS)], help_text=f"0 to {MAX_STANDBYS}."
    )
    problem = models.CharField(max_length=500, blank=True, editable=False, help_text="Why there are fewer than wanted.")
    failures = models.PositiveSmallIntegerField(default=0, editable=False, help_text="In a row.")
    retry_after = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["region__name", "engine", "version", "plan__position"]
        constraints = [
            models.UniqueConstraint(fields=["region", "engine", "version", "plan"], name="standby_target_once"),
            models.CheckConstraint(condition=Q(count__lte=MAX_STANDBYS), name="standby_target_bounded"),
        ]

    def clean(self) -> None:
        engine = registry.engines().get(self.engine)
        if engine is None:
            raise ValidationError({"engine": f"Use one of: {', '.join(sorted(registry.engines()))}."})
        if self.plan_id and self.plan.memory_bytes < engine.minimum_memory_bytes:
            least = engine.minimum_memory_bytes >> 20
            raise ValidationError({"plan": f"{engine.title} needs at least {least} MiB of memory."})

    def __str__(self) -> str:
        return f"{self.engine} {self.version}, {self.plan.name}, {self.region.name}"
