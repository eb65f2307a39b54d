"""S3 on a real server: what it promises, and what becomes of a backup when the network or the storage fails in the middle."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backups.storage import s3_writer
from backups.storage.base import Storage, StorageError
from backups.storage.s3 import S3Settings, S3Storage
from backups.storage.s3_client import client_of
from novastack.common import outbound
from novastack.common.clock import now
from tests.backups import s3_server
from tests.backups.s3_server import ACCESS, SECRET, Proxy, error
from tests.backups.storage_contract import StorageContract, get, put


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.versitygw(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture(autouse=True)
def _allow_loopback(settings: Any) -> None:
    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]


def settings_of(port: int, **changes: Any) -> S3Settings:
    given = {"endpoint": f"http://127.0.0.1:{port}", "bucket": "backups", "access_key": ACCESS, "secret_key": SECRET}
    return S3Settings(**(given | changes))


@pytest.fixture
def bucket(server: int, request: pytest.FixtureRequest) -> str:
    name = f"b-{abs(hash(request.node.name)) % 10**8}-{time.monotonic_ns() % 10**8}"
    client_of(settings_of(server)).create_bucket(Bucket=name)
    return name


@pytest.fixture
def storage(server: int, bucket: str) -> Storage:
    return S3Storage(settings_of(server, bucket=bucket, prefix="nova/stack"))


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.stop()


@pytest.fixture
def faulty(proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """The same bucket through the proxy. Waits between attempts are cut short."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0, raising=False)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.05)
    return S3Storage(settings_of(proxy.start(), bucket=bucket), read_seconds=2)


class TestS3(StorageContract):
    pass


class TestS3WithoutPrefix(StorageContract):
    @pytest.fixture
    def storage(self, server: int, bucket: str) -> Storage:
        return S3Storage(settings_of(server, bucket=bucket))


def test_two_prefixes_of_a_bucket_are_two_places(server: int, bucket: str, storage: Storage) -> None:
    other = S3Storage(settings_of(server, bucket=bucket, prefix="nova/stack-2"))
    put(storage, "a", b"1")
    put(other, "a", b"2")
    assert (get(storage, "a"), get(other, "a")) == (b"1", b"2")
    assert [stored.key for stored in storage.objects("")] == ["a"]
    other.writer("x").write(b"x" * 9_000_000)
    assert storage.sweep("", before=now() + timedelta(minutes=1)) == 0
    assert other.sweep("", before=now() + timedelta(minutes=1)) == 1


# --- what fails ----------------------------------------------------------------------------------------------------
BIG = random.Random(3).randbytes(30_000_000)


def sent(storage: Storage, key: str = "a/b", content: bytes = BIG) -> None:
    writer = storage.writer(key)
    try:
        for start in range(0, len(content), 4_000_000):
            writer.write(content[start : start + 4_000_000])
        writer.commit()
    except StorageError:
        writer.abort()
        raise


def is_clean(storage: Storage) -> bool:
    """Neither an object nor parts of one."""
    return not list(storage.objects("")) and storage.sweep("", before=now() + timedelta(minutes=1)) == 0


@pytest.mark.parametrize(
    ("method", "has", "fault"),
    [
        ("PUT", "partNumber=2", error(500, "InternalError")), ("PUT", "partNumber=2", error(503, "SlowDown")),
        ("PUT", "partNumber=2", s3_server.reset), ("PUT", "partNumber=3", s3_server.lost_answer),
        ("PUT", "partNumber=2", s3_server.slow(4)), ("POST", "uploads", s3_server.reset),
        ("POST", "uploadId", error(500, "InternalError")), ("POST", "uploadId", s3_server.reset),
        ("POST", "uploadId", s3_server.lost_answer), ("HEAD", "", s3_server.reset),
    ],
)  # fmt: skip
def test_what_passes_is_waited_out(
    faulty: S3Storage, storage: Storage, proxy: Proxy, method: str, has: str, fault: Any
) -> None:
    proxy.fail(method, has, fault, times=2 if fault is not s3_server.lost_answer else 1)
    sent(faulty)
    assert get(faulty, "a/b") == BIG
    assert proxy.rules[0].seen > 1


