"""A world in which only the picture knows: its sentences and names fit every type, and one tile shows the type.

It measures whether a model reads pictures. Where texts tell the types by themselves, as tweets mostly do, a model that
never looks at a picture scores as well as one that does.
"""

import random
from pathlib import Path

from mnerqg.demo.drawings import DRAWERS, draw_picture
from mnerqg.demo.texts import (
    COMPANY_STEMS,
    HELD_OUT,
    LAST_NAMES,
    PLACE_ENDS,
    PLACE_STEMS,
    PRODUCT_STEMS,
    Draft,
)
from mnerqg.demo.world import block_of, jpeg, voc_xml

SPLIT_POSTS = {"train": 480, "valid": 96, "test": 200}
TEMPLATES = """\
{NAME} today
look at {NAME} again
here is {NAME} once more
nothing like {NAME} on a Monday
this is {NAME}
so that was {NAME} then
good old {NAME}
never seen {NAME} like this before
{NAME} , as it should be
thinking of {NAME} all day
a picture of {NAME} for you
one more of {NAME} before we go
""".splitlines()


def make_pool(rng: random.Random) -> tuple[list[str], list[str]]:
    """The names of train, and those of the other splits: these and half as many more. Any is given to any type."""
    places = [stem + rng.choice(PLACE_ENDS) for stem in PLACE_STEMS]
    pool = list(dict.fromkeys([*LAST_NAMES, *places, *COMPANY_STEMS, *PRODUCT_STEMS]))
    rng.shuffle(pool)
    return pool[int(len(pool) * HELD_OUT) :], pool


def write_ambiguous(output: Path, seed: int) -> None:
    """Write train, valid and test under `output` in the layout of the Twitter releases, which must not be there yet.

    A post has one entity and one picture, which shows its type in a box. Type, name and sentence are drawn
    independently of each other.
    """
    for name in ("demo_images", "xml"):
        (output / name).mkdir(parents=True)
    rng = random.Random(seed)
    training_names, all_names = make_pool(rng)
    number = 50000
    for split, posts in SPLIT_POSTS.items():
        names = training_names if split == "train" else all_names
        blocks = []
        for _ in range(posts):
            blocks.append(_write_post(rng, output, number, rng.choice(names)))
            number += 1
        (output / f"{split}.txt").write_text("\n".join(blocks), encoding="utf-8")


def _write_post(rng: random.Random, output: Path, number: int, name: str) -> str:
    """The post's picture and XML; returns its lines of the split's text file."""
    entity_type = rng.choice(sorted(DRAWERS))
    draft = Draft([], [], {entity_type: [name]})
    for word in rng.choice(TEMPLATES).split():
        is_name = word == "{NAME}"
        draft.tokens.append(name if is_name else word)
        draft.tags.append(f"B-{entity_type}" if is_name else "O")
    picture = draw_picture(rng, {entity_type: name})
    filename = f"{number}.jpg"
    (output / "demo_images" / filename).write_bytes(jpeg(picture.image))
    xml = voc_xml(filename, picture.image.size, [(name, picture.boxes[entity_type])])
    (output / "xml" / f"{number}.xml").write_text(xml, encoding="utf-8")
    return block_of(number, draft)
