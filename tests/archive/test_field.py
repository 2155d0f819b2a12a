"""Archives as people have them: every kind of difference between files, and of what lies about in folders."""

import gzip
import io
import json
import os
import re
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pqe
import pytest
from backports import zstd

from mnerqg.archive import parquet_files
from mnerqg.archive.counts import TagCounts
from mnerqg.archive.reading import Archive, open_archive
from mnerqg.archive.run import judge
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError, MnerqgError
from mnerqg.io import storage
from mnerqg.schema import tags_schema
from tests.archives import read_archive_here

TEXT = "We just landed in Southville Valley"
LANG = ColumnsConfig(pass_through=("lang",))


def write(folder: Path, **files: dict[str, Any]) -> None:
    """Parquet files by name, each with a post that is called as the file, and further columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in files.items():
        pq.write_table(pa.table({"post_id": [name], "text": [TEXT], **columns}), folder / f"{name}.parquet")


def write_lines(path: Path, *posts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(post) + "\n" for post in posts).encode()
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))


def opened(folder: Path | str, columns: ColumnsConfig, **options: Any) -> tuple[Archive, pa.Table]:
    """The archive, and all its rows, of which there are as many as it says, each once."""
    archive = open_archive(str(folder), columns, **options)
    rows = read_archive_here(archive)
    assert len(set(rows["row_hash"].to_pylist())) == len(rows) == archive.rows
    return archive, rows.sort_by("post_id")


def values(folder: Path | str, name: str, columns: ColumnsConfig = LANG, **options: Any) -> list[Any]:
    archive, rows = opened(folder, columns, **options)
    assert archive.layout.schema.field(name) == rows.schema.field(name)
    found: list[Any] = rows[name].to_pylist()
    return found


def refused(folder: Path | str, words: str, columns: ColumnsConfig = LANG) -> None:
    with pytest.raises(MnerqgError, match=words) as caught:
        open_archive(str(folder), columns)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


# ---- columns that differ ---------------------------------------------------------------------------


def test_columns_that_are_not_used_need_not_fit(tmp_path: Path) -> None:
    write(
        tmp_path,
        a={"likes": [1]},
        b={"likes": ["1"]},
        c={"likes": [{"n": 1}]},
        d={"image_uris": [[1]][:0] or [None]},
    )
    (tmp_path / "d.parquet").unlink()
    assert values(tmp_path, "text", ColumnsConfig()) == [TEXT] * 3
    refused(
        tmp_path,
        r"b\.parquet: the column likes holds string, but int64 in .*a\.parquet, and no type holds both",
        ColumnsConfig(pass_through=("likes",)),
    )


def test_every_kind_of_text_is_one_type(tmp_path: Path) -> None:
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.large_string()))
    for name, kind in zip("abcd", kinds, strict=True):
        columns = {"post_id": [name], "text": [TEXT], "lang": ["en"]}
        table = pa.table({key: pa.array(value, kind) for key, value in columns.items()})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    frame = pd.DataFrame({"post_id": ["e"], "text": [TEXT], "lang": pd.Categorical(["en"])})
    frame.to_parquet(tmp_path / "e.parquet")
    duckdb.sql(f"copy (select 'f' post_id, '{TEXT}' as text, 'en' lang) to '{tmp_path}/f.parquet'")
    archive, rows = opened(tmp_path, LANG)
    assert archive.pass_through == (pa.field("lang", pa.string()),)
    assert rows["post_id"].to_pylist() == list("abcdef")
    assert (set(rows["text"].to_pylist()), set(rows["lang"].to_pylist())) == ({TEXT}, {"en"})
    assert opened(tmp_path, ColumnsConfig())[0].rows == 6


def test_a_column_of_nulls_fits_any_type(tmp_path: Path) -> None:
    nulls = pa.nulls(1)
    write(tmp_path, a={"image_uri": ["x.jpg"], "lang": ["en"]}, b={"image_uri": nulls, "lang": nulls})
    archive, rows = opened(tmp_path, LANG)
    assert archive.pictures == "uris"
    assert rows.select(["image_uri", "lang"]).to_pylist() == [
        {"image_uri": "x.jpg", "lang": "en"},
        {"image_uri": None, "lang": None},
    ]
    pq.write_table(pa.table({"post_id": nulls, "text": nulls, "lang": nulls}), tmp_path / "b.parquet")
    assert values(tmp_path, "post_id") == ["a", None]
    (tmp_path / "a.parquet").unlink()
    archive, rows = opened(tmp_path, LANG)
    assert [str(kind) for kind in rows.schema.types[:3]] == ["string"] * 3


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), [1, 2**40]),
        (pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("us")), None),
        (pa.array([b"a"], pa.binary(1)), pa.array([b"bc"], pa.binary_view()), [b"a", b"bc"]),
        (
            pa.array([[None]], pa.list_(pa.null())),
            pa.array([["x"]], pa.large_list(pa.string())),
            [[None], ["x"]],
        ),
        (pa.array([Decimal(1)], pa.decimal128(5, 2)), pa.array([Decimal(2)], pa.decimal128(9, 3)), None),
    ],
    ids=["int", "timestamp", "binary", "list of nulls", "decimal"],
)
def test_types_that_are_widened(
    tmp_path: Path, one: pa.Array, other: pa.Array, expected: list[Any] | None
) -> None:
    write(tmp_path, a={"lang": one}, b={"lang": other})
    assert values(tmp_path, "lang") == (expected or [one[0].as_py(), other[0].as_py()])


def test_a_value_that_does_not_fit_is_named_in_its_row(tmp_path: Path) -> None:
    write(tmp_path, a={"likes": [2**60 + 1]}, b={"likes": [0.5]})
    _, rows = opened(tmp_path, ColumnsConfig(pass_through=("likes",)))
    assert rows["likes"].to_pylist() == [None, 0.5]
    path = tmp_path / "a.parquet"
    assert rows["mnerqg:line_error"].to_pylist() == [f"row 0: likes does not fit double ({path})", None]


def test_optional_columns_may_be_missing_in_some_files(tmp_path: Path) -> None:
    write(tmp_path, a={"image_uri": ["x.jpg"], "lang": ["en"], "likes": [[{"by": "x"}]]}, b={})
    assert values(tmp_path, "likes", ColumnsConfig(pass_through=("likes",))) == [[{"by": "x"}], None]
    _, rows = opened(tmp_path, LANG)
    assert rows.select(["image_uri", "lang"]).to_pylist()[1] == {"image_uri": None, "lang": None}
    refused(tmp_path, r"a\.parquet has no column land; it has: ", ColumnsConfig(pass_through=("land",)))
    write(tmp_path, c={"image": [b"x"]})
    refused(
        tmp_path, r"a\.parquet has its pictures in the column image_uri, other files have them in image; tag"
    )
    pq.write_table(pa.table({"post_id": ["c"]}), tmp_path / "c.parquet")
    refused(tmp_path, r"c\.parquet has no column text; it has: post_id")


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, a={"lang": ["en"], "image_uri": ["x.jpg"]})
    pq.write_table(
        pa.table({"post_id": pa.nulls(0), "text": pa.nulls(0), "image": pa.nulls(0)}), tmp_path / "b.parquet"
    )
    pq.write_table(pa.table({"x": pa.array([], pa.int8())}), tmp_path / "c.parquet")
    archive, _ = opened(tmp_path, LANG)
    assert (archive.rows, len(archive.files), archive.pictures) == (1, 3, "uris")


def test_a_file_is_cut_where_its_row_groups_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into tasks; and a row group beyond the bound is read bit by bit. The rows are the same, and their hashes."""
    table = pa.table({"post_id": [f"{number:04}" for number in range(1000)], "text": [TEXT] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    archive, rows = opened(tmp_path, ColumnsConfig())
    assert len(archive.pieces) == 1
    for bound, pieces in ((10_000, 5), (1, 10)):
        monkeypatch.setattr(parquet_files, "PIECE_BYTES", bound)
        archive, same = opened(tmp_path, ColumnsConfig())
        assert (len(archive.pieces), same) == (pieces, rows)


def test_ids_of_other_kinds(tmp_path: Path) -> None:
    """DuckDB's UUID is readable text, as an id and passed through; numbers and texts of ids are texts."""
    duckdb.sql(
        f"copy (select uuid() post_id, 'x' as text, uuid() lang, '{{}}'::json j from range(2)) "
        f"to '{tmp_path}/a.parquet'"
    )
    _, rows = opened(tmp_path, ColumnsConfig(pass_through=("lang", "j")))
    for name in ("post_id", "lang"):
        assert all(str(uuid.UUID(value)) == value for value in rows[name].to_pylist())
    assert rows["j"].to_pylist() == ["{}"] * 2
    write(tmp_path, b={"post_id": [7]})
    assert "7" in values(tmp_path, "post_id", ColumnsConfig())


# ---- folders ---------------------------------------------------------------------------------------


def test_hive_folders(tmp_path: Path) -> None:
    for lang in ("en", "de", "a%20b", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / "parquet" / f"lang={lang}", **{lang.strip("_")[:2]: {}})
        write_lines(
            tmp_path / "lines" / f"lang={lang}" / "a.jsonl", {"post_id": lang.strip("_")[:2], "text": TEXT}
        )
    for name in ("parquet", "lines"):
        assert values(tmp_path / name, "lang") == [None, "a b", "de", "en"]
        assert values(tmp_path / name / "lang=en", "lang") == ["en"]
        assert values(f"{tmp_path}/{name}/lang=d*/*", "lang") == ["de"]
        refused(tmp_path / name, "day", ColumnsConfig(pass_through=("day",)))
    # What a file says itself counts.
    write(tmp_path / "parquet" / "lang=en", own={"lang": ["pt"]})
    write_lines(tmp_path / "lines" / "lang=en" / "b.jsonl", {"post_id": "own", "text": "", "lang": "pt"})
    for name in ("parquet", "lines"):
        assert sorted(map(str, values(tmp_path / name, "lang"))) == ["None", "a b", "de", "en", "pt"]


def test_a_picture_in_the_name_of_a_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "image=no picture at all" / "a.jsonl", {"post_id": "1", "text": TEXT})
    write_lines(tmp_path / "b.jsonl", {"post_id": "2", "text": TEXT, "image": None})
    _, rows = opened(tmp_path, ColumnsConfig())
    assert rows["mnerqg:line_error"].to_pylist() == [None, None]
    path = tmp_path / "image=no picture at all" / "a.jsonl"
    words = f"image is not base64, but words (in the name of its folder) ({path})"
    assert rows["mnerqg:picture_errors"].to_pylist() == [[words], None]


def test_hive_folders_with_types(tmp_path: Path) -> None:
    for year in ("2026", "unknown"):
        write_lines(tmp_path / f"year={year}" / "a.jsonl", {"post_id": year, "text": TEXT})
    columns = ColumnsConfig(pass_through=("year",), types={"year": "int64"})
    _, rows = opened(tmp_path, columns)
    assert rows["year"].to_pylist() == [2026, None]
    assert rows["mnerqg:line_error"].to_pylist() == [
        None,
        "line 1: year is text, not a whole number (int64) (in the name of its folder) "
        f"({tmp_path}/year=unknown/a.jsonl)",
    ]


def test_folders_are_named_by_what_has_a_name(tmp_path: Path) -> None:
    write(tmp_path, a={"lang": [["en"]], "n": [1], "b": [b"x"]})
    for name, fits in (("lang", False), ("b", False), ("n", True)):
        columns = ColumnsConfig(pass_through=(name,), partition_by=(name,))
        if fits:
            assert values(tmp_path, name, columns) == [1]
        else:
            refused(
                tmp_path,
                rf"the column {name} holds \S+( \S+)?, by which no folder can be named; leave it",
                columns,
            )


def test_what_is_no_archive_file_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, a={})
    for name in ("_SUCCESS", ".a.parquet.crc", "notes.txt", "_tmp.parquet", "README", "a.csv"):
        (tmp_path / name).write_text("?")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pictures" / "pipe")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "b.parquet").write_text("?")
    assert values(tmp_path, "post_id", ColumnsConfig()) == ["a"]
    os.mkfifo(tmp_path / "b.parquet")
    refused(tmp_path, r"/b\.parquet is a FIFO, not a file; remove it, or give another path$")
    refused(tmp_path / "b.parquet", r"/b\.parquet is a FIFO, not a file")
    assert values(f"{tmp_path}/a*", "post_id", ColumnsConfig()) == ["a"]
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "b.parquet").symlink_to("nowhere.parquet")
    refused(tmp_path, r"/b\.parquet is a link to nowhere\.parquet, which is not there")