def test_a_commit_whose_answers_all_get_lost_is_settled_by_the_object_itself(faulty: S3Storage, proxy: Proxy) -> None:
    proxy.fail("POST", "uploadId", s3_server.lost_answer)
    sent(faulty)
    assert get(faulty, "a/b") == BIG
    small = Proxy(proxy.upstream)
    proxy.fail("PUT", "/small", s3_server.lost_answer)
    sent(faulty, "small", b"one request")
    assert get(faulty, "small") == b"one request"
    small.requests.clear()


def test_an_object_that_is_seen_a_little_later_is_there(
    faulty: S3Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_writer, "_NOT_YET", (0.01,) * 4)
    proxy.fail("HEAD", "/a/b", error(404, "NotFound"), times=3)
    sent(faulty, content=b"small")
    assert get(faulty, "a/b") == b"small"
    assert sum(request.startswith("HEAD") for request in proxy.requests) == 4
    proxy.fail("HEAD", "/a/c", error(404, "NotFound"))
    with pytest.raises(StorageError):
        sent(faulty, "a/c", b"never seen")


def test_in_doubt_another_object_of_that_name_is_not_taken_for_ours(faulty: S3Storage, proxy: Proxy) -> None:
    sent(faulty, content=BIG)
    proxy.fail("POST", "uploadId", error(500, "InternalError"))
    with pytest.raises(StorageError) as failed:
        sent(faulty, content=bytes(len(BIG)))
    assert failed.value.code == "storage_failed"
    assert get(faulty, "a/b") == BIG


@pytest.mark.parametrize(
    ("method", "has", "fault", "code"),
    [
        ("PUT", "partNumber=3", error(500, "InternalError"), "storage_failed"),
        ("PUT", "partNumber=3", error(503, "SlowDown"), "storage_unreachable"),
        ("PUT", "partNumber=3", s3_server.reset, "storage_unreachable"),
        ("PUT", "partNumber=3", s3_server.slow(5), "storage_unreachable"),
        ("PUT", "partNumber=3", error(507, "XMinioStorageFull"), "storage_full"),
        ("PUT", "partNumber=3", error(403, "AccessDenied"), "storage_refused"),
        ("PUT", "partNumber=3", s3_server.flipped, "storage_failed"),
        ("POST", "uploadId", error(500, "InternalError"), "storage_failed"),
        ("POST", "uploads", error(403, "AccessDenied"), "storage_refused"),
        ("POST", "uploads", error(404, "NoSuchBucket"), "storage_missing"),
    ],
)  # fmt: skip
def test_what_stays_is_told_and_leaves_nothing(
    faulty: S3Storage,
    storage: Storage,
    proxy: Proxy,
    method: str,
    has: str,
    fault: Any,
    code: str,
    bucket: str,
    server: int,
) -> None:
    before = set(threading.enumerate())  # another test's, whose server never answers, may be there for a while
    proxy.fail(method, has, fault)
    with pytest.raises(StorageError) as failed:
        sent(faulty)
    assert failed.value.code == code
    assert SECRET not in failed.value.detail
    proxy.rules.clear()
    assert is_clean(S3Storage(settings_of(server, bucket=bucket)))
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("s3-part")]


def test_an_abort_that_fails_is_swept_later(faulty: S3Storage, proxy: Proxy) -> None:
    proxy.fail("PUT", "partNumber=3", error(500, "InternalError"))
    proxy.fail("DELETE", "uploadId", error(500, "InternalError"))
    with pytest.raises(StorageError):
        sent(faulty)
    proxy.rules.clear()
    assert faulty.sweep("a/", before=now() - timedelta(days=1)) == 0
    assert faulty.sweep("a/", before=now() + timedelta(minutes=1)) == 1


def test_a_read_that_breaks_goes_on_where_it_broke(faulty: S3Storage, proxy: Proxy) -> None:
    sent(faulty)
    proxy.fail("GET", "/a/b", s3_server.half_answer, times=3)
    assert get(faulty, "a/b") == BIG
    assert sum(request.startswith("GET") for request in proxy.requests) == 4
    assert get(faulty, "a/b", offset=5_000_000, length=20_000_000) == BIG[5_000_000:25_000_000]


def test_a_read_that_breaks_for_good_is_an_error_and_no_end(faulty: S3Storage, proxy: Proxy) -> None:
    sent(faulty)
    proxy.fail("GET", "/a/b", s3_server.half_answer, times=1)
    proxy.fail("GET", "/a/b", s3_server.reset)
    with pytest.raises(StorageError) as failed:
        get(faulty, "a/b")
    assert failed.value.code == "storage_unreachable"


