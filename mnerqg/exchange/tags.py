"""The tags of a run together with the texts and pictures of its archive, which the tags do not repeat."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from mnerqg.archive.lookup import picture_values, read_rows
from mnerqg.archive.reading import open_archive, text_values
from mnerqg.archive.run import tags_folder, tags_of
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.exchange.posts import Picture, TaggedText
from mnerqg.inputs.picture_kinds import format_of
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.io.picture_text import is_data_uri, read_picture_text
from mnerqg.schema import ROW_HASH, Entity, Region

_COLUMNS = (
    "post_id",
    "entities",
    "regions",
    "image_status",
    "image_width",
    "image_height",
    "model_id",
    ROW_HASH,
)


class TaggedArchive:
    """The folder of a tagging run, finished or not, and the archive that it tagged.

    Args:
        tags: URI of the run's folder. The archive must lie where it lay, for a row's hash follows from its path.

    Attributes:
        finished: whether the run is.
        roots: below which the run looked for pictures.
        missing: tagged rows that `posts` did not find in the archive.

    Raises:
        StorageError, DataError: no run lies there, or its archive cannot be read.
    """

    def __init__(self, tags: str) -> None:
        self._tags = storage.absolute(tags)
        folder = tags_folder(self._tags, "--tags")
        run = folder.begun()
        if run is None:
            raise DataError(f"--tags {tags} is no tagging run; give the --output of jobs/tag.py")
        asked = run["asked"]
        self._result = folder.result()
        self.finished = self._result is not None
        self.missing = 0
        self.roots: tuple[str, ...] = tuple(asked["pictures"]["roots"])
        self._columns = ColumnsConfig.model_validate(asked["columns"])
        # A run that left damaged files out says so in its manifest.
        left_out = bool((self._result or {}).get("files_left_out"))
        self._archive = open_archive(asked["archive"], self._columns, skip_damaged=left_out)

    def types(self) -> list[str]:
        """All types that the run knows, as far as its tags tell, in the order of the model where that answers."""
        found: dict[str, None] = {}
        for entry in self._files():
            with open_parquet(entry) as file:
                for column in ("existence", "entities", "regions"):
                    for row in file.read([column])[column].to_pylist():
                        found |= dict.fromkeys(one["type"] for one in row or ())
            if found and self.finished:
                break  # the manifest has the types of all other files
        result = self._result or {}
        found |= dict.fromkeys([*result.get("entities", ()), *result.get("regions", ())])
        return list(found)

    def _files(self) -> list[storage.FileEntry]:
        """Those with tags; of an unfinished run without what is being written, or torn."""
        files = storage.list_files(tags_of(self._tags), ".parquet")
        return files if self.finished else [entry for entry in files if _is_whole(entry)]

    def posts(self, pictures: str, sample: int | None, seed: int) -> Iterator[TaggedText]:
        """The posts that have a text, in the order of the archive.

        Args:
            pictures: URI of a folder; the pictures of an archive that holds them itself are written there.
            sample: so many rows are drawn of the run, those without a text among them; None: all.
            seed: of the draw.
        """
        tags = self._read_tags(sample, seed)
        self.missing = len(tags)
        for hashes, rows in read_rows(self._archive, np.fromiter(tags, np.uint64, len(tags))):
            wanted = [place for place, row_hash in enumerate(hashes.tolist()) if row_hash in tags]
            if not wanted:
                continue
            self.missing -= len(wanted)
            part = rows.take(pa.array(wanted))
            texts = text_values(part[self._columns.text])[0]
            given = picture_values(self._archive, self._columns, part)
            for place, text, own in zip(wanted, texts, given, strict=True):
                if text and text.strip():
                    row_hash = int(hashes[place])
                    uris = [
                        self._uri(one, f"{row_hash:016x}" + (f"-{index}" if index else ""), pictures)
                        for index, one in enumerate(own)
                    ]
                    yield self._post(tags[row_hash], text, uris)

    def _read_tags(self, sample: int | None, seed: int) -> dict[int, dict[str, Any]]:
        """Rows of the tags by `row_hash`: all, or a sample."""
        files = self._files()
        hashes: list[int] = []
        for entry in files:
            with open_parquet(entry) as file:
                hashes += file.read([ROW_HASH])[ROW_HASH].to_pylist()
        if sample is not None and sample < len(hashes):
            drawn = np.random.default_rng(seed).choice(len(hashes), sample, replace=False)
            ordered = sorted(hashes)
            hashes = [ordered[place] for place in drawn]
        wanted = set(hashes)
        found: dict[int, dict[str, Any]] = {}
        for entry in files:
            with open_parquet(entry) as file:
                names = [*_COLUMNS, *(["images"] if "images" in file.schema_arrow.names else [])]
                for batch in file.iter_batches(columns=names):
                    found |= {row[ROW_HASH]: row for row in batch.to_pylist() if row[ROW_HASH] in wanted}
        return found

    def _uri(self, given: bytes | str | None, name: str, pictures: str) -> str | None:
        """Where a picture of a post lies; absolute. One that the archive holds itself is written to a file."""
        if isinstance(given, str) and is_data_uri(given):
            try:
                given = read_picture_text(given)
            except ValueError:
                return None
        if isinstance(given, bytes):
            uri = storage.join(pictures, f"{name}.{format_of(given) or 'img'}")
            storage.write_bytes(uri, given)
            return uri
        return self._absolute(given) if given and given.strip() else None

    def _absolute(self, uri: str) -> str:
        """A relative URI, as it is written, below the root that has it, else below the first."""
        if uri.startswith("/") or storage.scheme_of(uri):
            return uri
        places = [storage.join(root, uri) for root in self.roots]
        if len(places) == 1:
            return places[0]
        stored = (place for place in places if storage.scheme_of(place) in ("", "file", "s3"))
        return next(filter(storage.exists, stored), places[0])

    def _post(self, row: dict[str, Any], text: str, uris: list[str | None]) -> TaggedText:
        """Of the pictures those that the model looked at, with the regions numbered alike."""
        one = {"status": row["image_status"], "width": row["image_width"], "height": row["image_height"]}
        states = row.get("images") if "images" in row else [one]
        usable = [
            (index, Picture(uri, state["width"], state["height"]))
            for index, (uri, state) in enumerate(zip(uris, states or (), strict=False))
            if uri and state["status"] == "ok"
        ]
        places = {index: place for place, (index, _) in enumerate(usable)}
        return TaggedText(
            post_id=row["post_id"] or "",
            text=text,
            pictures=tuple(picture for _, picture in usable),
            entities=tuple(Entity(**entity) for entity in row["entities"]),
            regions=tuple(
                Region(**{**region, "image_index": places[region["image_index"]]})
                for region in row["regions"]
                if region["image_index"] in places
            ),
            model_id=row["model_id"],
        )


def _is_whole(entry: storage.FileEntry) -> bool:
    try:
        with open_parquet(entry):
            return True
    except DataError:
        return False
