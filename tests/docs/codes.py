"""The stable codes that the code base really uses, read from its source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from backups.operations.restoring_data import CORRUPT
from projects.engines import foreign

ROOT = Path(__file__).parents[2]
APPS = ("projects", "accounts", "novastack", "backups")
FAILURES = {"StepFailed", "ServiceRefused"}  # code first, `retryable` by name, true if left out
BASES = {"NovaStackRuntimeError", "EngineError"}
RUNNER = {"_end": 2, "_give_up": 1, "refused_as": 0}  # where the code is among the arguments


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path, ast.parse(path.read_text())


def operation_codes() -> dict[str, set[bool | None]]:
    """code → what `retryable` is where it is raised; None: it depends, or is inherited."""
    found: dict[str, set[bool | None]] = defaultdict(set)
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                for code, retryable in _of_call(node):
                    found[code].add(retryable)
            elif isinstance(node, ast.ClassDef) and {_name(base) for base in node.bases} & (
                BASES | {"Exception", "StorageError"}
            ):
                values = _assigned(node)
                code = values.get("code")
                if isinstance(code, str) and (BASES & {node.name, *(_name(b) for b in node.bases)}):
                    found[code].add(bool(values.get("retryable", True)))
                if "StorageError" in {node.name, *(_name(b) for b in node.bases)}:  # its docstring lists them
                    for code in re.findall(r"`((?:storage|object)_[a-z]+)`", ast.get_docstring(node) or ""):
                        found[code].add(None)
            elif isinstance(node, ast.FunctionDef):
                for code in _named_in(node):
                    found[code].add(None)
    for code in CORRUPT:  # raised as archives and manifests say it
        found[code].add(False)
    for code in foreign.CODES:  # raised as uploads are read
        found[code].add(False)
    return found


def refusal_codes() -> dict[str, int]:
    """Codes of problem answers → status, of the classes and of `code=…` beside them (status 0)."""
    classes: dict[str, tuple[list[str], dict[str, object]]] = {}
    called: dict[str, set[str]] = defaultdict(set)  # whatever is called → its `code=…`
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = ([_name(base) for base in node.bases], _assigned(node))
            elif isinstance(node, ast.Call):
                for word in node.keywords:
                    if word.arg == "code" and isinstance(word.value, ast.Constant):
                        called[_name(node.func)].add(str(word.value.value))
    problems = {"Problem"}
    while more := {name for name, (bases, _) in classes.items() if set(bases) & problems} - problems:
        problems |= more
    loose = {code for name in problems for code in called[name]}
    found = {}
    for name in problems:
        code = classes[name][1].get("code")
        if isinstance(code, str):
            found[code] = _status(name, classes)
    return dict.fromkeys(loose, 0) | found


def _status(name: str, classes: dict[str, tuple[list[str], dict[str, object]]]) -> int:
    while name in classes:
        bases, values = classes[name]
        if isinstance(values.get("status"), int):
            return int(str(values["status"]))
        name = bases[0]
    return 400


def _of_call(node: ast.Call) -> Iterator[tuple[str, bool | None]]:
    name = _name(node.func)
    if name in FAILURES and node.args:
        retryable: bool | None = True
        for word in node.keywords:
            if word.arg == "retryable":
                retryable = bool(word.value.value) if isinstance(word.value, ast.Constant) else None
        for code in _strings(node.args[0]):
            yield code, retryable
    elif name in RUNNER and len(node.args) > RUNNER[name]:
        for code in _strings(node.args[RUNNER[name]]):
            yield code, None


def _named_in(node: ast.FunctionDef) -> Iterator[str]:
    """`code = "a" if … else "b"` ahead of a StepFailed(code, …)."""
    raised = {
        call.args[0].id
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and _name(call.func) in FAILURES
        and call.args
        and isinstance(call.args[0], ast.Name)
    }
    for each in ast.walk(node):
        if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id in raised for t in each.targets):
            yield from _strings(each.value)


def _strings(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value] if node.value else []
    if isinstance(node, ast.IfExp):
        return _strings(node.body) + _strings(node.orelse)
    return []


def _assigned(node: ast.ClassDef) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in node.body:
        if not isinstance(item, ast.Assign):
            continue
        for target in item.targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = item.value.elts if isinstance(item.value, ast.Tuple) else [item.value]
            for name, value in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    found[name.id] = value.value
    return found


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