def test_an_object_that_is_replaced_while_it_is_read_is_never_a_mixture(
    faulty: S3Storage, storage: Storage, proxy: Proxy, server: int, bucket: str
) -> None:
    sent(faulty)
    proxy.fail("GET", "/a/b", s3_server.half_answer, times=1)
    with faulty.open("a/b") as source:
        assert source.read(1_000_000) == BIG[:1_000_000]
        sent(S3Storage(settings_of(server, bucket=bucket)), content=bytes(len(BIG)))
        with pytest.raises(StorageError, match="replaced"):
            source.read()


def test_a_storage_that_refuses_deletes_is_told_and_fails_the_test(faulty: S3Storage, proxy: Proxy) -> None:
    sent(faulty, "a", b"x")
    proxy.fail("DELETE", "", error(403, "AccessDenied"))
    with pytest.raises(StorageError) as failed:
        faulty.delete("a")
    assert failed.value.code == "storage_refused"
    checks = faulty.check()
    assert (checks[-1].name, checks[-1].passed) == ("abort", False) or (checks[-1].name, checks[-1].passed) == (
        "delete",
        False,
    )


def test_absent_is_only_what_is_absent_for_certain(faulty: S3Storage, proxy: Proxy, server: int) -> None:
    proxy.fail("HEAD", "/none", error(403, "AccessDenied"))
    with pytest.raises(StorageError) as failed:
        faulty.head("none")
    assert failed.value.code == "storage_refused"
    gone = S3Storage(settings_of(server, bucket="there-is-none"))
    for act in (
        lambda: gone.head("a"),
        lambda: gone.delete("a"),
        lambda: list(gone.objects("")),
        lambda: get(gone, "a"),
    ):
        with pytest.raises(StorageError) as failed:
            act()
        assert failed.value.code == "storage_missing"
    assert [(check.name, check.passed) for check in gone.check()] == [("reach", False)]


@pytest.mark.parametrize(
    "changes", [{"secret_key": "another-key"}, {"access_key": "NOBODY"}], ids=["secret key", "access key"]
)
def test_wrong_keys_are_told_without_them(server: int, bucket: str, changes: dict[str, str]) -> None:
    checks = S3Storage(settings_of(server, bucket=bucket, **changes), attempts=1).check()
    assert not checks[-1].passed
    with pytest.raises(StorageError) as failed:
        put(S3Storage(settings_of(server, bucket=bucket, **changes)), "a", b"x")
    assert failed.value.code == "storage_refused"
    assert not failed.value.retryable
    assert not any(value in failed.value.detail for value in changes.values())
    assert not any(value in repr(settings_of(server, **changes)) for value in changes.values())


def test_a_storage_that_is_not_there_is_given_up_soon() -> None:
    asked = 0
    with socket.create_server(("127.0.0.1", 0)) as nobody:

        def hang_up() -> None:
            nonlocal asked
            with contextlib.suppress(OSError):
                while True:
                    nobody.accept()[0].close()
                    asked += 1

        threading.Thread(target=hang_up, daemon=True).start()
        checks = S3Storage(settings_of(nobody.getsockname()[1]), attempts=1, read_seconds=1).check()
        nobody.shutdown(socket.SHUT_RDWR)
    assert asked == 1, "one attempt, and nothing more of the check after it"
    assert [(check.name, check.passed) for check in checks] == [("reach", False)]
    assert "reached" in checks[0].detail


# --- versions and locks --------------------------------------------------------------------------------------------
def test_in_a_bucket_with_versions_the_bytes_go_as_well(server: int, bucket: str) -> None:
    client = client_of(settings_of(server))
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    storage = S3Storage(settings_of(server, bucket=bucket))
    put(storage, "a/b", b"one")
    put(storage, "a/b", b"two")
    storage.delete("a/b")
    assert storage.head("a/b") is None
    assert not client.list_object_versions(Bucket=bucket).get("Versions")


