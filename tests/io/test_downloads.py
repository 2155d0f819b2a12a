import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnerqg.errors import StorageError
from mnerqg.io import storage
from mnerqg.io.downloads import download_directory


@pytest.fixture(params=["path", "file", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An existing, empty place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/base"
    folder = tmp_path / "with space"
    folder.mkdir()
    return folder.as_uri() if request.param == "file" else str(folder)


def test_directories_are_downloaded(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = storage.join(base, "model")
    storage.write_bytes(storage.join(target, "model.bin"), b"m" * 1000)
    storage.write_bytes(storage.join(target, "training/state.bin"), b"s")
    local = download_directory(target)
    assert (local / "model.bin").read_bytes() == b"m" * 1000
    assert (local / "training" / "state.bin").read_bytes() == b"s"
    assert download_directory(target + "/") == local
    storage.write_bytes(storage.join(target, "model.bin"), b"n" * 1000)
    assert (download_directory(target) / "model.bin").read_bytes() == b"n" * 1000
    with pytest.raises(StorageError, match="does not exist"):
        download_directory(storage.join(base, "mod"))


def test_download_repairs_a_cache_cleaned_in_part(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_bytes(f"{s3_bucket}/model/a", b"a")
    storage.write_bytes(f"{s3_bucket}/model/b", b"b")
    local = download_directory(f"{s3_bucket}/model")
    (local / "a").unlink()
    assert download_directory(f"{s3_bucket}/model") == local
    assert (local / "a").read_bytes() == b"a"
    assert [path.name for path in local.parent.iterdir()] == [local.name]


def test_download_refuses_another_users_cache(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_bytes(f"{s3_bucket}/model/a", b"a")
    cache = tmp_path / f"mnerqg-{os.getuid()}"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(StorageError, match="not a private directory"):
        download_directory(f"{s3_bucket}/model")


def test_several_download_at_once(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, since a process shares with another what they share with each other: the files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number in range(5):
        storage.write_bytes(f"{s3_bucket}/model/{number}", b"x" * 100_000)
    ready = threading.Barrier(3)

    def download(_: int) -> Path:
        ready.wait()
        return download_directory(f"{s3_bucket}/model")

    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(download, range(3)))
    assert len(set(folders)) == 1
    assert sorted((file.name, file.stat().st_size) for file in folders[0].iterdir()) == [
        (str(number), 100_000) for number in range(5)
    ]
    assert [path.name for path in folders[0].parent.iterdir()] == [folders[0].name]


def test_what_cannot_be_downloaded(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="bucket does not exist; create it"):
        download_directory("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="'gs' is not supported"):
        download_directory("gs://bucket/x")
    with pytest.raises(StorageError, match="does not exist or is empty; check the URI"):
        download_directory(f"{s3_bucket}/nothing")
