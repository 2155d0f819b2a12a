"""What can be set of the jobs that use a model (tagging, labelling, scoring): type, default and meaning of each.

See `config`, which has the settings of the model and its training.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from mnerqg.config_types import (
    CountOrRange,
    Many,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)

Precision = Literal["fp32", "bf16"]
PictureFormat = Literal["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "heic"]
ColumnType = Literal["string", "int64", "float64", "bool", "timestamp[us]", "date32", "list<string>"]


class ColumnsConfig(Section):
    """Which columns of the archive hold what."""

    post_id: str = "post_id"
    """Ids of the posts, as text."""
    text: str = "text"
    """Texts of the posts."""
    image: str = "image"
    """Encoded pictures; where the archive has this column, no URI is fetched."""
    image_uri: str = "image_uri"
    """Where the picture of each post lies."""
    image_uris: str = "image_uris"
    """Lists of URIs, for posts with several pictures."""
    pass_through: Many[str] = ()
    """Columns that are copied to the tags as they are. Those of JSON Lines become text, the same every night, unless
    `types` says otherwise: text as it is, anything else as the JSON that stands there."""
    types: dict[str, ColumnType] = Field(default={})
    """Of JSON Lines: types of columns in `pass_through`, such as `{count: int64, when: "timestamp[us]"}`. Times and
    dates are ISO 8601 there, and a time with an offset becomes UTC. A value that does not fit is null, and `error` says
    so. Parquet says itself what its columns hold: there this is refused."""
    partition_by: Many[str] = ()
    """Of `pass_through`: columns that become Hive folders (`lang=en/`) in the place of columns of the files."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, names in (("partition_by", self.partition_by), ("types", self.types)):
            for name in names:
                if name not in self.pass_through:
                    raise ValueError(f"{key} names {name}, which is not in pass_through; add it there")
        for name in {
            self.post_id,
            self.text,
            self.image,
            self.image_uri,
            self.image_uris,
        } & self.types.keys():
            raise ValueError(f"types names {name}, whose type is fixed; leave it out")
        if self.image in (self.post_id, self.text):
            raise ValueError(
                f"image names {self.image}, which holds ids or texts; name the column of the pictures"
            )
        return self


