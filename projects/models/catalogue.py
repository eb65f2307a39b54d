"""What can be chosen: regions, versions, plans."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import models

from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField
from projects import domain, registry
from projects.engines import catalogue
from projects.models.choices import DiskLevel, Placement
from projects.runtimes.endpoints import BadEndpoint, check, parse

GIB = 1024**3
MIB = 1024**2
# Of the disk that holds the data, in percent used as `df` says it (rule 16).
DISK_WARN_PERCENT = 80
DISK_CLOSED_PERCENT = 90
DISK_FENCED_PERCENT = 95


UNREACHABLE = "The region's runtime can't be reached."  # all that tenants are told
REMOTE_RUNTIMES = frozenset({"docker", "swarm"})
ALL_ADDRESSES_RUNTIMES = frozenset({"swarm"})  # they can't publish on one address only


class Region(BaseModel):
    """Where servers may run: one endpoint of one runtime. `config` is the driver's own (root folder, placement …); keys are
    never in it."""

    slug = models.SlugField(max_length=48, unique=True)
    name = models.CharField(max_length=80)
    runtime = models.CharField(max_length=16, help_text="docker, process or memory. Empty runtimes are not available.")
    config = models.JSONField(default=dict, blank=True)
    endpoint_url = models.CharField(
        "endpoint", max_length=255, blank=True,
        help_text="Empty: this machine. Else unix:///path, tcp://host:2376 (TLS) or ssh://user@host.",
    )  # fmt: skip
    endpoint_ca = models.TextField(
        "CA certificate", blank=True, help_text="PEM. TCP: what the engine's certificate is checked against."
    )
    endpoint_certificate = models.TextField(
        "client certificate", blank=True, help_text="PEM. TCP: with what workers log in."
    )
    endpoint_key = EncryptedField()
    endpoint_host_keys = models.TextField(
        "host keys", blank=True, help_text="SSH: the host's public keys, one a line; no other host is talked to."
    )
    bind_address = models.CharField(max_length=64, default="127.0.0.1", help_text="Where ports are published.")
    public_address = models.CharField(max_length=255, blank=True, help_text="Published to when a project is public.")
    client_host = models.CharField(max_length=255, default="127.0.0.1", help_text="What clients connect to.")
    control_host = models.CharField(max_length=255, default="127.0.0.1", help_text="What workers connect to.")
    port_start = models.PositiveIntegerField(default=20000)
    port_end = models.PositiveIntegerField(default=29999)
    enabled = models.BooleanField(default=True)
    reconcile = models.BooleanField(default=True, help_text="Off: nothing is changed here by itself.")
    reachable = models.BooleanField(default=True, editable=False)
    reason = models.CharField(max_length=500, blank=True, editable=False)
    observed_at = models.DateTimeField(null=True, editable=False)
    unreachable_since = models.DateTimeField(null=True, editable=False)
    gone_at = models.DateTimeField(
        null=True, editable=False, help_text="An operator has declared that this runtime will not come back."
    )
    engine_identity = models.CharField(max_length=128, blank=True, editable=False)
    checked = models.JSONField(default=dict, blank=True, editable=False)
    check_wanted_at = models.DateTimeField(null=True, editable=False)
    lacks = models.JSONField(
        default=dict, blank=True, editable=False, help_text="Engine, version, why it can't run here."
    )
    disk = models.JSONField(default=dict, blank=True, editable=False)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(port_start__gte=1024, port_end__lte=65535, port_start__lte=models.F("port_end")),
                name="region_port_range",
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def available(self) -> bool:
        return self.enabled and bool(self.runtime) and self.gone_at is None

    def reason_for(self, *, operator: bool) -> str:
        """Why it can't be reached; empty while it can. The runtime's own words may name paths and addresses of the
        host: only operators read them."""
        if self.reachable:
            return ""
        return (operator and self.reason) or UNREACHABLE

    def reason_against(self, engine: str, version: str) -> str:
        """Why that engine's version can't run here; empty when it can."""
        return str(self.lacks.get(engine, {}).get(version, ""))

    def tools_against(self, engine: str) -> str:
        """Why that engine's databases can't be dumped or restored here, as far as a worker has seen; empty: nothing known."""
        return str(self.lacks.get(engine, {}).get("tools", ""))

    @property
    def disk_used_percent(self) -> float | None:
        """Of the disk that holds the data; None where no worker can see it."""
        value = self.disk.get("used_percent")
        return None if value is None else float(value)

    @property
    def disk_level(self) -> str:
        return str(self.disk.get("level", DiskLevel.OK))

    @property
    def has_room(self) -> bool:
        """New servers may be made as far as the disk goes. What is not known does not stop them."""
        return (self.disk_used_percent or 0) < DISK_CLOSED_PERCENT

    @property
    def disk_problem(self) -> str:
        """What the disk's fullness means now, for people; empty when it means nothing."""
        used = self.disk_used_percent or 0
        if self.disk_level == DiskLevel.FENCED:
            return f"the disk is {used:.0f} % full, writers are fenced"
        if used >= DISK_CLOSED_PERCENT:
            return f"the disk is {used:.0f} % full, nothing new is made"
        return f"the disk is {used:.0f} % full" if used >= DISK_WARN_PERCENT else ""

    def endpoint_of(self) -> domain.RuntimeEndpoint:
        """For the driver, with the key in the clear; made when it is needed, kept nowhere."""
        if not self.endpoint_url:
            return domain.RuntimeEndpoint()
        return domain.RuntimeEndpoint(
            self.endpoint_url, self.endpoint_ca, self.endpoint_certificate,
            self.endpoint_key.open() if self.endpoint_key is not None else "", self.endpoint_host_keys,
        )  # fmt: skip

    @property
    def host(self) -> str:
        """The machine whose ports it gives out, as far as its address says it; empty: this one."""
        address = parse(self.endpoint_url)
        return "" if address.kind in {"here", "unix"} or address.loopback else address.host.lower()

    def clean(self) -> None:
        if self.port_start is not None and self.port_end is not None and self.port_start > self.port_end:
            raise ValidationError({"port_end": "The range ends before it starts."})
        problems: dict[str, str] = {}
        try:
            check(self.endpoint_of())
        except BadEndpoint as error:
            raise ValidationError({f"endpoint_{error.field}": str(error)}) from None
        if self.endpoint_url and self.runtime not in REMOTE_RUNTIMES:
            problems["endpoint_url"] = "Only Docker and Swarm are reached from afar; leave it empty."
        if self.host and _is_loopback(self.control_host):
            problems["control_host"] = "That is the workers' own machine; its databases are on another one."
        if self.host and _is_loopback(self.bind_address):
            problems["bind_address"] = (
                "Published there, nobody on another machine reaches its databases, nor do workers."
            )
        if self.runtime in ALL_ADDRESSES_RUNTIMES and self.bind_address not in {"0.0.0.0", "::"}:  # noqa: S104 - said, not done
            problems["bind_address"] = (
                "A Swarm publishes on all addresses of a node: 0.0.0.0. A firewall keeps strangers out."
            )
        if problems:
            raise ValidationError(problems)
        if shared := next(iter(self.sharing_ports()), None):
            raise ValidationError(
                {"port_start": f"{shared.name} gives out {shared.port_start}–{shared.port_end} on the same machine."}
            )

    def sharing_ports(self) -> list[Region]:
        """Other regions on the same machine, as far as known, that give out some of the same ports."""
        if not self.runtime or self.runtime == "memory" or self.port_start is None or self.port_end is None:
            return []
        others = Region.objects.filter(gone_at=None, port_start__lte=self.port_end, port_end__gte=self.port_start)
        others = others.exclude(pk=self.pk).exclude(runtime__in=["", "memory"])
        return [
            other
            for other in others
            if other.host == self.host or (self.engine_identity and other.engine_identity == self.engine_identity)
        ]


