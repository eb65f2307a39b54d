"""What every storage promises. Subclass it and give a fixture `storage`."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from backups.storage.base import Storage, StorageError
from novastack.common.clock import now


def put(storage: Storage, key: str, content: bytes, *, step: int = 1 << 20) -> None:
    writer = storage.writer(key)
    for start in range(0, len(content), step):
        assert writer.write(content[start : start + step]) == len(content[start : start + step])
    writer.commit()


def get(storage: Storage, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    with storage.open(key, offset=offset, length=length) as source:
        return source.read()


class StorageContract:
    @pytest.mark.parametrize("size", [0, 1, 70_000, 20_000_001])
    def test_what_was_committed_is_read_again(self, storage: Storage, size: int) -> None:
        content = random.Random(size).randbytes(size)
        put(storage, "a/b-1/c.d_e", content)
        assert get(storage, "a/b-1/c.d_e") == content
        found = storage.head("a/b-1/c.d_e")
        assert found is not None
        assert (found.key, found.size_bytes) == ("a/b-1/c.d_e", size)
        assert abs(now() - found.modified_at) < timedelta(minutes=5)

    def test_nothing_has_the_name_until_it_is_committed(self, storage: Storage) -> None:
        put(storage, "a/b", b"before")
        begun: list[str] = []
        writer = storage.writer("a/b", upload_begun=begun.append)
        writer.write(b"after" * 3_000_000)
        assert len(begun) == 1
        assert get(storage, "a/b") == b"before"
        assert [stored.key for stored in storage.objects("")] == ["a/b"]
        writer.commit()
        assert get(storage, "a/b") == b"after" * 3_000_000

    def test_what_is_given_up_leaves_nothing(self, storage: Storage) -> None:
        writer = storage.writer("a/b")
        writer.write(b"x" * 9_000_000)
        writer.abort()
        writer.abort()
        assert storage.head("a/b") is None
        assert not list(storage.objects(""))
        assert storage.sweep("", before=now() + timedelta(days=1)) == 0

    def test_what_a_crash_left_is_thrown_away_by_its_id(self, storage: Storage) -> None:
        begun: list[str] = []
        writer = storage.writer("a/b", upload_begun=begun.append)
        writer.write(b"x" * 9_000_000)
        storage.abort_upload("a/b", begun[0])
        storage.abort_upload("a/b", begun[0])
        assert storage.sweep("", before=now() + timedelta(days=1)) == 0
        with pytest.raises(StorageError):
            writer.commit()
        assert storage.head("a/b") is None

    def test_old_unfinished_ones_are_swept_and_only_those(self, storage: Storage) -> None:
        put(storage, "mine/done", b"1")
        begun = []
        for key in ("mine/one", "mine/deep/two", "other/three"):
            storage.writer(key, upload_begun=begun.append).write(b"x" * 9_000_000)
        assert storage.sweep("mine/", before=now() - timedelta(days=1)) == 0
        assert storage.sweep("mine/", before=now() + timedelta(minutes=1)) == 2
        assert storage.sweep("", before=now() + timedelta(minutes=1)) == 1
        assert [stored.key for stored in storage.objects("")] == ["mine/done"]

    def test_parts_are_read(self, storage: Storage) -> None:
        content = bytes(range(256)) * 4000
        put(storage, "a", content)
        for offset, length in ((0, 10), (5, None), (700_000, 1000), (1_023_990, 500), (0, 0)):
            expected = content[offset:] if length is None else content[offset : offset + length]
            assert get(storage, "a", offset=offset, length=length) == expected

    def test_absent_ones_are_absent_for_certain(self, storage: Storage) -> None:
        put(storage, "a/here", b"")
        for key in ("a/none", "none/none", "none"):
            assert storage.head(key) is None
            storage.delete(key)
            with pytest.raises(StorageError) as failed:
                get(storage, key)
            assert failed.value.code == "object_missing"

    def test_what_is_deleted_is_gone_and_its_neighbours_stay(self, storage: Storage) -> None:
        for key in ("a/b/1", "a/b/1.manifest", "a/c/1"):
            put(storage, key, b"x")
        storage.delete("a/b/1")
        storage.delete("a/b/1")
        assert [stored.key for stored in storage.objects("")] == ["a/b/1.manifest", "a/c/1"]
        storage.delete("a/b/1.manifest")
        assert [stored.key for stored in storage.objects("")] == ["a/c/1"]
        put(storage, "a/b/2", b"again")
        assert get(storage, "a/b/2") == b"again"

    def test_lists_are_in_the_order_of_keys_and_below_their_prefix(self, storage: Storage) -> None:
        keys = ["a-b/1", "a.b", "a/1", "a/2/3", "a/20", "ab", "b/1"]
        for key in reversed(keys):
            put(storage, key, key.encode())
        assert [stored.key for stored in storage.objects("")] == sorted(keys)
        assert [stored.key for stored in storage.objects("a/")] == ["a/1", "a/2/3", "a/20"]
        assert [stored.key for stored in storage.objects("a/2")] == ["a/2/3", "a/20"]
        assert [(s.key, s.size_bytes) for s in storage.objects("b/1")] == [("b/1", 3)]
        assert not list(storage.objects("zzz/none/"))

    @pytest.mark.parametrize(
        "key", ["", "/a", "a//b", "../a", "a/../b", ".a", "a/", "a b", "a\n", "ä", "x" * 256, "a/-b"]
    )
    def test_a_key_that_could_lead_elsewhere_is_refused(self, storage: Storage, key: str) -> None:
        for act in (storage.writer, storage.open, storage.head, storage.delete):
            with pytest.raises(StorageError):
                act(key)

    def test_it_passes_its_own_test_and_leaves_nothing(self, storage: Storage) -> None:
        checks = storage.check()
        assert all(check.passed for check in checks), checks
        assert [check.name for check in checks][:7] == ["reach", "write", "list", "read", "range", "abort", "delete"]
        assert not list(storage.objects(""))
        assert storage.sweep("", before=now() + timedelta(days=1)) == 0
