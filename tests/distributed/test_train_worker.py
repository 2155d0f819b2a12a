from pathlib import Path

import pytest
import torch

from mnerqg.config import Config
from mnerqg.config_files import load_file
from mnerqg.distributed import train_worker
from mnerqg.distributed.train_worker import TrainingJob, _Worker
from mnerqg.distributed.training import _best
from mnerqg.inputs.batch import Batch
from mnerqg.model.build import build_collator
from mnerqg.model.losses import LossBalance
from mnerqg.model.optimization import build_optimizer
from mnerqg.model.training_step import FIGURES, TrainingStep
from tests.builders import annotated_examples, example, small_config, small_network, text_encoder
from tests.device_waits import NoWaits

pytestmark = pytest.mark.usefixtures("one_thread")

ALIGNED = load_file(Config, Path(__file__).resolve().parents[2] / "jobs/configs/variants/aligned.yaml")
VARIANTS = {
    "the paper's": small_config(),
    "hidden match layer": small_config(match_hidden=8),
    "aligned": small_config(
        **{name: getattr(ALIGNED.model, name) for name in ALIGNED.model.model_fields_set}
    ).model_copy(update={"loss": ALIGNED.loss}),
    "text": small_config(inputs="text", grounding=False),
    "grounding alone": small_config(inputs="picture"),
    "bio": small_config(tagger="bio", inputs="text", grounding=False),
}


def worker_of(config: Config, device: str = "cpu") -> _Worker:
    """One that trains alone, without Ray around it."""
    worker = _Worker.__new__(_Worker)
    worker.device = torch.device(device)
    worker.collate = build_collator(config, text_encoder())
    worker.model = small_network(config).to(device)
    worker._step = TrainingStep(
        network=worker.model,
        parallel=worker.model,
        optimizer=build_optimizer(worker.model, config.train),
        balance=LossBalance(config.loss),
        config=config,
        bf16=device == "cuda",
    )
    return worker


@pytest.mark.parametrize("name", VARIANTS)
def test_the_host_never_waits_for_the_device_in_a_step(name: str) -> None:
    """Before, gold spans, counts, losses, balance and the gradient's norm were read in each."""
    worker = worker_of(VARIANTS[name])
    batch = worker._batch(annotated_examples())
    with NoWaits():
        figures = worker._step(batch)
    assert figures.shape == (len(FIGURES),)
    assert figures.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_synchronises_a_gpu(name: str) -> None:
    worker = worker_of(VARIANTS[name], "cuda")
    batches = [worker._batch(annotated_examples()) for _ in range(3)]
    worker._step(batches[0].to("cuda"))  # the first makes the optimizer's state and loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            figures = worker._step(batch.to("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert figures.isfinite().all()


# match_hidden, ω_f L_QG + L_ED + 2 L_ESP, ω_f, the gradient's length. They were 5.983194828, 0.244913643 and 349.219757
# (7.147310257, 0.292565050 and 416.346344) before steps were freed of reads, and still were afterwards; since the
# existence's attention has no bias of keys, other weights are drawn, with the old ones of which they are the same.
RECORDED = [(None, 7.159484863, 0.293063402, 418.283997), (8, 6.794442177, 0.278120905, 395.811462)]


@pytest.mark.parametrize(("hidden", "loss", "balance", "norm"), RECORDED)
def test_losses_are_those_of_before(hidden: int | None, loss: float, balance: float, norm: float) -> None:
    worker = worker_of(small_config(match_hidden=hidden))
    figures = dict(zip(FIGURES, worker._step(worker._batch(annotated_examples())).tolist(), strict=True))
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert figures["mean_balance"] == pytest.approx(balance, rel=1e-5)
    assert figures["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_queries_without_a_sentence_are_encoded_once_a_batch() -> None:
    """FA-VG asks all posts the same: 4 sequences, in the place of 4 a post."""
    worker = worker_of(small_config(inputs="picture"))
    seen: list[int] = []
    worker.model.encoder.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    worker._step(worker._batch([*annotated_examples(), example(picture=5)]))
    assert sum(seen) == 4


def test_a_batch_for_the_cpu_is_not_pinned() -> None:
    batch = worker_of(small_config())._batch(annotated_examples())
    assert isinstance(batch, Batch)
    assert not batch.pixels.is_pinned()


@pytest.mark.parametrize(
    ("scores", "best", "grounds_best"),
    [
        # of each epoch F1 and Accu@0.5
        ([(0.5, 0.9), (0.6, 0.8)], 1, 0),
        ([(0.6, 0.8), (0.6, 0.9)], 1, 1),  # level names: the better boxes
        ([(0.6, 0.9), (0.6, 0.8)], 0, 0),
        ([(0.5, 0.9), (0.6, 0.9)], 1, 1),  # level boxes: the better names
        ([(0.6, 0.9), (0.6, 0.9)], 0, 0),
    ],
)
def test_which_epoch_is_the_best(
    scores: list[tuple[float, float]],
    best: int,
    grounds_best: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: dict[str, int] = {}

    def publish(directory: Path, uri: str) -> None:
        published[Path(uri).name] = int(directory.name)

    monkeypatch.setattr(train_worker, "publish_model", publish)
    worker = _Worker.__new__(_Worker)
    worker.config = small_config()
    worker.job = TrainingJob("", "", "", str(tmp_path), 1)
    worker.history = []
    for epoch, (f1, accuracy) in enumerate(scores):
        worker.history.append({"epoch": epoch, "f1": f1, "accuracy_50": accuracy})
        worker._publish(Path(str(epoch)))
    assert published == {"best": best, "best_grounding": grounds_best}
    assert _best(worker.config, str(tmp_path))["epoch"] == best
