import base64
import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.archive.files import JSON_LINES
from mnerqg.archive.jsonlines import (
    LINE_ERROR,
    MAX_LINE_BYTES,
    PICTURE_ERRORS,
    Layout,
    Scan,
    make_layout,
    read_tables,
    row_hashes,
    scan,
)
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.io import storage

LAYOUT = Layout(
    (
        ("id", "post_id"),
        ("text", "text"),
        ("photos", "image_uris"),
        ("photo", "image_uri"),
        ("bytes", "image"),
        ("flag", "bool"),
        ("count", "int64"),
        ("share", "float64"),
        ("when", "timestamp[us]"),
        ("day", "date32"),
        ("tags", "list<string>"),
        ("extra", "string"),
    )
)

PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def tables(data: bytes, path: str = "b/x.jsonl", layout: Layout = LAYOUT, **limits: int) -> list[pa.Table]:
    return list(read_tables(io.BytesIO(data), path, layout, **limits))


def rows(data: bytes, path: str = "b/x.jsonl", layout: Layout = LAYOUT) -> list[dict[str, Any]]:
    """What is there of each row, without its hash."""
    found = pa.concat_tables(tables(data, path, layout)).drop_columns(["row_hash"]).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def scan_bytes(folder: Path, data: bytes, columns: ColumnsConfig, name: str = "x.jsonl") -> Scan:
    (folder / name).write_bytes(data)
    return scan(storage.FileEntry(str(folder / name), len(data)), columns)


def test_every_kind_of_value() -> None:
    post = {
        "id": 17,
        "text": "Ada 👩🏽‍🚀 in\u2028Lis\rbon\n",
        "photos": ["a.jpg", None, "b.jpg"],
        "photo": "c.jpg",
        "bytes": base64.b64encode(b"\xff\xd8").decode(),
        "flag": False,
        "count": -(2**63),
        "share": 3,
        "when": "2026-11-22T03:00:00.5+01:00",
        "day": "2026-11-22",
        "tags": ["a", None],
        "extra": {"é": [1, "x"]},
        "other": {"is": "ignored"},
    }
    (table,) = tables(json.dumps(post).encode())
    assert table.schema.equals(LAYOUT.schema, check_metadata=True)
    assert [str(kind) for kind in table.schema.types] == [
        "string",
        "large_string",
        "list<item: string>",
        "string",
        "large_binary",
        "bool",
        "int64",
        "double",
        "timestamp[us]",
        "date32[day]",
        "list<item: string>",
        "string",
        "uint64",
        "string",
        "list<item: string>",
    ]
    (row,) = rows(json.dumps(post, ensure_ascii=False).encode())
    del post["other"]
    assert row == post | {
        "id": "17",
        "bytes": b"\xff\xd8",
        "share": 3.0,
        "when": datetime(2026, 11, 22, 2, 0, 0, 500_000),
        "day": date(2026, 11, 22),
        "extra": '{"é": [1, "x"]}',
    }
    assert pickle.loads(pickle.dumps(LAYOUT)) == LAYOUT


