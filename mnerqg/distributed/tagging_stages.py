"""The model stage of bulk tagging: prepared rows to what is found in them, in Ray Data actors.

The driver imports this module only to pass the stage on. torch, seconds of it, is imported by the actors.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from threading import Lock, Thread
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from mnerqg.archive.counts import model_raised
from mnerqg.config_jobs import Precision
from mnerqg.distributed.tag_metrics import model_seconds
from mnerqg.distributed.tag_monitor import ActorReport
from mnerqg.inputs.ahead import Lanes
from mnerqg.inputs.prepared import PICTURES, ROW_ERROR, Views, has_error, without_pixels
from mnerqg.inputs.sentences import IntArray, Sentences
from mnerqg.model.batch_size import best_batch_size
from mnerqg.model.files import check_model
from mnerqg.model.found import FOUND, Found
from mnerqg.queries import EntityQuery

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

CPU_BATCH_POSTS = 4
"""On a CPU, where nobody says otherwise: what so few posts need on their way stays in its caches. 2 and 8 took 4 and
7 % longer a post in two lanes [measured]."""
GPU_BATCH_POSTS = 128
"""By which a GPU's rows are counted before its actor knows how many posts suit it."""
_CHUNK_BATCHES, _CHUNK_BLOCKS, _CHUNK_ROWS = 8, 8, 64
_PIECES = 16  # of the posts that an actor is tried with: as many as every model reads
_FREE_SHARE = 0.3  # of the GPU's memory, which is left for longer posts
_SWITCH_S = 2e-4
"""After so long Python lets another thread of an actor with a GPU go on. With its usual 5 ms each of the calls by which
a lane hands the GPU its next batch would wait as long for a lane that makes one."""


@dataclass(frozen=True)
class ModelSettings:
    """What a model actor needs to know.

    Attributes:
        model: URI of the model directory.
        queries: what it is asked, its own or others.
        side: of the canvases, pixels.
        batch_posts: what the model sees at once; None: what suits the device.
        device: where it runs.
        threads: of a GPU's host part; on a CPU so many batches are answered at once.
        precision, compiled: see `TagConfig`.
        run_id: the run that metrics are labelled with.
    """

    model: str
    queries: tuple[EntityQuery, ...]
    side: int
    batch_posts: int | None
    device: Literal["cuda", "cpu"]
    threads: int
    precision: Precision | None
    compiled: bool
    run_id: str


def chunk_rows(batch_posts: int | None, *, gpu: bool, side: int, block_bytes: int) -> int:
    """How many rows an actor is given at once: many batches of them, for they are cut from its rows sorted by length,
    and padding costs as much as words do. A chunk is also the least that is written at once, and so the least that a
    dead driver costs.

    Args:
        batch_posts: of the settings.
        gpu: whether actors have one.
        side: of the canvases, pixels, of which so many rows have no more than a few blocks hold.
        block_bytes: of a block.
    """
    size = batch_posts or (GPU_BATCH_POSTS if gpu else CPU_BATCH_POSTS)
    fits = _CHUNK_BLOCKS * block_bytes // (3 * side**2)
    return max(_CHUNK_ROWS, min(_CHUNK_BATCHES * size, fits))


