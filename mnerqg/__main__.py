"""Tag one post, or a line each of many: `python -m mnerqg "text" [--image F] --model URI [--save out.png] [--json]`.

With - in the place of a text, standard input is read line by line, each a post such as
{"post_id": "1", "text": "…", "image_uri": "picture.jpg"}, and a line of JSON comes out for each as soon as it is
tagged, a line that is none included: its `error` says why. Pictures of lines are `image_uri`, `image_uris` or `image`
(base64), as in an archive; they are read only below --root.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from mnerqg.archive.json_values import READERS, Kind, Picture, UnfitError, described
from mnerqg.archive.jsonlines import MAX_LINE_BYTES
from mnerqg.cli import job_parser, run
from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import ConfigError, DataError
from mnerqg.inputs.posts import merge_pictures
from mnerqg.io import storage
from mnerqg.io.picture_store import Fetched, PictureStore
from mnerqg.places import place
from mnerqg.queries import asked_queries
from mnerqg.schema import Post, TaggedPost

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

_PICTURES: tuple[Picture, ...] = ("image", "image_uri", "image_uris")
_LINES = "-"


def main(argv: list[str]) -> None:
    """Tag what the command line, or standard input, gives.

    Raises:
        MnerqgError: model, picture or output are not as they should be.
    """
    parser = job_parser("python -m mnerqg", __doc__)
    parser.add_argument("text", help="text of the post; - reads posts from standard input")
    parser.add_argument("--model", type=place, required=True, help="model directory, local or s3://")
    parser.add_argument("--image", type=place, metavar="F", help="its picture, local or s3://")
    parser.add_argument(
        "--save", type=place, metavar="F", help="write the picture with its boxes, such as out.png"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON with the columns of the tags"
    )
    parser.add_argument(
        "--queries", type=place, help="a query style or a YAML of queries in the place of the model's own"
    )
    parser.add_argument(
        "--root",
        type=place,
        action="append",
        metavar="URI",
        help="below which pictures of lines may lie: a folder, s3:// or https://; again for more (default: here)",
    )
    arguments = parser.parse_args(argv)
    if arguments.text == _LINES:
        if arguments.image or arguments.save:
            raise ConfigError("--image and --save are for one post; lines name their pictures themselves")
        roots = tuple(arguments.root or [storage.absolute(".")])
        store = PictureStore(PicturesConfig(roots=roots, schemes=("file", "s3", "http", "https")))
        _print_lines(sys.stdin.buffer, _load(arguments.model, arguments.queries), store)
    else:
        _tag_one(arguments.text, arguments)


def _load(model: str, queries: str | None) -> "Tagger":
    # Here, for the help and a wrong argument need not wait for torch.
    from mnerqg.tagger import Tagger

    return Tagger.load(model, queries=asked_queries(queries))


# ---- one post -------------------------------------------------------------------------------------------


def _tag_one(text: str, arguments: Any) -> None:
    from rich.console import Console

    from mnerqg.show import findings, highlighted, picture_format, printable, with_boxes

    if arguments.save and not arguments.image:
        raise ConfigError("--save draws the boxes of a picture; give one with --image")
    kind = picture_format(arguments.save) if arguments.save else ""
    picture = storage.read_bytes(arguments.image) if arguments.image else None
    # An argument that is not UTF-8 comes with lone surrogates.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    tagger = _load(arguments.model, arguments.queries)
    (tagged,) = tagger.tag([Post("1", text, picture)])
    if arguments.json:
        print(_as_json("1", tagged, tagger.model_id))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(highlighted(text, tagged, tagger.types))
        console.print(
            findings(tagged, tagger.types) if tagged.entities or tagged.regions else "nothing found"
        )
        if tagged.text_status != "ok":
            console.print(f"text: {tagged.text_status}")
        if picture is not None and tagged.image_status != "ok":
            console.print(f"picture: {tagged.image_status}, {printable(tagged.error or '')}", markup=False)
    if arguments.save:
        if picture is None or tagged.image_status != "ok":
            raise DataError(
                f"--image {arguments.image} is {tagged.image_status}; there is nothing to draw into"
            )
        storage.write_bytes(arguments.save, with_boxes(picture, tagged.regions, tagger.types, kind))
        print(f"{len(tagged.regions)} box(es) drawn: {arguments.save}", file=sys.stderr)


# ---- line by line ---------------------------------------------------------------------------------------


def _print_lines(stream: BinaryIO, tagger: "Tagger", store: PictureStore) -> None:
    try:
        for number, line in _lines(stream):
            print(_tagged_line(number, line, tagger, store), flush=True)
    except (
        BrokenPipeError
    ):  # who reads has seen enough, such as head; Python itself flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, with their numbers from 1; None for one that is too long to be held."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        fits = len(line) <= MAX_LINE_BYTES
        while not fits and line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        if line.strip() or not fits:
            yield number, line if fits else None


def _tagged_line(number: int, line: bytes | None, tagger: "Tagger", store: PictureStore) -> str:
    """The row of one line, whatever is wrong with it."""
    post_id = None
    try:
        values = _parsed(line)
        post_id = _value(values, "post_id")
        text = _value(values, "text")
        pictures = _pictures(values, store)
    except UnfitError as error:
        failed = TaggedPost(text_status="empty", error=f"line {number} {error}")
        return _as_json(post_id, failed, tagger.model_id)
    return _as_json(post_id, _tag(text, pictures, tagger), tagger.model_id)


def _parsed(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise UnfitError(f"has more than {MAX_LINE_BYTES:,} bytes")
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnfitError(f"is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UnfitError(f"is {described(values)}, not an object with a text")
    if not {"text", "image", "image_uri", "image_uris"} & values.keys():
        raise UnfitError('has neither text nor picture; write {"text": "…"}')
    return values


def _value(values: dict[str, Any], name: Kind) -> Any:
    """What stands under a key, as in an archive; None where it is null or not there."""
    if values.get(name) is None:
        return None
    try:
        return READERS[name](values[name])
    except UnfitError as error:
        raise UnfitError(f"has {name} that {error}") from None


def _pictures(values: dict[str, Any], store: PictureStore) -> list[Fetched]:
    given = [name for name in _PICTURES if values.get(name) is not None]
    if len(given) > 1:
        raise UnfitError(f"has {' and '.join(given)}; give one of them")
    if given == ["image"]:
        return [Fetched(_value(values, "image"), "ok", None)]
    value = _value(values, given[0]) if given else None
    uris = value if isinstance(value, list) else [value] if value is not None else []
    beyond = uris[store.config.max_per_post :]
    if beyond:
        raise UnfitError(f"has {len(uris)} pictures; give {store.config.max_per_post} at the most")
    return store.fetch_many(uris)


def _tag(text: str | None, pictures: list[Fetched], tagger: "Tagger") -> TaggedPost:
    """One answer from all of a post's pictures, as in bulk tagging."""
    there = [(index, one.data) for index, one in enumerate(pictures) if one.data is not None]
    if not there:
        (answer,) = tagger.tag([Post("", text)])
    else:
        answers = tagger.tag([Post("", text, data) for _, data in there])
        usable = [place for place, one in enumerate(answers) if one.image_status == "ok"] or [0]
        # A flaw of a picture that is there all the same does not make the next one the first.
        merged = [replace(answers[place], error=None) for place in usable]
        answer = merge_pictures(merged, [there[place][0] for place in usable])
        answer = replace(answer, error="; ".join(one.error for one in answers if one.error) or None)
    failed = [one for one in pictures if one.data is None and one.error]
    if not failed:
        return answer
    return replace(
        answer,
        image_status=answer.image_status if there else failed[0].status,
        error="; ".join(filter(None, [answer.error, *(one.error for one in failed)])),
    )


def _as_json(post_id: str | None, tagged: TaggedPost, model_id: str) -> str:
    """A row of the tags but for what only an archive gives it (`row_hash`, `retryable`, what is passed through)."""
    row = asdict(tagged)
    del row["best_regions"]
    row["existence"] = [{"type": kind, "score": score} for kind, score in tagged.existence]
    return json.dumps({"post_id": post_id, **row, "model_id": model_id}, ensure_ascii=False)


command = partial(run, main, interrupted="run it again for what is not tagged")

if __name__ == "__main__":
    command()