class OfferChoice(models.TextChoices):
    UNTIL_END = domain.Offer.UNTIL_END.value, "Until its end of life"
    ALWAYS = domain.Offer.ALWAYS.value, "Always"
    NEVER = domain.Offer.NEVER.value, "Never"


class EngineRelease(BaseModel):
    """The operator's word on one version of one engine: it replaces what this release ships about that version
    (`projects/engines/catalogue.toml`). Servers that exist keep the image that they have (rule 12)."""

    engine = models.CharField(max_length=16)
    version = models.CharField(max_length=16, help_text="As the image's tag: 18, 18.4, 11.8 …")
    image = models.CharField(
        max_length=180, blank=True, help_text="Name and tag without digest. Empty: the usual order (docs/setup.md)."
    )
    digest = models.CharField(
        max_length=71, blank=True, help_text="sha256:… pins exactly that image, of the official name if none is given."
    )
    default = models.BooleanField(default=False, help_text="What a project gets that names no version.")
    deprecated = models.BooleanField(default=False, help_text="Still offered, and marked.")
    end_of_life = models.DateField(null=True, blank=True, help_text="The last day on which its vendor publishes fixes.")
    offer = models.CharField(
        max_length=10, choices=OfferChoice, default=OfferChoice.UNTIL_END, help_text="To new projects."
    )

    class Meta:
        ordering = ["engine", "version"]
        constraints = [
            models.UniqueConstraint(fields=["engine", "version"], name="engine_release_once"),
            models.UniqueConstraint(
                fields=["engine"], condition=models.Q(default=True), name="engine_release_one_default"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.engine} {self.version}"

    @property
    def entry(self) -> domain.EngineVersion:
        return domain.EngineVersion(
            self.version, self.end_of_life, self.default, self.deprecated, self.image, self.digest,
            domain.Offer(self.offer),
        )  # fmt: skip

    def clean(self) -> None:
        engine = registry.engines().get(self.engine)
        if engine is None:
            raise ValidationError({"engine": f"Use one of: {', '.join(sorted(registry.engines()))}."})
        problems = catalogue.problems_of(engine, self.entry)
        if problems:
            raise ValidationError(dict(reversed(problems)))


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


class Plan(BaseModel):
    """Sizes and retention of a project. Sizes in bytes; CPU in cores."""

    slug = models.SlugField(max_length=48, unique=True)
    name = models.CharField(max_length=80)
    position = models.PositiveSmallIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=512 * MIB)
    cpus = models.DecimalField(max_digits=5, decimal_places=2, default="0.5")
    storage_bytes = models.BigIntegerField(default=5 * GIB)
    connection_limit = models.PositiveSmallIntegerField(default=20)
    max_databases = models.PositiveSmallIntegerField(
        default=1, help_text="Of one project, which has one. 0: nothing new is made on this plan."
    )
    max_api_keys = models.PositiveSmallIntegerField(default=10, help_text="Working API keys of one project.")
    max_services = models.PositiveSmallIntegerField(default=3, help_text="Services of one project.")
    placement = models.CharField(
        max_length=12, choices=[(c.value, c.label) for c in (Placement.DEDICATED, Placement.POOL)],
        default=Placement.DEDICATED, help_text="Where projects of this plan live, unless they ask for another place.",
    )  # fmt: skip
    recycle_days = models.PositiveSmallIntegerField(default=7)
    backup_keep_days = models.PositiveSmallIntegerField(
        default=30, help_text="For how long the backups of a removed project are kept."
    )
    is_default = models.BooleanField(default=False)
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["position", "name"]
        constraints = [
            models.UniqueConstraint(
                fields=["is_default"], condition=models.Q(is_default=True), name="plan_one_default"
            ),
            models.CheckConstraint(
                condition=models.Q(memory_bytes__gte=128 * MIB, storage_bytes__gt=0, connection_limit__gte=1),
                name="plan_sane",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def limits(self) -> dict[str, Any]:
        return {"memory_bytes": self.memory_bytes, "cpus": float(self.cpus)}
