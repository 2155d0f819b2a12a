import gzip
import io
import json
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from mnerqg.archive import reading
from mnerqg.archive.jsonlines import LINE_ERROR, PICTURE_ERRORS, Layout, Scan, read_tables, scan
from mnerqg.archive.reading import Archive, open_archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError, StorageError
from mnerqg.io import storage
from tests.servers import FaultyProxy, ScriptedServer, faults, s3_error

POSTS: list[dict[str, Any]] = [
    {"post_id": 1, "text": "Ada", "image_uri": "a.jpg", "lang": "en"},
    {"post_id": "2", "text": None, "lang": None},
]


def as_json(*posts: dict[str, Any]) -> bytes:
    return "".join(json.dumps(post) + "\n" for post in posts).encode()


def as_parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"post_id": ["1", "2"], "text": ["Ada", None], **columns}), buffer)
    return buffer.getvalue()


def write(folder: str, **files: bytes) -> None:
    """Files by their names with `__` for a slash and `_` for a dot."""
    for name, data in files.items():
        parts = [part.replace("_", ".") for part in name.split("__")]
        storage.write_bytes(storage.join(folder, *parts), data)


def names(archive: Archive) -> list[str]:
    root = storage.path_of(archive.folders[0])
    return [storage.path_of(entry.uri).removeprefix(f"{root}/") for entry in archive.files]


