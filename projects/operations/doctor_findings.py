"""What the doctor says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from projects.models import DatabaseServer


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. `code` is stable. `fix`: what `--fix` does about it, empty: nothing."""

    code: str
    thing: str
    what: str
    advice: str
    region: str = ""
    fix: str = ""
    project: str = ""  # id
    key: str = ""  # id of the server or operation


@dataclass(slots=True)
class Report:
    at: datetime
    findings: list[Finding] = field(default_factory=list)
    looked: dict[str, int] = field(default_factory=lambda: {"regions": 0, "servers": 0, "logins": 0})

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`, the cache and pages."""
        return {
            "ok": not self.findings, "at": self.at.isoformat(), "looked": self.looked,
            "findings": [asdict(finding) for finding in self.findings],
        }  # fmt: skip


def of(row: DatabaseServer, code: str, what: str, advice: str, *, fix: str = "") -> Finding:
    """About a server."""
    return Finding(code, row.handle.name, what, advice, row.region.slug, fix, str(row.project_uuid or ""), str(row.pk))
