"""Captions of Flickr30K Entities, in which `[/EN#<entity id>/<type> <words>]` marks a phrase.

A phrase has one or several types, as in `[/EN#7/people/other a crowd]`. A run of blanks is one space.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mnerqg.datasets import importing
from mnerqg.datasets.refusals import Refusals, refuse_line
from mnerqg.errors import DataError

_ENTITY_ID = re.compile(r"[0-9]+")
_CONTEXT = 80  # characters shown before a bracket that closes nothing


@dataclass(frozen=True, slots=True)
class Mention:
    """A marked phrase of a caption: the entity it names, the types it is given, its words with one space between."""

    entity_id: str
    types: tuple[str, ...]
    words: str

    @property
    def not_visual(self) -> bool:
        return self.entity_id == "0" and "notvisual" in self.types


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption without its marks, and its phrases in order."""

    text: str
    mentions: tuple[Mention, ...]


def is_entity_id(text: str) -> bool:
    """Whether `text` can name an entity: it is a number."""
    return _ENTITY_ID.fullmatch(text) is not None


def read_captions(path: Path) -> list[Caption]:
    """The captions of a picture.

    Raises:
        DataError: for a file without captions and, naming file and line, for each that `parse_caption` refuses.
    """
    refusals = Refusals()
    captions = []
    for number, line in enumerate(importing.read_lines(path), start=1):
        if line.strip():
            with refusals.collect():
                captions.append(parse_caption(path, number, line))
    refusals.raise_collected()
    if not captions:
        raise DataError(f"{path}: holds no caption; write one a line, or take the picture out of its split")
    return captions


def parse_caption(path: Path, number: int, line: str) -> Caption:
    """A caption without its marks, and the phrases that were marked; `path` and `number` are for the errors.

    Raises:
        DataError: naming file and line, for a bracket that is not closed, closes nothing or marks no phrase,
            and for a phrase without an entity id, a type or words.
    """
    text: list[str] = []
    mentions: list[Mention] = []
    rest = line
    while rest:
        plain, opened, rest = rest.partition("[")
        if "]" in plain:
            before = plain.partition("]")[0][-_CONTEXT + 1 :]
            refuse_line(
                path, number, f"{before}]", "has a ] that closes nothing; remove it or open the phrase"
            )
        text.append(plain)
        if opened:
            marked, closed, rest = rest.partition("]")
            if not closed or "[" in marked:
                refuse_line(
                    path, number, f"[{marked}", "has a [ that is not closed; write ] after the phrase"
                )
            mentions.append(_mention(path, number, marked))
            text.append(mentions[-1].words)
    return Caption(" ".join("".join(text).split()), tuple(mentions))


def _mention(path: Path, number: int, marked: str) -> Mention:
    shown = f"[{marked}]"
    if not marked.startswith("/EN#"):
        refuse_line(
            path, number, shown, "is no phrase; write [/EN#<entity id>/<type> <words>] or no brackets"
        )
    mark, *words = marked.split()
    entity_id, *types = mark.removeprefix("/EN#").split("/")
    if not is_entity_id(entity_id):
        refuse_line(path, number, shown, f"has the entity id {entity_id!r}; write its number after /EN#")
    if not types or "" in types:
        refuse_line(path, number, shown, "lacks a type; write /<type> after the entity id")
    if not words:
        refuse_line(path, number, shown, "has no words; write them after the type or remove the phrase")
    return Mention(entity_id, tuple(types), " ".join(words))
