"""What breaks when, from a seed alone: the same seed and number give the same plan.
What meets what also depends on the machine."""

from __future__ import annotations

import random
from dataclasses import dataclass

from projects.operations import base, register_all

register_all()

GROUNDS = (("postgresql", "process"), ("mariadb", "process"), ("postgresql", "docker"))
SCENARIOS = ("one", "beside", "in_place", "damage")
WHEN = ("before", "inside:2", "inside:4", "later:0.15", "later:0.6", "later:1.5", "after")
DAMAGE = ("flip", "truncate", "swap", "flip_manifest", "swap_manifest", "remove")
S3 = ("500", "reset", "lost_answer", "half_answer", "flipped", "slow", "403_delete", "409_delete", "503_all")
PHASES = ("asked", "dumping", "stored", "verifying", "restoring", "deleting")
# steps in which a killed worker would hurt most, by what runs
STEPS = {
    "one": ("backup", "verify", "delete_backup"), "beside": ("backup", "verify", "delete_backup", "provision"),
    "in_place": ("restore", "undo_restore", "verify"), "damage": ("backup", "verify", "delete_backup"),
}  # fmt: skip
NEW_PROJECT_STEPS = ("restore_names", "restore_data", "prove_data")


@dataclass(frozen=True)
class Event:
    """`what` happens `delay` seconds after the run was first seen in `phase`; `times` is how long or often."""

    what: str
    phase: str
    delay: float
    times: int = 1

    def __str__(self) -> str:
        return f"{self.what}@{self.phase}+{self.delay:.1f}"


@dataclass(frozen=True)
class Plan:
    seed: str
    number: int
    engine: str
    runtime: str
    scenario: str
    storage: str  # plain, small (a disk of its own that fills), s3
    workers: int
    dies: tuple[str, ...]  # faults of workers, as `worker.py` takes them: one each
    events: tuple[Event, ...]
    changes_schema: bool
    more: tuple[str, ...]  # what else is asked for meanwhile
    undo: bool

    def __str__(self) -> str:
        faults = [*(f"dies {fault}" for fault in self.dies), *map(str, self.events)]
        faults += ["schema changes"] if self.changes_schema else []
        more = f" beside {'+'.join(self.more)}" if self.more else ""
        return (
            f"{self.seed}#{self.number} {self.scenario} on {self.storage}, {self.workers}w{more}: {'; '.join(faults)}"
        )


def plan(seed: str, number: int) -> Plan:
    chance = random.Random(f"{seed} chaos {number}")
    engine, runtime = chance.choices(GROUNDS, weights=(76, 13, 11))[0]
    scenario = chance.choices(SCENARIOS, weights=(46, 20, 14, 20))[0]
    storage = chance.choices(("plain", "small", "s3"), weights=(30, 30, 40))[0]
    dies: list[str] = []
    events: list[Event] = []
    schema = False
    if scenario == "damage":
        at = chance.choice(("stored", "stored", "verifying"))
        events.append(Event(f"damage:{chance.choice(DAMAGE)}", at, chance.uniform(0, 0.6)))
    wanted = chance.choice((1, 1, 2, 2, 3))
    while len(dies) + len(events) + schema < wanted:
        what = chance.choices(
            (
                "dies", "kill_worker", "pause_worker", "kill_tool", "kill_server", "storage", "drop_connections", "second",
                "schema",
            ),
            weights=(30, 8, 7, 11, 9, 20, 7, 5, 6),
        )[0]  # fmt: skip
        phase = chance.choice(_phases(scenario))
        delay = round(chance.choice((0, chance.uniform(0, 0.5), chance.uniform(0, 2.5))), 2)
        if what == "dies":
            dies.append(_point(chance, scenario))
        elif what == "storage":
            if storage == "small":
                events.append(Event(chance.choice(("disk_full", "disk_read_only")), phase, delay, chance.randint(1, 5)))
            elif storage == "s3":
                events.append(Event(f"s3:{chance.choice(S3)}", phase, delay, chance.randint(1, 6)))
        elif what == "schema":
            schema = schema or engine == "postgresql"  # elsewhere a change of the schema is no part of a transaction
        else:
            events.append(Event(what, phase, delay, chance.randint(1, 3)))
    more: tuple[str, ...] = ()
    if scenario == "beside":
        possible = ["delete", "retention", "verify", "restore_new", "backup_again"]
        more = tuple(chance.sample(possible, chance.randint(2, 4)))
    return Plan(
        seed, number, engine, runtime, scenario, storage, chance.choice((1, 1, 2)), tuple(dies), tuple(events), schema, more,
        chance.random() < 0.6,
    )  # fmt: skip


def _phases(scenario: str) -> tuple[str, ...]:
    if scenario == "in_place":
        return ("asked", "dumping", "restoring", "restoring", "restoring")
    if scenario == "beside":
        return ("asked", "dumping", "stored", "verifying", "restoring", "deleting")
    return ("asked", "dumping", "dumping", "stored", "verifying", "deleting")


def _point(chance: random.Random, scenario: str) -> str:
    kind = chance.choice(STEPS[scenario])
    steps = [step.name for step in base.latest_definition(kind).steps]
    if kind == "provision":
        steps = list(NEW_PROJECT_STEPS)
    return f"{kind}:{chance.choice(steps)}:{chance.choice(WHEN)}"
