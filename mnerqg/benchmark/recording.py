"""A network that answers from a recording: what is left of a tagger's time is the host's."""

from typing import Any

from torch import nn


class Recorder(nn.Module):
    """Calls a network and keeps what it answers, one answer a call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.answers: list[Any] = []

    def forward(self, batch: Any) -> Any:
        """The network's own answer."""
        self.answers.append(self.network(batch))
        return self.answers[-1]


class Recorded(nn.Module):
    """Gives the answers of a recording in their order, again and again; what it is called with is not looked at."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__()
        self._answers = answers
        self._next = 0

    def forward(self, _: Any) -> Any:
        """The answer of the call with this number."""
        answer = self._answers[self._next % len(self._answers)]
        self._next += 1
        return answer
