"""What one data-parallel worker of a training run does, epoch by epoch."""

import json
import logging
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import ray.data
import ray.train
import ray.train.torch
import torch

from mnerqg.config import Config, ModelConfig
from mnerqg.config_files import load_config
from mnerqg.distributed.scalars import write_scalars
from mnerqg.distributed.validation import ValidationPosts, sum_over_workers, validate
from mnerqg.inputs.ahead import Awaited, made_ahead
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example, table_to_examples
from mnerqg.inputs.text import load_text_encoder
from mnerqg.io import storage
from mnerqg.model.build import build_collator, build_pretrained
from mnerqg.model.checkpoint import (
    load_training_state,
    load_weights,
    save_model,
    save_training_state,
    start_weights,
)
from mnerqg.model.files import BEST_FOLDER, WEIGHTS_FILE, publish_model
from mnerqg.model.losses import LossBalance
from mnerqg.model.optimization import (
    build_optimizer,
    learning_rate_factor,
    learning_rates,
    progress_at,
    set_learning_rates,
)
from mnerqg.model.precision import multiplies_bf16
from mnerqg.model.training_step import FIGURES, TrainingStep
from mnerqg.queries import parse_queries
from mnerqg.tagger import Tagger

_log = logging.getLogger(__name__)  # of a worker's print() Ray Train shows every line twice