def test_several_inputs_are_one_archive(tmp_path: Path) -> None:
    write(tmp_path / "a", a={"lang": ["en"]}, b={})
    write(tmp_path / "c", c={"lang": pa.array(["de"], pa.large_string())})
    archive = open_archive([f"{tmp_path}/a/b*", f"{tmp_path}/c", f"{tmp_path}/a"], LANG)
    assert archive.rows == len(archive.files) == 3  # each once
    assert archive.folders == (f"{tmp_path}/a", f"{tmp_path}/c")
    assert read_archive_here(archive).sort_by("post_id")["lang"].to_pylist() == ["en", None, "de"]
    write_lines(tmp_path / "d.jsonl", {"post_id": "d", "text": ""})
    with pytest.raises(DataError, match=r"/c, .*/d\.jsonl holds both Parquet .* and JSON Lines"):
        open_archive([f"{tmp_path}/c", f"{tmp_path}/d.jsonl"], LANG)


def test_lines_and_values_that_cannot_be_read_count_as_failed(tmp_path: Path) -> None:
    posts = [{"post_id": str(number), "text": 5} for number in range(3)]
    # What is no picture counts as a failed picture.
    write_lines(tmp_path / "a.jsonl", *posts, {"post_id": "half a pair \ud83d", "text": TEXT, "image_uri": 5})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n" * 16)
    _, rows = opened(tmp_path, ColumnsConfig())
    row = {
        "entities": [],
        "regions": [],
        "existence": [],
        "retryable": False,
        "image_status": "none",
        "text_status": "ok",
    }
    errors = rows["mnerqg:line_error"].to_pylist()
    tags = pa.Table.from_pylist(
        [row | {"error": error, "row_hash": n} for n, error in enumerate(errors)], tags_schema()
    )
    pq.write_table(tags, tmp_path / "tags.parquet")
    counts = TagCounts.of_file(storage.list_files(f"{tmp_path}/tags.parquet")[0])
    assert (counts.errors, counts.unread) == (20, 19)
    said = judge(counts, 0.7)
    assert said is not None
    assert re.match(r"19 of 20 posts could not be read .*: 16 x line N is not valid JSON: ", said)


