"""Archives of pg_dump read as the script that they stand for: tar, and what is compressed within. Real ones are in
test_postgresql; these are lies, and cut-off ones."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import lz4.frame
import pytest
import zstandard

from projects.engines.foreign import ForeignRefused, Left
from projects.engines.postgresql_archive import Head
from projects.engines.postgresql_foreign import recognise, script_of
from projects.engines.postgresql_unpackers import GZIP, LZ4, ZSTD, unpacked
from tests.uploads.test_scripts import number

ROWS = b"1\n2\n\\.\n\n\n"


def text(value: bytes | None) -> bytes:
    return b"\x01\x01\0\0\0" if value is None else number(len(value)) + value


def entry(
    number_: int,
    kind: bytes,
    name: bytes,
    *,
    definition: bytes = b"",
    copy: bytes = b"",
    tar: bool = True,
    needs: bytes | None = None,
) -> bytes:
    data = bool(copy) or kind == b"BLOBS"
    section = 3 if data else 2
    head = [number(number_), number(int(data)), text(b"0"), text(b"0"), text(name), text(kind), number(section)]
    rest = [text(definition), text(b""), text(copy), text(b"public"), text(b""), text(b""), text(b"me"), text(b"false")]
    needed = b"" if needs is None else text(needs)
    return b"".join([*head, *rest, needed, text(None), text(b"%d.dat" % number_ if data else b"") if tar else bytes(9)])


def contents(
    *, tar: bool = True, compression: int = 0, server: bytes = b"15.1", blobs: bool = False, more: bytes = b""
) -> bytes:
    entries = [
        entry(1, b"TABLE", b"t", definition=b"CREATE TABLE public.t (a int);\n", tar=tar),
        entry(2, b"TABLE DATA", b"t", copy=b"COPY public.t (a) FROM stdin;\n", tar=tar),
    ]
    if blobs:
        entries += [
            entry(3, b"BLOB", b"7", definition=b"SELECT pg_catalog.lo_create('7');\n", tar=tar),
            entry(4, b"BLOBS", b"BLOBS", tar=tar),
        ]
    begin = b"PGDMP\x01\x0f\x00\x04\x08" + bytes([3 if tar else 1, compression]) + number(0) * 7
    return begin + text(b"shop") + text(server) * 2 + number(len(entries) + bool(more)) + b"".join(entries) + more


Members = list[tuple[str, bytes]]
WHOLE: Members = [("toc.dat", contents()), ("2.dat", ROWS), ("restore.sql", b"\\! touch /tmp/x\n")]


def tar(members: Members, kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size, about.type = len(data), kind if name != "toc.dat" else tarfile.REGTYPE
            archive.addfile(about, io.BytesIO(data))
    return file.getvalue()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def refused(data: bytes, kind: str = "tar") -> str:
    with pytest.raises(ForeignRefused) as why:
        b"".join(script_of(pieces(data, 700), kind, Left()))
    return why.value.code


@pytest.mark.parametrize("size", [1, 511, 512, 1 << 20])
def test_a_tar_archive_is_its_tables_and_large_objects(size: int) -> None:
    data = tar(
        [
            ("toc.dat", contents(blobs=True)),
            ("2.dat", ROWS),
            ("blob_7.dat", b"large" * 9),
            ("blobs.toc", b"7 blob_7.dat\n"),
        ]
    )
    assert recognise(data[:4096], "18") == "tar"
    script = b"".join(script_of(pieces(data, size), "tar", Left()))
    assert b"CREATE TABLE public.t (a int);" in script and b"COPY public.t (a) FROM stdin;\n1\n2\n\\.\n" in script
    assert b"lo_create('7')" in script and b"lo_open('7', 131072)" in script and (b"large" * 9).hex().encode() in script


@pytest.mark.parametrize(
    ("came", "told", "code"),
    [
        ((), b"7 blob_7.dat\n", "upload_truncated"),
        ((7,), b"7 blob_7.dat\n8 blob_8.dat\n", "upload_truncated"),
        ((7,), None, "upload_truncated"),
        ((), None, "upload_truncated"),
        ((8,), b"7 blob_7.dat\n", "upload_damaged"),
        ((7, 8), b"7 blob_7.dat\n", "upload_damaged"),
        ((7,), b"7 blob_8.dat\n", "upload_damaged"),
        ((7,), b"7 blob_7.dat", "upload_damaged"),
        ((7,), b"7" * 5000, "upload_damaged"),
    ],
)
def test_a_large_object_that_is_missing_is_told(came: tuple[int, ...], told: bytes | None, code: str) -> None:
    members = [("toc.dat", contents(blobs=True)), ("2.dat", ROWS), *((f"blob_{oid}.dat", b"x") for oid in came)]
    assert refused(tar(members if told is None else [*members, ("blobs.toc", told)])) == code


def test_what_pg_dump_adds_for_people_is_passed_over() -> None:
    assert b"touch" not in b"".join(script_of([tar(WHOLE)], "tar", Left()))


def test_a_cut_off_one_is_told() -> None:
    data = tar(WHOLE)
    end = data.rindex(b"touch") // 512 * 512 + 512
    for at in (0, 100, 512, 600, 1024, 1536, 1600, 2048, end - 512, end):
        assert refused(data[:at]) == "upload_truncated", at
    assert refused(tar(WHOLE[:1])) == "upload_truncated"  # ended well, and a table's data is not there


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([*WHOLE, ("3.dat", ROWS)], "upload_damaged"),
        ([*WHOLE, ("2.dat", ROWS)], "upload_damaged"),
        ([*WHOLE, ("blob_7.dat", ROWS)], "upload_damaged"),
        ([*WHOLE, ("../../etc/passwd", b"x")], "upload_damaged"),
        ([WHOLE[1], WHOLE[0]], "upload_damaged"),
        ([WHOLE[0], ("2.dat.gz", ROWS)], "upload_directory_format"),
        ([("toc.dat", contents(compression=1)), ("2.dat.gz", ROWS)], "upload_directory_format"),
        ([("toc.dat", b"")], "upload_truncated"),
        ([("toc.dat", contents() + b"x"), *WHOLE[1:]], "upload_damaged"),
    ],
)  # fmt: skip
def test_a_lying_one_is_told(members: Members, code: str) -> None:
    assert refused(tar(members)) == code


def test_a_tar_archive_s_own_lies() -> None:
    data = bytearray(tar(WHOLE))
    assert refused(bytes(data) + b"x") == "upload_damaged"
    b"".join(script_of([bytes(data) + bytes(100_000)], "tar", Left()))  # tapes end so
    assert refused(tar(WHOLE, kind=tarfile.SYMTYPE)) == "upload_damaged"
    header = tar(WHOLE).rindex(b"2.dat")
    data[header] ^= 1
    assert refused(bytes(data)) == "upload_damaged"
    huge = bytearray(tar(WHOLE))
    huge[header + 124 : header + 136] = b"\x80" + b"\xff" * 11
    huge[header + 148 : header + 156] = b" " * 8
    huge[header + 148 : header + 156] = b"%06o\0 " % sum(huge[header : header + 512])
    assert refused(bytes(huge)) == "upload_meta_command"  # what follows would be data, and is none


def test_pg_dump_that_appends_its_table_of_contents_once_more() -> None:
    """`pg_dump --format=custom > FILE` since 16."""
    whole = custom(0, ROWS)
    table = whole[len(b"PGDMP") + 6 + 1 + 7 * 5 + 9 + 2 * 9 : whole.index(b"\x01" + number(2) + number(5))]
    assert table.startswith(number(2))
    for size in (1, 700):
        script = b"".join(script_of(pieces(whole + table, size), "custom", Left()))
        assert script == b"".join(script_of([whole], "custom", Left()))
    assert refused(whole + table + b"x", "custom") == refused(whole + b"\0" * 5, "custom") == "upload_damaged"
    assert refused(whole + table.replace(b"public", b"hidden"), "custom") == "upload_damaged"
    assert refused(whole + table[:-1], "custom") == "upload_truncated"


@pytest.mark.parametrize("what", ["needs", "oid"])
@pytest.mark.parametrize("wrong", [b"9" * 5000, b"-1", b"x", "²".encode(), b""])
def test_a_number_that_is_none_is_told(what: str, wrong: bytes) -> None:
    if what == "needs":
        lie = entry(5, b"TABLE", b"x", definition=b"SELECT 1;\n", needs=wrong, tar=False)
    else:
        lie = entry(5, b"BLOB METADATA", b"x", definition=b"7\n" + (wrong or b"\0"), tar=False)
    assert refused(contents(tar=False, more=lie), "custom") == "upload_damaged"


def test_what_a_refusal_quotes_can_be_stored() -> None:
    data = contents(tar=False, more=entry(5, b"TABLE DATA", b"a\0\xff", copy=b"COPY x FROM stdin;\n", tar=False))
    with pytest.raises(ForeignRefused) as why:
        b"".join(script_of([data + b"\x01" + number(2) + number(0)], "custom", Left()))
    assert why.value.code == "upload_truncated" and "public.a??" in why.value.detail
    assert recognise(contents(tar=False, server="²".encode()), "18") == "custom"


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([("dir/toc.dat", contents())], "upload_directory_format"),
        ([("3.dat.gz", b"x"), ("toc.dat", contents())], "upload_directory_format"),
        ([("3.dat.lz4", b"x")], "upload_directory_format"),
        ([("shop.sql", b"SELECT 1;")], "upload_tar_format"),
        ([("toc.dat", contents(server=b"99.1"))], "upload_newer_version"),
        ([("toc.dat", b"no archive" + bytes(600))], "upload_newer_version"),
    ],
)  # fmt: skip
def test_what_it_is_is_told_at_once(members: Members, code: str) -> None:
    with pytest.raises(ForeignRefused) as why:
        recognise(tar(members)[:4096], "18")
    assert why.value.code == code and why.value.detail.endswith(".")


# --- compressed within --------------------------------------------------------------------------------------------------
PACK: dict[int, Callable[[bytes], bytes]] = {GZIP: zlib.compress, LZ4: lz4.frame.compress, ZSTD: zstandard.compress}


def custom(compression: int, packed: bytes) -> bytes:
    chunks = b"".join(number(len(piece)) + piece for piece in pieces(packed, 5 if len(packed) < 999 else 9999))
    return contents(tar=False, compression=compression) + b"\x01" + number(2) + chunks + number(0)


@pytest.mark.parametrize("compression", PACK)
def test_what_is_compressed_within(compression: int) -> None:
    packed = PACK[compression](ROWS)
    data = custom(compression, packed)
    assert recognise(data, "18") == "custom"
    assert b"COPY public.t (a) FROM stdin;\n1\n2\n\\.\n" in b"".join(script_of(pieces(data, 3), "custom", Left()))
    for wrong in (packed[:-1], packed[:-6], packed + packed, packed + b"x", b"\0" + packed, bytes(30)):
        assert refused(custom(compression, wrong), "custom") == "upload_damaged", wrong
    unknown = custom(9, packed)
    with pytest.raises(ForeignRefused) as why:
        recognise(unknown, "18")
    assert why.value.code == "upload_compression" and "--compress" in why.value.detail


@pytest.mark.parametrize("compression", PACK)
def test_nothing_is_kept_that_comes_after_its_end(compression: int) -> None:
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield PACK[compression](ROWS)

    with pytest.raises(ForeignRefused) as why:
        b"".join(unpacked(compression, chunks()))
    assert (why.value.code, taken) == ("upload_damaged", 2)


def test_what_stands_behind_a_compressed_dump_s_head_is_not_unpacked() -> None:
    packed, head = zstandard.compress(contents(tar=False) + bytes(200 << 20)), Head()
    tracemalloc.start()
    try:
        head.feed(packed)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert [entry.name for entry in head.entries or ()] == ["t", "t"]


@pytest.mark.parametrize("compression", PACK)
def test_little_that_stands_for_much_comes_in_bounded_pieces(compression: int) -> None:
    packed = PACK[compression](bytes(200 << 20))
    sizes = [len(piece) for piece in unpacked(compression, iter([packed]))]
    assert sum(sizes) == 200 << 20 and max(sizes) <= 17 << 20
