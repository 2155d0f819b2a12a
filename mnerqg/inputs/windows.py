"""One answer for a long text from the answers for its windows (`TextEncoder.windows`).

All of it is chosen: the paper's posts fit into one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mnerqg.inputs.posts import attach_regions
from mnerqg.inputs.text import EncodedText
from mnerqg.schema import Entity, Region, TaggedPost


def merge_windows(
    answers: Sequence[TaggedPost],
    windows: Sequence[EncodedText],
    resolve: Callable[[Iterable[Entity]], tuple[Entity, ...]],
) -> TaggedPost:
    """One post from the answers for each window of its text, all of them about the same picture.

    - An entity that several windows find is there once, with its highest score. One that touches the edge of its
      window may go on behind it: it is left to the neighbour, if that one has all of it. What overlaps then is
      resolved as within a window.
    - A type's regions are those of the window that is surest of the type's best box: unless it is read alone, a query
      is grounded by what the encoder reads beside it.
    - The existence of a type is its highest: the text names one if a part of it does.

    Args:
        answers: at least one, in the order of the windows.
        windows: of the text.
        resolve: drops entities until none overlap; of `Decoder`.
    """
    if len(answers) == 1:
        return answers[0]
    best: dict[tuple[int, int, str], Entity] = {}
    for number, answer in enumerate(answers):
        for entity in answer.entities:
            key = entity.start, entity.end, entity.type
            if _is_left_to_neighbour(entity, windows, number):
                continue
            if key not in best or entity.score > best[key].score:
                best[key] = entity
    best_regions, regions = _surest(answers)
    return replace(
        answers[-1],
        entities=attach_regions(resolve(best.values()), regions),
        regions=regions,
        best_regions=best_regions,
        existence=tuple(
            (of_type[0][0], max(score for _, score in of_type))
            for of_type in zip(*(answer.existence for answer in answers), strict=True)
        ),
    )


def _is_left_to_neighbour(entity: Entity, windows: Sequence[EncodedText], number: int) -> bool:
    first, last = _edges(windows[number])
    neighbours = []
    if number and entity.start == first:
        neighbours.append(windows[number - 1])
    if number + 1 < len(windows) and entity.end == last:
        neighbours.append(windows[number + 1])
    return any(start < entity.start and entity.end < end for start, end in map(_edges, neighbours))


def _edges(window: EncodedText) -> tuple[int, int]:
    """The offsets of all that a window shows."""
    shown = [start for start, end in zip(window.starts, window.ends, strict=True) if start < end]
    return (shown[0], window.ends[-1]) if shown else (window.text_read, window.text_read)


def _surest(answers: Sequence[TaggedPost]) -> tuple[tuple[Region, ...], tuple[Region, ...]]:
    """The best region of each query, and the kept ones of the windows that have these."""
    best: list[Region] = []
    kept: list[Region] = []
    for of_query in zip(*(answer.best_regions for answer in answers), strict=True):
        number = max(range(len(answers)), key=lambda index: of_query[index].score)
        best.append(of_query[number])
        kept += [region for region in answers[number].regions if region.type == of_query[number].type]
    return tuple(best), tuple(kept)
