"""The runner with tiny kinds of operations: what it promises whatever the steps do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.cache import cache

from novastack.common.clock import DatabaseNow, now
from projects import domain
from projects.models import OnGiveUp, Operation, OperationLock, OperationStep, Project, Region
from projects.models.catalogue import UNREACHABLE
from projects.operations import base, leases, runner
from projects.operations.base import LeaseLost, RetryPolicy, Step, StepFailed, Wait
from projects.services import project_delete
from tests.operations.conftest import (
    Killed,
    begin,
    drive,
    let_lease_expire,
    let_time_pass,
    once,
    seconds_until_next,
    states,
)


class Notes(list):
    """What happened, in order; `say("x")` is a step that notes x."""

    def say(self, what: str, then: Exception | None = None):
        def step(ctx):
            self.append(what)
            if then is not None:
                raise then

        return step

    def play(self, what: str, script: list):
        """A step that does what the script says, one entry a call; None is success."""

        def step(ctx):
            self.append(what)
            wanted = script.pop(0) if script else None
            if wanted is not None:
                raise wanted

        return step


@pytest.fixture
def notes() -> Notes:
    return Notes()


def broken(code="broken", *, retryable=True):
    return StepFailed(code, "It broke.", retryable=retryable)


def test_steps_run_in_order_and_the_locks_are_given_back(idle, kind, notes):
    kind("greet", Step("one", "One", notes.say("one")), Step("two", "Two", notes.say("two")))
    operation = once(begin(idle, "greet"))
    assert (operation.state, notes) == ("succeeded", ["one", "two"])
    assert states(operation) == {"one": "succeeded", "two": "succeeded"}
    assert operation.lease_until is None
    assert operation.finished_at
    assert not OperationLock.objects.filter(operation=operation).exists()


def test_a_step_is_retried_with_growing_pauses_and_reuses_its_row(idle, kind, notes):
    policy = RetryPolicy(attempts=3, delay_seconds=10, factor=2)
    kind("greet", Step("one", "One", notes.play("one", [broken(), broken()]), retry=policy))
    operation = once(begin(idle, "greet"))
    assert states(operation) == {"one": "retrying"}
    assert seconds_until_next(operation) == pytest.approx(10, abs=2)
    assert not runner.run(operation.pk)  # not due yet
    let_time_pass(operation)
    assert seconds_until_next(once(operation)) == pytest.approx(20, abs=2)
    let_time_pass(operation)
    assert once(operation).state == "succeeded"
    step = operation.steps.get()
    assert (step.attempt, step.error_code, OperationStep.objects.filter(operation=operation).count()) == (3, "", 1)


def test_delays_are_capped():
    policy = RetryPolicy(delay_seconds=10, factor=2, cap_seconds=60)
    assert [policy.delay(n) for n in (1, 2, 3, 4, 5, 5000)] == [10, 20, 40, 60, 60, 60]


def test_the_whole_operation_is_tried_three_times_then_undone_in_reverse(idle, kind, notes):
    once_only = RetryPolicy(attempts=1)
    kind(
        "greet",
        Step("one", "One", notes.say("one"), notes.say("un-one"), once_only),
        Step("two", "Two", notes.say("two"), notes.say("un-two"), once_only),
        Step("three", "Three", notes.play("three", [broken()] * 9), notes.say("un-three"), once_only),
        Step("four", "Four", notes.say("four"), notes.say("un-four"), once_only),
    )
    operation = once(begin(idle, "greet"))
    assert seconds_until_next(operation) == pytest.approx(300, abs=5)
    assert operation.attempt == 2
    assert states(operation)["one"] == "pending", "the whole operation is retried, not its last step alone"
    drive(operation)
    tries = [n for n in notes if not n.startswith("un-")]
    assert tries == ["one", "two", "three"] * 3
    assert [n for n in notes if n.startswith("un-")] == ["un-three", "un-two", "un-one"]
    assert operation.state == "failed"
    assert operation.error == {"code": "broken", "detail": "It broke.", "retryable": True}
    assert states(operation) == {"one": "undone", "two": "undone", "three": "failed", "four": "pending"}


def test_what_can_not_be_retried_is_undone_at_once(idle, kind, notes):
    kind("greet", Step("one", "One", notes.say("one", broken("quota", retryable=False)), notes.say("un-one")))
    operation = once(begin(idle, "greet"))
    assert (operation.state, notes) == ("failed", ["one", "un-one"])


def test_a_step_reset_by_a_retry_of_the_whole_is_still_undone(idle, kind, notes):
    kind(
        "greet",
        Step("one", "One", notes.say("one"), notes.say("un-one")),
        Step("two", "Two", notes.play("two", [broken()]), retry=RetryPolicy(attempts=1)),
        cancellable=True,
    )
    operation = once(begin(idle, "greet"))
    assert states(operation)["one"] == "pending"
    Operation.objects.filter(pk=operation.pk).update(cancel_requested_at=now(), next_attempt_at=None)
    assert once(operation).state == "cancelled"
    assert "un-one" in notes


def test_rolling_forward_never_undoes_and_never_gives_up(idle, kind, notes):
    kind(
        "greet",
        Step("one", "One", notes.play("one", [broken()] * 12), notes.say("un-one"), RetryPolicy(3, 10, 2, 300)),
        on_give_up=OnGiveUp.ROLL_FORWARD,
    )
    operation = begin(idle, "greet")
    pauses = []
    for _ in range(12):
        let_time_pass(operation)
        pauses.append(round(seconds_until_next(once(operation)), -1))
    assert pauses == [10, 20, 40, 80, 160] + [300] * 7
    assert drive(operation).state == "succeeded"
    assert "un-one" not in notes


def test_an_insisting_kind_does_not_even_give_up_on_what_can_not_be_retried(idle, kind, notes):
    kind(
        "greet", Step("one", "One", notes.play("one", [broken(retryable=False)])),
        on_give_up=OnGiveUp.ROLL_FORWARD, insists=True,
    )  # fmt: skip
    operation = once(begin(idle, "greet"))
    assert seconds_until_next(operation) == pytest.approx(300, abs=5)
    assert drive(operation).state == "succeeded"


def test_a_wait_gives_the_worker_back_and_uses_no_attempt(idle, kind, notes):
    kind("greet", Step("one", "One", notes.play("one", [Wait("later", seconds=30)] * 20), retry=RetryPolicy(1)))
    operation = once(begin(idle, "greet"))
    assert operation.lease_until is None
    assert operation.state == "running"
    assert seconds_until_next(operation) == pytest.approx(30, abs=2)
    assert operation.steps.get().detail == "later"
    assert drive(operation).state == "succeeded"
    assert operation.steps.get().attempt == 1
    assert len(notes) == 21


def test_an_unreachable_runtime_uses_no_attempt_and_shows_at_once(idle, kind, notes, runtime, monkeypatch):
    monkeypatch.setattr(runner, "TRY_EVERY_SECONDS", 0)
    runtime.unreachable = True
    other = Project.objects.get(pk=idle.pk)
    gone = domain.RuntimeUnreachable("Docker does not answer.")
    kind("greet", Step("one", "One", notes.play("one", [gone] * 20), notes.say("un-one"), RetryPolicy(1)))
    operation = once(begin(idle, "greet"))
    region = Region.objects.get(pk=idle.region_id)
    assert (region.reachable, region.reason) == (False, "Docker does not answer.")
    other.refresh_from_db()
    assert (other.status, other.status_detail) == ("not_available", UNREACHABLE)
    assert states(operation) == {"one": "waiting"}
    assert operation.steps.get().detail == UNREACHABLE, "the runtime's own words are the operators'"
    assert drive(operation).state == "succeeded"
    assert operation.steps.get().attempt == 1
    assert "un-one" not in notes


def test_of_those_that_wait_for_a_region_one_asks_it_again(idle, kind, notes):
    """Each question may hang for as long as a call may take, and workers are few."""
    gone = domain.RuntimeUnreachable("Docker hangs.")
    kind("greet", Step("one", "One", notes.play("one", [gone] * 3), notes.say("un-one"), RetryPolicy(1)))
    operation = once(begin(idle, "greet"))
    Region.objects.filter(pk=idle.region_id).update(reachable=False)
    for _ in range(4):
        Operation.objects.update(next_attempt_at=None)
        assert states(once(operation)) == {"one": "waiting"}
    assert notes.count("one") == 2, "one asked for all"
    assert operation.steps.get().attempt == 1
    Region.objects.filter(pk=idle.region_id).update(reachable=True)
    assert drive(operation).state == "succeeded", "it answers: nobody waits any more"


def test_new_operations_of_a_region_that_hangs_hold_no_worker(idle, kind, notes):
    """However many people ask for something there: others' databases need the workers."""
    kind("greet", Step("one", "One", notes.say("one")), cancellable=True)
    Region.objects.filter(pk=idle.region_id).update(reachable=False)
    cache.set(f"region-asked:{idle.region_id}", True, 60)  # another operation has just asked
    operation = once(begin(idle, "greet"))
    assert states(operation) == {"one": "waiting"} and not notes
    assert operation.steps.get().detail == UNREACHABLE
    idle.refresh_from_db()
    assert idle.status == "not_available"
    Operation.objects.filter(pk=operation.pk).update(cancel_requested_at=now(), next_attempt_at=None)
    assert once(operation).state == "cancelled", "to give up needs no region"
    cache.delete(f"region-asked:{idle.region_id}")
    assert once(begin(idle, "greet")).state == "succeeded", "its turn to ask, and the region answers"


