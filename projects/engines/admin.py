"""The interface of an engine's administrative session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from projects.domain import Bootstrapped, EngineError, Limits, ServerStats, TableCounts, TenantNames

TABLES_MOST = 200
BLANK_PREFIX = "nvs_blank_"  # no user can choose such a name
TABLES_SECONDS = 2.0


class EngineAdmin(ABC):
    """One open administrative session. Every method is idempotent: doing it twice leaves what doing it once leaves.

    Raises `ServerNotReady`, `LoginRefused` or `EngineError`; no message holds a secret.
    """

    @abstractmethod
    def ping(self) -> None:
        """A trivial statement through the session: returns only when the server really answered."""

    @abstractmethod
    def system_identifier(self) -> str:
        """What names this data for ever: equal only for the same initialised data (rule 9)."""

    @abstractmethod
    def contents(self) -> list[str]:
        """Databases and logins that are neither the product's own nor ours, by name: none on a server that was never
        anybody's (rule 8: empty is what the server itself says)."""

    @abstractmethod
    def harden(self) -> None:
        """Close what the product leaves open by default (rule 17: CONNECT on postgres, template1 …)."""

    @abstractmethod
    def set_password(self, username: str, password: str, *, keep_old: bool = False) -> None:
        """Set a login's password by a client-made verifier: clear text never reaches the server's logs (rule 20).

        `keep_old` (engines with DUAL_PASSWORD; others take no notice): the one before logs in as well, until
        `discard_old_password`."""

    def discard_old_password(self, username: str) -> None:  # noqa: B027 - most engines keep none
        """What `keep_old` kept is refused from now on. Nothing to do for engines without DUAL_PASSWORD."""

    @abstractmethod
    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        """Roles and a database that is closed to PUBLIC before any credential can reach it (rules 17, 18).

        `blank`: a database of `make_blank` that becomes the tenant's. It is used up; if it is gone, or was used up by an
        earlier call for the same names, all ends well without it. Engines without BLANKS take no notice."""

    def place_tenant(
        self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "", tables: bool = False
    ) -> Bootstrapped | None:
        """`create_tenant`; and with `tables`, where that costs less than `Engine.bootstrap`, the tables that a database
        begins with. None: it has none of this call's; `Engine.bootstrap` makes what is missing."""
        self.create_tenant(names, login_password=login_password, control_password=control_password, blank=blank)
        return None

    def make_blank(
        self, name: str, *, login_password: str = "", control_password: str = "", tables: bool = True
    ) -> None:
        """An empty database of that name, into which nobody gets but us; its name begins with `BLANK_PREFIX`. What a crash
        left half-made is completed. With passwords its roles are made as well, and given away with it; whoever gets it
        should have those passwords, and want tables or not as it was made, since it takes time to set others, or to take
        them out. Engines without BLANKS raise: there a database costs no more than a name."""
        raise EngineError("this product can't rename a database: none is made ahead")

    def drop_blank(self, name: str) -> None:
        """Remove a blank; absent is success. Raises when the name is not a blank's, or the database was opened."""
        raise EngineError("this product can't rename a database: none is made ahead")

    def blanks(self) -> list[str]:
        """Those that are there, by name; half-made ones too."""
        return []

    @abstractmethod
    def databases(self) -> list[str]:
        """All databases but the product's own, by name; blanks as well."""

    def make_place(self) -> None:  # noqa: B027 - most engines have nothing that takes long
        """On a server that is nobody's yet: do ahead what takes long about a tenant's place and needs none of its names.
        `create_tenant` uses it up; `contents` does not count it."""

    def database_sizes(self) -> Mapping[str, int]:
        """What each of `databases` takes on disk (bytes, as the product knows it without reading rows). Only with
        `Capability.POOL`."""
        raise NotImplementedError

    def locked_logins(self) -> set[str] | None:
        """Whom `lock_tenant` keeps out now, by login, and perhaps others who can't log in; None: this product does not say."""
        return None

    @abstractmethod
    def drop_tenant(self, names: TenantNames) -> None:
        """Remove database and roles; absent is success."""

    @abstractmethod
    def lock_tenant(self, names: TenantNames, *, locked: bool) -> None:
        """Forbid (or allow again) the tenant's logins and end its sessions (rule 22)."""

    def is_locked(self, names: TenantNames) -> bool:
        """Whether `lock_tenant` holds for every login of the tenant's. Asked where a session that was open meanwhile may have
        undone it (`Engine.lock_ends_sessions`); elsewhere nobody could."""
        return True

    @abstractmethod
    def fence_writers(self, names: TenantNames, *, fenced: bool) -> int:
        """Make the tenant's sessions read-only by default (or no longer), over restarts and changed passwords, and end
        those that are open, so that it holds for all; returns how many were ended. Logins, and settings that are the
        tenant's own, stay. The tenant may still say in a session that it writes, to free space; lifting leaves sessions
        alone that are writing at that moment. `stats().fenced` says whether it holds. Engines without WRITE_FENCE raise."""

    @abstractmethod
    def hold_fence(self, names: TenantNames, *, hard: bool) -> int:
        """Keep a fence that stands: settings by which the tenant's logins get around it for good are taken back, and
        their sessions ended. `hard`: sessions that are in the middle of writing are ended too. Returns how many. Engines
        without WRITE_FENCE raise."""

    @abstractmethod
    def end_sessions(self, username: str) -> int:
        """End the login's sessions; returns how many. Engines without END_SESSIONS raise."""

    def limit_connections(self, username: str, most: int) -> None:  # noqa: B027 - engines without CONNECTION_LIMIT have none
        """From here on the login has at most so many connections. Without CONNECTION_LIMIT it does nothing."""

    def resize(self, limits: Limits) -> bool:
        """Fit the server's own sizes to new limits while it runs. True: done, as far as they matter; False: this product
        (or this server) takes them at its next start only. Raises when it can't tell."""
        return False

    @abstractmethod
    def stats(self, database: str) -> ServerStats:
        """Size, connections and limit of one database, and whether its writers are fenced. May say what it said a moment
        ago where measuring is dear."""

    @abstractmethod
    def table_counts(self, database: str, *, limit: int = TABLES_MOST) -> TableCounts:
        """Tables of one database, with estimates that cost no reading of rows: no cast, view or operator of the tenant's
        runs (rule 18). It waits for no lock and takes two seconds at most, or raises."""

    # --- copies (`Capability.COPY`) ------------------------------------------------------------------------------------
    def obstacles(self, names: TenantNames, *, renamed: bool = False) -> list[str]:
        """What can't be in a copy, for people: it would be lost without a word. `renamed`: the copy's database will have
        another name. Empty: nothing known."""
        raise NotImplementedError

    def renaming_obstacles(self, names: TenantNames) -> list[str]:
        """Those of them that are so only because the copy's database will have another name. Costs little."""
        return []

    def quiet(self, names: TenantNames, *, quiet: bool) -> None:  # noqa: B027 - most products do nothing by themselves
        """Stop (or allow again) what the server does by itself in this tenant's database: scheduled events. On a server
        that is this tenant's alone."""

    def take_large(self, *, large: bool) -> None:  # noqa: B027 - most products have no such limit
        """Sessions that begin from now on take statements as large as a dump can hold them, or no larger than usual again. On
        a server that is this tenant's alone."""

    def events_of(self, names: TenantNames) -> list[str]:
        """What acts by itself in this tenant's database (scheduled events), by name; not what rests already."""
        return []

    def rest_events(self, names: TenantNames, events: Sequence[str]) -> None:  # noqa: B027 - as for `events_of`
        """Switch these off, for good: in a copy that lives beside its source they would act twice."""

    def admit_tool(self, names: TenantNames, username: str, password: str) -> None:
        """A login for `Engine.dump` and `Engine.fingerprint`: it sees every row of this database whatever the tenant's
        policies say, and changes nothing elsewhere. Done again, its password is the new one."""
        raise NotImplementedError

    def admit_restorer(self, names: TenantNames, username: str, password: str) -> str:
        """A login for `Engine.restore` and `finish_copy`, with no right outside of this database; returns its name. Where
        objects belong to who makes them it is the tenant's own, which keeps everybody else out meanwhile: its password is
        that one until somebody sets another (`set_password`, `put_password_hashes`)."""
        self.admit_tool(names, username, password)
        return username

    def dismiss_restorer(self, names: TenantNames, username: str) -> None:  # noqa: B027 - most have a tool's login for it
        """A login that `admit_restorer` lent is the tenant's again, and locked. What `dismiss_tool` removes may stay."""

    def dismiss_tool(self, names: TenantNames, username: str) -> None:
        """Remove that login and its sessions; absent is success."""
        raise NotImplementedError

    def admit_part(self, names: TenantNames, username: str, password: str, places: Sequence[str]) -> None:
        """A login that reads this database and makes these places in it, of which none is there yet (`Engine.set_apart`).
        Where rights reach so far it can change nothing else; it never has rights of the control role."""
        self.admit_tool(names, username, password)

    def around(self, names: TenantNames) -> dict[str, Any]:
        """What a dump leaves out of what a tenant, or an operator, set around the database: settings of database and
        logins, comments. Plain data, without secrets."""
        raise NotImplementedError

    def rename_tenant(self, old: TenantNames, new: TenantNames) -> None:
        """The tenant's roles get other names, with all that they own and may. Those that have theirs already stay."""
        raise NotImplementedError

    def password_hashes(self, names: TenantNames) -> dict[str, str]:
        """Each login of the tenant and what the server keeps of its password: for another server of the same product."""
        raise NotImplementedError

    def put_password_hashes(self, names: TenantNames, hashes: Mapping[str, str]) -> None:
        """Give logins of this copy the passwords that they had at the other one. Of an empty mapping nothing."""
        raise NotImplementedError

    def put_around(self, names: TenantNames, around: dict[str, Any]) -> None:
        """Set on this copy what `around` said of the other one."""
        raise NotImplementedError

    def reload_tls(self, *, required: bool) -> None:
        """Take certificate and key from the server's files again, and refuse plain connections or not, without ending
        a session. May take effect a moment later. Only with `Capability.TLS`; without TLS_RELOAD it does nothing."""
        raise NotImplementedError
