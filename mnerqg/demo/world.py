"""The small world of `make demo`, in which texts name what pictures show: a training set and an archive to tag.

The training set has the layout of the Twitter releases (train.txt, valid.txt, test.txt, demo_images/, xml/). The
archive (archive/posts.parquet, archive/images/) holds new posts, some of them with broken pictures or odd text. All
names are invented and all pictures drawn. A third of the names is kept for the valid, test and archive posts. The
same seed writes the same posts.
"""

import io
import json
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mnerqg.demo.drawings import Picture, draw_picture
from mnerqg.demo.texts import SLOT, Draft, Names, as_typed, make_draft, make_names
from mnerqg.errors import DataError

SPLIT_POSTS = {"train": 480, "valid": 96, "test": 120}
ARCHIVE_POSTS = 200
SHOWN = 0.65  # share of the named types that the picture shows
WITHOUT_XML = 1 / 3
DISTRACTOR = 0.15  # share of pictures showing a type that the text does not name
FIRST_DAY = datetime(2026, 3, 1, 18, 0, tzinfo=UTC)


def illustrate(rng: random.Random, draft: Draft, names: Names) -> tuple[Picture, dict[str, str]]:
    """A picture for a post, and which of its entities it shows: one a type, two types at most."""
    types = rng.sample(sorted(draft.surfaces), len(draft.surfaces))
    shown = {name: draft.surfaces[name][0] for name in types if rng.random() < SHOWN}
    shown = dict(list(shown.items())[:2])
    drawn = dict(shown)
    others = sorted(set(names) - set(draft.surfaces))
    if not shown and rng.random() < DISTRACTOR / (1 - SHOWN):
        distractor = rng.choice(others)
        drawn[distractor] = rng.choice(names[distractor])
    return draw_picture(rng, drawn), shown


def jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, exif=exif or Image.Exif())
    return buffer.getvalue()


