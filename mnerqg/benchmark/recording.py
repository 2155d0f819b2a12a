"""What stands in the place of a finder's answers. Watched, they stay the device's own; played back from a recording,
what is left of a tagger's time is the host's."""

import time
from collections.abc import Callable

from mnerqg.benchmark.rounds import Work
from mnerqg.inputs.batch import Batch
from mnerqg.model.answers import Answers
from mnerqg.model.finder import Finder

Ask = Callable[[Batch, float], Answers]
"""`Finder.answers`: all that the device does."""


class Watched:
    """Stands for `Finder.timed_answers`: asks the device, and tells of each batch how long it worked."""

    def __init__(self, finder: Finder, tell: Callable[[Work], object]) -> None:
        self._ask = finder.timed_answers
        self._tell = tell

    def __call__(self, batch: Batch, lowest: float) -> tuple[Answers, float]:
        """The device's own answer, and its seconds."""
        began = time.time()
        answers, seconds = self._ask(batch, lowest)
        self._tell(Work(len(batch.attention_mask), seconds, began, time.time()))
        return answers, seconds


class Recorder:
    """Stands for `Finder.answers`: asks a device and keeps what it answers, one answer a call."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.answers: list[Answers] = []

    def __call__(self, batch: Batch, lowest: float) -> Answers:
        """The device's own answer."""
        self.answers.append(self._ask(batch, lowest))
        return self.answers[-1]


class Recorded:
    """Stands for `Finder.answers`: gives the answers of a recording in their order, again and again; what it is called
    with is not looked at."""

    def __init__(self, answers: list[Answers]) -> None:
        self._answers = answers
        self._next = 0

    def __call__(self, batch: Batch, lowest: float) -> Answers:
        """The answer of the call with this number."""
        del batch, lowest
        answer = self._answers[self._next % len(self._answers)]
        self._next += 1
        return answer
