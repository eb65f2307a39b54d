"""Prepared transactions (XA) of a tenant. They outlive their sessions, hold its tables, and carry nobody's name: whose they
are says the binary log, where their rows stand under their id."""

from __future__ import annotations

import time

from projects.domain import EngineError
from projects.engines.mysql_session import Session

_PAGE = 20_000
_SECONDS = 10.0
_BLOCKED = ("(1205)",)


def end_prepared(session: Session, database: str) -> int:
    """Roll back those that changed tables of this database and of no other; returns how many."""
    waiting = _waiting(session)
    if not waiting:
        return 0
    touched = _databases(session, waiting)
    own = [xid for xid, databases in touched.items() if databases == {database}]
    for xid in own:
        session.do(f"XA ROLLBACK {xid}")
    return len(own)


def count(session: Session, database: str) -> int:
    """How many of them changed tables of this database."""
    waiting = _waiting(session)
    touched = _databases(session, waiting) if waiting else {}
    return sum(database in databases for databases in touched.values())


def drop(session: Session, statement: str) -> None:
    """Run it; says what is in the way when something holds the tables."""
    try:
        session.do("SET SESSION innodb_lock_wait_timeout = 5")
        session.do(statement)
    except EngineError as error:
        if not any(code in str(error) for code in _BLOCKED):
            raise
        left = len(_waiting(session))
        raise EngineError(
            "something holds the database's tables"
            + (f": perhaps one of the server's {left} prepared transactions (XA RECOVER)" if left else "")
        ) from None


def _waiting(session: Session) -> set[str]:
    """Ids as XA statements and the binary log write them."""
    rows = session.rows("XA RECOVER" if session.is_mariadb else "XA RECOVER CONVERT XID")
    found = set()
    for number, global_length, branch_length, data in rows:
        if isinstance(data, str):
            whole = bytes.fromhex(data[2:]) if data.startswith("0x") and not session.is_mariadb else data.encode()
        else:
            whole = bytes(data)
        first, second = whole[: int(global_length)], whole[int(global_length) : int(global_length) + int(branch_length)]
        found.add(f"X'{first.hex()}',X'{second.hex()}',{int(number)}")
    return found


def _databases(session: Session, waiting: set[str]) -> dict[str, set[str]]:
    """Which databases each of them changed; the newest log is read first. One that is nowhere changed nothing, or long ago."""
    until = time.monotonic() + _SECONDS
    touched: dict[str, set[str]] = {}
    for log, *_ in reversed(session.rows("SHOW BINARY LOGS")):
        current, offset = "", 0
        while waiting - touched.keys() or current:
            if time.monotonic() > until:
                raise EngineError("the binary log is too long to find out whose the prepared transactions are")
            rows = session.rows(f"SHOW BINLOG EVENTS IN '{log}' LIMIT {offset}, {_PAGE}")
            for _, _, kind, _, _, info in rows:
                text = str(info)
                if text.startswith("XA START "):
                    xid = text.removeprefix("XA START ").partition(" ")[0]
                    current = xid if xid in waiting else ""
                    if current:
                        touched[current] = set()  # an id that is used again: the last one counts
                elif current and kind == "Table_map":
                    touched[current].add(text.partition("(")[2].partition(".")[0])
                elif kind == "XA_prepare":
                    current = ""
            if len(rows) < _PAGE:
                break
            offset += _PAGE
    return {xid: databases for xid, databases in touched.items() if databases}