def refused(uri: str, words: str, **columns: Any) -> None:
    with pytest.raises((DataError, StorageError), match=words) as caught:
        open_archive(uri, ColumnsConfig(**columns))
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["path", "file", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/some posts%"
    folder = tmp_path / "some posts%"
    folder.mkdir()
    return folder.as_uri() if request.param == "file" else str(folder)


def read(archive: Archive) -> pa.Table:
    assert isinstance(archive.layout, Layout)
    tables = []
    for entry in archive.files:
        with storage.open_stream(entry.uri) as stream:
            tables += read_tables(stream, storage.path_of(entry.uri), archive.layout)
    return pa.concat_tables(tables)


def test_json_lines_in_all_compressions(base: str) -> None:
    data = as_json(*POSTS)
    write(
        base,
        a_jsonl=data,
        b_jsonl_gz=gzip.compress(data) + gzip.compress(data),
        c__d_ndjson_zst=zstd.compress(data) + zstd.compress(data),
        e_json=b"\xef\xbb\xbf" + data,
        empty_jsonl=b"",
        empty_jsonl_gz=b"",
        empty_json_zst=b"",
        notes_txt=b"not a post",
    )
    archive = open_archive(base, ColumnsConfig(pass_through=("lang", "text")))
    assert (archive.format, archive.rows, archive.pictures) == ("jsonl", 12, "uris")
    assert (archive.folders, archive.uris) == ((base,), (base,))
    assert archive.pass_through == (pa.field("lang", pa.string()), pa.field("text", pa.large_string()))
    assert len(archive.files) == 7
    table = read(archive)
    assert table.column_names == [
        "post_id",
        "text",
        "image_uri",
        "lang",
        "row_hash",
        LINE_ERROR,
        PICTURE_ERRORS,
    ]
    assert len(set(table["row_hash"].to_pylist())) == len(table) == archive.rows
    wanted = [("1", "Ada", "a.jpg", "en", None, None), ("2", None, None, None, None, None)] * 6
    assert list(zip(*(table.drop_columns(["row_hash"]).to_pydict()).values(), strict=True)) == wanted
    assert read(archive).equals(table)
    assert pickle.loads(pickle.dumps(archive)) == archive
    one = open_archive(storage.join(base, "c", "d.ndjson.zst"), ColumnsConfig())
    assert (one.rows, one.folders[0], len(one.files)) == (4, storage.join(base, "c"), 1)


def test_large_json_lines_are_scanned_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is, is no business of what is found: rows, layout and errors are the same."""
    monkeypatch.setattr(reading, "_READ_HERE_BYTES", 100)
    packed = gzip.compress(as_json(*POSTS * 40, {"lang": "en", "image_uris": []}))
    write(str(tmp_path), a_jsonl=as_json(*POSTS), b_jsonl_gz=packed)
    columns = ColumnsConfig(pass_through=("lang",), types={"lang": "bool"})
    asked: list[list[str]] = []

    def elsewhere(function: Callable[[Any], Any], files: Sequence[storage.FileEntry]) -> list[Any]:
        asked.append([entry.uri.rpartition("/")[2] for entry in files])
        return [function(entry) for entry in files]

    archive = open_archive(str(tmp_path), columns, elsewhere)
    assert asked == [["a.jsonl", "b.jsonl.gz"]]
    assert (archive.rows, archive.pictures) == (83, "lists")
    small = str(tmp_path / "a.jsonl")
    monkeypatch.setattr(reading, "_READ_HERE_BYTES", 32 * 2**20)
    assert open_archive(str(tmp_path), columns, elsewhere) == archive
    assert open_archive(small, columns, elsewhere).rows == 2
    assert len(asked) == 1


def test_a_large_archive_is_refused_at_once_for_what_is_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_READ_HERE_BYTES", 100)
    asked: list[Any] = []

    def elsewhere(function: Callable[[Any], Any], files: Sequence[storage.FileEntry]) -> list[Any]:
        asked.append(files)
        return reading.work_here(function, files)

    write(str(tmp_path), a_jsonl=as_json(*POSTS * 10), b_jsonl_gz=as_json(*POSTS))
    for call in (
        lambda: open_archive(str(tmp_path), ColumnsConfig(), elsewhere),
        lambda: scan_here_of(tmp_path),
    ):
        with pytest.raises(
            DataError, match=r"b\.jsonl\.gz is damaged or cut short after line 0 \(Not a gzipped"
        ):
            call()
    with pytest.raises(DataError, match="error, which is a column of the tags"):
        open_archive(str(tmp_path), ColumnsConfig(pass_through=("error",)), elsewhere)
    assert not asked
    long = [{"post_id": n, "text": random.Random(n).randbytes(1000).hex()} for n in range(2000)]
    write(str(tmp_path), b_jsonl_gz=gzip.compress(as_json(*long), 1)[:-9])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz is damaged or cut short after line \d+ \(Compressed"):
        open_archive(str(tmp_path), ColumnsConfig(), elsewhere)
    with pytest.raises(DataError, match="no line has the key body"):
        open_archive(str(tmp_path / "a.jsonl"), ColumnsConfig(text="body"), elsewhere)
    assert len(asked) == 2


def scan_here_of(folder: Path) -> list[Scan]:
    return [scan(entry, ColumnsConfig()) for entry in storage.list_files(str(folder))]


def test_a_store_that_is_away_is_not_a_damaged_file(
    s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away after the files were found, as their footers and lines are read."""
    write(s3_bucket, p__a_parquet=as_parquet(), j__a_jsonl=as_json(*POSTS))
    monkeypatch.setattr("time.sleep", lambda _: None)
    list_files = storage.list_files
    for folder in ("p", "j"):
        with faults(s3_endpoint, share=0, kinds=["slow_down"]) as proxy:

            def then_away(
                *arguments: Any, proxy: FaultyProxy = proxy, **options: Any
            ) -> list[storage.FileEntry]:
                found = list_files(*arguments, **options)
                proxy.share = 1.0
                return found

            monkeypatch.setattr(storage, "list_files", then_away)
            refused(
                f"{s3_bucket}/{folder}",
                r"/a\.\w+: the store answers 503 SlowDown again and again; that may pass",
            )


def test_parquet_as_before(base: str) -> None:
    write(base, a_parquet=as_parquet(lang=["en", "pt"]), b__c_parquet=as_parquet(lang=["en", "pt"]))
    archive = open_archive(base, ColumnsConfig(pass_through=("lang",)))
    assert (archive.format, archive.rows, archive.pictures) == ("parquet", 4, "none")
    assert archive.pass_through == (pa.field("lang", pa.string()),)
    one = open_archive(storage.join(base, "b", "c.parquet"), ColumnsConfig())
    assert (one.rows, one.folders[0]) == (2, storage.join(base, "b"))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jsonl", ["a1.jsonl", "a2.jsonl"]),
        ("a?.jsonl*", ["a1.jsonl", "a2.jsonl", "a3.jsonl.gz"]),
        ("a[!2].json*", ["a1.jsonl", "a3.jsonl.gz"]),
        ("**/*.jsonl", ["a1.jsonl", "a2.jsonl", "day 1/b.jsonl", "day 2/x/c.jsonl"]),
        ("day */*.jsonl", ["day 1/b.jsonl"]),
        ("day 2/**", ["x/c.jsonl"]),
        ("day 2/*/c.jsonl", ["x/c.jsonl"]),
        ("**/[ab]*.parquet", ["a1.parquet"]),
    ],
)
def test_globs(base: str, pattern: str, found: list[str]) -> None:
    data = as_json(*POSTS)
    for name in ("a1.jsonl", "a2.jsonl", "day 1/b.jsonl", "day 2/x/c.jsonl", "_old/a1.jsonl", ".a4.jsonl"):
        storage.write_bytes(storage.join(base, *name.split("/")), data)
    write(base, a3_jsonl_gz=gzip.compress(data), a1_parquet=as_parquet(), a2_txt=b"?")
    uri = f"{base}/{pattern.replace(' ', '%20') if base.startswith('file') else pattern}"
    archive = open_archive(uri, ColumnsConfig())
    assert names(archive) == found
    assert archive.rows == 2 * len(found)
    assert archive.uris == (uri,)
    depth = next(n for n, part in enumerate(pattern.split("/")) if set(part) & set("*?["))
    assert archive.folders[0] == storage.join(base, *pattern.split("/")[:depth])


