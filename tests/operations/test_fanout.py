"""Asking several runtimes at once: who answers, who raises, who hangs."""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import pytest

from projects.domain import RuntimeUnreachable
from projects.models import Region
from projects.operations import fanout


@pytest.fixture
def hang():
    """A question that hangs until the test is over."""
    release = threading.Event()
    yield lambda: release.wait(250)
    release.set()


def test_answers_come_as_they_are_there_and_who_hangs_is_given_up(hang):
    quick, slow, broken, hanging = (uuid4() for _ in range(4))

    def refuse():
        raise ValueError("no")

    others_are_there = threading.Event()
    questions = {
        hanging: hang, slow: lambda: others_are_there.wait(60) and "slow", quick: lambda: "quick", broken: refuse,
    }  # fmt: skip
    began = time.monotonic()
    answers = []
    for answer in fanout.ask("x", questions, {hanging: 2.0}):
        answers.append(answer)
        if len(answers) == 2:
            others_are_there.set()
    assert time.monotonic() - began < 25
    assert {pk for pk, _ in answers[:2]} == {quick, broken}
    assert [pk for pk, _ in answers[2:]] == [slow, hanging]
    told = dict(answers)
    assert (told[quick], told[slow]) == ("quick", "slow")
    assert isinstance(told[broken], ValueError)
    assert isinstance(told[hanging], RuntimeUnreachable)


def test_who_still_owes_an_answer_is_not_asked_again_but_may_be_asked_something_else(hang):
    pk, asked = uuid4(), []

    def question():
        asked.append(1)
        return hang()

    began = time.monotonic()
    for _ in range(100):
        ((_, answer),) = fanout.ask("ping", {pk: question}, {pk: 0.3})
        assert isinstance(answer, RuntimeUnreachable)
    assert time.monotonic() - began < 15, "known at once but for the first time"
    assert len(asked) == 1
    assert [answer for _, answer in fanout.ask("other", {pk: lambda: "here"}, {})] == ["here"]


def test_one_region_raises_what_it_raised(hang):
    region = Region(slug="x", name="X")
    assert fanout.ask_one("a", region, lambda: 7) == 7
    with pytest.raises(KeyError):
        fanout.ask_one("a", region, lambda: {}["nothing"])
    with pytest.raises(RuntimeUnreachable, match="has not answered for 1 s"):
        fanout.ask_one("a", region, hang, seconds=0.2)


def test_nobody_waits_long_for_a_region_that_was_away(hang):
    region = Region(slug="x", name="X", reachable=False)
    began = time.monotonic()
    with pytest.raises(RuntimeUnreachable):
        fanout.ask_one("a", region, hang, seconds=200)
    assert time.monotonic() - began < 20


def test_who_takes_long_for_one_call_gets_as_long_for_each_of_several():
    quick, slow, unknown = (Region(slug=name, name=name) for name in ("quick", "slow", "unknown"))
    regions = {region.pk: region for region in (quick, slow, unknown)}
    list(fanout.ask("one", {quick.pk: lambda: 1, slow.pk: lambda: time.sleep(0.5)}, {}))
    allowed = fanout.patience_for_calls(regions, 2.0, 6, "one")
    assert allowed[quick.pk] == allowed[unknown.pk] == 2.0
    assert 6 * 0.5 < allowed[slow.pk] < fanout.SLOWEST_SECONDS
    slow.reachable = False
    assert fanout.patience_for_calls(regions, 2.0, 6, "one")[slow.pk] > 3, "it has just answered"
    assert fanout.patience_for_calls(regions, 2.0, 1000, "one")[slow.pk] == fanout.SLOWEST_SECONDS
