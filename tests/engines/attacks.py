"""What one tenant of a pool tries against the others and the server, as data: run by `test_pool_isolation*`, printed for
docs/isolation.md by `python -m tests.engines.attacks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    REFUSED = "refused"  # the server says no
    HIDDEN = "shows nothing of others"  # it answers, and nothing of the neighbour is in it
    HARMLESS = "changes nothing for others"  # it runs, and the neighbour and the server are as they were
    KNOWN = "known limit"  # the product has no way to stop it


@dataclass(frozen=True)
class Attack:
    """`statement` is run as the tenant, with `{mine}` (its database), `{login}`, and `{their_database}`, `{their_login}`,
    `{their_group}`, `{their_owner}`, `{their_control}`, `{their_pid}`, `{blank}` filled in. `\\c x` is a login to the
    database x. `note` says why it is a limit, or what is left of it."""

    name: str
    statement: str
    outcome: Outcome = Outcome.REFUSED
    note: str = ""
    since: int = 0  # the first major version that knows the statement
    before: int = 10_000

    def fits(self, version: str) -> bool:
        return self.since <= int(version.partition(".")[0]) < self.before


def group(outcome: Outcome, entries: Sequence[tuple[str, str] | tuple[str, str, str]]) -> tuple[Attack, ...]:
    return tuple(Attack(entry[0], entry[1], outcome, entry[2] if len(entry) > 2 else "") for entry in entries)


def table(attacks: Mapping[str, Sequence[Attack]]) -> str:
    """Markdown: one row for each thing tried, by name; several statements with one name are counted."""
    lines = ["| Tried | Statements | What happens |", "|---|---|---|"]
    for name, tried in attacks.items():
        outcomes = {attack.outcome for attack in tried}
        notes = list(dict.fromkeys(attack.note for attack in tried if attack.note))
        said = " / ".join(sorted(outcomes)) + (f": {' '.join(notes)}" if notes else "")
        shown = ", ".join(f"`{_short(attack.statement)}`" for attack in tried[:3])
        more = f" and {len(tried) - 3} more" if len(tried) > 3 else ""
        lines.append(f"| {name} | {shown}{more} | {said} |")
    return "\n".join(lines)


def by_name(attacks: Sequence[Attack]) -> dict[str, list[Attack]]:
    found: dict[str, list[Attack]] = {}
    for attack in attacks:
        found.setdefault(attack.name, []).append(attack)
    return found


def _short(statement: str) -> str:
    text = " ".join(statement.split()).replace("|", "\\|")
    return text if len(text) <= 72 else f"{text[:70]}…"


def main() -> None:
    from tests.engines.attacks_mysql import MARIADB, MYSQL
    from tests.engines.attacks_postgresql import POSTGRESQL

    for title, attacks in (("PostgreSQL", POSTGRESQL), ("MySQL", MYSQL), ("MariaDB", MARIADB)):
        print(f"### {title}\n\n{table(by_name(attacks))}\n")


if __name__ == "__main__":
    main()