def test_globs_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(".", a_jsonl=as_json(*POSTS), b__c_jsonl=as_json(*POSTS))
    assert [entry.uri for entry in open_archive("*.jsonl", ColumnsConfig()).files] == ["a.jsonl"]
    assert open_archive("**", ColumnsConfig()).rows == 4
    assert open_archive("a.jsonl", ColumnsConfig()).folders == (".",)


def test_a_name_with_wildcards_in_it(base: str) -> None:
    for name in ("posts[1].jsonl", "posts1.jsonl"):
        storage.write_bytes(storage.join(base, name), as_json(*POSTS))
    assert names(open_archive(storage.join(base, "posts[1].jsonl"), ColumnsConfig())) == ["posts[1].jsonl"]
    if not base.startswith("file"):
        assert names(open_archive(f"{base}/posts[12].jsonl", ColumnsConfig())) == ["posts1.jsonl"]


def test_files_that_are_not_there(base: str) -> None:
    write(base, a_txt=as_json(*POSTS), _hidden__b_jsonl=as_json(*POSTS))
    storage.write_bytes(storage.join(base, "_old", "x.jsonl"), as_json(*POSTS))
    refused(
        storage.join(base, "a.txt"), r"a\.txt ends in none of \.parquet, \.jsonl, .*\.json\.zst; rename it"
    )
    refused(base, r"holds no \*\.parquet files and no JSON Lines \(\.jsonl, .*check --input")
    refused(f"{base}/*.txt", r"\*\.txt matches no file that ends in \.parquet, .*; a glob names files")
    refused(f"{base}/x*", "matches no file")
    refused(f"{base}/x**.jsonl", r"\*\* stands alone between slashes")
    refused(f"{base}/nowhere/*.jsonl", "nowhere does not exist")
    refused(storage.join(base, "nowhere.jsonl"), "nowhere.jsonl does not exist")
    with pytest.raises(StorageError, match=r"gone.jsonl does not exist; check the"):
        scan(storage.FileEntry(storage.join(base, "gone.jsonl"), 10), ColumnsConfig())


def test_a_bucket_is_no_glob(s3_bucket: str) -> None:
    refused("s3://buck*/x.jsonl", r"buck\*")


