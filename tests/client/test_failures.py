"""What networks do, and what the client makes of it: what may be sent again is, and nothing is done twice."""

from __future__ import annotations

import copy
import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from django.db import connection, transaction

from accounts.models import Organization
from novastack_client import (
    AsyncNovaStack,
    Conflict,
    DeadlineExceeded,
    NotFound,
    NovaStack,
    NovaStackError,
    OperationFailed,
    Throttled,
    Unavailable,
)
from novastack_client.errors import FieldError, error_of
from novastack_client.models import Operation as SeenOperation
from projects.models import ApiKey, Operation, Project
from tests.client.proxy import GATEWAY, LOST_ANSWER, LOST_REQUEST, Fault, Proxy, refused
from tests.factories import Team, make_project


@pytest.mark.parametrize("fault", [LOST_ANSWER, LOST_REQUEST, GATEWAY, refused(503), refused(504), refused(429)])
def test_a_lost_answer_makes_nothing_twice(nova: Any, proxy: Proxy, team: Team, fault: Fault) -> None:
    proxy.faults += [fault, fault]
    made = nova.create_project("Shop")
    assert Project.objects.get().pk.hex == made.id.replace("-", "")
    posts = [s for s in proxy.seen if s.method == "POST"]
    assert len(posts) == 3 and len({s.key for s in posts}) == 1 and posts[0].key
    proxy.faults.append(fault)
    key = nova.create_api_key(made.id, "web")
    assert ApiKey.objects.get().pk.hex == key.id.replace("-", "")
    assert key.already_shown == (key.key is None) == fault.passes
    proxy.faults.append(fault)
    nova.allocate_database("odoo-1", wait=False)
    assert Project.objects.count() == 2
    assert len({s.key for s in proxy.seen if s.method == "POST"}) == 3


@pytest.mark.parametrize("fault", [LOST_ANSWER, LOST_REQUEST, GATEWAY])
def test_a_lost_deletion_and_a_lost_change(nova: Any, proxy: Proxy, team: Team, fault: Fault) -> None:
    project = make_project(team.alice, team.organization)
    proxy.faults.append(fault)
    changed = nova.update_project(str(project.pk), limits={"memory_bytes": 2**28})
    assert changed.operation.kind == "resize" and changed.limits.memory_bytes == 2**28
    Operation.objects.all().delete()
    proxy.faults.append(fault)
    deleted = nova.delete_project(str(project.pk))
    assert deleted.desired_status == "recycled" and deleted.operation.kind == "delete"
    assert Operation.objects.filter(kind="delete").count() == 1
    with pytest.raises(Conflict) as caught:  # nothing was lost here: it is told
        nova.delete_project(str(project.pk))
    assert caught.value.code == "action_not_allowed" and not caught.value.after_lost_answer


def test_a_first_attempt_that_is_still_at_work_is_waited_for(
    connect: Callable[..., Any], proxy: Proxy, token: str, team: Team
) -> None:
    nova = connect(proxy.url, token, timeout_seconds=0.7)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            list(Organization.objects.select_for_update())
            held.set()
            release.wait(20)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    threading.Timer(1.5, release.set).start()
    made = nova.create_project("Shop")
    holder.join()
    assert str(Project.objects.get().pk) == made.id
    assert len([s for s in proxy.seen if s.method == "POST"]) >= 3  # timed out, refused as in flight, answered


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 501])
def test_nothing_else_is_tried_again(nova: Any, proxy: Proxy, status: int) -> None:
    proxy.faults += [refused(status)] * 3
    with pytest.raises(NovaStackError) as caught:
        nova.create_project("Shop")
    assert caught.value.status == status and caught.value.code == f"http_{status}" and not caught.value.retryable
    assert len(proxy.seen) == 1


def test_trying_again_has_an_end(connect: Callable[..., Any], proxy: Proxy, token: str) -> None:
    nova = connect(proxy.url, token, retries=2)
    proxy.faults += [refused(503)] * 5
    with pytest.raises(Unavailable) as caught:
        nova.create_project("Shop")
    assert len(proxy.seen) == 3 and caught.value.retryable and not caught.value.after_lost_answer
    proxy.faults.clear()
    proxy.faults += [LOST_ANSWER] * 3
    with pytest.raises(Unavailable) as lost:
        nova.create_project("Shop")
    assert lost.value.code == "no_answer" and lost.value.after_lost_answer
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = connect(f"http://127.0.0.1:{nobody.getsockname()[1]}", token, retries=1)
        with pytest.raises(Unavailable) as refused_:
            gone.create_project("Shop")
    assert refused_.value.code == "no_answer" and not refused_.value.after_lost_answer


