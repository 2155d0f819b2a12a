import json
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mnerqg.errors import ModelError, StorageError
from mnerqg.inputs.collate import Collator
from mnerqg.inputs.examples import Example
from mnerqg.inputs.text import TextEncoder
from mnerqg.model.build import build_anchors, build_empty
from mnerqg.model.checkpoint import (
    ModelDirectory,
    load_model,
    load_training_state,
    load_weights,
    save_model,
    save_training_state,
    start_weights,
)
from mnerqg.model.files import FORMAT_VERSION, WEIGHTS_FILE, check_model, digest, is_model, publish_model
from mnerqg.model.mnerqg import Output
from mnerqg.queries import QUERY_STYLES


@pytest.fixture
def directory(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def save(there: Path, loaded: ModelDirectory, **changes: object) -> str:
    parts = {"model": loaded.model, "text_encoder": loaded.text_encoder, "config": loaded.config}
    return save_model(there, **(parts | changes))


def answers(loaded: ModelDirectory) -> Output:
    config = loaded.config.model
    collate = Collator(text_encoder=loaded.text_encoder, anchors=build_anchors(config), ignore_iou=0.5)
    pixels = (
        torch.arange(3 * config.image_side**2, dtype=torch.uint8).reshape(config.image_side, -1, 3).numpy()
    )
    texts = ["the city of Zürich", "a name"]
    batch = collate(
        [Example(loaded.text_encoder.encode(text), pixels=pixels) for text in texts], with_targets=False
    )
    with torch.inference_mode():
        return loaded.model(batch)


def test_saved_and_loaded_answers_are_equal_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    first = load_model(str(tiny_model))
    assert not first.model.training
    model_id = save(tmp_path / "again", first, metrics={"f1": 0.5})
    second = load_model(str(tmp_path / "again"))
    assert second.model_id == model_id == first.model_id
    assert second.config == first.config
    assert second.text_encoder.queries == first.text_encoder.queries
    one, other = answers(first), answers(second)
    for name in ("existence_logits", "start_logits", "end_logits"):
        assert torch.equal(getattr(one.spans, name), getattr(other.spans, name)), name
    for name in ("start_share", "end_share"):
        assert torch.equal(getattr(one.spans.match, name), getattr(other.spans.match, name)), name
    assert torch.equal(one.box_logits, other.box_logits)
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == {"f1": 0.5}


def test_the_directory_holds_nothing_that_could_run(tiny_model: Path) -> None:
    endings = {path.suffix for path in tiny_model.rglob("*") if path.is_file()}
    assert endings <= {".json", ".yaml", ".safetensors", ".txt"}
    assert is_model(str(tiny_model))
    assert not is_model(str(tiny_model.parent))


@pytest.mark.parametrize(
    "name",
    [
        "model.json",
        "model.safetensors",
        "config.yaml",
        "queries.yaml",
        "encoder/config.json",
        "encoder/tokenizer.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_missing_or_damaged_file_is_named(directory: Path, name: str, damage: str) -> None:
    if damage == "missing":
        (directory / name).unlink()
    else:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(ModelError) as caught:
        load_model(str(directory))
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    if damage == "missing":
        assert f"{name} is missing" in str(caught.value)


def test_metrics_may_be_missing(directory: Path) -> None:
    (directory / "metrics.json").unlink()
    load_model(str(directory))


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises((StorageError, ModelError), match="nowhere"):
        load_model(str(tmp_path / "nowhere"))


def sign(directory: Path) -> None:
    """Makes the files of a model directory, as they are now, those that its manifest names."""
    manifest = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps(manifest | {"model_id": digest(directory)}))


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.yaml",
        "queries.yaml",
        "encoder/config.json",
        "encoder/tokenizer.json",
        "encoder/tokenizer_config.json",
    ],
)
def test_damage_is_found_by_its_digest(directory: Path, name: str) -> None:
    content = bytearray((directory / name).read_bytes())
    content[-1] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(
        ModelError, match=r"is damaged: its files have the digest [0-9a-f]{16}, model.json says"
    ):
        check_model(str(directory))