def test_a_broken_connection_is_mended(s3_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    data = as_json(*POSTS)
    whole = {"Content-Length": str(len(data)), "Connection": "close"}
    rest = {"Content-Range": f"bytes 50-{len(data) - 1}/{len(data)}"}
    s3_server.script = [(200, whole, data[:50]), (206, rest, data[50:])]
    found = scan(storage.FileEntry("s3://bucket/x.jsonl", len(data)), ColumnsConfig())
    assert (found.rows, found.problem) == (2, None)
    assert len(s3_server.requests) == 2
    s3_server.script = [s3_error(403, "AccessDenied")]
    with pytest.raises(StorageError, match=r"s3://bucket/x.jsonl: access denied \(AccessDenied\)"):
        scan(storage.FileEntry("s3://bucket/x.jsonl", len(data)), ColumnsConfig())


def test_both_formats(base: str) -> None:
    write(base, a_parquet=as_parquet(), b_jsonl=as_json(*POSTS))
    refused(base, r"holds both Parquet \(.*/a\.parquet\) and JSON Lines \(.*/b\.jsonl\);.*/\*\*/\*\.parquet$")
    assert open_archive(f"{base}/**/*.parquet", ColumnsConfig()).format == "parquet"


def test_damaged_files(base: str) -> None:
    packed = gzip.compress(as_json(*POSTS * 1000))
    write(base, a_jsonl=as_json(*POSTS), b_jsonl_gz=packed[: len(packed) // 2])
    refused(base, r"b\.jsonl\.gz is damaged or cut short after line \d+ \(Compressed file ended before")
    write(base, b_jsonl_gz=packed, c_jsonl_zst=zstd.compress(as_json(*POSTS))[:-1])
    refused(base, r"c\.jsonl\.zst is damaged or cut short after line \d \(Compressed file ended before")


@pytest.mark.parametrize(
    ("lines", "columns", "words"),
    [
        (b"\n\n", {}, r"holds no posts: its 1 file\(s\) have no lines"),
        (b"[\n{}\n]", {}, r"no line holds a JSON object with keys \(.*x\.jsonl: line 1 is not valid JSON: Exp"),
        (b"{}\n{}", {}, r"no line holds a JSON object with keys \(all are empty\)"),
        (as_json({"post_id": 1, "body": ""}), {}, "no line has the key text; the keys there: post_id, body; "),
        (as_json({"id\n": 1, "text": ""}), {}, r"no line has the key post_id; the keys there: 'id\\n', text;.*post_id"),
        (as_json(*POSTS), {"pass_through": ["when"]}, "no line has the key when; .*--columns.pass_through"),
        (as_json(*POSTS), {"pass_through": ["error"]}, "error, which is a column of the tags"),
        (as_json(*POSTS), {"pass_through": ["row_hash"]}, "row_hash, which is a column of the tags"),
        (as_json(*POSTS), {"pass_through": ["lang", "lang"]}, "names lang twice"),
        (as_json(*POSTS), {"image_uri": "url"}, "no line has the key url; .*--columns.image_uri NAME"),
        (as_json(*POSTS), {"image": "jpeg"}, "no line has the key jpeg; .*--columns.image NAME"),
        (as_json({"post_id": 1, "text": ""}), {"image_uris": "image_uris"}, "no line has the key image_uris"),
        (as_json({"post_id": 1, "text": "", "row_hash": 5}), {"text": "row_hash"}, "row_hash has the name of"),
        (
            as_json({"post_id": 1, "text": "", "image_uris": [], "images": 5}),
            {"pass_through": ["images"]},
            "images, which is a column of the tags",
        ),
    ],
)  # fmt: skip
def test_bad_json_lines(tmp_path: Path, lines: bytes, columns: dict[str, Any], words: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines)
    refused(str(tmp_path), words, **columns)


URIS, LISTS, BYTES = ["a.jpg", None], [["a.jpg", "b.jpg"], None], [b"\xff", None]


@pytest.mark.parametrize(
    ("keys", "pictures"),
    [
        ((), "none"),
        (("image_uri",), "uris"),
        (("image_uri", "image_uris"), "lists"),
        (("image_uri", "image_uris", "image"), "bytes"),
        (("image_uris",), "lists"),
        (("image",), "bytes"),
    ],
)
def test_which_pictures_are_read(tmp_path: Path, keys: Sequence[str], pictures: str) -> None:
    values = {"image_uri": URIS, "image_uris": LISTS, "image": BYTES}
    (tmp_path / "a.parquet").write_bytes(as_parquet(**{key: values[key] for key in keys}))
    (tmp_path / "a.jsonl").write_bytes(as_json({"post_id": 1, "text": "", **dict.fromkeys(keys)}))
    spelled_out = ColumnsConfig(**ColumnsConfig().model_dump())
    for columns in (ColumnsConfig(), spelled_out) if keys else (ColumnsConfig(),):
        assert open_archive(str(tmp_path / "a.parquet"), columns).pictures == pictures
        lines = open_archive(str(tmp_path / "a.jsonl"), columns)
        assert lines.pictures == pictures
        assert lines.layout is not None
        assert len(lines.layout.columns) == 2 + bool(keys)


@pytest.mark.parametrize(
    ("kind", "pictures"),
    [
        (pa.string(), "bytes"),
        (pa.large_string(), "bytes"),
        (pa.large_binary(), "bytes"),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "structs"),
        (pa.struct([("bytes", pa.large_string())]), "structs"),
        (pa.struct([("path", pa.null()), ("bytes", pa.null())]), "structs"),
    ],
    ids=str,
)
def test_pictures_inside_are_of_several_kinds(tmp_path: Path, kind: pa.DataType, pictures: str) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(image=pa.nulls(2, kind)))
    assert open_archive(str(tmp_path), ColumnsConfig()).pictures == pictures


@pytest.mark.parametrize(
    "kind",
    [
        pa.int64(),
        pa.list_(pa.binary()),
        pa.struct([("path", pa.string())]),
        pa.struct([("bytes", pa.int8()), ("path", pa.string())]),
        pa.struct([("bytes", pa.binary()), ("path", pa.binary())]),
        pa.struct([("bytes", pa.binary()), ("url", pa.string())]),
    ],
    ids=str,
)
def test_what_holds_no_pictures(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(image=pa.nulls(2, kind)))
    refused(str(tmp_path), "the column image holds .*, not binary, base64 or structs of bytes and path")


@pytest.mark.parametrize(
    ("columns", "config", "words"),
    [
        (
            {"image_uris": URIS},
            {},
            "the column image_uris holds string, not lists of text; .*image_uris NAME",
        ),
        ({"image_uris": [[1], [2]]}, {}, "the column image_uris holds list<.*int64>, not lists of text"),
        ({"image_uri": URIS}, {"image_uris": "photos"}, "has no column photos; .*--columns.image_uris NAME"),
        ({"image_uri": URIS}, {"image": "jpeg"}, "has no column jpeg; .*--columns.image NAME"),
        ({}, {"image_uris": "image_uris"}, "has no column image_uris"),
        ({"image_uris": LISTS, "images": URIS}, {"pass_through": ["images"]}, "images, which is a column"),
        (
            {"lang": URIS},
            {"pass_through": ["lang"], "types": {"lang": "string"}},
            r"--columns.types is for JSON Lines, and .* is Parquet, which says itself what .*; leave it out",
        ),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, Any], config: dict[str, Any], words: str) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(**columns))
    refused(str(tmp_path), words, **config)


def test_images_may_pass_where_there_is_one_a_post(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(image_uri=URIS, images=["x", "y"]))
    archive = open_archive(str(tmp_path), ColumnsConfig(pass_through=("images",)))
    assert archive.pass_through == (pa.field("images", pa.string()),)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.null(),
    ],
    ids=str,
)
def test_kinds_of_lists(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(image_uris=pa.array([None, None], kind)))
    assert open_archive(str(tmp_path), ColumnsConfig()).pictures == "lists"