class ImageLimits(Section):
    """Which pictures are decoded.

    Whatever `max_pixels` says, Pillow refuses more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million).
    """

    max_bytes: PositiveInt = 20_000_000
    """Of the encoded picture."""
    max_pixels: PositiveInt = 50_000_000
    """Of the decoded picture; checked before it is decoded."""
    formats: Many[PictureFormat] = ("jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "heic")
    """A picture of another format is unreadable: fewer formats, fewer decoders that strangers' bytes reach. What a file
    is decides its first bytes, not its name. heic, which is HEIF too, needs `pip install pillow-heif`."""


class PicturesConfig(ImageLimits):
    """Which pictures are read, and how hard to try."""

    roots: Many[Place] = ()
    """URIs below which pictures may lie: a folder, s3://bucket/prefix or https://host/prefix, whose host may begin with
    `*.` for all its subdomains. A relative URI is looked for below each in turn. Empty: the archive's own folder."""
    schemes: Many[Literal["file", "s3", "http", "https"]] = ("file", "s3")
    """A scheme that is not here is refused even below a root."""
    concurrency: PositiveInt = 32
    """Requests in flight in each fetch task."""
    attempts: PositiveInt = 4
    """For failures that may pass (429, 5xx, timeouts), the first one included."""
    timeout_s: PositiveFloat = 20.0
    """Of a connection and of each read; over HTTP of the whole answer, too."""
    max_per_post: PositiveInt = 16
    """Of a post with more pictures than that the rest is not read."""


class ImportConfig(Section):
    """The import of corrections (jobs/exchange.py)."""

    pictures: PicturesConfig = PicturesConfig()


class TagConfig(Section):
    """The bulk tagging of an archive."""

    queries: Place | None = None
    """A query style or the path of a YAML of queries, asked in the place of those the model was trained with: types
    may be among them that it never saw. null: its own."""
    columns: ColumnsConfig = ColumnsConfig()
    pictures: PicturesConfig = PicturesConfig()
    long_texts: Literal["truncate", "windows"] = "truncate"
    """Of a text that is longer than the model reads at once, its beginning is tagged; or all of it, in windows that
    overlap. `text_read` says how far."""
    max_windows: PositiveInt = 64
    """So many windows of a text at most, which bounds what a post costs; of a longer text the rest is not read."""
    batch_posts: PositiveInt | None = None
    """Posts that the model sees at once; halved where they do not fit into the GPU's memory. null: on a GPU what each
    actor finds best when it starts, on a CPU 4."""
    precision: Precision | None = None
    """What the model computes in; null: on a GPU what it was trained in, on a CPU fp32. On a CPU with AVX-512 BF16 bf16
    takes half the time and moves scores in the third digit. Where a device only imitates it, it is fp32."""
    compiled: bool = False
    """Compile the model with torch.compile when an actor starts, which takes minutes the first time on a machine."""
    actors: CountOrRange | None = None
    """Model actors, or a (min, max) range; null: from 1 to one a GPU of the cluster; without GPUs to half as many
    as CPUs, and 1 on up to 4 CPUs."""
    gpus_per_actor: NonNegativeFloat | None = None
    """null: 1 where the cluster has GPUs, else 0."""
    cpus_per_actor: PositiveFloat | None = None
    """null: 1, or 0.5 on up to 2 CPUs. Keep CPUs free beside the actors: the pictures are read on them."""
    threads_per_actor: PositiveInt | None = None
    """Threads of an actor, each of which on a CPU answers a batch of its own; null: its CPUs, or on a small machine
    without a GPU all there are."""
    autoscaling: bool = False
    """The cluster grows by itself: do not refuse to start because it is too small now."""
    block_bytes: PositiveInt | None = None
    """Size of the blocks that travel between the stages; null: 32 MiB, less where the object store is small."""
    min_rows_per_file: PositiveInt | None = None
    """What is written is safe, so this is also what a lost driver costs; null: a 32nd of the archive, but
    between 1,000 and 20,000."""
    max_rows_per_file: PositiveInt = 200_000
    """Rows of tags that one file holds at the most."""
    max_failed: Probability = 0.05
    """Share of pictures that failed, of posts that could not be read, or of posts that the model cannot tag, above
    which the run fails."""

    @property
    def windows(self) -> int:
        """How many windows of a text are read at most."""
        return self.max_windows if self.long_texts == "windows" else 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors is {self.actors}; the first of (min, max) must not be the larger")
        if self.min_rows_per_file is not None and self.min_rows_per_file > self.max_rows_per_file:
            raise ValueError(
                f"min_rows_per_file is {self.min_rows_per_file}; "
                f"it must not exceed max_rows_per_file ({self.max_rows_per_file})"
            )
        return self


class ActorsConfig(Section):
    """Model actors that go over a prepared dataset: the settings of jobs/label.py and jobs/evaluate.py."""

    batch_posts: PositiveInt = 16
    """Posts that the model sees at once."""
    precision: Precision | None = None
    """As in tagging: what the model computes in; null: on a GPU what it was trained in, on a CPU fp32."""
    actors: PositiveInt = 1
    """Copies of the model that work at the same time."""
    cpus_per_actor: PositiveFloat = 1
    """Leave at least one CPU of the cluster to reading."""
    gpus_per_actor: NonNegativeFloat = 0
    """0 runs the model on the CPU."""
    queries: Place | None = None
    """A query style or the path of a YAML of queries, asked in the place of the model's own; null: its own."""


class ReportConfig(Section):
    """The page over tags: what is not set here is as the run of the tags has it."""

    sample: PositiveInt = 200
    """Posts in the gallery, drawn by type and status; the counts are over all posts."""
    seed: NonNegativeInt = 0
    """Another one draws other posts."""
    columns: ColumnsConfig = ColumnsConfig()
    pictures: PicturesConfig = PicturesConfig()
