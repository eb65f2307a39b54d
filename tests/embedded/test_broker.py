"""The file broker: whole messages, in order, each to one taker."""

import json
import multiprocessing
import time
from pathlib import Path
from queue import Empty

import kombu
import pytest

from novastack.embedded import broker


@pytest.fixture
def connection(tmp_path: Path) -> kombu.Connection:
    broker.prepare(tmp_path)
    return kombu.Connection("filesystem://localhost", transport_options=broker.transport_options(tmp_path))


def test_it_carries_messages_in_order(connection: kombu.Connection) -> None:
    with connection.SimpleQueue("monitoring") as queue:
        for number in range(20):
            queue.put({"number": number})
        got = [queue.get(timeout=60) for _ in range(20)]
        assert [message.payload["number"] for message in got] == list(range(20))
        for message in got:
            message.ack()
        with pytest.raises(Empty):
            queue.get(timeout=0.1)


def test_an_idle_queue_still_sees_a_message_at_once(connection: kombu.Connection) -> None:
    took = []
    with connection.SimpleQueue("monitoring") as queue:
        for _ in range(5):
            with pytest.raises(Empty):
                queue.get(timeout=0.15)
            queue.put("now")
            began = time.monotonic()
            queue.get(timeout=60).ack()
            took.append(time.monotonic() - began)
    assert min(took) < 0.2  # the machine may be busy with something else now and then


def test_a_half_written_message_is_not_seen(connection: kombu.Connection, tmp_path: Path) -> None:
    channel = connection.default_channel
    folder = tmp_path / "broker" / "queues" / "monitoring"
    folder.mkdir(parents=True)
    (folder / ".0001-writing").write_text('{"body": "ha')
    with pytest.raises(Empty):
        channel._get("monitoring")
    assert channel._size("monitoring") == 0


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a\0b"])
def test_a_queue_name_is_never_a_path(connection: kombu.Connection, name: str) -> None:
    with pytest.raises(ValueError, match="not a queue name"):
        connection.default_channel._put(name, {})


def test_messages_of_an_earlier_life_are_dropped(connection: kombu.Connection, tmp_path: Path) -> None:
    with connection.SimpleQueue("monitoring") as queue:
        queue.put("tick")
    broker.prepare(tmp_path)
    assert connection.default_channel._size("monitoring") == 0
    (tmp_path / "broker" / "taken" / "left").write_text("x")
    assert broker.drop_messages(tmp_path, older_than_seconds=600) == 0
    assert broker.drop_messages(tmp_path, older_than_seconds=0) == 1


def _take(home: str, box: "multiprocessing.Queue[list[int]]") -> None:
    options = broker.transport_options(Path(home))
    channel = kombu.Connection("filesystem://localhost", transport_options=options).default_channel
    got = []
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            got.append(channel._get("monitoring")["number"])
        except Empty:
            if got and got[-1] >= 0 and (Path(home) / "done").exists():
                break
            time.sleep(0.001)
    box.put(got)


def test_each_message_has_one_taker(connection: kombu.Connection, tmp_path: Path) -> None:
    """Two consumers and a producer at once: nothing twice, nothing lost, nothing cut."""
    context = multiprocessing.get_context("spawn")
    box: multiprocessing.Queue[list[int]] = context.Queue()
    takers = [context.Process(target=_take, args=(str(tmp_path), box)) for _ in range(2)]
    for taker in takers:
        taker.start()
    channel = connection.default_channel
    channel._new_queue("monitoring")
    for number in range(400):
        channel._put("monitoring", {"number": number, "padding": "x" * 5000})
    deadline = time.monotonic() + 30
    while channel._size("monitoring"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "done").touch()
    got = [number for _ in takers for number in box.get(timeout=120)]
    for taker in takers:
        taker.join()
    assert sorted(got) == list(range(400))
    assert json.dumps(list((tmp_path / "broker" / "taken").iterdir())) == "[]"
