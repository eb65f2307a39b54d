"""A drill's questions: the user's SQL, asked of the restored copy as the tenant itself, read-only and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backups.operations.scratch import Scratch
from novastack.common.secrets import random_password
from projects import domain
from projects.operations import wiring

MOST = 20
SECONDS = 60.0  # each
SHOWN = 200


def ask(side: Scratch, questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each question with whether the first cell of its answer is what was expected, as text. What the engine refuses is a
    question that failed; a server that went away raises."""
    names, password = side.names, random_password()
    side.guard()
    with wiring.admin_session(side.engine, side.server) as admin:
        admin.set_password(names.login, password)
        admin.lock_tenant(names, locked=False)
    login = domain.Credentials(names.login, password, names.database)
    answers = []
    for question in questions[:MOST]:
        side.guard()
        answers.append(_answer(side, login, question))
    with wiring.admin_session(side.engine, side.server) as admin:
        admin.lock_tenant(names, locked=True)
    return answers


def _answer(side: Scratch, login: domain.Credentials, question: dict[str, Any]) -> dict[str, Any]:
    name, expected = str(question.get("name", "")), question.get("expect")
    try:
        found = side.engine.first_cell(
            side.server.control_endpoint, login, str(question.get("sql", "")), timeout_seconds=SECONDS
        )
    except domain.ServerNotReady:
        raise
    except domain.EngineError as error:
        return {"name": name, "passed": False, "detail": f"It was refused: {error}"[:SHOWN]}
    if found == (None if expected is None else str(expected)):
        return {"name": name, "passed": True, "detail": _shown(found)}
    return {"name": name, "passed": False, "detail": f"{_shown(found)} instead of {_shown(expected)}"}


def _shown(value: Any) -> str:
    return "NULL" if value is None else str(value)[:SHOWN]
