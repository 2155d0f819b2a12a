import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mnerqg.config import AugmentConfig, Config, DecodeConfig, LossConfig, ModelConfig, TrainConfig
from mnerqg.config_files import dump_config, load_config, load_file, load_files
from mnerqg.config_jobs import ColumnsConfig, PicturesConfig, TagConfig
from mnerqg.errors import ConfigError

RECIPES = sorted((Path(__file__).resolve().parents[1] / "jobs" / "configs").glob("*.yaml"))


VARIANTS = sorted((Path(__file__).resolve().parents[1] / "jobs" / "configs" / "variants").glob("*.yaml"))


def refusal(text: str, *overrides: str, section: Any = Config) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(section, text, overrides, source="my.yaml")
    message = str(caught.value)
    assert message
    assert "\n" not in message
    if not overrides and "is not valid YAML" not in message and " holds a " not in message:
        assert message.startswith("my.yaml: ")  # the command line needs no place, a file does
    return message.removeprefix("my.yaml: ")


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("modle: {}", "modle", Config),
        ("model: {widht: 3}", "model.widht", ModelConfig),
        ("loss: {weight: 3}", "loss.weight", LossConfig),
        ("decode: {threshold: 1}", "decode.threshold", DecodeConfig),
        ("augment: {rotate: 1}", "augment.rotate", AugmentConfig),
        ("train: {epoch: 1}", "train.epoch", TrainConfig),
    ],
)
def test_unknown_key_is_named_with_the_allowed_ones(text: str, key: str, allowed: type[BaseModel]) -> None:
    message = refusal(text)
    assert f"unknown key {key};" in message
    assert message.endswith(", ".join(allowed.model_fields))


def test_unknown_key_two_sections_deep() -> None:
    message = refusal("pictures: {root: x}", section=TagConfig)
    assert message == f"unknown key pictures.root; allowed here: {', '.join(PicturesConfig.model_fields)}"
    assert "columns.id" in refusal("", "--columns.id", "x", section=TagConfig)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model: {width: many}", "model.width", "many"),
        ("model: {width: 2.5}", "model.width", "2.5"),
        ("model: {width: 0}", "model.width", "0"),
        ("model: {width: null}", "model.width", "None"),
        ("model: {width: [1]}", "model.width", "1"),
        ("model: {encoder: 3}", "model.encoder", "3"),
        ("model: {encoder_attention: flash}", "model.encoder_attention", "flash"),
        ("model: {max_length: 600}", "model.max_length", "600"),
        ("model: {anchors: [[1, -2]]}", "model.anchors", "-2"),
        ("model: 3", "model", "3"),
        ("model:", "model", "None"),
        ("loss: {balance: sometimes}", "loss.balance", "sometimes"),
        ("loss: {box_weight: -1}", "loss.box_weight", "-1"),
        ("decode: {span_threshold: 1.5}", "decode.span_threshold", "1.5"),
        ("augment: {flip: maybe}", "augment.flip", "maybe"),
        ("train: {max_failures: -5}", "train.max_failures", "-5"),
        ("train: {lr: .nan}", "train.lr", "nan"),
        ("train: {lr: .inf}", "train.lr", "inf"),
        ("train: {lr: fast\n slow}", "train.lr", "fast"),
        ("{1: 2}", "1", "keys should be strings"),
    ],
)
def test_a_bad_value_is_named_with_its_key(text: str, key: str, value: str) -> None:
    message = refusal(text)
    assert message.startswith(key)
    assert value in message


@pytest.mark.parametrize(
    ("text", "section", "message"),
    [
        ("model: {image_side: 100}", Config, "model.image_side is 100; it must be a multiple of 32"),
        ("model: {width: 100}", Config, "model.width is 100; it must be a multiple of heads (8)"),
        ("model: {anchors: [[1, 2]]}", Config, "model.anchors has 1 entries; it must have 9, three a scale"),
        (
            "train: {workers: [4, 2]}",
            Config,
            "train.workers is (4, 2); the first of (min, max) must not be the larger",
        ),
        ("actors: [4, 2]", TagConfig, "actors is (4, 2); the first of (min, max) must not be the larger"),
        (
            "loss: {balance_min: 5, balance_max: 1}",
            Config,
            "loss.balance_min is 5.0; it must not exceed balance_max (1.0)",
        ),
    ],
)
def test_constraints_between_values(text: str, section: Any, message: str) -> None:
    assert refusal(text, section=section) == message


