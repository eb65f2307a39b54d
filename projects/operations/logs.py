"""Reading a server's log, live; and its last words, for people who ask why it does not run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from novastack.common.logs import without_places
from projects import domain
from projects.models import DatabaseRole, DatabaseServer
from projects.models.catalogue import UNREACHABLE
from projects.operations import wiring

LAST_WORDS = 5
_ALARM = re.compile(r"fatal|error|panic|not found|denied|can't|cannot|could not|fail|refuse|no space", re.IGNORECASE)
MASK = "[masked]"
# What looks like a secret that is not ours: an operator's image may print its own.
_SECRET = re.compile(
    r"((?:password|passwd|pwd|secret|token|api_?key)\w*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;]+|(?<=://)[^\s/@]+:[^\s/@]+(?=@)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LogText:
    """Lines of a log for people, oldest first; `cursor` goes on after them. `failure`: why there are none."""

    lines: list[str]
    cursor: str = ""
    gap: bool = False
    running: bool = False
    failure: str = ""


def read_on(server: DatabaseServer, *, cursor: str = "", tail: int = 200) -> LogText:
    """The last `tail` lines, or with a cursor what was logged after it, of that the last `tail`; at most 1 MiB. A region
    that is known to be away is not asked: each question would hold a worker for as long as a call may take."""
    if not server.region.reachable:
        return LogText([], cursor, failure=UNREACHABLE)
    try:
        part = wiring.runtime_of(server.region).read_log(server.handle, cursor=cursor, tail=tail)
    except domain.RuntimeUnreachable:
        return LogText([], cursor, failure=UNREACHABLE)  # its own words name hosts and paths: they are the operators'
    except domain.NovaStackRuntimeError as error:
        return LogText([], cursor, failure=without_places(str(error)) or UNREACHABLE)
    return LogText([text_of(line) for line in part.lines], part.cursor, part.gap, part.running)


def text_of(line: bytes) -> str:
    """PostgreSQL and Docker both carry bytes that are no text; NUL and other controls are not for JSON or pages."""
    return "".join(c if c.isprintable() or c == "\t" else "�" for c in line.decode("utf-8", "replace"))


def last_words(server: DatabaseServer, count: int = LAST_WORDS) -> list[str]:
    """The end of its log, without secrets: fit for the tenant's eyes. When that tells of nothing bad (it was started again,
    say), the last lines before that do."""
    lines = [line.strip() for line in read_on(server, tail=20 * count).lines if line.strip()]
    end, before = lines[-count:], lines[:-count]
    if not any(_ALARM.search(line) for line in end):
        end = ([line for line in before if _ALARM.search(line)][-2:] + end)[:count]
    secrets = [server.admin_secret, server.admin_pending_secret]
    for role in DatabaseRole.objects.filter(server=server):
        secrets += [role.secret, role.pending_secret]
    known = [sealed.open() for sealed in secrets if sealed is not None]
    return [masked(line, known)[:300] for line in end]


def masked(line: str, known: list[str]) -> str:
    for secret in known:
        line = line.replace(secret, MASK)
    return _SECRET.sub(lambda found: f"{found[1] or ''}{MASK}", line)
