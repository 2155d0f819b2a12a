"""The summary's reasons: failures of one kind are counted as one, and whatever has a name keeps it."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.archive.counts import TagCounts
from mnerqg.archive.jsonlines import PICTURE_ERRORS, make_layout, read_tables
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.io import storage
from mnerqg.schema import tags_schema

Reasons = Callable[..., dict[str, int]]


@pytest.fixture
def reasons(tmp_path: Path) -> Reasons:
    """The reasons in the summary of rows with these errors."""

    def of_errors(*errors: str) -> dict[str, int]:
        row = {"entities": [], "regions": [], "existence": [], "image_status": "missing", "text_status": "ok"}
        rows = [row | {"row_hash": n, "retryable": False, "error": error} for n, error in enumerate(errors)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tags_schema()), tmp_path / "a.parquet")
        (entry,) = storage.list_files(str(tmp_path), ".parquet")
        found: dict[str, int] = TagCounts.of_file(entry).summary()["reasons"]
        return found

    return of_errors


@pytest.mark.parametrize(
    "error",
    [
        "pictures are read over file, s3 only",
        "404",
        "503 SlowDown",
        "302: redirects are not followed",
        "host cdn7.example.com has the address 10.0.0.7, which is not public",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "s3://bucket-42/x7.jpg lies below no root",
        "https://example.com:8443/2026/a7.jpg?id=7 failed",
        "no such file '/data/day 7/x 8.jpg'",
        'of "12 angry men.png" there is nothing',
        "/data/2026/07/part-01.jsonl is not there",
        "the picture is H2O, utf8, mp3, 3com or MNER2",
        "the model raised TypeError: <class 'int'> is not <class 'str'> of <T5>, it seems",
    ],
)
def test_numbers_of_names_hosts_schemes_and_paths_stay(reasons: Reasons, error: str) -> None:
    """Before: "file, sN only" and "day-N/part-N.jsonl"."""
    assert reasons(error) == {error: 1}


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        (
            [
                f"line {n} is not valid JSON: Expecting value at character {n} (day-2026/part 01.jsonl)"
                for n in (2, 13)
            ],
            "line N is not valid JSON: Expecting value at character N (day-2026/part 01.jsonl)",
        ),
        (
            [
                "the picture has 31,000,000 bytes, of at most 20,000,000",
                "picture 3: the picture has 7 bytes, of at most 6",
            ],
            "the picture has N bytes, of at most N",
        ),
        (
            [
                "No such file or directory </data/day-7/a b.jpg>",
                "picture 12: No such file or directory </data/it's 8, (of 9)/c.jpg>",
            ],
            "No such file or directory",
        ),
        (
            ["503 <https://a.example/1> after 4 attempts", "503 <https://b.example/2> after 2 attempts"],
            "503 after N attempts",
        ),
        (
            [f"image_uri is a list, not text, on line {n} (a 1.jsonl)" for n in (7, 88)],
            "image_uri is a list, not text, on line N (a 1.jsonl)",
        ),
        (
            ["the picture has 12000 x 9000 pixels", "the picture has 1 x 2 pixels"],
            "the picture has N x N pixels",
        ),
        (["too large (12000x9000)", "too large (1x2)"], "too large (N)"),
        (
            ["503 SlowDown after 4 attempts", "picture 0: 503 SlowDown after 12 attempts"],
            "503 SlowDown after N attempts",
        ),
        (["connect 127.0.0.1:54321 refused", "connect 127.0.0.1:1 refused"], "connect 127.0.0.1:N refused"),
        (["connect [::1]:54321 refused", "connect [::1]:1 refused"], "connect [::1]:N refused"),
        (
            [
                "Pool(host='10.0.0.7', port=443): late (read timeout=20.0)",
                "Pool(host='10.0.0.7', port=80): late (read timeout=1.5)",
            ],
            "Pool(host='10.0.0.7', port=N): late (read timeout=N)",
        ),
        (["<io.BytesIO object at 0x7f3a>", "<io.BytesIO object at 0x12bc>"], "<io.BytesIO object at N>"),
        (["cut short at 1,200 of 45,000 bytes", "cut short at 0 of 9 bytes"], "cut short at N of N bytes"),
        (["no answer in 20.0s, 3%, 8MiB", "no answer in 2s, 4%, 9MiB"], "no answer in Ns, N%, NMiB"),
        (
            ["the model raised E: shape [16, 128] (2)", "the model raised E: shape [1, 8] (3)"],
            "the model raised E: shape [N, N] (N)",
        ),
    ],
)
def test_numbers_of_the_failure_are_counted_as_one(reasons: Reasons, errors: list[str], reason: str) -> None:
    assert reasons(*errors) == {reason: 2}


def test_a_picture_that_is_none_is_no_post_that_was_not_read(tmp_path: Path) -> None:
    """It counts among the pictures that failed already."""
    row = {"entities": [], "regions": [], "existence": [], "image_status": "unreadable", "text_status": "ok"}
    post = b'{"post_id": "1", "text": "x", "image_uri": 5}'
    layout = make_layout(ColumnsConfig(), "image_uri")
    (table,) = read_tables(io.BytesIO(post), "a.jsonl", layout)
    (errors,) = table[PICTURE_ERRORS].to_pylist()
    rows = [row | {"row_hash": 1, "retryable": False, "error": error} for error in errors]
    pq.write_table(pa.Table.from_pylist(rows, schema=tags_schema()), tmp_path / "a.parquet")
    (entry,) = storage.list_files(str(tmp_path), ".parquet")
    counts = TagCounts.of_file(entry)
    assert (counts.errors, counts.unread, counts.image_status["unreadable"]) == (1, 0, 1)


def test_every_reason_of_a_row_counts(reasons: Reasons) -> None:
    assert reasons("404; the text is not valid UTF-8", "picture 1: 404") == {
        "404": 2,
        "the text is not valid UTF-8": 1,
    }