@pytest.mark.parametrize(
    ("text", "section", "message"),
    [
        ("train: {epochs: true}", Config, "train.epochs is True: input should be a valid integer"),
        ("train: {lr: true}", Config, "train.lr is True: input should be a valid number"),
        ("train: {lr: '1e-4'}", Config, "train.lr is '1e-4': input should be a valid number"),
        ('model: {width: "256"}', Config, "model.width is '256': input should be a valid integer"),
        ("model: {width: 256.0}", Config, "model.width is 256.0: input should be a valid integer"),
        ("model: {grounding: 1}", Config, "model.grounding is 1: input should be a valid boolean"),
        ("model: {grounding: 'no'}", Config, "model.grounding is 'no': input should be a valid boolean"),
        (
            "model: {match_hidden: true}",
            Config,
            "model.match_hidden is True: input should be a valid integer",
        ),
        (
            "model: {anchors: [[1, true]]}",
            Config,
            "model.anchors.0.1 is True: input should be a valid number",
        ),
        ("queries: 1e5", Config, "queries is 100000.0: input should be a valid string"),
        ("max_failed: false", TagConfig, "max_failed is False: input should be a valid number"),
        (
            "columns: {pass_through: [1]}",
            TagConfig,
            "columns.pass_through.0 is 1: input should be a valid string",
        ),
        (
            "columns: {pass_through: [n], types: {n: int}}",
            TagConfig,
            "columns.types.n is 'int': input should be 'string', 'int64', 'float64', 'bool', 'timestamp[us]', "
            "'date32' or 'list<string>'",
        ),
        (
            "columns: {types: {n: int64}}",
            TagConfig,
            "columns.types names n, which is not in pass_through; add it there",
        ),
        (
            "columns: {partition_by: [n]}",
            TagConfig,
            "columns.partition_by names n, which is not in pass_through; add it there",
        ),
        (
            "columns: {text: body, pass_through: [body], types: {body: string}}",
            TagConfig,
            "columns.types names body, whose type is fixed; leave it out",
        ),
    ],
)
def test_types_are_as_written(text: str, section: Any, message: str) -> None:
    assert refusal(text, section=section) == message


@pytest.mark.parametrize(
    "value", ["0", "-1", "true", "1.5", "'2'", "none", "[]", "[1, 2, 3]", "[1, 0]", "[1, true]"]
)
@pytest.mark.parametrize(("section", "key"), [(Config, "train.workers"), (TagConfig, "actors")])
def test_a_wrong_range_is_one_error_under_its_own_key(section: Any, key: str, value: str) -> None:
    allowed = "it must be a whole number above 0, or two of them as [min, max]"
    text = f"train: {{workers: {value}}}" if key == "train.workers" else f"actors: {value}"
    expected = f"{key} is {yaml.safe_load(value)!r}: {allowed}"
    assert refusal(text, section=section) == expected
    assert refusal("", f"--{key}", value, section=section) == expected


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "1E-4", "+1.e-4", ".1e-3", "0.0001"])
def test_numbers_with_an_exponent(written: str) -> None:
    assert load_config(Config, f"train: {{lr: {written}}}").train.lr == 1e-4
    assert load_config(Config, "", ["--train.lr", written]).train.lr == 1e-4


def test_whole_numbers_and_lists_are_taken_for_floats_and_tuples() -> None:
    anchors = [[n, n] for n in range(1, 10)]
    config = load_config(Config, f"train: {{lr: 1, workers: [1, 4]}}\nmodel: {{anchors: {anchors}}}")
    assert (config.train.lr, config.train.workers) == (1.0, (1, 4))
    assert config.model.anchors == tuple((n, n) for n in range(1, 10))
    tagging = load_config(TagConfig, "columns: {pass_through: [a, b]}\nactors: [1, 4]")
    assert (tagging.columns.pass_through, tagging.actors) == (("a", "b"), (1, 4))
    types = ["--columns.types", '{a: int64, b: "timestamp[us]"}']
    typed = load_config(TagConfig, "columns: {pass_through: [a, b]}", types)
    assert typed.columns.types == {"a": "int64", "b": "timestamp[us]"}
    assert load_config(TagConfig, dump_config(typed)) == typed
    assert load_config(Config, "train: {max_failures: -1}").train.max_failures == -1
    assert load_config(Config, "loss: {balance_min: 1, balance_max: 1}").loss.balance_min == 1.0