# ---- damage ----------------------------------------------------------------------------------------


def write_damaged(path: Path, *, rows: int = 400, group: int = 2) -> None:
    """A file of row groups of 100 posts, in one of which a page of the texts is overwritten."""
    texts = [f"{number} in Lisbon {number * 7919 % 1000}" for number in range(rows)]
    ids = [f"{path.stem}{number}" for number in range(rows)]
    pq.write_table(pa.table({"post_id": ids, "text": texts}), path, row_group_size=100)
    place = pq.read_metadata(path).row_group(group).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[place + 30 : place + 200] = b"\xff" * 170
    path.write_bytes(data)


def test_a_damaged_page_is_named_with_its_cause(tmp_path: Path) -> None:
    write(tmp_path, a={})
    write_damaged(tmp_path / "b.parquet")
    archive = open_archive(str(tmp_path), ColumnsConfig())  # the footer is whole
    with pytest.raises(
        DataError,
        match=r"/b\.parquet: row group 2 cannot be read \(.+\); replace the file and .*--skip-damaged$",
    ):
        read_archive_here(archive)


def damaged(name: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"post_id": ["x"], "text": [TEXT]}), buffer)
    return {
        "cut.parquet": buffer.getvalue()[:-20],
        "magic.parquet": buffer.getvalue()[:-4] + b"PAR2",
        "empty.parquet": b"",
        "page.parquet": b"post_id,text\n",
    }[name]