@pytest.mark.parametrize("change", ["added", "lost", "renamed"])
def test_the_encoders_files_are_all_there_and_no_others(directory: Path, change: str) -> None:
    path = directory / "encoder" / "tokenizer_config.json"
    if change == "added":
        (directory / "encoder" / "special_tokens_map.json").write_text("{}")
    elif change == "lost":
        path.unlink()
    else:
        path.rename(path.with_name("other.json"))
    with pytest.raises(ModelError, match="is damaged: its files have the digest"):
        check_model(str(directory))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "no tokenizer at"),
        ("tokenizer.json", "[]", "no tokenizer at"),
        ("config.json", "[]", "no tokenizer at"),
        ("config.json", "{}", "no encoder can be built from"),
        ("config.json", '{"model_type": "unheard-of"}', "no encoder can be built from"),
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_named(
    directory: Path, name: str, content: str, message: str
) -> None:
    (directory / "encoder" / name).write_text(content)
    sign(directory)
    with pytest.raises(ModelError, match=f"^{message} {directory}/encoder: ") as caught:
        load_model(str(directory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"model_type": "unheard-of"}'])
def test_a_network_of_a_damaged_encoder_config(tiny_model: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    config = check_model(str(tiny_model)).config.model
    with pytest.raises(
        ModelError, match=f"^no encoder can be built from {tmp_path}: .*; copy the model directory again"
    ):
        build_empty(config, tmp_path, 4)


@pytest.mark.parametrize("manifest", ["", "{}", "[]", "3", "{", '{"format_version": 2}'])
def test_a_damaged_manifest(directory: Path, manifest: str) -> None:
    (directory / "model.json").write_text(manifest)
    with pytest.raises(ModelError, match=r"model\.json is damaged; copy the model directory again"):
        check_model(str(directory))


@pytest.mark.parametrize("version", [1, FORMAT_VERSION + 1])
def test_another_format_version(directory: Path, version: int) -> None:
    manifest = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(
        ModelError, match=f"has format version {version}; this release reads version {FORMAT_VERSION}"
    ):
        load_model(str(directory))


def test_the_model_id_follows_weights_config_queries_and_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_model))
    other_queries = TextEncoder(
        tokenizer=loaded.text_encoder._tokenizer, queries=QUERY_STYLES["template"], max_length=64
    )
    config = loaded.config.model_copy(update={"queries": "template"})
    ids = [
        loaded.model_id,
        save(tmp_path / "queries", loaded, text_encoder=other_queries),
        save(tmp_path / "config", loaded, config=config),
    ]
    with torch.no_grad():
        loaded.model.spans.start.project.bias += 1e-3
    ids.append(save(tmp_path / "weights", loaded))
    loaded.text_encoder._tokenizer.add_tokens("Zürich")
    ids.append(save(tmp_path / "tokenizer", loaded))
    assert len(set(ids)) == 5
    assert save(tmp_path / "metrics", loaded, metrics={"f1": 1.0}) == ids[-1]


def test_publishing_replaces_what_was_there(directory: Path, tmp_path: Path) -> None:
    there = tmp_path / "published"
    publish_model(directory, str(there))
    (there / "left-over.txt").write_text("of the older model")
    loaded = load_model(str(directory))
    with torch.no_grad():
        loaded.model.spans.start.project.bias += 1
    newer = save(tmp_path / "newer", loaded)
    publish_model(tmp_path / "newer", str(there))
    assert load_model(str(there)).model_id == newer
    assert not (there / "left-over.txt").exists()
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert names == {
        path.relative_to(tmp_path / "newer").as_posix()
        for path in (tmp_path / "newer").rglob("*")
        if path.is_file()
    }


def test_a_model_on_s3(directory: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/models/one"
    assert not is_model(uri)
    publish_model(directory, uri)
    assert is_model(uri)
    assert load_model(uri).model_id == load_model(str(directory)).model_id


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "not safetensors"])
def test_weights_of_another_model(directory: Path, tmp_path: Path, change: str) -> None:
    model = load_model(str(directory)).model
    weights = safetensors.torch.load_file(directory / WEIGHTS_FILE)
    path = tmp_path / "other.safetensors"
    if change == "shape":
        weights["spans.start.project.bias"] = torch.zeros(3)
    elif change == "missing":
        del weights["spans.start.project.bias"]
    elif change == "extra":
        weights["more"] = torch.zeros(3)
    safetensors.torch.save_file(weights, path)
    if change == "not safetensors":
        path.write_bytes(b"no")
    with pytest.raises(ModelError, match=r"^other\.safetensors does not hold this model's weights") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)


def test_the_training_state_comes_back(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "balance": [0.5, 2.0], "history": [{"f1": 0.5, "epoch": 1}]}
    save_training_state(tmp_path / "state.pt", state)
    found = load_training_state(tmp_path / "state.pt")
    assert found["balance"] == [0.5, 2.0]
    assert found["history"] == state["history"]
    torch.optim.AdamW([parameter]).load_state_dict(found["optimizer"])


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle ran",))


def test_a_pickled_object_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"optimizer": Malicious()}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_training_state(tmp_path / "state.pt")
    assert "a pickle ran" not in capsys.readouterr().out


def test_training_may_start_from_another_models_weights(tiny_model: Path, tmp_path: Path) -> None:
    first = load_model(str(tiny_model))
    moved = load_model(str(tiny_model)).model
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(1)
    start_weights(moved, str(tiny_model))
    for name, tensor in moved.state_dict().items():
        assert torch.equal(tensor, first.model.state_dict()[name]), name
    narrow = first.config.model.model_copy(update={"grounding": False})
    other = build_empty(narrow, tiny_model / "encoder", 4)
    with pytest.raises(ModelError, match=r"train\.start_from is .* of another network"):
        start_weights(other, str(tiny_model))