def test_one_call_that_timed_out_is_no_outage(idle, kind, notes):
    kind("greet", Step("one", "One", notes.play("one", [domain.RuntimeUnreachable("timed out")]), retry=RetryPolicy(1)))
    operation = once(begin(idle, "greet"))
    assert states(operation) == {"one": "waiting"}
    assert Region.objects.get(pk=idle.region_id).reachable
    assert drive(operation).state == "succeeded"


def test_unreachable_while_undoing_waits_and_says_it_once(idle, kind, notes):
    gone = domain.RuntimeUnreachable("Docker does not answer.")
    undo = notes.play("un-one", [gone] * 15)
    kind("greet", Step("one", "One", notes.say("one", broken(retryable=False)), undo))
    operation = drive(begin(idle, "greet"))
    assert operation.state == "failed"
    assert operation.error["code"] == "broken"
    assert operation.events.filter(message__contains="waits").count() == 1
    assert not operation.events.filter(message__contains="Docker").exists()


def test_cancel_undoes_and_ends_cancelled(idle, kind, notes):
    def second(ctx):
        Operation.objects.filter(pk=ctx.operation.pk).update(cancel_requested_at=now())
        ctx.guard()
        notes.append("side effect")

    kind(
        "greet",
        Step("one", "One", notes.say("one"), notes.say("un-one")),
        Step("two", "Two", second, notes.say("un-two")),
        cancellable=True,
    )
    operation = once(begin(idle, "greet"))
    assert (operation.state, operation.error["code"]) == ("cancelled", "cancelled")
    assert notes == ["one", "un-two", "un-one"]