BAD_LINES: list[tuple[bytes, dict[str, Any], str]] = [
    (b'{"id": "a", ', {}, "line 1 is not valid JSON: Expecting property name enclosed in double quotes at"),
    (b'{"id": "a"} {"id": "b"}', {}, "line 1 is not valid JSON: Extra data at character 13"),
    (b'{"id": "a\tb"}', {}, "line 1 is not valid JSON: Invalid control character"),
    (b"[" * 100_000, {}, "line 1 is not valid JSON that can be read: maximum recursion depth"),
    (b'{"count": ' + b"7" * 5000 + b"}", {}, "line 1 is not valid JSON that can be read: Exceeds the limit"),
    (b"\0\0\0\0", {}, "line 1 is not valid JSON"),
    (b'[{"id": "a"}]', {}, "line 1 is a list, not a JSON object"),
    (b"null", {}, "line 1 is null, not a JSON object"),
    (
        b'{"photos": "a\\udfff.jpg"}',
        {"photos": ["a\ufffd.jpg"]},
        "mended: line 1: photos has half a surrogate pair",
    ),
    (b"NaN", {}, "line 1 is a number with a fraction, not a JSON object"),
    (
        b'{"id": "a", "text": "caf\xe9"}',
        {"id": "a", "text": "caf\ufffd"},
        "mended: line 1 is not UTF-8 at byte 25",
    ),
    ('{"id": "a"}'.encode("utf-16"), {}, "line 1 is not UTF-8 at byte 1"),
    (
        b'{"id": "a\\ud83d", "text": "\\ude00\\ud83d \\ud83d\\ude00", "photos": ["\\udfff"]}',
        {"id": "a\ufffd", "text": "\ufffd\ufffd 😀", "photos": ["\ufffd"]},
        "mended: line 1: id has half a surrogate pair, now U+FFFD; "
        "mended: line 1: text has half a surrogate pair, now U+FFFD; "
        "mended: line 1: photos has half a surrogate pair",
    ),
    (
        b'{"id": 1.5, "text": "x"}',
        {"text": "x"},
        "line 1: id is a number with a fraction, not text or a whole",
    ),
    (
        b'{"id": true, "text": 5}',
        {},
        "line 1: id is true or false, not text or a whole number; line 1: text is a",
    ),
    (b'{"id": 1, "text": NaN}', {"id": "1"}, "line 1: text is a number with a fraction, not text"),
    (b'{"count": 9223372036854775808}', {}, "line 1: count is a whole number too large for int64"),
    (b'{"count": 1.5}', {}, "line 1: count is a number with a fraction, not a whole number (int64)"),
    (
        b'{"count": true, "flag": 0}',
        {},
        "line 1: flag is a whole number, not true or false (bool); line 1: count is",
    ),
    (b'{"count": "1"}', {}, "line 1: count is text, not a whole number (int64)"),
    (b'{"share": "1"}', {}, "line 1: share is text, not a number (float64)"),
    (b'{"share": 1' + b"0" * 400 + b"}", {}, "line 1: share is a whole number too large for float64"),
    (
        b'{"when": "tonight"}',
        {},
        "line 1: when is no time as ISO 8601 writes it, such as 2026-11-22T03:00:00Z",
    ),
    (b'{"when": "0001-01-01T00:00:00+10:00"}', {}, "line 1: when is no time as ISO 8601 writes it"),
    (b'{"when": 1763780400}', {}, "line 1: when is a whole number, not the text of a time (timestamp[us])"),
    (
        b'{"day": "2026-11-22T03:00:00Z"}',
        {},
        "line 1: day is no date as ISO 8601 writes it, such as 2026-11-22",
    ),
    (b'{"day": 20261122}', {}, "line 1: day is a whole number, not the text of a date (date32)"),
    (b'{"tags": ["a", 1]}', {}, "line 1: tags is a list with a whole number in it, not of texts"),
]