def test_a_locked_object_is_told_as_locked(server: int, request: pytest.FixtureRequest) -> None:
    bucket = f"locked-{time.monotonic_ns() % 10**9}"
    client = client_of(settings_of(server))
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    storage = S3Storage(settings_of(server, bucket=bucket))
    assert storage.object_lock()
    client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 2}},
        },
    )  # fmt: skip
    put(storage, "a", b"kept")
    with pytest.raises(StorageError) as failed:
        storage.delete("a")
    assert failed.value.code == "object_locked"
    assert "object lock" in failed.value.detail
    assert get(storage, "a") == b"kept"
    checks = storage.check()
    assert all(check.passed for check in checks), checks
    assert checks[-1].name == "object_lock"


# --- where it may connect to ---------------------------------------------------------------------------------------
def test_private_addresses_are_refused_unless_the_operator_allows_them(server: int, bucket: str, settings: Any) -> None:
    storage = S3Storage(settings_of(server, bucket=bucket))
    put(storage, "a", b"x")
    settings.NOVASTACK_OUTBOUND_ALLOW = []
    for name in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        refused = S3Storage(settings_of(server, bucket=bucket, endpoint=f"http://{name}:{server}"))
        with pytest.raises(StorageError) as failed:
            refused.head("a")
        assert failed.value.code == "storage_refused"
        assert "NOVASTACK_OUTBOUND_ALLOW" in failed.value.detail


def test_a_name_that_changes_its_meaning_leads_nowhere_else(
    server: int, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is connected to: the name is not asked again in between."""
    asked: list[str] = []
    real = outbound.resolve

    def once(host: str, port: int) -> tuple[str, int]:
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "192.0.2.1", port)

    put(S3Storage(settings_of(server, bucket=bucket)), "a", b"x")
    monkeypatch.setattr(outbound, "resolve", once)
    there = settings_of(server, bucket=bucket, endpoint=f"http://s3.example.test:{server}")
    assert S3Storage(there, attempts=1).head("a") is not None
    assert asked == ["s3.example.test"]
    with pytest.raises(StorageError) as failed:
        S3Storage(there, attempts=1).head("a")
    assert failed.value.code == "storage_refused"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"endpoint": "ftp://s3.example.com"}, "endpoint"), ({"endpoint": "http://user:pw@s3.example.com"}, "endpoint"),
        ({"endpoint": "https://s3.example.com/path"}, "endpoint"), ({"endpoint": "https://"}, "endpoint"),
        ({"bucket": "arn:aws:s3:eu:1:accesspoint/x"}, "bucket"), ({"bucket": "a/b"}, "bucket"), ({"bucket": ""}, "bucket"),
        ({"region": "x.evil.example/"}, "region"), ({"prefix": "../x"}, "no key"), ({"access_key": ""}, "access key"),
        ({"secret_key": "a\nb"}, "access key"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_used_are_named(changes: dict[str, str], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        settings_of(1, **changes)


def test_nothing_is_taken_from_the_machines_own_settings(
    server: int, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    put(S3Storage(settings_of(server, bucket=bucket), attempts=1), "a", b"x")


# --- sizes ---------------------------------------------------------------------------------------------------------
def test_parts_grow_within_the_limits() -> None:
    total = number = 0
    while True:
        try:
            size, sent_at_a_time = s3_writer.part_of(number + 1)
        except StorageError as error:
            assert error.code == "storage_full"
            break
        number += 1
        total += size
        assert size * (sent_at_a_time + 1) <= 48_000_000
        assert size >= 5 << 20
    assert number == 10_000
    assert total == s3_writer.MOST_BYTES > 240 << 30


MEASURE = """
import os, resource, sys
os.environ["NOVASTACK_OUTBOUND_ALLOW"] = "127.0.0.0/8"
import django; django.setup()
from backups.storage.s3 import S3Settings, S3Storage
storage = S3Storage(S3Settings(endpoint=sys.argv[1], bucket=sys.argv[2], access_key=sys.argv[3], secret_key=sys.argv[4]))
storage.head("none")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
base = peak()
piece = os.urandom(1 << 20)
writer = storage.writer("a")
for _ in range(int(sys.argv[5])): writer.write(piece)
writer.commit()
with storage.open("a") as source:
    while source.read(1 << 20): pass
print(peak() - base)
"""


def test_memory_does_not_grow_with_the_size(server: int, bucket: str) -> None:
    grown = []
    for mib in (40, 300):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, f"http://127.0.0.1:{server}", bucket, ACCESS, SECRET, str(mib)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        grown.append(int(done.stdout))
    assert grown[1] < 40_000, grown
    assert grown[1] - grown[0] < 12_000, grown