def test_a_kind_that_can_not_be_cut_short_goes_on(idle, kind, notes):
    kind("greet", Step("one", "One", notes.say("one")))
    operation = begin(idle, "greet")
    Operation.objects.filter(pk=operation.pk).update(cancel_requested_at=now())
    assert once(operation).state == "succeeded"


def test_it_yields_to_a_deletion_and_the_deletion_follows(idle, kind, notes, alice):
    kind("greet", Step("one", "One", notes.play("one", [Wait("long")] * 50)), yields=True)
    running = once(begin(idle, "greet"))
    deletion = project_delete(principal=alice, project=idle)
    assert not OperationLock.objects.get(operation=deletion).granted
    assert not runner.run(deletion.pk), "it queues behind"
    assert once(running).state == "cancelled", "it was asked to make way, and need not wait for its next attempt"
    assert drive(deletion).state == "succeeded"


def test_an_undo_that_fails_is_retried_then_named(idle, kind, notes):
    undo = notes.play("un-one", [broken("stubborn")] * 50)
    kind("greet", Step("one", "One", notes.say("one", broken(retryable=False)), undo))
    operation = drive(begin(idle, "greet"))
    assert operation.state == "failed"
    assert notes.count("un-one") == base.UNDO_ATTEMPTS
    assert operation.steps.get().data["undo_failed"] == "stubborn"
    assert operation.events.filter(level="error", message__contains="for good").exists()


