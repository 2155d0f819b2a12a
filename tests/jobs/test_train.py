"""The command line of jobs/train.py: errors are one line and exit code 2, before any cluster starts."""

import re
from pathlib import Path

import pytest
from transformers import T5Config, T5Model

from jobs import train
from tests.commands import call
from tests.encoders import family_tokenizer
from tests.tiny_training import write_dataset, write_recipe

ROOT = Path(__file__).parents[2]
DEMO, VARIANTS = ROOT / "jobs" / "configs" / "demo.yaml", ROOT / "jobs" / "configs" / "variants"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "nowhere.yaml"],
            "error: --config nowhere.yaml does not exist; recipes in jobs/configs: ",
        ),
        (
            ["--config", str(DEMO), "--train.lrr", "1"],
            "error: unknown key train.lrr; allowed here: epochs, ",
        ),
        (
            ["--config", str(DEMO), "--config", "nowhere.yaml"],
            "error: --config nowhere.yaml does not exist; recipes in jobs/configs: ",
        ),
        (
            ["--config", str(DEMO), "--config", str(VARIANTS / "text.yaml"), "--model.grounding", "true"],
            f"error: {VARIANTS / 'text.yaml'}: model.grounding is true, but inputs is text; ",
        ),
    ],
)
def test_a_bad_command_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = call("train", *arguments, "--data", str(tmp_path / "d"), "--output", str(tmp_path / "o"))
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--model.encoder", "{tmp}/t5"],
            r"error: model\.encoder is {tmp}/t5, which cannot read a post of \d+ pieces: .*; name another encoder",
        ),
        (["--model.encoder", "{tmp}/data"], r"error: no tokenizer at {tmp}/data: "),
        (
            ["--model.max_length", "300"],
            r"error: model\.max_length is 300, but .* has positions for 256 pieces; ",
        ),
        (["--model.backbone", "no_such"], r"error: .*no_such"),
        (["--model.backbone_weights", "{tmp}/none.weights"], r"error: .*{tmp}/none\.weights"),
        (["--queries", "no such"], r"error: .*no such"),
        (["--train.boxes", "weak"], r"error: train\.boxes is weak, but {tmp}/data has no weak boxes; "),
        (["--train.start_from", "{tmp}/none"], r"error: .*{tmp}/none"),
        (["--data", "{tmp}/none"], r"error: .*{tmp}/none"),
        (["--output", "{tmp}/data"], r"error: --output {tmp}/data "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_refused_before_any_cluster(
    tmp_path: Path, tiny_model: Path, settings: list[str], message: str
) -> None:
    """Before, the cluster was started first, half a minute of it, and then the encoder was found to be none."""
    write_dataset(tmp_path / "data", train=2, valid=1)
    small = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=700, **small)).save_pretrained(tmp_path / "t5")
    family_tokenizer("bert").save_pretrained(tmp_path / "t5")
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_model)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    asked = [part.format(tmp=tmp_path) for part in settings]
    done = call("train", "--config", recipe, *places, *asked)
    assert done.returncode == 2
    assert re.match(message.format(tmp=re.escape(str(tmp_path))), done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_cluster")
def test_the_cluster_is_asked_for_when_all_is_right(tmp_path: Path, tiny_model: Path) -> None:
    write_dataset(tmp_path / "data", train=4, valid=1)
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_model)
    with pytest.raises(AssertionError, match="a cluster was asked for"):
        train.main(
            ["--config", str(recipe), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
        )