@pytest.mark.parametrize("written", ["lang", "[lang]"])
def test_one_name_is_a_list_of_one(written: str) -> None:
    given = load_config(
        TagConfig, "", ["--columns.pass_through", written, f"--columns.partition_by={written}"]
    )
    assert given.columns.pass_through == given.columns.partition_by == ("lang",)


@pytest.mark.parametrize("name", ["1e5", "1e-4", ".5E3", "7", "true", "null"])
def test_names_that_look_like_something_else_are_dumped_as_names(name: str) -> None:
    config = Config(queries=name)
    assert load_config(Config, dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("train: {lr: 1}\ntrain: {epochs: 2}", 2, "train"),
        ("train:\n  lr: 1\n  epochs: 2\n\n  'lr': 1\n", 5, "lr"),
        ("queries: a\nmodel: {width: 8, width: 8}", 2, "width"),
        ('"a\\nb": 1\n"a\\nb": 2', 2, "a\nb"),
    ],
)
def test_a_key_written_twice(text: str, line: int, key: str) -> None:
    message = f"line {line}: {key!r} is written a second time; write it once, with all that belongs to it"
    assert refusal(text) == message


def test_a_key_written_twice_in_an_override_or_a_later_file(tmp_path: Path) -> None:
    part = "line 1: 'lr' is written a second time; "
    assert refusal("", "--train", "{lr: 1, lr: 2}").startswith(f"--train: {part}")
    paths = layered(tmp_path, "train: {lr: 1}", "train: {lr: 1, lr: 2}")
    with pytest.raises(ConfigError) as caught:
        load_files(Config, paths)
    assert str(caught.value).startswith(f"{paths[1]}: {part}")


def test_a_merged_mapping_may_be_overridden() -> None:
    model = load_config(Config, "model: {<<: {width: 64, heads: 4}, heads: 2}").model
    assert (model.width, model.heads) == (64, 2)


def test_a_missing_value_is_named() -> None:
    class Strict(ColumnsConfig):
        needed: int

    assert refusal("", section=Strict) == "needed is not set; give it in the YAML or as --needed VALUE"


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\t- x", "'"])
def test_broken_yaml_names_its_source(text: str) -> None:
    assert refusal(text).startswith("my.yaml is not valid YAML: ")


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("words", "str"), ("3", "int")])
def test_yaml_of_another_kind(text: str, kind: str) -> None:
    assert refusal(text) == f"my.yaml holds a {kind}; it must be a mapping of sections"


@pytest.mark.parametrize("text", ["", "# only a comment", "{}", "model: {}"])
def test_nothing_said_gives_the_defaults(text: str) -> None:
    assert load_config(Config, text) == Config()


def test_overrides_of_all_kinds() -> None:
    text = "model: {width: 64}\ntrain: {epochs: 3}"
    overrides = [
        *("--queries", "keyword", "--model.width", "128", "--model.match_hidden=16"),
        *("--train.lr", "1e-3", "--train.encoder_lr=null", "--train.seed", "-1", "--augment.flip", "false"),
        *("--train.workers", "[1, 4]", "--train.workers", "[2, 4]", "--decode.overlap=across_types"),
        *("--model.backbone_weights", "package:some/thing=else"),
    ]
    config = load_config(Config, text, overrides)
    assert (config.queries, config.model.width, config.model.match_hidden) == ("keyword", 128, 16)
    assert (config.train.lr, config.train.encoder_lr, config.train.seed) == (1e-3, None, -1)
    assert (config.augment.flip, config.train.workers, config.train.epochs) == (False, (2, 4), 3)
    assert config.decode.overlap == "across_types"
    assert config.model.backbone_weights == "package:some/thing=else"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["--train.lr"], "--train.lr has no value"),
        (["--train.lr", "--train.seed", "1"], "--train.lr has no value"),
        (["train.lr", "1"], "unexpected argument 'train.lr'"),
        (["-x", "1"], "unexpected argument '-x'"),
        (["--"], "unexpected argument '--'"),
        (["--queries.style", "keyword"], "unknown key queries.style"),
        (["--queries=a", "--queries.style", "keyword"], "queries is a value, not a section"),
        (["--model", "3"], "model is 3"),
        (["--model.width", "["], "model.width is '['"),
        (["--train.nothing=1"], "unknown key train.nothing"),
    ],
)
def test_bad_overrides(overrides: list[str], part: str) -> None:
    message = refusal("", *overrides)
    assert part in message or (part.startswith("unknown") and "queries is" in message)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Config().train.epochs = 3  # type: ignore[misc]
    assert not dataclasses.is_dataclass(Config())


