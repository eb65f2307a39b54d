"""How many servers operators keep initialised ahead."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import transaction

from accounts.permissions import Principal, require_operator
from accounts.services import audit
from novastack.common.errors import Invalid
from projects import registry
from projects.models import Plan, Region, StandbyTarget
from projects.operations import catalogue


def version_problem(engine: str, version: str) -> str:
    """Why no project, and so no standby, is made of that version; empty: it can be."""
    if engine not in registry.engines():
        return f"Use one of: {', '.join(sorted(registry.engines()))}."
    names = [each.version for each in catalogue.versions_of(registry.engine(engine)).offered]
    if version in names:
        return ""
    return f"Use one of: {', '.join(names)}." if names else "No version is offered."


@transaction.atomic
def standbys_set(
    *, principal: Principal | None, region: str, engine: str, version: str, plan: str, count: int
) -> StandbyTarget | None:
    """Want `count` standbys of this kind from now on; 0 wants none, and forgets the kind. `principal=None` is the
    console. The upkeep makes and removes them, one at a time. Raises `Invalid` with the field."""
    if principal is not None:
        require_operator(principal)
    place = Region.objects.filter(slug=region).first()
    if place is None:
        raise Invalid.field("region", "unknown", f"There is no region “{region[:48]}”.")
    size = Plan.objects.filter(slug=plan).first()
    if size is None:
        raise Invalid.field("plan", "unknown", f"There is no plan “{plan[:48]}”.")
    key = {"region": place, "engine": engine, "version": version, "plan": size}
    target = StandbyTarget.objects.select_for_update(of=("self",)).filter(**key).first() or StandbyTarget(**key)
    target.count, target.retry_after = count, None
    if count and (problem := version_problem(engine, version)):
        raise Invalid.field("version", "not_offered", problem)
    try:
        target.full_clean()
    except ValidationError as error:
        name, texts = next(iter(error.message_dict.items()))
        raise Invalid.field(name, "invalid", texts[0]) from None
    audit.record(principal, "standbys.changed", target=str(target)[:200], data={"count": count})
    if not count:
        StandbyTarget.objects.filter(pk=target.pk).delete()
        return None
    target.save()
    return target
