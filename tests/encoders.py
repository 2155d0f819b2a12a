"""Tiny encoders of eight families of `transformers`, random ones with tokenizers trained here: no network is needed."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

from mnerqg.inputs.borders import split_at_borders
from tests.builders import QUERIES

WORDS = (
    "Person Location Organization Other: names of people, places and firms. Ada Lovelace and Grace Hopper met Linus in "
    "London, (London), #London @London London's Oslo New York's BBC NASA iPhone Linux the city of Lisbon word "
)
# Pieces that span the border of a word, which a tokenizer learns from texts that have them often.
LETTERS = "".join(chr(code) for code in range(33, 127))
_CORPUS = [
    *WORDS.split(),
    *" ".join(query.query for query in QUERIES).split(),
    *LETTERS,
    "(London)",
    "London,",
    "#London",
    "@London",
    "London's",
] * 20
_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_SMALL |= {"initializer_range": 0.1}


def _wordpiece(special: list[str]) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))


def _trained(tokenizer: Tokenizer, trainer: Any) -> dict[str, int]:
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.get_vocab()


def _bert_like(tokenizer: str) -> Callable[[], Any]:
    return lambda: getattr(transformers, tokenizer)(
        vocab=_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    )


def _mpnet() -> Any:
    return transformers.MPNetTokenizerFast(vocab=_wordpiece(["<s>", "[UNK]", "<pad>", "</s>", "<mask>"]))


def _byte_level(special: list[str]) -> tuple[dict[str, int], list[Any], Tokenizer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(_CORPUS)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]], tokenizer


def _roberta() -> Any:
    vocab, merges, _ = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.RobertaTokenizerFast(vocab=vocab, merges=merges)


def _modernbert() -> Any:
    _, _, tokenizer = _byte_level(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _unigram(special: list[str]) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities; some of them span the border of a word, as in real ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([" ".join(_CORPUS)], trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    spanning = [
        (piece, -1.0) for piece in ("▁(London)", "▁#London", "▁@London", "▁London's", "▁London,", "▁(L")
    ]
    return pieces + [entry for entry in spanning if entry[0] not in dict(pieces)]


def _xlm_roberta() -> Any:
    return transformers.XLMRobertaTokenizerFast(vocab=_unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


def _deberta_v2() -> Any:
    return transformers.DebertaV2TokenizerFast(
        vocab=_unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]), unk_token="[UNK]"
    )


# family -> its tokenizer, and how its configuration names what others name alike.
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bert": (_bert_like("BertTokenizerFast"), {}),
    "roberta": (_roberta, {"type_vocab_size": 1, "max_position_embeddings": 130}),
    "xlm-roberta": (_xlm_roberta, {"type_vocab_size": 1, "max_position_embeddings": 130}),
    "mpnet": (_mpnet, {"max_position_embeddings": 130, "pad_token_id": 2}),
    "deberta-v2": (
        _deberta_v2,
        {
            "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
            "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
        },
    ),
    "modernbert": (_modernbert, {"num_hidden_layers": 2}),
    "electra": (_bert_like("ElectraTokenizerFast"), {"embedding_size": 16}),
    "distilbert": (
        _bert_like("DistilBertTokenizerFast"),
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.1},
    ),
}  # fmt: skip


@cache
def family_tokenizer(family: str) -> Any:
    """The tokenizer of a family as `load_tokenizer` gives it; or of "nfkc", which is XLM-R's with its normaliser, and
    of "cased", which is BERT's with its own."""
    name, normalizer = {
        "nfkc": ("xlm-roberta", normalizers.NFKC()),
        "cased": ("bert", normalizers.BertNormalizer(lowercase=False)),
    }.get(family, (family, None))
    tokenizer = FAMILIES[name][0]()
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    split_at_borders(tokenizer)
    return tokenizer


TOKENIZERS = (*FAMILIES, "nfkc", "cased")


def write_encoder(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a tiny encoder of `family` with seeded random weights of the type `dtype`, and its tokenizer."""
    make_tokenizer, own = FAMILIES[family]
    tokenizer = make_tokenizer()
    small = {} if family == "distilbert" else _SMALL
    ids = {"pad_token_id": tokenizer.pad_token_id, "cls_token_id": None, "sep_token_id": None}
    ids |= {"bos_token_id": None, "eos_token_id": None}
    settings = small | {"vocab_size": len(tokenizer)} | ids | own
    torch.manual_seed(1)
    config = transformers.CONFIG_MAPPING[family](**settings)
    AutoModel.from_config(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