def test_damaged_files_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, a={})
    write_damaged(tmp_path / "b.parquet")
    for name in ("cut.parquet", "magic.parquet", "empty.parquet", "page.parquet"):
        (tmp_path / name).write_bytes(damaged(name))
        refused(tmp_path / name, rf"/{name} is not readable as Parquet \(.+\); remove or replace the file")
    archive, rows = opened(tmp_path, ColumnsConfig(), skip_damaged=True)
    assert rows["post_id"].to_pylist() == ["a"]
    left_out = {Path(one.entry.uri).name: (one.rows, one.reason) for one in archive.left_out}
    assert set(left_out) == {"b.parquet", "cut.parquet", "magic.parquet", "empty.parquet", "page.parquet"}
    assert left_out["b.parquet"][0] == 400
    for name, (_, reason) in left_out.items():
        assert re.fullmatch(rf"\S+/{name}(:| is not readable as Parquet) .*\(.+\)", reason)
    with pytest.raises(DataError, match=r"holds no posts: its 1 file\(s\), 1 of them damaged"):
        open_archive(f"{tmp_path}/b*", ColumnsConfig(), skip_damaged=True)


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.jsonl.zst"])
def test_compressed_lines_that_are_cut(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "a.jsonl", {"post_id": "a", "text": TEXT})
    write_lines(
        tmp_path / name, *({"post_id": str(number), "text": str(hash(str(number)))} for number in range(999))
    )
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    refused(
        tmp_path,
        rf"/{name} is damaged or cut short after line \d+ \(.+\); replace or remove",
        ColumnsConfig(),
    )
    archive, rows = opened(tmp_path, ColumnsConfig(), skip_damaged=True)
    assert rows["post_id"].to_pylist() == ["a"]
    assert [Path(one.entry.uri).name for one in archive.left_out] == [name]


