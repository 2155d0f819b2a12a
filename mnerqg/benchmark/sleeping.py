"""A model that does nothing but take its time: what is left of the pace is the pipeline's."""

import time
from collections.abc import Callable
from threading import Lock

from mnerqg.benchmark.rounds import Work
from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.model.found import Found


class SleepingTagger:
    """Stands for `mnerqg.tagger.Tagger` in a model actor; the arguments are those of `SleepingFinder`."""

    def __init__(self, seconds_a_post: float, tell: Callable[[Work], object]) -> None:
        self.finder = SleepingFinder(seconds_a_post, tell)


class SleepingFinder:
    """Stands for `mnerqg.model.finder.Finder`, and sleeps where the device would work.

    Args:
        seconds_a_post: that a post takes.
        tell: called with each batch.
    """

    def __init__(self, seconds_a_post: float, tell: Callable[[Work], object]) -> None:
        self.busy_s = 0.0
        self.lanes = 2
        self._one_at_a_time = Lock()
        self._seconds_a_post = seconds_a_post
        self._tell = tell

    def collate(self, sentences: Sentences, _: Shown) -> Sentences:
        """Nothing but the number of the posts matters."""
        return sentences

    def answer(self, _: Sentences, sentences: Sentences) -> Found:
        """Nothing is found in any of them."""
        with self._one_at_a_time:
            began, started = time.time(), time.perf_counter()
            time.sleep(self._seconds_a_post * len(sentences))
            busy_s = time.perf_counter() - started
            self.busy_s += busy_s
        self._tell(Work(len(sentences), busy_s, began, time.time()))
        return Found.nothing(len(sentences))

    def forget_shapes(self) -> None:
        """It keeps nothing."""
