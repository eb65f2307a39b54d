"""One randomized run: what is asked for, what breaks meanwhile, and what must be so when it has settled."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from django.db import transaction

from backups.models import Backup, BackupPolicy, Restore, Schedule, StorageTarget
from backups.operations import retaining
from backups.services.backups import backup_create, backup_delete
from backups.services.proofs import backup_verify
from backups.services.restores import restore_create, restore_undo
from novastack.common.clock import now
from novastack.common.errors import Problem
from projects.models import DatabaseServer, DataTombstone, Operation, OperationLock
from tests.backups.keeping import make_schedule
from tests.faults.chaos.ground import Crew, Ground, drop_connections
from tests.faults.chaos.oracle import Judged
from tests.faults.chaos.plan import Event, Plan
from tests.faults.ledger import Run
from tests.restores.taken import take

SETTLES_SECONDS = 240  # from when everything works again
BREAKS_SECONDS = 25  # what breaks for long is mended after so much
HARMED = {"flip", "truncate", "swap", "flip_manifest", "swap_manifest", "remove"}


class Play:
    def __init__(self, ground: Ground, plan: Plan, run: Run) -> None:
        self.ground, self.site, self.plan, self.run = ground, ground.site, plan, run
        self.chance = random.Random(f"{plan.seed} play {plan.number}")
        self.bounds: dict[object, int] = {}  # backup → what was acknowledged when it was asked for
        self.damaged: dict[object, str] = {}
        self.restores: list[Restore] = []
        self.counters: dict[object, int] = {}
        self.seen: dict[str, float] = {}  # phase → when it was first seen
        self.hit: list[str] = []
        self.refused: list[str] = []  # what was asked for and could not be begun, with the code
        self.crew: Crew | None = None
        self.died, self.statuses = 0, ""
        self.waiting = list(plan.events)
        self.mend_at: float | None = None
        self.used_up = False  # the ground is not as it was: another project, a database from before

    # --- the run --------------------------------------------------------------------------------------------------------
    def go(self) -> None:
        ground, source = self.ground, self.ground.source
        source.changes_schema = self.plan.changes_schema
        self.target = ground.target(self.plan.storage)
        # Safety backups go there as well, whichever storages runs before this one have made.
        StorageTarget.objects.update(is_default=False)
        StorageTarget.objects.filter(pk=self.target.pk).update(is_default=True)
        with source.writing():
            before = self._before()
            self.crew = Crew(self.site, self.plan.workers, self.plan.dies)
            try:
                self._play(before)
                self._settle(undo=self.plan.undo)
                self._prove_the_damaged()
                self._heal_and_end()
                self._settle()  # a killed server takes writes before what brought it back has ended
            finally:
                self.died += self.crew.end()
        ground.read_source()
        self._judge()
        self._check_left()
        self._delete_all()
        self._note()

    def _before(self) -> list[Backup]:
        """Backups from before the faults, where the scenario needs some."""
        # A restore in place proves its safety backup where the policy has it so: that costs more than it shows here.
        BackupPolicy.objects.filter(project=self.ground.project).update(
            verify_after_backup=self.plan.scenario != "in_place"
        )
        number = {"beside": 2, "in_place": 1, "damage": 1}.get(self.plan.scenario, 0)
        made = []
        for _ in range(number):
            low = self.ground.source.told.acknowledged
            made.append(take(self.ground.project, storage=self.target))
            self.bounds[made[-1].pk] = low
        return made

    def _play(self, before: list[Backup]) -> None:
        asks = self._asks(before)
        self.run.recovering()
        began = time.monotonic()
        asks.pop(0)[1]()  # nothing is broken yet: a run in which that is refused would say nothing
        while True:
            passed = time.monotonic() - began
            while asks and asks[0][0] <= passed:
                self._ask(asks.pop(0)[1])
            self._look()
            self._break_due()
            assert self.crew is not None
            self.crew.tend()
            live = Operation.objects.live().exists()
            if not asks and not live and passed > 2:
                break
            if passed > BREAKS_SECONDS and not asks:
                break
            time.sleep(0.05)
        self._mend()

    def _asks(self, before: list[Backup]) -> list[tuple[float, Callable[[], object]]]:
        plan, found = self.plan, list[tuple[float, Callable[[], object]]]()
        if plan.scenario == "in_place":
            found.append((0, lambda: self._restore(before[0], target="in_place", confirm=self.ground.project.slug)))
            return found
        found.append((0, self._backup))
        for what in plan.more:
            ask = {
                "delete": lambda: backup_delete(self.site.alice, self._again(before[0])),
                "retention": lambda: self._retention(before),
                "verify": lambda: backup_verify(principal=self.site.alice, backup=self._again(before[1])),
                "restore_new": lambda: self._restore(before[1], target="new_project", name="Copy"),
                "backup_again": self._backup,
            }[what]
            found.append((round(self.chance.uniform(0, 4), 2), ask))
        return sorted(found, key=lambda ask: ask[0])

    def _ask(self, ask: Callable[[], object]) -> None:
        """As a user does, who is told no where it can't be now."""
        try:
            ask()
        except (Problem, Backup.DoesNotExist) as error:
            self.refused.append(getattr(error, "code", "gone"))

    @staticmethod
    def _again(backup: Backup) -> Backup:
        return Backup.objects.select_related("storage").get(pk=backup.pk)

    def _backup(self) -> Operation:
        low = self.ground.source.told.acknowledged
        made = backup_create(self.site.alice, self.ground.project, storage=self.target)
        self.bounds[made.pk] = low
        return Operation.objects.get(pk=made.operation_id)

    def _restore(self, backup: Backup, **how: str) -> Operation:
        self.used_up = True
        made = restore_create(self.site.alice, self._again(backup), **how)  # type: ignore[arg-type]
        self.restores.append(made)
        return Operation.objects.get(pk=made.operation_id)

    def _retention(self, before: list[Backup]) -> None:
        """A schedule that keeps one: applied by hand, since the clock's own would take two days."""
        schedule = Schedule.objects.filter(project=self.ground.project).first()
        if schedule is None:
            schedule = make_schedule(self.ground.project, keep_last=1, enabled=False)
        Backup.objects.filter(pk__in=[backup.pk for backup in before]).update(schedule=schedule)
        retaining.apply(schedule.pk, by_hand="chaos")

    # --- what breaks ----------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        seen = {"asked"}
        for status in Backup.objects.values_list("status", flat=True):
            seen |= {status} if status in {"dumping", "verifying", "deleting"} else set()
            seen |= {"stored"} if status in {"stored", "verifying", "verified"} and self._newest_stored() else set()
        if Operation.objects.live().filter(kind__in=["restore", "undo_restore", "provision"]).exists():
            seen.add("restoring")
        for phase in seen:
            self.seen.setdefault(phase, time.monotonic())

    def _break_due(self) -> None:
        """What is due and finds something to break, breaks it; what breaks a storage is mended some seconds later."""
        for event in list(self.waiting):
            at = self.seen.get(event.phase)
            if at is not None and time.monotonic() - at >= event.delay and self._break(event):
                self.waiting.remove(event)
                self.hit.append(str(event))
                if event.what.startswith(("disk", "s3")):
                    self.mend_at = time.monotonic() + 2 + 4 * event.times
        if self.mend_at is not None and time.monotonic() > self.mend_at:
            self._mend()

    def _newest_stored(self) -> Backup | None:
        newest = Backup.objects.filter(pk__in=self.bounds).order_by("-created_at").first()
        return newest if newest is not None and newest.status in {"stored", "verifying", "verified"} else None

    def _break(self, event: Event) -> bool:
        """Whether there was something to break."""
        crew, ground = self.crew, self.ground
        assert crew is not None
        what, _, how = event.what.partition(":")
        if what == "kill_worker":
            crew.kill(self.chance.randrange(10))
        elif what == "pause_worker":
            crew.pause(self.chance.randrange(10), 2.0 * event.times)
        elif what == "kill_tool":
            return ground.kill_tool()
        elif what == "kill_server":
            return ground.kill_server()
        elif what == "drop_connections":
            drop_connections()
        elif what == "second":
            crew.add()
        elif what == "s3":
            ground.break_bucket(how, event.times)
        elif what == "damage":
            return self._damage(how)
        else:
            ground.break_disk(what)
        return True

    def _mend(self) -> None:
        self.ground.heal()
        self.mend_at = None

    def _file(self, backup: Backup) -> Path:
        return self.ground.place(self.plan.storage) / backup.object_key

    def _damage(self, how: str) -> bool:
        """Of what is stored; as bit rot, a broken copy, or somebody with access to the bucket does it."""
        backup = self._newest_stored()
        if backup is None:
            return False
        others = Backup.objects.filter(status__in=["stored", "verified"], storage=self.target)
        other = others.exclude(pk=backup.pk).first()
        if not backup.object_key or (other is None and how.startswith("swap")):
            return False
        kind, _, manifest = how.partition("_")
        file = self._file(backup)
        source = self._file(other) if other is not None else None
        if manifest:
            file = file.with_name(f"{file.name}.manifest")
            source = source.with_name(f"{source.name}.manifest") if source is not None else None
        if kind == "remove":
            file.unlink()
        elif kind == "swap" and source is not None:
            _overwrite(file, source.read_bytes())
        else:
            data = bytearray(file.read_bytes())
            if kind == "truncate":
                del data[self.chance.randrange(len(data)) :]
            else:
                data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
            _overwrite(file, bytes(data))
        self.damaged[backup.pk] = how
        return True

    # --- until it is quiet ----------------------------------------------------------------------------------------------
    def _settle(self, *, undo: bool = False) -> None:
        """Nothing is to be waited for but work: pauses between attempts are cut short."""
        assert self.crew is not None
        deadline = time.monotonic() + SETTLES_SECONDS
        while True:
            self._look()
            self.crew.tend()
            live = list(Operation.objects.live())
            if not live and not self._going_on():
                if undo and self._undo():
                    undo = False
                    continue
                break
            if time.monotonic() > deadline:
                self.run.stuck = len(live)
                told = [
                    (o.kind, list(o.steps.exclude(state="succeeded").values_list("name", "state", "detail")))
                    for o in live
                ]
                raise AssertionError(f"not settled {SETTLES_SECONDS} s after all was mended: {told} {self._going_on()}")
            soon = now() + timedelta(seconds=1.5)
            Operation.objects.live().filter(next_attempt_at__gt=soon, lease_until=None).update(next_attempt_at=soon)
            time.sleep(0.1)
        self.run.ended()

    def _going_on(self) -> list[str]:
        """What is not an operation, and has an end as well."""
        found = []
        self.ground.project.refresh_from_db()
        if self.ground.project.status != "running":
            found.append(f"the project is {self.ground.project.status}")
        if DatabaseServer.objects.filter(kind="scratch").exists():
            found.append("a throw-away server")
        if DataTombstone.objects.filter(deleted_at=None).exists():
            found.append("data to be removed")
        return found

    def _undo(self) -> bool:
        """Of a restore in place that succeeded; False: there is none."""
        for made in self.restores:
            made.refresh_from_db()
            if made.target == "in_place" and made.status == "succeeded":
                restore_undo(self.site.alice, made)
                return True
        return False

    def _prove_the_damaged(self) -> None:
        """A proof that ran while it was still whole says nothing: another one is asked for."""
        for pk in list(self.damaged):
            backup = Backup.objects.filter(pk=pk).first()
            if backup is None or backup.status in {"corrupt", "failed", "deleting"}:
                continue
            backup_verify(principal=self.site.alice, backup=backup)
            self._settle()

    def _heal_and_end(self) -> None:
        """The database goes on being written to, and is as it should be."""
        told = self.ground.source.told
        before, deadline = told.acknowledged, time.monotonic() + 60
        while told.acknowledged <= before:
            assert time.monotonic() < deadline, "the live database takes no writes"
            time.sleep(0.05)

    # --- what must be so ------------------------------------------------------------------------------------------------
    def _judge(self) -> None:
        """Each backup that says it is verified, or stored, restores by hand to what was there at one moment."""
        told, statuses = self.ground.source.told, []
        for backup in Backup.objects.select_related("storage").order_by("created_at"):
            statuses.append(f"{backup.trigger} {backup.status}")
            if backup.pk in self.damaged:
                self._judge_damaged(backup)
                continue
            assert backup.status in {"verified", "stored", "failed"}, f"{backup} is {backup.status}: {backup.error}"
            if backup.status == "failed":
                assert backup.error and backup.error["code"] not in {"", "internal_error"}, backup.error
                continue
            assert backup.verify_error is None or backup.status == "stored", backup.verify_error
            found = self._by_hand(backup)
            self.counters[backup.pk] = found.counter
            low = self.bounds.get(backup.pk, 0)
            if not told.rewound:
                assert low <= found.counter <= told.attempted, (
                    f"{found.counter} is none of its time: {low} to {told.attempted}"
                )
        for before, after in told.rewound:  # only a restore does that, and to what was in the backup
            restored = {self.counters[made.backup_uuid] for made in self.restores if made.backup_uuid in self.counters}
            self.run.lost_rows = 0 if after in restored else before - after
            assert after in restored, f"the live database lost writes: {before} were acknowledged, {after} found"
        self.run.lost_rows = 0
        self.statuses = ", ".join(statuses)
        self._note()
        self._judge_restores()

    def _note(self) -> None:
        self.run.note = (
            f"{self.statuses}; {len(self.counters)} restored by hand; hit: {', '.join(self.hit) or '-'};"
            f" {self.died} workers died; refused: {', '.join(self.refused) or '-'}"
        )

    def _by_hand(self, backup: Backup) -> Judged:
        place, oracle = self.ground.place(_name(backup.storage)), self.ground.oracle
        return oracle.judge(
            self.ground.engine, place / backup.object_key, place / backup.manifest_key, self.ground.wanted,
            self.ground.source.told,
        )  # fmt: skip

    def _judge_damaged(self, backup: Backup) -> None:
        how = self.damaged[backup.pk]
        if how.startswith("remove"):
            code = (backup.verify_error or backup.error or {}).get("code")
            assert code == "object_missing" or backup.status in {"corrupt", "failed"}, (how, backup.status, code)
        else:
            assert backup.status == "corrupt", f"{how}, and it is {backup.status}"
        with contextlib.suppress(Problem):
            made = restore_create(
                self.site.alice, backup, target="in_place", confirm=self.ground.project.slug
            )  # fmt: skip
            operation = self.site.finish(Operation.objects.get(pk=made.operation_id), 60)
            assert operation.state == "failed", f"{how}: a restore from it {operation.state}"
            steps = operation.steps.filter(name__in=["server", "fence", "switch"])
            assert not steps.filter(state="succeeded").exists(), "it was refused before anything was made"

    def _judge_restores(self) -> None:
        for made in self.restores:
            made.refresh_from_db()
            assert made.status in {"succeeded", "failed", "undone", "cancelled"}, made.status
            if made.status == "failed":
                assert made.error and made.error["code"] != "internal_error", made.error

    def _check_left(self) -> None:
        """Nothing of it is left but backups."""
        locks = list(OperationLock.objects.values_list("subject", "mode"))
        assert not locks, locks
        assert self.ground.tools() == []
        if not self.used_up:
            self.site.check_exactly(self.ground.project)
        else:
            known = {s.handle.name for s in DatabaseServer.objects.exclude(desired_state="absent")}
            assert {handle.name for handle in self.site.runtime.managed_data()} == known
            self.run.orphans = 0
        if self.ground.engine == "postgresql":
            with self.site.client.administrator(self.ground.project) as session:
                left = session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'nvs%%copy'").fetchall()
                assert left == [], left
        for kind in {_name(target) for target in StorageTarget.objects.all()}:
            self._check_storage(kind)

    def _check_storage(self, kind: str) -> None:
        """Whatever has its final name and a manifest belongs to a backup that says so; uploads and temporary files are gone."""
        keys = {b.object_key: b for b in Backup.objects.exclude(object_key="").select_related("storage")}
        for name in self.ground.lying_there(kind):
            backup = keys.get(name.removesuffix(".manifest"))
            assert backup is not None, f"{name} lies there, and no backup has it"
            if name.endswith(".manifest"):
                assert backup.status != "failed", f"{name}: a manifest of a backup that failed"

    def _delete_all(self) -> None:
        """And what is removed is gone from the storage as well. Some of the plan's workers may still be to die here."""
        Backup.objects.update(pinned=False)
        for backup in Backup.objects.exclude(status="deleting"):
            with transaction.atomic():
                backup_delete(self.site.alice, backup)
        left = tuple(fault for fault in self.plan.dies if fault.startswith("delete_backup"))
        self.crew = Crew(self.site, 1, left)
        self.waiting = [event for event in self.waiting if event.phase == "deleting"]
        self.seen = {"deleting": time.monotonic()}
        try:
            began = time.monotonic()
            while Operation.objects.live().exists() and time.monotonic() - began < BREAKS_SECONDS:
                self._break_due()
                self.crew.tend()
                time.sleep(0.05)
            self._mend()
            self._settle()
        finally:
            self.died += self.crew.end()
        assert not Backup.objects.exists()
        assert not OperationLock.objects.exists()
        for target in StorageTarget.objects.all():
            assert self.ground.lying_there(_name(target)) == []
        Schedule.objects.all().delete()


def _name(target: StorageTarget) -> str:
    return "s3" if target.kind == "s3" else target.name


def _overwrite(file: Path, data: bytes) -> None:
    """In its place, so that who has it open reads on in it."""
    mode = file.stat().st_mode
    file.chmod(0o600)
    file.write_bytes(data)
    file.chmod(mode & 0o777)