rate = st.floats(0, 1)
# PyYAML writes a NEL unquoted and reads it back as a space.
text = st.text(st.characters(exclude_characters="\x85", codec="utf-8"), max_size=8)
positive = st.floats(1e-12, 1e12)
count = st.integers(1, 10**9)
configs = st.builds(
    Config,
    queries=text,
    model=st.builds(
        ModelConfig,
        encoder=text,
        encoder_dropout=st.none() | rate,
        backbone_weights=st.none() | text,
        width=st.integers(1, 100).map(lambda n: n * 8),
        anchors=st.tuples(*[st.tuples(positive, positive)] * 9),
        match_hidden=st.none() | count,
    ),
    loss=st.builds(LossConfig, box_weight=positive, balance=st.sampled_from(["dynamic", "constant"])),
    decode=st.builds(DecodeConfig, span_threshold=rate),
    augment=st.builds(AugmentConfig, flip=st.booleans(), drop_picture=rate),
    train=st.builds(
        TrainConfig,
        lr=positive,
        backbone_lr=st.none() | positive,
        seed=st.integers(-(2**40), 2**40),
        workers=count | count.map(lambda n: (n, n + 1)),
    ),
)


@settings(max_examples=30, deadline=None)
@given(configs)
def test_dump_and_load_are_inverse(config: Config) -> None:
    assert load_config(Config, dump_config(config)) == config


@settings(max_examples=30, deadline=None)
@given(st.lists(text, max_size=3), text)
def test_tagging_configuration_is_inverse_too(columns: list[str], column: str) -> None:
    config = TagConfig(columns=ColumnsConfig(text=column, pass_through=tuple(columns)), actors=(1, 2))
    assert load_config(TagConfig, dump_config(config)) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_load_and_say_only_what_differs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    section = TagConfig if path.name.startswith("tag") else Config
    config = load_config(section, text, source=str(path))
    assert load_config(section, dump_config(config)) == config
    assert isinstance(yaml.safe_load(text) or {}, dict)


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_every_variant_goes_over_every_recipe(recipe: Path, variant: Path) -> None:
    text = variant.read_text(encoding="utf-8")
    assert text.startswith("# ")  # which row of the paper it is
    expected = load_file(Config, recipe).model_dump()
    for section, changes in yaml.safe_load(text).items():
        expected[section] = {**expected[section], **changes} if isinstance(changes, dict) else changes
    assert load_files(Config, [recipe, variant]).model_dump() == expected


@pytest.mark.parametrize("name", ["demo", "offline", "mpnet"])
def test_all_recipes_but_the_paper_s_are_the_aligned_model(name: str) -> None:
    (aligned,) = (path for path in VARIANTS if path.stem == "aligned")
    (recipe,) = (path for path in RECIPES if path.stem == name)
    assert load_files(Config, [recipe, aligned]) == load_file(Config, recipe)


def test_there_are_variants() -> None:
    assert len(VARIANTS) == 18