# --- crashes --------------------------------------------------------------------------------------------------------


def crash(operation: Operation) -> None:
    with pytest.raises(Killed):
        runner.run(operation.pk)
    operation.refresh_from_db()


def test_resuming_after_a_crash_is_no_attempt_and_has_no_pause(idle, kind, notes):
    kind("greet", Step("one", "One", notes.play("one", [Killed(), Killed()]), retry=RetryPolicy(1)))
    operation = begin(idle, "greet")
    for _ in range(2):
        crash(operation)
        assert operation.lease_until is not None
        assert not runner.run(operation.pk), "the lease still lives"
        let_lease_expire(operation)
    assert once(operation).state == "succeeded"
    assert operation.steps.get().attempt == 1


@pytest.mark.parametrize("where", ["step", "undo", "between", "end"])
def test_five_crashes_in_one_place_are_poison(idle, kind, notes, where, monkeypatch):
    script = [Killed()] * 9
    one = notes.play("one", script if where == "step" else [])
    undo = notes.play("un-one", script if where == "undo" else [])
    two = notes.say("two", broken(retryable=False)) if where == "undo" else notes.say("two")
    kind("greet", Step("one", "One", one, undo), Step("two", "Two", two))
    operation = begin(idle, "greet")
    real = {"between": runner._Run._step, "end": runner._Run._end}
    dying = list(script)

    def dies(self, *args):
        right = where == "end" or args[2].name == "two"
        if right and dying and not self.operation.undoing:
            dying.pop()
            raise Killed
        return real[where](self, *args)

    if where in real:
        monkeypatch.setattr(runner._Run, "_step" if where == "between" else "_end", dies)
    for _ in range(5):
        crash(operation)
        let_lease_expire(operation)
    operation = once(operation)
    assert operation.state == "failed"
    assert operation.error["code"] == "poison"
    assert not OperationLock.objects.filter(operation=operation).exists()


def test_an_error_of_ours_outside_of_steps_ends_as_poison_not_as_a_loop(idle, kind, notes, monkeypatch):
    kind("greet", Step("one", "One", notes.say("one")))
    operation = begin(idle, "greet")
    real = runner._Run._end

    def breaks(self, definition, state, *rest):
        if state == "succeeded":
            raise ZeroDivisionError
        return real(self, definition, state, *rest)

    monkeypatch.setattr(runner._Run, "_end", breaks)
    for _ in range(5):
        assert runner.run(operation.pk)
        let_lease_expire(operation)
    operation = once(operation)
    assert (operation.state, operation.error["code"]) == ("failed", "poison")


def test_a_hook_that_breaks_makes_a_failure_and_the_operation_ends(idle, kind, notes):
    def hook(operation):
        raise ZeroDivisionError

    kind("greet", Step("one", "One", notes.say("one")), on_success=hook, on_failure=hook)
    operation = once(begin(idle, "greet"))
    assert (operation.state, operation.error["code"]) == ("failed", "internal_error")
    assert not OperationLock.objects.filter(operation=operation).exists()


def test_an_unexpected_error_is_named_and_not_shown(idle, kind, notes):
    kind("greet", Step("one", "One", notes.say("one", ValueError("password=hunter2")), retry=RetryPolicy(1)))
    operation = once(begin(idle, "greet"))
    step = operation.steps.get()
    assert step.error_code == "internal_error"
    told = step.detail + str(operation.error) + "".join(operation.events.values_list("message", flat=True))
    assert "hunter2" not in told
    assert "ValueError" in told


def test_what_the_code_no_longer_knows_ends_as_definition_changed(idle, kind, notes):
    ends = []
    kind("greet", Step("one", "One", notes.say("one")), on_failure=lambda op: ends.append(op.error["code"]))
    operation = begin(idle, "greet")
    Operation.objects.filter(pk=operation.pk).update(definition_version=99)
    assert once(operation).state == "failed"
    assert operation.error["code"] == "definition_changed"
    assert ends == ["definition_changed"], "the project hears of it"
    assert notes == []