class TagPosts:
    """The model actor: weights loaded and warmed up once; then all that it does is ask the model. Calls may come from
    several threads at once: their batches go through the same lanes.

    Args:
        settings: of the run.
        load_tagger: makes the tagger from the model's URI; None is `Tagger.load`.
        report: called after every block of rows with what this actor has done.
    """

    def __init__(
        self,
        settings: ModelSettings,
        load_tagger: "Callable[[str], Tagger] | None",
        report: Callable[[ActorReport], object],
    ) -> None:
        self.settings = settings
        started = time.monotonic()
        self._finder = (load_tagger(settings.model) if load_tagger else load(settings)).finder
        self._lanes = Lanes(self._finder.lanes)
        self._report = report
        self._batch_posts = settings.batch_posts or CPU_BATCH_POSTS
        self._try(1)
        if settings.device == "cuda":
            sys.setswitchinterval(_SWITCH_S)
            if settings.batch_posts is None:
                self._batch_posts = self._best_batch_posts()
        self._ready = time.monotonic()
        self._start_s = self._ready - started
        self._busy_before = self._finder.busy_s
        self._seconds = model_seconds(settings.run_id)
        self._posts = self._failed = 0
        self._busy_told = 0.0
        self._counting = Lock()

    def __call__(self, rows: pa.Table) -> pa.Table:
        views = Views.of(rows, self.settings.side)
        found, errors = self._ask(views)
        found_of_rows = found.to_arrow(views.per_row, errors)
        pictures = without_pixels(rows[PICTURES])
        failed = has_error(rows[ROW_ERROR]) | has_error(pictures) | has_error(found_of_rows)
        self._count(rows.num_rows, int(failed.sum()))
        rows = rows.set_column(rows.column_names.index(PICTURES), PICTURES, pictures)
        return rows.append_column(FOUND, found_of_rows)

    def _count(self, posts: int, failed: int) -> None:
        with self._counting:
            self._posts += posts
            self._failed += failed
            busy_s, ready_s = self._finder.busy_s - self._busy_before, time.monotonic() - self._ready
            self._seconds.inc(max(busy_s - self._busy_told, 1e-9))
            self._busy_told = busy_s
            # In here, so that no report is overtaken by that of an earlier call; its answer is not waited for.
            self._report(
                ActorReport(busy_s, ready_s, self._start_s, self._batch_posts, self._posts, self._failed)
            )

    def _ask(self, views: Views) -> tuple[Found, list[str | None]]:
        """What is found in each view, and what the model raised about it."""
        errors: list[str | None] = [None] * len(views)
        order, size = views.by_length(), self._batch_posts
        parts = [order[start : start + size] for start in range(0, len(order), size)]

        def answers(part: IntArray) -> list[tuple[IntArray, Found]]:
            return list(self._answers(views, part, errors))

        # The shortest come last, so that no lane works long after the others.
        found = chain.from_iterable(self._lanes(answers, parts[::-1]))
        return Found.together(list(found), len(views)), errors

    def _best_batch_posts(self) -> int:
        import torch

        if not torch.cuda.is_available():  # a tagger of another kind, on a GPU that only Ray counts
            return CPU_BATCH_POSTS

        def measured_s(posts: int) -> float | None:
            try:
                for _ in range(2):  # which chooses kernels, and records them
                    self._try(posts)
                seconds = self._try(posts)
            except torch.AcceleratorError:
                raise
            except Exception:  # what does not fit is not always said to be out of memory
                torch.cuda.empty_cache()
                return None
            free, all_of_it = torch.cuda.mem_get_info()
            return seconds if free > _FREE_SHARE * all_of_it else None

        best = best_batch_size(measured_s)
        self._finder.forget_shapes()
        return best

    def _try(self, posts: int) -> float:
        """The seconds that the device takes for so many posts; raises what the model raises."""
        views, busy_s = _views(posts, self.settings.side), self._finder.busy_s
        batch = self._finder.collate(*views.take(np.arange(posts)))
        list(self._lanes(lambda _: self._finder.answer(batch, views.sentences), [0]))
        return self._finder.busy_s - busy_s

    def _answers(
        self, views: Views, part: IntArray, errors: list[str | None]
    ) -> Iterator[tuple[IntArray, Found]]:
        """What is found in some views, whatever the model raises.

        A batch that raises is halved, down to the view that caused it, which gets an error. The same halving helps a
        batch that is too large for the GPU's memory.

        Raises:
            torch.AcceleratorError: the device is lost, and with it every later batch.
        """
        try:
            sentences, shown = views.take(part)
            found = self._finder.answer(self._finder.collate(sentences, shown), sentences)
        except Exception as error:
            import torch

            if isinstance(error, torch.AcceleratorError):
                raise
            if isinstance(error, torch.OutOfMemoryError):
                self._finder.forget_shapes()
            if len(part) == 1:
                errors[part[0]] = model_raised(error)
                return
        else:
            yield part, found
            return
        middle = len(part) // 2
        yield from self._answers(views, part[:middle], errors)
        yield from self._answers(views, part[middle:], errors)


def _views(posts: int, side: int) -> Views:
    """Posts of `_PIECES` pieces, whatever they spell, each with a picture."""
    pieces = np.ones(posts * _PIECES, np.int64)
    words = pieces.astype(bool)
    numbers = np.arange(posts)
    sentences = Sentences(pieces, words, words, starts=numbers * _PIECES, lengths=np.full(posts, _PIECES))
    return Views(sentences, [np.zeros((side, side, 3), np.uint8)] * posts, numbers, np.ones(posts, np.int64))


def _wake_gpu() -> None:
    """Let the GPU's libraries do what they do at their first calls: for seconds, in which Python imports the rest."""
    import torch
    import torch.nn.functional as F

    with suppress(Exception):  # what is wrong with a GPU is said when the model is loaded
        maps = torch.ones(2, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
        F.conv2d(maps, maps[:, :, :3, :3], padding=1)
        F.scaled_dot_product_attention(maps, maps, maps)
        torch.cuda.synchronize()


def load(settings: ModelSettings, windows: int = 1) -> "Tagger":
    """The tagger of an actor, which is given windows ready made; `windows` is for who gives it whole texts."""
    on_cpu = settings.device == "cpu"
    with ThreadPoolExecutor(1) as beside:
        # All of the weights are read for it, as they are for the network: while Python imports.
        checked = beside.submit(check_model, settings.model, settings.queries)

        # Imported here: the other workers do without, as does a tagger of another kind.
        import torch

        if not on_cpu:
            Thread(target=_wake_gpu, daemon=True).start()

        from mnerqg.tagger import Tagger

    torch.set_num_threads(1 if on_cpu else settings.threads)
    tagger = Tagger.of(
        checked.result(),
        device=settings.device,
        windows=windows,
        precision=settings.precision,
        compiled=settings.compiled,
    )
    if on_cpu:
        tagger.finder.lanes = settings.threads
    return tagger
