"""The table of faults: `python -m tests.faults.table [--write docs/reliability.md] [ledger files…]`.

Counted is the latest run of each fault, engine, runtime and point; so a point that failed, was mended and ran again is
one run. `–` says that nobody looked. Ends with 1 when a run failed, lost rows, or left something behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.ledger import ledger_file

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = ("Fault", "Engines", "Runtimes", "Runs", "Ended within (s)", "Orphans", "Lost rows", "Stuck", "Failed")
NUMBERS = 6  # the columns from the end that are numbers

Line = dict[str, Any]


def read(files: Iterable[Path]) -> list[Line]:
    """The latest line of each run that can be told from others, in order of first appearance."""
    found: dict[tuple[str, ...], Line] = {}
    for file in files:
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            key = tuple(str(line[name]) for name in ("fault", "engine", "runtime", "point", "test"))
            if key not in found or found[key]["date"] <= line["date"]:
                found[key] = line
    return list(found.values())


def total(lines: list[Line], name: str) -> str:
    values = [line[name] for line in lines if line[name] is not None]
    return str(sum(values)) if values else "–"


def rows(lines: list[Line]) -> list[tuple[str, ...]]:
    faults: dict[str, list[Line]] = {}
    for line in lines:
        faults.setdefault(line["fault"], []).append(line)
    return [row(name, faults[name]) for name in faults]


def row(name: str, lines: list[Line]) -> tuple[str, ...]:
    seconds = [line["seconds"] for line in lines if line["seconds"] is not None]
    return (
        name, *(", ".join(sorted({line[what] for line in lines if line[what]})) or "–" for what in ("engine", "runtime")),
        str(len(lines)), f"{max(seconds):.1f}" if seconds else "–",
        total(lines, "orphans"), total(lines, "lost_rows"), total(lines, "stuck"),
        str(sum(line["outcome"] != "ok" for line in lines)),
    )  # fmt: skip


def render(lines: list[Line]) -> str:
    table = [HEAD, *rows(lines)]
    if len(table) > 2:
        table.append(row("**All**", lines))
    widths = [max(len(line[n]) for line in table) for n in range(len(HEAD))]

    def text(cells: tuple[str, ...]) -> str:
        first_number = len(HEAD) - NUMBERS
        padded = [
            c.rjust(w) if n >= first_number else c.ljust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + ":" if n >= len(HEAD) - NUMBERS else "-" * (w + 2) for n, w in enumerate(widths))
    return "\n".join([text(table[0]), f"|{rule}|", *(text(cells) for cells in table[1:])])


def caption(lines: list[Line]) -> str:
    days = sorted({line["date"][:10] for line in lines})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commits = list(dict.fromkeys(line["commit"] for line in sorted(lines, key=lambda line: line["date"])))
    named = ", ".join(f"`{name}`" for name in commits)
    if len(commits) > 3:
        named = f"{len(commits)} commits, the last `{commits[-1]}`"
    return f"{len(lines)} runs, {span}, at {named}."


def write(file: Path, lines: list[Line]) -> None:
    """Put the table between the file's two marks."""
    text = file.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{file} has no {BEGIN} … {END}.")
    file.write_text(f"{before}{BEGIN}\n{caption(lines)}\n\n{render(lines)}\n{END}{after}", encoding="utf-8")


def bad(line: Line) -> bool:
    return bool(line["outcome"] != "ok" or line["orphans"] or line["lost_rows"] or line["stuck"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.table", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="ledgers; the default one if none is named")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="also put the table into this file, between its marks"
    )
    options = parser.parse_args(argv)
    files = options.files or [ledger_file()]
    missing = [str(file) for file in files if not file.exists()]
    lines = [] if missing else read(files)
    if not lines:
        print(f"No runs recorded in {', '.join(missing or map(str, files))}.", file=sys.stderr)
        return 1
    print(f"{render(lines)}\n\n{caption(lines)}")
    for line in filter(bad, lines):
        where = " ".join(filter(None, (line["engine"], line["runtime"], line["point"])))
        print(f"NOT KEPT: {line['fault']} [{where}] {line['error'] or 'see the table'}", file=sys.stderr)
    if options.write:
        write(options.write, lines)
    return int(any(map(bad, lines)))


if __name__ == "__main__":
    sys.exit(main())