class _Keys(pqe.KmsClient):  # type: ignore[misc]
    """Wraps a key by doing nothing to it."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:  # noqa: ARG002
        return key_bytes.hex()

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:  # noqa: ARG002
        return bytes.fromhex(wrapped_key)


def write_encrypted(path: Path, columns: list[str], *, plaintext_footer: bool) -> None:
    table = pa.table({"post_id": ["a"], "text": [TEXT], "lang": ["en"]})
    asked = pqe.EncryptionConfiguration(
        footer_key="footer", column_keys={"key": columns}, plaintext_footer=plaintext_footer
    )
    factory = pqe.CryptoFactory(lambda _: _Keys())
    properties = factory.file_encryption_properties(pqe.KmsConnectionConfig(), asked)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def test_encrypted_columns(tmp_path: Path) -> None:
    """To ask Arrow for their metadata would end the process."""
    path = tmp_path / "a.parquet"
    write_encrypted(path, ["lang"], plaintext_footer=True)
    assert values(path, "text", ColumnsConfig()) == [TEXT]
    refused(
        path, r"a\.parquet: the column lang cannot be read \(.+\): it is encrypted, .*; decrypt the file or"
    )
    write_encrypted(path, ["lang"], plaintext_footer=False)
    refused(path, r"a\.parquet is not readable as Parquet \(.*encrypted.*\); remove or replace the file")


@pytest.mark.parametrize("codec", [b"\x06", b"\x78"], ids=["LZO", "none that there is"])
def test_a_compression_that_is_not_known(tmp_path: Path, codec: bytes) -> None:
    path = tmp_path / "a.parquet"
    for name, used in (("lang", False), ("text", True)):
        pq.write_table(
            pa.table({"post_id": ["a"], "text": [TEXT], "lang": ["en"]}), path, compression="brotli"
        )
        whole, written = path.read_bytes(), b"\x04" + name.encode() + b"\x15"
        assert whole.count(written + b"\x08") == 1  # brotli, in the footer's Thrift
        path.write_bytes(whole.replace(written + b"\x08", written + codec))
        if used:
            words = r"/a\.parquet: row group 0 cannot be read \(.*compression.*\); replace"
            with pytest.raises(DataError, match=words):
                opened(path, ColumnsConfig())
        else:
            assert values(path, "text", ColumnsConfig()) == [TEXT]
