"""Copies of a MongoDB or FerretDB database: the tools' commands, and as whom they act.

The dump is an archive of `mongodump`. It names its database; `mongorestore` gives what it restores the target's name. Both
are bent to what their exit codes do not say: a restore that left a document out ends with 0, and says so in its last line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from projects.domain import TOOLS_MISSING, Command, Credentials, Endpoint
from projects.engines import framing

DUMP, RESTORE = "mongodump", "mongorestore"
_SAID = "LC_ALL=C grep -a -v -E '\t(writing |done dumping |\\[[#.]*\\])'"
# A line break in a field's name: FerretDB takes it, and gives nothing of that collection back any more.
_TOLD = (
    r"s/error counting ([^:]*): .*invalid character '.n' in string literal/the collection \1 can't be read:"
    r" the server took a field whose name has a line break, and can't give back anything of it (drop it)/"
)
_MISSING = f"""command -v "$program" >/dev/null 2>&1 || {{
  echo "error: there is no $program where this server's tools run" >&2
  exit {TOOLS_MISSING}
}}
"""
# `sh -c … sh <program> argument …`. What it chats about every collection is not what failed.
_DUMP = f"""set -u
program=$1
shift
{_MISSING}"$program" "$@" 2>said
code=$?
[ "$code" -eq 0 ] || {_SAID} said | LC_ALL=C sed -E "{_TOLD}" >&2
exit "$code"
"""
# Documents that were left out, and an archive that broke off, are failures whatever the exit code. Values are not repeated.
_RESTORE = f"""set -u
program=$1
shift
{_MISSING}"$program" "$@" >/dev/null 2>said
code=$?
failed=$(LC_ALL=C grep -a -m 5 '^[^\t]*\t\\(Failed\\|continuing through error\\): ' said | LC_ALL=C sed 's/dup key:.*//')
whole=$(tail -n 1 said | LC_ALL=C grep -a -c '[ \t]0 document(s) failed to restore\\.$')
[ -z "$failed" ] || printf '%s\n' "$failed" >&2
if [ "$code" -eq 0 ] && {{ [ -n "$failed" ] || [ "$whole" -ne 1 ]; }}; then
  tail -n 1 said >&2
  echo "error: documents were left out" >&2
  exit 1
fi
[ "$code" -eq 0 ] || [ -n "$failed" ] || tail -n 2 said >&2
exit "$code"
"""


def dump(place: Endpoint, credentials: Credentials, program: str = DUMP, *, left_out: Sequence[str] = ()) -> Command:
    """`left_out`: collections by name. One collection at a time: what is many of them together is the source's load."""
    argv = (
        "sh", "-c", _DUMP, "novastack-dump", program, *_to(place, credentials), f"--db={credentials.database}", "--archive",
        "--numParallelCollections=1", *(f"--excludeCollection={name}" for name in left_out),
    )  # fmt: skip
    return _command(place, credentials, argv, program)


def restore(place: Endpoint, credentials: Credentials, *, arguments: Sequence[str] = ()) -> Command:
    """Whatever the archive's database was called. In the order of the dump: what is capped keeps its order."""
    argv = framing.unframed(
        "sh", "-c", _RESTORE, "novastack-client", RESTORE, *_to(place, credentials), "--archive", "--stopOnError",
        "--nsFrom=$database$.$collection$", f"--nsTo={credentials.database}.$collection$",
        "--numParallelCollections=1", "--numInsertionWorkersPerCollection=1", "--maintainInsertionOrder", *arguments,
    )  # fmt: skip
    return _command(place, credentials, argv, RESTORE)


def _to(place: Endpoint, credentials: Credentials) -> tuple[str, ...]:
    return (
        "--config={secret:tool.yml}", f"--host={place.host}", f"--port={place.port}", f"--username={credentials.username}",
        f"--authenticationDatabase={credentials.database}", "--authenticationMechanism=SCRAM-SHA-256",
        # Every certificate of this install is for the server's own machine as well.
        *(("--ssl", "--sslCAFile={secret:ca}") if place.ca_pem else ()),
    )  # fmt: skip


def _command(place: Endpoint, credentials: Credentials, argv: tuple[str, ...], program: str) -> Command:
    if not re.fullmatch(r"\w+", credentials.database):
        raise ValueError("not a name of a database that was made here")
    secrets = {"tool.yml": f"password: {json.dumps(credentials.password)}\n".encode()}
    if place.ca_pem:
        secrets["ca"] = place.ca_pem.encode()
    return Command(argv, {}, secrets, programs=(program,))