def test_retry_after_is_kept(nova: Any, proxy: Proxy) -> None:
    began = time.monotonic()
    proxy.faults.append(refused(429, Retry_After="1"))
    list(nova.list_projects())
    assert time.monotonic() - began >= 1
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for text in ("3600", later):  # nobody sleeps for an hour: it is told
        proxy.faults.append(refused(429, Retry_After=text))
        with pytest.raises(Throttled) as caught:
            list(nova.list_projects())
        assert caught.value.retry_after_seconds is not None and 3500 < caught.value.retry_after_seconds <= 3600
    proxy.faults.append(refused(503, Retry_After="55"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        nova.allocate_database("odoo-1", deadline_seconds=50)
    assert time.monotonic() - began < 40  # it would not be in time


def test_a_server_that_does_not_hold_its_answers_is_not_hammered(nova: Any, proxy: Proxy, team: Team) -> None:
    project = make_project(team.alice, team.organization, running=False)
    operation = str(Operation.objects.get(project_uuid=project.pk).pk)
    with proxy_without_waiting(proxy), pytest.raises(DeadlineExceeded):
        nova.wait_for_operation(operation, deadline_seconds=3)
    assert 3 <= len(proxy.seen) < 20


class proxy_without_waiting:
    """As when too many wait already: answers come at once."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def __enter__(self) -> None:
        self.handle = self.proxy.handle

        def at_once(handler: Any) -> None:
            handler.path = handler.path.split("?")[0]
            self.handle(handler)

        self.proxy.handle = at_once  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        self.proxy.handle = self.handle  # type: ignore[method-assign]


def test_a_newer_server_may_say_more(nova: Any, proxy: Proxy, team: Team) -> None:
    make_project(team.alice, team.organization)

    def newer(body: Any) -> Any:
        body = copy.deepcopy(body)
        for project in body["results"]:
            project |= {"colour": "blue", "status": "hibernating"}
            project["limits"]["gpus"] = 2
        return body | {"took_ms": 3}

    proxy.rewrite = newer
    found = next(iter(nova.list_projects()))
    assert found.extra["colour"] == "blue" and found.status == "hibernating" and found.limits.extra == {"gpus": 2}
    assert "colour" not in repr(found)


@pytest.mark.parametrize("answer", [[], None, "x", {"id": 5}, {"results": 5}, {"results": [5]}, {"results": [{}]}])
def test_an_answer_that_is_none(nova: Any, proxy: Proxy, team: Team, answer: Any) -> None:
    project = make_project(team.alice, team.organization)
    proxy.rewrite = lambda _: answer
    for call in (lambda: nova.get_project(str(project.pk)), lambda: list(nova.list_projects())):
        with pytest.raises(NovaStackError) as caught:
            call()
        assert caught.value.code == "invalid_answer"


def test_redirects_are_not_followed_with_the_token(nova: Any, proxy: Proxy, token: str) -> None:
    with Proxy(proxy.target) as elsewhere:
        proxy.faults.append(refused(307, Location=f"{elsewhere.url}/api/v1/projects/"))
        with pytest.raises(NovaStackError) as caught:
            nova.create_project("Shop")
        assert caught.value.status == 307 and elsewhere.seen == []
    assert proxy.seen[0].authorization == f"Bearer {token}"


def test_secrets_are_in_no_repr_log_or_exception(
    nova: Any, proxy: Proxy, token: str, team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    project = make_project(team.alice, team.organization)
    proxy.faults += [None, LOST_ANSWER]
    shown = nova.project_connection(str(project.pk))
    key = nova.create_api_key(str(project.pk), "web")
    made = nova.create_api_key(str(project.pk), "other")
    with pytest.raises(NotFound) as caught:
        nova.create_api_key("01980000-0000-7000-8000-0000000000aa", "web")
    client = getattr(nova, "client", nova)
    told = " ".join(map(repr, (shown, key, made, client, caught.value))) + str(caught.value) + caplog.text
    assert "again in" in caplog.text  # it did log
    for secret in (token, shown.password, shown.uri, made.key):
        assert secret and secret not in told
    assert repr(client) == f"{type(client).__name__}('{proxy.url}')"


def test_errors_can_be_sent_to_another_process() -> None:
    operation = SeenOperation(id="1", kind="provision", state="failed", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    problem = {"code": "quota_exceeded", "detail": "Full.", "errors": [{"field": "a", "code": "b", "detail": "c"}]}
    for error in (
        error_of(409, problem, retry_after_seconds=3), OperationFailed.of(operation),
        DeadlineExceeded("Over.", operation=operation), error_of(500, None),
    ):  # fmt: skip
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(again) is type(error) and (str(again), repr(again)) == (str(error), repr(error))
        assert vars(again) == vars(error)
    assert error_of(409, problem).errors == (FieldError("a", "b", "c"),)
    assert OperationFailed.of(operation).code == "failed"


@pytest.mark.parametrize(
    "url", ["", "databases.example.com", "ftp://x", "https://", "https://user:pw@x.test", "https://x.test/?a=1"]
)
def test_addresses_that_are_none(url: str) -> None:
    for kind in (NovaStack, AsyncNovaStack):
        with pytest.raises(ValueError, match="base_url") as caught:
            kind(url, "nvs_x")
        assert "pw" not in str(caught.value)


@pytest.mark.parametrize("bad", ["", "a b", "nvs_x\n", "nvs_ä"])
def test_tokens_that_are_none(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="token"):
        NovaStack("https://x.test", bad)
    monkeypatch.delenv("NOVASTACK_TOKEN", raising=False)
    monkeypatch.setenv("NOVASTACK_URL", "https://x.test/api/v1/")
    with pytest.raises(ValueError, match="NOVASTACK_TOKEN must be set"):
        NovaStack.from_env()
    monkeypatch.setenv("NOVASTACK_TOKEN", "nvs_x")
    assert NovaStack.from_env(retries=1).base_url == "https://x.test"