@pytest.mark.parametrize(("line", "usable", "words"), BAD_LINES, ids=lambda value: str(value)[:40])
def test_a_bad_line_is_a_row(line: bytes, usable: dict[str, Any], words: str) -> None:
    bad, good = rows(line + b'\n{"id": "next"}', "bucket/some/x.jsonl")
    assert good == {"id": "next"}
    error = bad.pop(LINE_ERROR)
    assert bad == usable
    assert error.startswith(words)
    assert error.endswith(" (bucket/some/x.jsonl)")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("line", "usable", "reasons"),
    [
        (b'{"photo": 5}', {}, ["photo is a whole number, not text"]),
        (b'{"photo": {"url": "a.jpg"}}', {}, ["photo is an object, not text"]),
        (b'{"photo": ["a.jpg"]}', {}, ["photo is a list, not text"]),
        (b'{"photo": false}', {}, ["photo is true or false, not text"]),
        (b'{"photos": 5}', {"photos": [None]}, ["photos is a whole number, not a list of texts"]),
        (
            b'{"photos": ["a", {}, null, 1.5]}',
            {"photos": ["a", None, None, None]},
            [
                None,
                "photos has an object in it, not text",
                None,
                "photos has a number with a fraction in it, not text",
            ],
        ),
        (b'{"bytes": "no picture at all"}', {}, ["bytes is not base64, but words"]),
        (b'{"bytes": "\xc3\xa9"}', {}, ["bytes is not base64: it has 'é' at digit 1"]),
        (b'{"bytes": [255, 216]}', {}, ["bytes is a list, not base64 text"]),
        (b'{"bytes": 7}', {}, ["bytes is a whole number, not base64 text"]),
        (b'{"bytes": {"url": "a.jpg"}}', {}, ["bytes is an object, not base64 text"]),
        (b'{"bytes": {"bytes": null, "path": "a.jpg"}}', {}, ["bytes is null, not base64 text"]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_given_as_a_picture_and_is_none(
    line: bytes, usable: dict[str, Any], reasons: list[str | None]
) -> None:
    """It is no error of the row but of the picture, which then has a status and counts as failed."""
    bad, good = rows(line + b'\n{"id": "next"}', "bucket/some/x.jsonl")
    assert good == {"id": "next"}
    assert bad.pop(PICTURE_ERRORS) == [
        reason and f"{reason}, on line 1 (bucket/some/x.jsonl)" for reason in reasons
    ]
    assert bad == usable


def test_pictures_as_they_are_given() -> None:
    encoded = base64.encodebytes(b"\xff\xd8\xff" * 50).decode()
    given = [
        {"bytes": encoded, "photos": "a.jpg"},
        {"bytes": {"bytes": f"data:image/jpeg;base64,{encoded}", "path": "a.jpg"}, "photos": []},
        {"bytes": " \n", "photo": ""},
        {"bytes": None, "photos": None, "photo": None},
    ]
    found = rows("\n".join(map(json.dumps, given)).encode())
    assert found == [
        {"bytes": b"\xff\xd8\xff" * 50, "photos": ["a.jpg"]},
        {"bytes": b"\xff\xd8\xff" * 50, "photos": []},
        {"photo": ""},
        {},
    ]


def test_what_is_no_error() -> None:
    fine = b'{"id": 1, "id": 2, "share": NaN, "extra": 1e999}\n{"share": -Infinity, "count": 3.0}\n{}\n'
    first, second, third = rows(fine)
    assert (first["id"], str(first["share"]), first["extra"]) == ("2", "nan", "1e999")
    assert (second, third) == ({"share": -np.inf, "count": 3}, {})


def test_lines_and_their_numbers() -> None:
    data = b'\xef\xbb\xbf{"id": 1}\r\n \t\r\n\n{"id": 2\r}\n\xef\xbb\xbf\n\xef\xbb\xbf{"id": 3}\n{"id":\n\n{"id": 5}'
    found = rows(data)
    assert [row.get("id") for row in found] == ["1", "2", "3", None, "5"]
    assert found[3][LINE_ERROR].startswith("line 7 is not valid JSON: Expecting value")
    assert rows(b"") == rows(b"\n \r\n") == []
    assert rows("\u2028{}".encode())[0][LINE_ERROR].startswith("line 1 is not valid JSON")


def test_lines_that_are_too_long(tmp_path: Path) -> None:
    head, tail = b'{"id": 1, "text": "', b'"}'
    longest = head + b"x" * (MAX_LINE_BYTES - len(head) - len(tail)) + tail
    data = zstd.compress(
        b"\n".join([longest, longest + b" ", b" " * (MAX_LINE_BYTES + 1), b'{"id": 2}', longest])
    )
    path = "x.jsonl.zst"
    found = rows(data, path)
    assert [row.get("id") for row in found] == ["1", None, None, "2", "1"]
    assert [row.get(LINE_ERROR) for row in found] == [
        None,
        f"line 2 is longer than 16 MiB ({path})",
        f"line 3 is longer than 16 MiB ({path})",
        None,
        None,
    ]
    assert scan_bytes(tmp_path, data, ColumnsConfig(), path).rows == 5


def test_tables_end_where_they_should() -> None:
    data = b"".join(b'{"id": %d}\n' % number for number in range(10)) + b'{"id": "%s"}' % (b"x" * 100)
    cut = tables(data, rows_per_table=4)
    assert [len(table) for table in cut] == [4, 4, 3]
    assert [len(table) for table in tables(data, bytes_per_table=50)] == [5, 5, 1]
    assert pa.concat_tables(cut)["row_hash"].to_pylist() == row_hashes("b/x.jsonl", 0, 11).tolist()
    (empty,) = tables(b"")
    assert (len(empty), empty.schema) == (0, LAYOUT.schema)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files(ending: str) -> None:
    pack, path = PACK[ending], f"x.jsonl{ending}"
    parts = [pack(b'{"id": 1}\n{"i'), pack(b""), pack(b'd": 2}\n')]
    assert [row["id"] for row in rows(b"".join(parts), path)] == ["1", "2"]
    assert rows(b"", path) == rows(pack(b""), path) == []
    if ending == ".gz":
        assert [row["id"] for row in rows(b"".join(parts) + b"\0" * 512, path)] == ["1", "2"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[: len(data) // 2],
        lambda data: data + data[:40],
        lambda data: data + b"garbage",
        lambda data: data[: len(data) // 2] + b"\xff" * 64 + data[len(data) // 2 + 64 :],
        lambda data: data.hex().encode(),
    ],
    ids=["end", "half", "appended in part", "appended", "inside", "not compressed"],
)
def test_damaged_files(ending: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    lines = b"".join(b'{"id": %d, "text": "%d"}\n' % (n, n**9 % 1_000_003) for n in range(8_000))
    data, path = damage(PACK[ending](lines)), f"x.jsonl{ending}"
    with pytest.raises(DataError, match=r"^x\.jsonl.* is damaged or cut short after line \d+ \(.*replace or"):
        tables(data, path)
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.jsonl.* is damaged") as caught:
        scan_bytes(tmp_path, data, ColumnsConfig(), path)
    assert "\n" not in str(caught.value)


def test_scan_finds_late_keys_without_parsing_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"post_id": n, "text": 'it says "image_uri"', "z": 0} for n in range(5000)]
    lines[4000]["image_uri"] = "a.jpg"
    lines[4001]["rare"] = 1
    lines[4002]["lang"] = "en"
    data = "\n".join(map(json.dumps, lines)).encode()
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    found = scan_bytes(tmp_path, data, ColumnsConfig(pass_through=("lang",)))
    keys = ("post_id", "text", "z", "image_uri", "lang")
    assert (found.rows, found.keys, found.problem) == (5000, keys, None)
    assert len(parsed) == 1002


@pytest.mark.parametrize("written", ["número/1", "n\\u00famero/1", "n\\u00FAmero\\/1", "número\\u002f1"])
def test_scan_finds_late_keys_however_they_are_written(tmp_path: Path, written: str) -> None:
    data = b'{"post_id": 1, "text": ""}\n' * 2000 + f'{{"{written}": 1}}'.encode()
    assert scan_bytes(tmp_path, data, ColumnsConfig(image="número/1")).keys[-1] == "número/1"


def test_scan_keeps_few_keys(tmp_path: Path) -> None:
    data = b"\n".join(b'{"k%d": 1}' % number for number in range(900)) + b'\n{"text": 1, "lang": 2}'
    found = scan_bytes(tmp_path, data, ColumnsConfig(pass_through=("lang",)))
    assert len(found.keys) == 102
    assert found.keys[-2:] == ("text", "lang")


@pytest.mark.parametrize(
    ("night", "out"),
    [
        (["null", "null"], [None, None]),
        (["17", "1.10"], ["17", "1.10"]),
        (['"17"', "true"], ["17", "true"]),
        (["1E5", "-0.0"], ["1E5", "-0.0"]),
        ([str(2**70), "NaN"], [str(2**70), "NaN"]),
        (['{"b" :[1,2.50],"é": null }', "[ ]"], ['{"b" :[1,2.50],"é": null }', "[ ]"]),
        ([r'["\u00e9\ud800"]', r'"\u00e9"'], [r'["\u00e9\ud800"]', "é"]),
    ],
)
def test_what_is_passed_through_is_text_every_night(night: list[str], out: list[Any]) -> None:
    """Whatever stands there, word by word."""
    layout = make_layout(ColumnsConfig(pass_through=("x",)), None)
    assert layout.columns == (("post_id", "post_id"), ("text", "text"), ("x", "string"))
    found = tables(
        "\n".join(f'{{"x": 0, "x":{value} ,"y": [{value}]}}' for value in night).encode(), layout=layout
    )
    assert found[0].schema == layout.schema
    assert [(row["x"], row[LINE_ERROR]) for row in found[0].to_pylist()] == [(value, None) for value in out]


def test_a_column_that_is_needed_keeps_its_type() -> None:
    columns = ColumnsConfig(post_id="id", pass_through=("id", "text", "image_uris"))
    layout = make_layout(columns, "image_uris")
    assert layout.columns == (("id", "post_id"), ("text", "text"), ("image_uris", "image_uris"))
    assert make_layout(columns, None).columns[2] == ("image_uris", "string")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
POSTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "post_id": st.integers() | st.text() | st.none(),
            "text": st.text() | st.none(),
            "image_uris": st.lists(st.text() | st.none(), max_size=4) | st.none(),
            "mixed": JSON,
            "count": st.integers(-(2**63), 2**63 - 1) | st.none(),
            "share": st.floats() | st.integers(-(2**60), 2**60),
        },
    ),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(
    posts=POSTS,
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    ending=st.sampled_from(JSON_LINES),
    rows_per_table=st.integers(1, 5),
)
def test_posts_come_back(
    posts: list[dict[str, Any]], ascii_only: bool, end: str, ending: str, rows_per_table: int
) -> None:
    types: dict[str, Any] = {"count": "int64", "share": "float64"}
    columns = ColumnsConfig(pass_through=("mixed", "count", "share"), types=types)
    data = "".join(json.dumps(post, ensure_ascii=ascii_only) + end for post in posts).encode()
    packed = PACK["." + ending.rpartition(".")[2] if ending.endswith((".gz", ".zst")) else ""](data)
    with tempfile.TemporaryDirectory() as folder:
        found = scan_bytes(Path(folder), packed, columns, f"x{ending}")
    assert found.rows == len(posts)
    assert set(found.keys) == {key for post in posts for key in post}
    layout = make_layout(columns, "image_uris")
    read = tables(packed, f"b/x{ending}", layout, rows_per_table=rows_per_table)
    assert {table.schema for table in read} == {layout.schema}
    table = pa.concat_tables(read)
    assert table["row_hash"].to_pylist() == row_hashes(f"b/x{ending}", 0, len(posts)).tolist()
    assert len(set(table["row_hash"].to_pylist())) == len(posts)
    for post, row in zip(posts, table.to_pylist(), strict=True):
        assert row[LINE_ERROR] is None
        assert row["post_id"] == (None if post.get("post_id") is None else str(post["post_id"]))
        assert (row["text"], row["image_uris"]) == (post.get("text"), post.get("image_uris"))
        assert row["count"] == post.get("count")
        assert repr(row["share"]) == repr(float(post["share"]) if "share" in post else None)
        mixed = post.get("mixed")
        is_as_it_is = mixed is None or isinstance(mixed, str)
        assert row["mixed"] == (mixed if is_as_it_is else json.dumps(mixed, ensure_ascii=ascii_only))
    again = pa.concat_tables(tables(packed, f"b/x{ending}", layout))
    assert str(again.to_pylist()) == str(table.to_pylist())  # NaN is not itself