def layered(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def test_later_files_override_earlier_ones_key_by_key(tmp_path: Path) -> None:
    paths = layered(
        tmp_path,
        "queries: keyword\nmodel: {width: 64, heads: 4}\ntrain: {lr: 1.0e-3, epochs: 2}",
        "model: {heads: 2}\ntrain: {epochs: 3}",
        "# nothing",
        "train: {epochs: 4, workers: [1, 2]}",
    )
    config = load_files(Config, paths, ["--train.epochs", "5"])
    assert (config.queries, config.model.width, config.model.heads) == ("keyword", 64, 2)
    assert (config.train.lr, config.train.epochs, config.train.workers) == (1e-3, 5, (1, 2))
    assert load_files(Config, paths).train.epochs == 4
    assert load_files(Config, []) == load_file(Config, None) == Config()


@pytest.mark.parametrize(
    ("texts", "file", "message"),
    [
        (("train: {lrr: 1}", "train: {lr: 1}"), 0, "unknown key train.lrr; allowed here: "),
        (("train: {lr: 1}", "train: {lrr: 1}"), 1, "unknown key train.lrr; allowed here: "),
        (("train: {lr: 1}", "train: {lr: x}", "train: {epochs: 1}"), 1, "train.lr is 'x': "),
        (("model: {width: 3}", "train: {lr: 1}"), 0, "model.width is 3; "),
        (("model: {anchors: [[1, -2]]}", "train: {lr: 1}"), 0, "model.anchors.0.1 is -2: "),
        (("model: {width: 64}", "model: 3"), 1, "model is 3: "),
        (
            ("model: {inputs: text}", "model: {grounding: true}"),
            1,
            "model.grounding is true, but inputs is text",
        ),
    ],
)
def test_a_wrong_key_names_its_file(tmp_path: Path, texts: tuple[str, ...], file: int, message: str) -> None:
    paths = layered(tmp_path, *texts)
    with pytest.raises(ConfigError) as caught:
        load_files(Config, paths)
    assert str(caught.value).startswith(f"{paths[file]}: {message}")
    assert "\n" not in str(caught.value)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    (good,) = layered(tmp_path, "model: {width: 64}")
    with pytest.raises(ConfigError, match=r"--config .*other\.yaml does not exist"):
        load_files(Config, [good, tmp_path / "other.yaml"])
    (tmp_path / "other.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=r"other\.yaml holds a list; it must be a mapping of sections"):
        load_files(Config, [good, tmp_path / "other.yaml"])


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("queries: é\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_file(Config, path)
    assert str(caught.value).startswith(f"{path} is not UTF-8 text: ")
    assert str(caught.value).endswith("; save it as UTF-8")


def test_the_paper_recipe_is_the_papers_mode() -> None:
    (path,) = (path for path in RECIPES if path.name == "paper.yaml")
    config = load_file(Config, path)
    assert (config.decode.overlap, config.train.fit_thresholds) == ("across_types", False)
    assert (config.decode.span_threshold, config.decode.match_threshold) == (0.5, 0.5)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["frozen_backbone_statistics"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": "text"}, "grounding is true, but inputs is text"),
        ({"inputs": "picture", "grounding": False}, "answers nothing else"),
        ({"grounding": False, "region_existence": True}, "then grounding must be true"),
        ({"inputs": "picture", "region_existence": True}, "inputs must be text_picture"),
        ({"picture": "region"}, "grounding must be false"),
        ({"picture": "region", "grounding": False, "inputs": "text"}, "inputs must be text_picture"),
        ({"tagger": "bio"}, "inputs must be text"),
        ({"tagger": "crf", "inputs": "picture"}, "tagger is crf; then inputs must be text"),
    ],
)
def test_variants_that_contradict_themselves(settings: dict[str, object], message: str) -> None:
    text = yaml.safe_dump({"model": settings})
    with pytest.raises(ConfigError, match=message):
        load_config(Config, text)


def test_a_loss_without_weight_teaches_no_answers() -> None:
    """Of the two ablations of the paper that take a loss away the modules stay."""
    full = Config()
    assert (full.answers_boxes, full.answers_existence) == (True, True)
    config = load_config(Config, "loss: {grounding_weight: 0, existence_weight: 0}")
    assert config.model == full.model
    assert (config.answers_boxes, config.answers_existence) == (False, False)
    for model in ({"tagger": "bio", "inputs": "text", "grounding": False}, {"inputs": "picture"}):
        assert not load_config(Config, yaml.safe_dump({"model": model})).answers_existence
    with pytest.raises(ConfigError, match=r"^config: loss\.grounding_weight is 0, but model\.inputs is"):
        load_config(Config, "", ["--model.inputs", "picture", "--loss.grounding_weight", "0"])
