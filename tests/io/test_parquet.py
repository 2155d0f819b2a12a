import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.errors import DataError, StorageError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from tests.servers import FAULTS, ScriptedServer, faults, s3_error

TABLE = pa.table({"number": range(5000), "word": [f"word {number}" for number in range(5000)]})


def parquet(row_group_size: int = 500) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def put(folder: str, data: bytes) -> storage.FileEntry:
    storage.write_bytes(storage.join(folder, "a.parquet"), data)
    (entry,) = storage.list_files(folder)
    return entry


def count_rows(entry: storage.FileEntry) -> int:
    with open_parquet(entry) as file:
        return int(file.metadata.num_rows)


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_bucket") if request.param == "s3" else str(tmp_path)


def test_a_file_comes_back(base: str) -> None:
    entry = put(base, parquet())
    with open_parquet(entry) as file:
        assert file.read() == TABLE
        assert pa.Table.from_batches(file.iter_batches(columns=["word"])) == TABLE.select(["word"])
    assert count_rows(entry) == 5000


def test_small_columns_are_one_request(s3_bucket: str, s3_endpoint: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({str(number): range(100) for number in range(50)}), buffer)
    entry = put(s3_bucket, buffer.getvalue())
    with faults(s3_endpoint, share=0) as proxy, open_parquet(entry) as file:
        assert file.read().num_columns == 50
        assert proxy.requests == {"GET": 2}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no Parquet": lambda _: b"PAR? no",
    "empty": lambda _: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    # Of this pyarrow says OSError, not ArrowException.
    "footer": lambda whole: whole[:-200] + b"\xff" * 192 + whole[-8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(base: str, damage: str) -> None:
    entry = put(base, DAMAGE[damage](parquet()))
    with pytest.raises(DataError, match=r"a\.parquet is not readable as Parquet \(.+\); remove or") as caught:
        count_rows(entry)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"\); write it anew$"), open_parquet(entry, remedy="write it anew"):
        pass


def test_a_damaged_page_is_named_when_it_is_read(base: str) -> None:
    whole = parquet()
    entry = put(base, whole[:500] + b"\xff" * 3000 + whole[3500:])
    assert count_rows(entry) == 5000
    with (
        pytest.raises(DataError, match=r"a\.parquet is not readable as Parquet"),
        open_parquet(entry) as file,
    ):
        file.read()


def test_what_the_system_says_is_no_damage(tmp_path: Path) -> None:
    entry = put(str(tmp_path), parquet())
    with pytest.raises(OSError, match="No space left"), open_parquet(entry):
        raise OSError(28, "No space left on device")
    Path(entry.uri).unlink()
    with pytest.raises(StorageError, match=r"a\.parquet does not exist; check the path"):
        count_rows(entry)


def test_faults_that_pass(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third request fails in one way or another: footer and pages are read all the same."""
    entry = put(s3_bucket, parquet())
    kinds = [kind for kind in FAULTS if kind != "stall"]  # which would be waited for
    monkeypatch.setattr("time.sleep", lambda _: None)
    with faults(s3_endpoint, share=0.33, seed=1, kinds=kinds) as proxy:
        while set(proxy.faults) < set(kinds):
            with open_parquet(entry) as file:
                assert file.read() == TABLE


@pytest.mark.parametrize("kind", ["slow_down", "internal_error", "drop", "cut"])
def test_faults_that_stay_are_the_store_s(
    s3_bucket: str, s3_endpoint: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = put(s3_bucket, parquet())
    monkeypatch.setattr("time.sleep", lambda _: None)
    with faults(s3_endpoint, share=1.0, kinds=[kind]), pytest.raises(StorageError) as caught:
        count_rows(entry)
    said = str(caught.value)
    assert said.startswith(f"{entry.uri}: ")
    assert said.endswith("run the same command again")
    assert "\n" not in said
    assert not {"remove", "replace", "Parquet"} & set(said.split())
    with faults(s3_endpoint, share=0, kinds=[kind]) as proxy, open_parquet(entry) as file:
        proxy.share = 1.0
        with pytest.raises(StorageError, match=r"run the same command again$"):
            file.read()


def test_a_refusal_is_the_store_s(s3_server: ScriptedServer) -> None:
    s3_server.script = [s3_error(403, "AccessDenied")]
    with pytest.raises(
        StorageError, match=r"^s3://b/a\.parquet: access denied \(AccessDenied\); the AWS cred"
    ):
        count_rows(storage.FileEntry("s3://b/a.parquet", 1000))
    assert len(s3_server.requests) == 1
