"""The interface of a runtime: where servers run. A runtime knows no engine by name."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from projects.domain import (
    Command,
    DataPolicy,
    Description,
    Handle,
    ImageRef,
    Limits,
    LogPart,
    Observation,
    RuntimeFacts,
    RuntimeFeature,
    ServerSpec,
    ToolHandle,
    Usage,
)

MAX_LOG_LINES = 5000
MAX_LOG_BYTES = 1 << 20
FOLLOW_EVERY_SECONDS = 0.5


class Runtime(ABC):
    """Every call is idempotent, bounded in time (below the lease of 20 s, unless it says otherwise), and raises
    `RuntimeUnreachable` when nobody answers. Labels carry ids only; no secret is ever in argv, env of `inspect`, labels
    or logs."""

    name: ClassVar[str]
    features: ClassVar[frozenset[RuntimeFeature]]

    @abstractmethod
    def ping(self) -> None:
        """Returns when the runtime answers; else `RuntimeUnreachable`."""

    def close(self) -> None:
        """End what was opened for it; for an endpoint that is used no more. Used all the same, it opens it again."""
        return

    def facts(self) -> RuntimeFacts:
        """Version and identity of what answers, and what it lacks to do its work. `RuntimeUnreachable` says precisely why
        nobody answers (a foreign certificate, another host key …): operators read it."""
        self.ping()
        return RuntimeFacts()

    @abstractmethod
    def resolve_image(
        self, engine: str, version: str, official: str, override: str = "", *, pull: bool = False
    ) -> ImageRef:
        """Choose what to run, in design.md's order: override, official on the host, ours on the host, official pulled
        (only if `pull`, may take minutes). `ImageMissing` says what to do. The process runtime looks for binaries."""

    def lacks(self, engine: str, version: str, official: str, override: str = "") -> str:
        """Why this runtime can never run that version as it is now, for people; empty if it can, or can be made to by
        pulling an image. May ask a registry, which takes seconds."""
        return ""

    def lacks_programs(self, programs: Sequence[str]) -> str:
        """Why tools can't run these programs here, for people; empty: they can, or their server's image says."""
        return ""

    def can_pull(self, official: str, version: str, override: str = "") -> bool:
        """Whether the image that is not here could be pulled now; asks the registry, pulls nothing, takes seconds."""
        return False

    @abstractmethod
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        """The server as described is started (not necessarily ready). Returns the handle with its `ref`.

        CREATE makes volume and data and refuses data of anybody else (`DataExists`); called again after a crash for the
        same handle it goes on. MUST_EXIST refuses missing or foreign data (`DataMissing`). `PortTaken`: the published
        port is somebody else's; nothing was left running. Converges: a container that differs from the spec is
        replaced, its data kept.
        """

    @abstractmethod
    def observe(self, handles: Sequence[Handle]) -> Mapping[Handle, Observation]:
        """Many at once, at a fixed number of calls. Every handle asked for is in the answer; all UNREACHABLE when the
        runtime does not answer (this one does not raise)."""

    @abstractmethod
    def describe(self, handles: Sequence[Handle]) -> Mapping[Handle, Description]:
        """Address and limits of many, read and nothing else (bounded parallelism). By name, whatever `ref` was recorded:
        the answer says which one it is. What is not there, or is not this install's, is left out of the answer."""

    @abstractmethod
    def start(self, handle: Handle) -> Handle:
        """Start what is stopped. `StaleHandle` if the recorded ref is gone; `DataMissing`, `PortTaken` as in ensure."""

    @abstractmethod
    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        """Stop politely, then by force after the grace. Already stopped or absent is success."""

    @abstractmethod
    def update(self, handle: Handle, limits: Limits) -> None:
        """Change limits on the running server without a restart, as far as the runtime can. `LimitTooSmall` when it sees
        that the server uses more memory: then its limits are as they were."""

    @abstractmethod
    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        """Replace files of the spec (`ServerSpec.files`) on a server that exists, running or not; others stay. What runs
        takes note when it is told to. `StaleHandle` if the server is gone."""

    def tls_reason(self, spec: ServerSpec) -> str:
        """Why a server of this spec can't speak TLS here, for people; empty: it can."""
        return ""

    @abstractmethod
    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        """Remove the server; with `delete_data` its volume too (the janitor only, rule 3). Absent is success."""

    @abstractmethod
    def data_exists(self, handle: Handle) -> bool:
        """Whether the volume of this incarnation is there."""

    @abstractmethod
    def run_tool(
        self,
        name: str,
        image: str,
        command: Command,
        *,
        beside: Handle | None = None,
        memory_bytes: int = 256 << 20,
    ) -> ToolHandle:
        """A throw-away container or process, in the network of `beside` only, with its own limits and no log (rule 24).
        `name` is deterministic, so that a crashed caller's tool can be found and removed."""

    @abstractmethod
    def remove_tool(self, name: str) -> None:
        """End and remove a tool that a crashed caller left under this name, with its secrets; absent is success."""

    def place_of(self, spec: ServerSpec) -> tuple[str, int]:
        """Where a tool that runs beside the server finds it: host and port. In a network namespace of the server's own
        that is its own port."""
        return "127.0.0.1", spec.port

    @abstractmethod
    def logs(self, handle: Handle, *, tail: int = 200, since: datetime | None = None) -> Iterator[bytes]:
        """The last `tail` lines (at most 5,000 and 1 MiB), oldest first, one line each, without the newline."""

    @abstractmethod
    def read_log(self, handle: Handle, *, cursor: str = "", tail: int = 200) -> LogPart:
        """Without a cursor the last `tail` lines; with one, what was logged after it, of that at most the last `tail`
        (5,000 lines and 1 MiB at most). Cheap enough to be asked twice a second for a log of any length, and at
        constant memory. No line twice, none left out without `gap`: also over rotation, a cut log and a restart of the
        server. A cursor that says nothing here (of another container, or made up) counts as a gap. No server: no lines."""

    def follow_log(
        self, handle: Handle, *, cursor: str = "", tail: int = 200, seconds: float = 60, max_bytes: int = MAX_LOG_BYTES,
        lines_per_second: int = 1000,
    ) -> Iterator[LogPart]:  # fmt: skip
        """Parts as they come (first the tail, if no cursor is given), for so long and so much. Above `lines_per_second`
        the newest are given and `gap` says so. Nothing is held between two looks, so a reader may go away at any time."""
        until, left = time.monotonic() + seconds, max_bytes
        most = max(1, int(lines_per_second * FOLLOW_EVERY_SECONDS))
        part = self.read_log(handle, cursor=cursor, tail=most if cursor else tail)
        while True:
            if part.lines or part.gap:
                yield part
                left -= sum(map(len, part.lines))
            if left <= 0 or time.monotonic() + FOLLOW_EVERY_SECONDS > until:
                return
            time.sleep(FOLLOW_EVERY_SECONDS)
            part = self.read_log(handle, cursor=part.cursor, tail=most)

    @abstractmethod
    def usage(self, handles: Sequence[Handle]) -> Mapping[Handle, Usage]:
        """CPU and memory for many at once (bounded parallelism)."""

    def data_root(self) -> str:
        """The folder on this machine that holds the servers' data, for its disk's watermarks (rule 16); empty if it is
        elsewhere or not known."""
        return ""

    @abstractmethod
    def managed(self) -> Iterable[Handle]:
        """Every server of this install that exists here, known or not (orphans): from labels."""

    @abstractmethod
    def managed_data(self) -> Iterable[Handle]:
        """Every data volume of this install that exists here."""

    @abstractmethod
    def read_epoch(self) -> str:
        """The install epoch kept in the runtime (rule 11); empty if none was written."""

    @abstractmethod
    def write_epoch(self, epoch: str) -> None:
        """Keep the install epoch in the runtime."""