_STATE_FILE = "training_state.pt"
# So many batches of shuffled posts are sorted by length together and then cut into batches, so that the posts of a
# batch are of about one length: the more, the less padding, and the less random the batches [chosen].
_BATCHES_SORTED_TOGETHER = 8
_SECONDS_BETWEEN_LINES = 20.0
# How often the workers ask whether a checkpoint is due within an epoch. Ray Train takes a report from all of them at
# one step, so they wait for each other to come to one answer, which costs too much to do it at every step.
_SECONDS_BETWEEN_QUESTIONS = 10.0


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told; plain values, so that it travels as they do.

    `config` and `queries` are YAML, `data` and `output` absolute URIs, `train_posts` the size of an epoch.
    """

    config: str
    queries: str
    data: str
    output: str
    train_posts: int


def train_worker(settings: dict[str, Any]) -> None:
    """One data-parallel worker, from its last checkpoint to the last epoch."""
    job: TrainingJob = settings["job"]
    config = load_config(Config, job.config)
    # Ray gives a worker as many threads as it has logical CPUs, by default one.
    torch.set_num_threads(config.train.threads_per_worker or max(1, int(config.train.cpus_per_worker)))
    worker = _Worker(config, job)
    for epoch in range(worker.first_epoch, config.train.epochs):
        worker.run_epoch(epoch)


def best_measures(config: ModelConfig) -> tuple[str, str]:
    """By which scores the best epoch is chosen, by the second of those that are level in the first.

    A network that finds no entities is chosen by its boxes.
    """
    return ("f1", "accuracy_50") if config.answers_entities else ("accuracy_50", "f1")


def scores_in(record: Mapping[str, float], measures: Sequence[str]) -> tuple[float, ...]:
    """An epoch's scores, to be compared with another's."""
    return tuple(record[measure] for measure in measures)


class _Worker:
    """The state of one worker: model, optimizer, balance factor, history."""

    def __init__(self, config: Config, job: TrainingJob) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config, self.job = config, job
        self.decode = config.decode
        self.device = ray.train.torch.get_device()
        self.bf16 = config.train.precision == "bf16" and multiplies_bf16(self.device)
        torch.manual_seed(config.train.seed)
        queries = parse_queries(job.queries, source="queries")
        self.text_encoder = load_text_encoder(config.model, queries)
        self.collate = build_collator(config, self.text_encoder, groups=self.device.type == "cpu")
        self.model = build_pretrained(config.model, len(queries))
        self.balance = LossBalance(config.loss)
        self.history: list[dict[str, Any]] = []
        self.saved_for_notice = False
        checkpoint = ray.train.get_checkpoint()
        state = self._restore(checkpoint) if checkpoint is not None else None
        if state is None and config.train.start_from is not None:
            start_weights(self.model, config.train.start_from)
        self.parallel = ray.train.torch.prepare_model(self.model)
        self.optimizer = build_optimizer(self.model, config.train)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self._step = TrainingStep(
            network=self.model,
            parallel=self.parallel,
            optimizer=self.optimizer,
            balance=self.balance,
            config=config,
            bf16=self.bf16,
            reduce=sum_over_workers,
            workers=self.world,
        )
        self.first_epoch = len(self.history)
        self.batch_posts = max(1, round(config.train.posts_per_step / self.world))
        rows = job.train_posts // self.world  # streaming_split(equal=True) drops the remainder
        self.steps = max(1, -(-rows // self.batch_posts))
        # Of the first epoch so many have been done before. Saved as a share: other workers may make other steps.
        self.steps_done = min(round(state["share_of_epoch"] * self.steps), self.steps - 1) if state else 0
        begin = f"resuming after epoch {self.first_epoch}, step {self.steps_done}" if state else "starting"
        self._say(
            f"{begin}: {self.world} worker(s) on {self.device} in {'bf16' if self.bf16 else 'fp32'}, "
            f"{job.train_posts} posts, {self.steps} steps an epoch"
        )

    def run_epoch(self, epoch: int) -> None:
        """Train one epoch, score the validation split, report and checkpoint."""
        # Seeded by the epoch, so that a resumed run needs no generator state.
        torch.manual_seed(hash((self.config.train.seed, epoch, self.rank)) % 2**31)
        started = time.monotonic()
        losses = self._train_epoch(epoch)
        trained = time.monotonic()
        scores = self._validate(last=epoch + 1 == self.config.train.epochs)
        record = {
            "epoch": epoch + 1,
            **losses,
            **scores,
            "train_seconds": round(trained - started, 1),
            "valid_seconds": round(time.monotonic() - trained, 1),
            "workers": self.world,
        }
        self.history.append(record)
        self._say(
            f"epoch {epoch + 1}/{self.config.train.epochs}: loss {losses['loss']:.3f} "
            f"(QG {losses['loss_grounding']:.3f}, ED {losses['loss_existence']:.3f}, "
            f"ESP {losses['loss_spans']:.4f}, ω_f {losses['balance']:.2f}) | valid F1 {scores['f1']:.4f}, "
            f"Accu@0.5 {scores['accuracy_50']:.4f}, GMNER F1 {scores['gmner_f1']:.4f} | "
            f"{record['train_seconds']:.0f} + {record['valid_seconds']:.0f} s"
        )
        directory = self._model_directory(record)
        self._report(record, directory, f"epoch_{epoch + 1:03d}", wait=True)
        if directory is not None:
            # Only what a start would go on from is shown: an epoch that it would make anew must not be in
            # metrics.jsonl, nor in best/, which another outcome of that epoch might not replace.
            ray.train.get_all_reported_checkpoints(
                consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED
            )
            self._publish(directory)
            shutil.rmtree(directory)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        settings = self.config.train
        self.parallel.train()
        # Stays on the device: reading a figure at each step would make the host wait for it each time.
        totals = torch.zeros(len(FIGURES), device=self.device)
        figures = torch.ones_like(totals)
        started = said = time.monotonic()
        done = self.steps_done if epoch == self.first_epoch else 0
        step, saved, ask_at = done, done, done + 2
        waited = 0.0
        # Of a resumed epoch the rest, in a new order: its first steps cannot be told from the others any more.
        rest = islice(
            self._examples(ray.train.get_dataset_shard("train"), epoch), self.steps - done if done else None
        )
        batches = Awaited(made_ahead(map(self._batch, rest)))
        for step, batch in enumerate(batches, start=done + 1):
            progress = progress_at(epoch, step, self.steps, settings.epochs)
            set_learning_rates(self.optimizer, learning_rate_factor(progress, settings.warmup))
            figures = self._step(batch.to(self.device))
            totals += figures
            if step == done + 1:
                started = said = time.monotonic()  # the first step waits for Ray Data to start
                waited = batches.seconds
            pace = (time.monotonic() - started) / max(1, step - done - 1)
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                waiting = (batches.seconds - waited) / (said - started)
                self._say_progress(epoch, step, (totals / (step - done)).tolist(), pace, waiting)
            if step == ask_at:
                pace = self._mean_over_workers(pace)  # so that all of them come to the same answers
                if self._save_if_due(epoch, step, seconds_since=pace * (step - saved)):
                    saved = step
                # A few steps say little of the pace: no more are made until the next question than have been made.
                ask_at += max(1, min(step - done, round(_SECONDS_BETWEEN_QUESTIONS / max(pace, 1e-3))))
        means = (totals / max(step - done, 1)).tolist()
        return {
            **dict(zip(FIGURES, means, strict=True)),
            "balance": float(figures[FIGURES.index("mean_balance")]),
            "waited_seconds": round(self._mean_over_workers(batches.seconds), 1),
            **learning_rates(self.optimizer),
        }

    def _say_progress(self, epoch: int, step: int, means: list[float], pace: float, waiting: float) -> None:
        _, grounding, existence, spans, balance, gradient_norm = means
        self._say(
            f"epoch {epoch + 1} step {step}/{self.steps}: QG {grounding:.3f}, ED {existence:.3f}, ESP {spans:.4f}, "
            f"ω_f {balance:.2f}, gradient {gradient_norm:.1f}, {pace:.2f} s a step ({waiting:.0%} waiting for posts), "
            f"{pace * max(0, self.steps - step) / 60:.1f} min left in this epoch"
        )

    def _examples(self, shard: ray.data.DataIterator, epoch: int) -> Iterator[list[Example]]:
        """This worker's examples in batches of alike length: padding costs as much as words do."""
        shuffle = random.Random(f"{self.config.train.seed} {epoch}")
        side = self.config.model.image_side
        for table in shard.iter_batches(
            batch_size=self.batch_posts * _BATCHES_SORTED_TOGETHER, batch_format="pyarrow", prefetch_batches=1
        ):
            examples = sorted(table_to_examples(table, side), key=lambda example: len(example.text.token_ids))
            starts = list(range(0, len(examples), self.batch_posts))
            shuffle.shuffle(starts)
            for start in starts:
                yield examples[start : start + self.batch_posts]

    def _batch(self, examples: list[Example]) -> Batch:
        batch = self.collate(examples, with_targets=True)
        return batch.pinned() if self.device.type == "cuda" else batch

    def _validate(self, *, last: bool) -> dict[str, float]:
        """Scores of the model as it is now; the thresholds that were found go into the models to be saved."""
        tagger = Tagger(
            model=self.model,
            text_encoder=self.text_encoder,
            config=self.config,
            model_id="in training",
            device=self.device,
        )
        posts = ValidationPosts(self.job.data, self.rank, self.world, self.config.train.max_valid_posts)
        scores, self.decode = validate(tagger, posts, last=last)
        return scores

    def _mean_over_workers(self, value: float) -> float:
        return float(sum_over_workers(torch.tensor(value, device=self.device))) / self.world

    def _save_if_due(self, epoch: int, step: int, seconds_since: float) -> bool:
        """Save a checkpoint within the epoch where one is due, and say whether it was.

        It is due when the last one is `seconds_since` old, or when a node is about to be reclaimed: the workers that
        are left, or more than there are now, then go on from it.
        """
        # Once: the notice stands until the node is gone, which is when the workers that are left begin anew.
        reclaimed = not self.saved_for_notice and ray.train.get_preemption_info() is not None
        self.saved_for_notice |= reclaimed
        if not reclaimed and seconds_since < 60 * self.config.train.minutes_between_checkpoints:
            return False
        why = "a node is about to be reclaimed: " if reclaimed else ""
        self._say(f"{why}saving epoch {epoch + 1}, step {step}")
        record = {"epoch": epoch + 1, "step": step}
        name = f"epoch_{epoch + 1:03d}_step_{step:06d}"
        share = step / self.steps
        directory = self._model_directory(record)
        self._report(record, directory, name, share_of_epoch=share, wait=reclaimed)
        if directory is not None and reclaimed:
            shutil.rmtree(directory)
        return True

    def _report(
        self,
        record: dict[str, Any],
        directory: Path | None,
        name: str,
        *,
        share_of_epoch: float = 0.0,
        wait: bool,
    ) -> None:
        """Give Ray Train a record and, from the first worker, the checkpoint that belongs to it.

        Args:
            record: what was reached.
            directory: the first worker's with the model; what resuming takes is added to it. None on the others.
            name: of the checkpoint's folder.
            share_of_epoch: how much is done of an epoch under way.
            wait: until the checkpoint is uploaded, and leave the directory; else training goes on meanwhile and the
                directory goes with the end of the upload.
        """
        checkpoint = None
        if directory is not None:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "balance": self.balance.running,
                "history": self.history,
                "share_of_epoch": share_of_epoch,
            }
            save_training_state(directory / _STATE_FILE, state)
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        mode = ray.train.CheckpointUploadMode
        ray.train.report(
            record,
            checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode.SYNC if wait else mode.ASYNC,
            delete_local_checkpoint_after_upload=not wait,
        )

    def _model_directory(self, metrics: dict[str, Any]) -> Path | None:
        """A new directory with the model as it is now; the first worker's, for they are all the same."""
        if self.rank != 0:
            return None
        directory = Path(mkdtemp(prefix="mnerqg-checkpoint-"))
        save_model(
            directory,
            model=self.model,
            text_encoder=self.text_encoder,
            config=self.config.model_copy(update={"decode": self.decode}),
            metrics=metrics,
        )
        return directory

    def _publish(self, directory: Path) -> None:
        """Update metrics.jsonl, best, best_grounding and, at the end, last, which marks the run as finished.

        Without boxes to answer (`Config.answers_boxes`) there is no best grounding.
        """
        output = self.job.output
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        storage.write_text(storage.join(output, "metrics.jsonl"), lines)
        if self.config.train.tensorboard:
            write_scalars(self.history, output)
        bests = {BEST_FOLDER: best_measures(self.config.model)}
        if self.config.answers_boxes:
            bests["best_grounding"] = ("accuracy_50", "f1")
        for name, measures in bests.items():
            *before, last = (scores_in(record, measures) for record in self.history)
            if all(other < last for other in before):
                publish_model(directory, storage.join(output, name))
        if len(self.history) == self.config.train.epochs:
            publish_model(directory, storage.join(output, "last"))

    def _restore(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        with checkpoint.as_directory() as directory:
            load_weights(self.model, Path(directory) / WEIGHTS_FILE)
            state: dict[str, Any] = load_training_state(Path(directory) / _STATE_FILE)
            self.balance.running = state["balance"]
            self.history = state["history"]
            if self.rank == 0 and not state["share_of_epoch"]:
                self._publish(Path(directory))  # it may have been lost between its checkpoint and this
        return state

    def _say(self, line: str) -> None:
        if self.rank == 0:
            _log.info(line)