def test_a_provision_of_another_version_leaves_a_failed_project_not_a_queued_one(shop):
    operation = Operation.objects.get(project_uuid=shop.pk)
    operation.steps.filter(name="secure").update(name="no_such_step")
    assert once(operation).error["code"] == "definition_changed"
    shop.refresh_from_db()
    assert shop.status == "failed"


# --- deadlines ------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_a_polling_step(idle, kind, notes):
    def polls(ctx):
        while True:
            ctx.sleep(0.01)

    kind("greet", Step("one", "One", polls, retry=RetryPolicy(1), deadline_seconds=0.05))
    operation = once(begin(idle, "greet"))
    assert operation.steps.get().error_code == "deadline_exceeded"


def test_a_resumed_step_has_what_was_left_when_its_worker_died(idle, kind, notes):
    left = []

    def step(ctx):
        left.append(ctx.remaining_seconds())
        if len(left) == 1:
            raise Killed

    kind("greet", Step("one", "One", step, deadline_seconds=100))
    operation = begin(idle, "greet")
    crash(operation)
    # It died 40 s into the step; then there was no worker for an hour.
    hour = timedelta(hours=1)
    Operation.objects.filter(pk=operation.pk).update(lease_until=DatabaseNow() - hour)
    died = Operation.objects.get(pk=operation.pk).lease_until - timedelta(seconds=base.LEASE_SECONDS)
    operation.steps.update(deadline_at=died + timedelta(seconds=60))
    assert once(operation).state == "succeeded"
    assert left[1] == pytest.approx(60, abs=2)


def test_heartbeats_do_not_extend_a_deadline(idle, kind, monkeypatch):
    """Beyond it they stop, and the lease is lost."""
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "extend", lambda lease: True)
    lease = leases.Lease(idle, "me", 1)
    with leases.Heartbeat(lease) as heart:
        assert not heart.lost.wait(0.3)
        heart.set_deadline(0.1)
        assert heart.lost.wait(60)


# --- leases ---------------------------------------------------------------------------------------------------------


def test_a_lease_is_for_one_and_expires(idle, kind, notes):
    kind("greet", Step("one", "One", notes.say("one")))
    operation = begin(idle, "greet")
    first = leases.claim(operation.pk, "a")
    assert first is not None
    assert leases.holds(first)
    assert leases.claim(operation.pk, "b") is None
    let_lease_expire(operation)
    assert not leases.holds(first)
    second = leases.claim(operation.pk, "b")
    assert second is not None
    assert second.fence == first.fence + 1
    assert second.crashed_at is not None
    assert not leases.extend(first), "an old heart does not beat again"
    assert leases.extend(second)


def test_a_paused_worker_acts_no_more_and_writes_nothing_over_its_successor(idle, kind, notes):
    """It sleeps in the middle of a step; another one resumes and ends the operation; then it wakes up."""
    seen = []

    def step(ctx):
        notes.append("began")
        if len(notes) == 1:  # the first worker: while it sleeps, the second one does everything
            let_lease_expire(ctx.operation)
            assert runner.run(ctx.operation.pk, owner="second")
            seen.append(Operation.objects.get(pk=ctx.operation.pk).updated_at)
            with pytest.raises(LeaseLost):
                ctx.guard()
            with pytest.raises(LeaseLost):
                ctx.record(mine=True)
            with pytest.raises(LeaseLost), ctx.fenced():
                notes.append("never")

    kind("greet", Step("one", "One", step), Step("two", "Two", notes.say("two")))
    operation = begin(idle, "greet")
    assert runner.run(operation.pk, owner="first")
    operation.refresh_from_db()
    assert operation.state == "succeeded"
    assert operation.updated_at == seen[0], "the first one wrote nothing afterwards"
    assert notes == ["began", "began", "two"]
    assert operation.steps.get(name="one").data == {}


def test_a_message_that_comes_twice_runs_a_step_once(idle, kind, notes):
    def step(ctx):
        notes.append("one")
        assert not runner.run(ctx.operation.pk, owner="the second message")

    kind("greet", Step("one", "One", step))
    operation = once(begin(idle, "greet"))
    assert not runner.run(operation.pk)
    assert notes == ["one"]
