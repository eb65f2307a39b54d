"""What a database product can do, and which versions of it there are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum


class Capability(StrEnum):
    """What an engine can do; callers ask for these, never for an engine's name."""

    POOL = "pool"  # several tenants can share a server without reaching each other
    BLANKS = "blanks"  # a place for a tenant can be made ahead, since making it takes long, and be given a name later
    UPGRADE = "upgrade"
    DUAL_PASSWORD = "dual_password"  # noqa: S105 - one login can have an old and a new password for a while
    RENAME_DATABASE = "rename_database"
    WRITE_FENCE = "write_fence"  # a tenant's writing can be stopped: what makes a storage limit hold
    END_SESSIONS = "end_sessions"  # open sessions of a login can be ended without a restart
    CONNECTION_LIMIT = "connection_limit"  # a login has at most so many connections
    TLS = "tls"  # servers speak TLS with the certificate that a request brings
    TLS_OPTIONAL = (
        "tls_optional"  # they take plain connections beside it, unless told not to; else it is one or the other
    )
    TLS_RELOAD = "tls_reload"  # a running server takes a new certificate; else a start does
    COPY = "copy"  # dumped and restored by tools, and two copies can be compared: what moves (and backups) need


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """What became of the tables that a new database begins with."""

    version: str  # that the database has now
    created: tuple[str, ...]  # this time
    kept: tuple[str, ...]  # something of the tenant's own has that name: nothing was done to it


class Offer(StrEnum):
    """For how long new projects may have a version."""

    UNTIL_END = "until_end"  # of life
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One line of an engine's catalogue. `end_of_life`: the last day on which the vendor mends anything; None if nobody
    names one. `image` and `digest` (`sha256:…`) are empty where the usual order decides."""

    version: str
    end_of_life: date | None = None
    default: bool = False
    deprecated: bool = False
    image: str = ""
    digest: str = ""
    offer: Offer = Offer.UNTIL_END

    def ended(self, today: date) -> bool:
        return self.end_of_life is not None and self.end_of_life < today

    def offered(self, today: date) -> bool:
        """Whether new projects may have it."""
        return self.offer is Offer.ALWAYS or (self.offer is Offer.UNTIL_END and not self.ended(today))

    @property
    def sort_key(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))
