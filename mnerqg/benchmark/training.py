"""Training steps in this process: ours with its input made meanwhile, pair by pair, and the step alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import cycle, islice

import torch

from mnerqg.benchmark.device import device_name, wait_for
from mnerqg.benchmark.pairs import as_pairs
from mnerqg.benchmark.rounds import Report, Round, paces, ratio, spread_of, turn_about
from mnerqg.config import Config
from mnerqg.config_files import dump_config, load_config
from mnerqg.config_jobs import ImageLimits
from mnerqg.datasets.prepared import read_posts
from mnerqg.inputs.ahead import made_ahead
from mnerqg.inputs.annotations import choose_annotations
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example, make_example
from mnerqg.inputs.text import TextEncoder, load_text_encoder
from mnerqg.model.build import Network, build_collator, build_pretrained
from mnerqg.model.checkpoint import load_model
from mnerqg.model.losses import LossBalance
from mnerqg.model.optimization import build_optimizer
from mnerqg.model.precision import multiplies_bf16
from mnerqg.model.training_step import TrainingStep
from mnerqg.queries import load_queries
from mnerqg.schema import Post


def measure(
    report: Report,
    source: Config | tuple[str, Sequence[str]],
    data: str,
    posts: int,
    steps: int,
    rounds: int,
) -> None:
    """Train with the first posts of a dataset in each of the ways, turn about.

    Args:
        report: gets the figures.
        source: a recipe, whose network is made anew; or a model directory, and what the command line changes of its
            settings.
        data: a prepared dataset.
        posts: of its training split.
        steps: of one turn.
        rounds: turns.

    Raises:
        MnerqgError: recipe, model or dataset are not as they should be.
    """
    if isinstance(source, Config):
        config, queries = source, load_queries(source.queries)
        text_encoder, network = load_text_encoder(config.model, queries), None
    else:
        directory = load_model(source[0])
        config = load_config(Config, dump_config(directory.config), source[1], source=source[0])
        text_encoder, network = directory.text_encoder, directory.model
    device = torch.device("cuda" if config.train.gpus_per_worker and torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and config.train.threads_per_worker:
        torch.set_num_threads(config.train.threads_per_worker)
    torch.manual_seed(config.train.seed)
    examples = make_examples(list(read_posts(data, "train", limit=posts)), config, text_encoder)
    network = network or build_pretrained(config.model, len(text_encoder.queries))
    trainings = Trainings(network.requires_grad_(True), config, text_encoder, examples, device, steps)
    report.device = device_name(device)
    variants = {"pairwise": trainings.pairwise, "bare": trainings.bare, "joint": trainings.joint}
    measured = turn_about(variants, rounds, report)
    paces(report, measured, dict.fromkeys(variants, steps * trainings.batch_posts))
    pace = report.figures["posts_per_second"]
    report.figures |= {
        "ratio_to_pairwise": ratio(pace["joint"], pace["pairwise"]),
        "ratio_to_bare": ratio(pace["joint"], pace["bare"]),
        "seconds_a_step": {name: spread_of(done, "seconds_a_step") for name, done in measured.items()},
        "posts_a_step": trainings.batch_posts,
        "precision": "bf16" if trainings.bf16 else "fp32",
    }


def make_examples(posts: Sequence[Post], config: Config, text_encoder: TextEncoder) -> list[Example]:
    """What a worker of a training is handed by Ray Data's tasks: texts tokenised, pictures decoded."""
    examples = []
    for post in posts:
        chosen = choose_annotations(post, config.train)
        examples.append(
            make_example(
                chosen.post,
                text_encoder,
                config.model.image_side,
                ImageLimits(),
                unknown_types=chosen.unknown_types,
            )
        )
    return examples


class Trainings:
    """Trains copies of a network in each of the ways that a method is named for, `steps` steps at a time.

    Args:
        network: with which each of them begins.
        config: of it; `train.precision` and `train.posts_per_step` are those of all ways.
        text_encoder: of it.
        examples: at least one; they are gone through again and again, sorted by length within eight batches as in the
            job, but for the pairwise way.
        device: where it trains.
        steps: of one measurement.
    """

    def __init__(
        self,
        network: Network,
        config: Config,
        text_encoder: TextEncoder,
        examples: Sequence[Example],
        device: torch.device,
        steps: int,
    ) -> None:
        self._config, self._device, self._steps = config, device, steps
        self._collate = build_collator(config, text_encoder, groups=device.type == "cpu")
        self._posts = config.train.posts_per_step
        self._examples = examples
        self.bf16 = config.train.precision == "bf16" and multiplies_bf16(device)
        self._step = self._made(network)
        self._pairwise_step = self._made(network)
        batches = sorted(self._parts(in_order=True), key=lambda part: max(map(_length, part)))
        self._ready = self._batch(batches[len(batches) // 2])

    def joint(self) -> Round:
        """Our step, the next batch collated and pinned meanwhile, as a worker of a training does it."""
        return self._timed(
            lambda steps: made_ahead(map(self._batch, islice(cycle(self._parts(in_order=True)), steps))),
            self._step,
        )

    def pairwise(self) -> Round:
        """Every query of a post is an example of its own, padded to the longest, with a picture of its own.

        The batch is made while the device waits. The losses and the type that is computed in are ours.
        """
        parts = self._parts(in_order=False)
        return self._timed(
            lambda steps: (as_pairs(self._collated(part)) for part in islice(cycle(parts), steps)),
            self._pairwise_step,
        )

    def bare(self) -> Round:
        """Our step on one batch that lies on the device, of the middle length."""
        batch = self._ready.to(self._device)
        return self._timed(lambda steps: (batch for _ in range(steps)), self._step)

    def _made(self, network: Network) -> TrainingStep:
        own = deepcopy(network).to(self._device).train()
        return TrainingStep(
            network=own,
            parallel=own,
            optimizer=build_optimizer(own, self._config.train),
            balance=LossBalance(self._config.loss),
            config=self._config,
            bf16=self.bf16,
        )

    def _timed(self, batches: Callable[[int], Iterator[Batch]], step: TrainingStep) -> Round:
        for batch in batches(1):  # what is made at the first step is made
            step(batch.to(self._device))
        wait_for(self._device)
        started, cpu = time.perf_counter(), time.process_time()
        for batch in batches(self._steps):
            step(batch.to(self._device))
        wait_for(self._device)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return {
            "posts": self._steps * self.batch_posts,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "seconds_a_step": seconds / self._steps,
        }

    @property
    def batch_posts(self) -> int:
        """Posts of a step: as the recipe says, or all there are."""
        return min(self._posts, len(self._examples))

    def _parts(self, *, in_order: bool) -> list[list[Example]]:
        """The examples in whole batches."""
        size, parts = self.batch_posts, []
        for start in range(0, len(self._examples), 8 * size):
            together = list(self._examples[start : start + 8 * size])
            if in_order:
                together.sort(key=_length)
            parts += [together[place : place + size] for place in range(0, len(together), size)]
        return [part for part in parts if len(part) == size]

    def _collated(self, examples: Sequence[Example]) -> Batch:
        return self._collate(examples, with_targets=True)

    def _batch(self, examples: Sequence[Example]) -> Batch:
        batch = self._collated(examples)
        return batch.pinned() if self._device.type == "cuda" else batch


def _length(example: Example) -> int:
    return len(example.text.token_ids)