def voc_xml(filename: str, size: tuple[int, int], boxes: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    """A Pascal VOC file with a named box for each (name, x_min, y_min, x_max, y_max)."""
    objects = "".join(
        f"  <object>\n    <name>{escape(name)}</name>\n    <bndbox>"
        f"<xmin>{x_min}</xmin><ymin>{y_min}</ymin><xmax>{x_max}</xmax><ymax>{y_max}</ymax></bndbox>\n"
        "  </object>\n"
        for name, (x_min, y_min, x_max, y_max) in boxes
    )
    width, height = size
    return (
        f"<annotation>\n  <filename>{escape(filename)}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{objects}</annotation>\n"
    )


def block_of(number: int, draft: Draft) -> str:
    """A post's lines in a split's text file."""
    words = [f"{token}\t{tag}" for token, tag in zip(draft.tokens, draft.tags, strict=True)]
    return "\n".join([f"IMGID:{number}", *words]) + "\n"


def write_split(rng: random.Random, output: Path, split: str, first_id: int, names: Names) -> None:
    """A split's text file, its pictures and, for two posts of three, their XML."""
    blocks = []
    for number in range(first_id, first_id + SPLIT_POSTS[split]):
        draft = make_draft(rng, names)
        picture, shown = illustrate(rng, draft, names)
        filename = f"{number}.jpg"
        (output / "demo_images" / filename).write_bytes(jpeg(picture.image))
        if rng.random() >= WITHOUT_XML:
            boxes = [(surface, picture.boxes[entity_type]) for entity_type, surface in shown.items()]
            xml = voc_xml(filename, picture.image.size, boxes)
            (output / "xml" / f"{number}.xml").write_text(xml, encoding="utf-8")
        blocks.append(block_of(number, draft))
    (output / f"{split}.txt").write_text("\n".join(blocks), encoding="utf-8")


def spoil(kind: str, image: Image.Image) -> bytes:
    """A picture file of the kind that an archive of a million posts holds too."""
    buffer = io.BytesIO()
    if kind == "truncated":
        whole = jpeg(image)
        return whole[: len(whole) // 3]
    if kind == "html":
        return b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
    if kind == "zero_bytes":
        return b""
    if kind == "cmyk":
        return jpeg(image.convert("CMYK"))
    if kind == "palette":
        image.quantize(64).save(buffer, "PNG")
        return buffer.getvalue()
    if kind == "one_pixel":
        return jpeg(image.resize((1, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the viewer turns it a quarter clockwise
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif)


SPOILT = ("truncated", "html", "zero_bytes", "cmyk", "palette", "one_pixel", "exif")
ODD_TEXTS = (
    "",
    None,
    "   ",
    "👏🏽👏🏽👏🏽 🇪🇺",
    "Cafe\u0301 con {PER} 😍 en {LOC}",
    "مرحبا {PER} 👋",
    "{ORG} " * 80,
)


def write_archive(rng: random.Random, output: Path, names: Names) -> None:
    """New posts as a Parquet table with absolute picture paths; the last ones are odd, each in its way."""
    directory = output / "archive" / "images"
    directory.mkdir(parents=True)
    rows = []
    for number in range(ARCHIVE_POSTS):
        draft = make_draft(rng, names)
        picture, _ = illustrate(rng, draft, names)
        path = directory / f"{number:04d}.jpg"
        odd = number - (ARCHIVE_POSTS - len(SPOILT) - len(ODD_TEXTS))
        spoilt = 0 <= odd < len(SPOILT)
        path.write_bytes(spoil(SPOILT[odd], picture.image) if spoilt else jpeg(picture.image))
        text: str | None = as_typed(draft.tokens)
        if odd >= len(SPOILT):
            template = ODD_TEXTS[odd - len(SPOILT)]
            text = template and SLOT.sub(lambda slot: rng.choice(names[slot[1]]), template)
        uri: str | None = str(path.resolve())
        if number % 50 == 7:
            path.unlink()  # a picture that was deleted after the post was stored
        elif number % 25 == 3:
            path.unlink()
            uri = None
        rows.append(
            {
                "post_id": f"night-{number:04d}",
                "text": text,
                "image_uri": uri,
                "created_at": FIRST_DAY + timedelta(minutes=3 * number),
                "lang": "en",
            }
        )
    schema = pa.schema(
        [
            ("post_id", pa.string()),
            ("text", pa.string()),
            ("image_uri", pa.string()),
            ("created_at", pa.timestamp("ms", tz="UTC")),
            ("lang", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), output / "archive" / "posts.parquet")


PHRASES = {  # how a caption may call what a picture shows, with its type in Flickr30K Entities
    "PER": ("people", ("a person", "somebody", "one man or woman", "the head of a person")),
    "LOC": ("scene", ("a place", "a landscape", "a view of a city or country", "the outdoors")),
    "ORG": ("other", ("a logo", "the sign of a company", "the brand of an organization")),
    "OTHER": ("other", ("a thing", "an object", "some product", "an item on its own")),
}


def write_phrases(rng: random.Random, output: Path, names: Names, pictures: int) -> None:
    """Pictures with two captions each in the layout of Flickr30K Entities; one in eight is for validation."""
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (output / name).mkdir(parents=True)
    ids = [str(1000 + number) for number in range(pictures)]
    for picture_id in ids:
        types = rng.sample(sorted(PHRASES), rng.choice((1, 2, 2, 3)))
        picture = draw_picture(rng, {kind: rng.choice(names[kind]) for kind in types})
        (output / "flickr30k-images" / f"{picture_id}.jpg").write_bytes(jpeg(picture.image))
        entities = {kind: f"{picture_id}{number}" for number, kind in enumerate(types)}
        boxes = [(entities[kind], picture.boxes[kind]) for kind in types]
        xml = voc_xml(f"{picture_id}.jpg", picture.image.size, boxes)
        (output / "Annotations" / f"{picture_id}.xml").write_text(xml, encoding="utf-8")
        captions = []
        for _ in range(2):
            marked = [
                f"[/EN#{entities[kind]}/{PHRASES[kind][0]} {rng.choice(PHRASES[kind][1])}]"
                for kind in rng.sample(types, len(types))
            ]
            captions.append(f"{' beside '.join(marked)} .\n")
        (output / "Sentences" / f"{picture_id}.txt").write_text("".join(captions), encoding="utf-8")
    for file, chosen in (("train.txt", ids[pictures // 8 :]), ("val.txt", ids[: pictures // 8])):
        (output / file).write_text("\n".join(chosen) + "\n", encoding="utf-8")


def clear_earlier(output: Path) -> None:
    """Remove what an earlier run wrote to `output`.

    Raises:
        DataError: if the directory holds anything and no earlier run's `demo.json`.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; give --output a directory")
    if any(output.iterdir()) and not (output / "demo.json").is_file():
        raise DataError(
            f"{output}: holds files that no earlier demo wrote; give --output an empty or new directory"
        )
    for split in SPLIT_POSTS:
        (output / f"{split}.txt").unlink(missing_ok=True)
    for name in ("demo_images", "xml", "archive", "phrases", "ambiguous"):
        shutil.rmtree(output / name, ignore_errors=True)


def write_world(output: Path, seed: int, phrases: int = 0) -> None:
    """Write the training set and the archive under `output`, in place of an earlier run's.

    With `phrases` so many pictures with captions are written to `output/phrases`, too.

    Raises:
        DataError: if `output` holds files that no earlier run wrote.
    """
    clear_earlier(output)
    for name in ("demo_images", "xml"):
        (output / name).mkdir(parents=True)
    (output / "demo.json").write_text(
        json.dumps({"seed": seed, **SPLIT_POSTS, "archive": ARCHIVE_POSTS}) + "\n"
    )
    rng = random.Random(seed)
    training_names, all_names = make_names(rng)
    first_id = 10000
    for split, count in SPLIT_POSTS.items():
        write_split(rng, output, split, first_id, training_names if split == "train" else all_names)
        first_id += count
    write_archive(rng, output, all_names)
    if phrases:
        write_phrases(rng, output / "phrases", training_names, phrases)
