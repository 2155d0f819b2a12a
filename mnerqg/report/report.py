"""From tags, annotations and a training run to the page: what is read, in which order, and what the page is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mnerqg.archive.reading import Archive
from mnerqg.config_jobs import ReportConfig
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.report.archived import Archived, read_archived
from mnerqg.report.page import render_page
from mnerqg.report.posts import describe_gold, describe_post
from mnerqg.report.summary import BINS, differences, ordered_types
from mnerqg.report.tags import Looked, Tags, look_through, open_tags, read_rows
from mnerqg.report.training import Training, read_training

if TYPE_CHECKING:
    # It imports torch, seconds that a report without annotations need not wait.
    from mnerqg.report.gold import Gold

REPORT_FILE = "report.html"
_NAMES_A_TYPE = 8
_SHOWN_FILES = 20
_SHOWN_FACTS = ("finished", "seconds", "rows_per_second")
"""Of the manifest, where there is one."""


@dataclass(frozen=True)
class Asked:
    """What the report is about; URIs, None for what is not asked for.

    Attributes:
        tags: folders of tags: that of the night to look at last, before it one to compare it with.
        archive: of the last tags, its places, where it is not what their run says.
        data: prepared dataset with annotations of the tagged posts.
        split: of `data`.
        training: run whose curves are shown.
    """

    tags: tuple[str, ...]
    archive: tuple[str, ...] | None = None
    data: str | None = None
    split: str = "test"
    training: str | None = None


@dataclass(frozen=True)
class Written:
    """The report: where it lies, its bytes, the posts in it and those that were counted, and what to know about it."""

    uri: str
    size: int
    shown: int
    posts: int
    notices: tuple[str, ...]


def write_report(asked: Asked, output: str, config: ReportConfig) -> Written:
    """Read what is asked for and write `report.html` into the folder at `output`.

    Raises:
        ConfigError: nothing is asked for, or what does not go together.
        StorageError, DataError: a URI cannot be read, or is not what it should be.
    """
    _check(asked)
    output = storage.absolute(output)
    storage.check_writable(output)
    training = read_training(asked.training) if asked.training else None
    earlier = _looked(asked.tags[0], 1, config) if len(asked.tags) == 2 else None
    gold = _read_gold(asked)
    view: dict[str, Any] = {
        "title": "Report",
        "training": training,
        "tags": None,
        "gold": None,
        "compared": None,
    }
    data: dict[str, Any] = {"posts": [], "charts": _training_charts(training)}
    notices: list[str] = []
    if asked.tags:
        tags, looked = _looked(asked.tags[-1], config.sample, config, gold)
        if gold is not None:
            gold.check(tags.uri)
        rows = read_rows(tags, looked.sample)
        archived = read_archived(tags, rows, asked.archive, config)
        notices = [*_state(tags, looked), *archived.notices]
        _add_tags(view, data, tags, looked, archived, rows, config)
        if earlier is not None:
            view["compared"] = _compared(earlier, (tags, looked))
        if gold is not None:
            _add_gold(view, data, gold, rows)
    elif training is not None:
        view["title"] = _name(training.uri)
    page = render_page({**view, "notices": notices}, data)
    uri = storage.join(output, REPORT_FILE)
    storage.write_bytes(uri, page)
    return Written(
        uri, len(page), len(data["posts"]), view["tags"]["rows"] if asked.tags else 0, tuple(notices)
    )


def _check(asked: Asked) -> None:
    if not asked.tags and not asked.training:
        raise ConfigError(
            "nothing to report on; give --tags, the --output of jobs/tag.py, or --model, a training run"
        )
    if len(asked.tags) > 2:
        raise ConfigError(
            f"--tags is given {len(asked.tags)} times; give it once, or twice to compare two nights"
        )
    for option, value in (("--data", asked.data), ("--input", asked.archive and ", ".join(asked.archive))):
        if value is not None and not asked.tags:
            raise ConfigError(f"{option} {value} is about tags; give --tags, too")


def _looked(uri: str, size: int, config: ReportConfig, gold: "Gold | None" = None) -> tuple[Tags, Looked]:
    tags = open_tags(uri)
    return tags, look_through(tags, size, config.seed, gold.strata if gold is not None else None)


def _read_gold(asked: Asked) -> "Gold | None":
    if asked.data is None:
        return None
    # It imports torch: seconds that a report without annotations need not wait.
    from mnerqg.report.gold import Gold

    return Gold.read(asked.data, asked.split)


def _state(tags: Tags, looked: Looked) -> list[str]:
    """What there is to say where the tags are not the whole of a finished run."""
    rows, notices = looked.summary.counts.rows, []
    if tags.run is None:
        notices.append("The folder does not say which run its tags are of.")
    elif tags.manifest is None:
        of = f" of {tags.expected_rows:,}" if tags.expected_rows is not None else ""
        notices.append(
            f"The run is not finished: {rows:,}{of} posts are there and shown here. Some may be there twice until its "
            "own command has ended."
        )
    if looked.torn:
        notices.append(
            f"{len(looked.torn)} file(s) are being written, or torn, and left out: {looked.torn[0]}"
        )
    return notices


def _add_tags(
    view: dict[str, Any],
    data: dict[str, Any],
    tags: Tags,
    looked: Looked,
    archived: Archived,
    rows: Mapping[int, Mapping[str, Any]],
    config: ReportConfig,
) -> None:
    summary = looked.summary
    posts = []
    for row_hash in looked.sample["row_hash"].tolist():
        text, thumbnails = archived.posts.get(row_hash, (None, None))
        posts.append(describe_post(rows[row_hash], text, thumbnails))
    data["posts"] = posts
    data["types"] = ordered_types(
        [*summary.types, *(kind for post in posts for kind, _ in post["existence"])]
    )
    data["histograms"] = {
        name: {kind: scores[kind].tolist() for kind in summary.types if kind in scores}
        for name, scores in (("entities", summary.entity_scores), ("regions", summary.region_scores))
    }
    data["source"] = _source(tags, archived, rows)
    view["title"] = _name(tags.uri)
    view["tags"] = {
        "uri": tags.uri,
        "model_id": tags.model_id or next(iter(rows.values()))["model_id"] or "unknown",
        "archive": ", ".join(archived.places),
        "manifest": {name: (tags.manifest or {}).get(name) for name in _SHOWN_FACTS},
        "rows": summary.counts.rows,
        "summary": summary,
        "types": data["types"],
        "shown": len(posts),
        "seed": config.seed,
        "bins": BINS,
        "mean_scores": summary.mean_scores,
        "names": {kind: summary.names[kind].top(_NAMES_A_TYPE) for kind in summary.types},
        "inexact": any(names.lost for names in summary.names.values()),
        "in_gallery": {str(row_hash) for row_hash in rows},
    }


def _source(tags: Tags, archived: Archived, rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What a DuckDB query over the tags, and over the texts in the archive, needs to know."""
    archive, columns = archived.archive, archived.columns
    names = next(iter(rows.values())).keys()
    is_file = [entry.uri for entry in tags.files] == [tags.place]
    return {
        "tags": _for_duckdb(tags.place) if is_file else f"{_for_duckdb(tags.place)}/**/*.parquet",
        "images": "images" in names,
        "text": "text" in names,
        "archive": archive
        and {
            "uris": _archive_for_duckdb(archive),
            "json": archive.format == "jsonl",
            "id": columns.post_id,
            "text": columns.text,
        },
    }


def _archive_for_duckdb(archive: Archive) -> list[str]:
    """The archive's files, or globs where they are many."""
    uris = [_for_duckdb(entry.uri) for entry in archive.files]
    if len(uris) <= _SHOWN_FILES:
        return uris
    endings = {_ending(uri) for uri in uris}
    return sorted(f"{_for_duckdb(folder)}/**/*{ending}" for folder in archive.folders for ending in endings)


def _ending(uri: str) -> str:
    """The end of a file's name that says what it holds, such as .parquet or .jsonl.gz."""
    suffixes = PurePosixPath(uri).suffixes
    return "".join(suffixes[-2:] if suffixes[-1] in (".gz", ".zst") else suffixes[-1:])


def _for_duckdb(uri: str) -> str:
    return uri.rstrip("/") if storage.scheme_of(uri) == "s3" else storage.path_of(uri)


def _compared(earlier: tuple[Tags, Looked], later: tuple[Tags, Looked]) -> dict[str, Any]:
    return {
        "before": _name(earlier[0].uri),
        "after": _name(later[0].uri),
        "models": [earlier[0].model_id, later[0].model_id],
        "notices": _state(*earlier),
        "groups": differences(earlier[1].summary, later[1].summary),
    }


def _add_gold(
    view: dict[str, Any], data: dict[str, Any], gold: "Gold", rows: Mapping[int, Mapping[str, Any]]
) -> None:
    from mnerqg.report.gold import NOTHING, entities_of, judge, regions_of

    for post in data["posts"]:
        row = rows[int(post["hash"])]
        annotated = gold.posts.get(row["post_id"])
        if annotated is not None:
            post["gold"] = describe_gold(annotated, judge(annotated, entities_of(row), regions_of(row)))
            if post["text"] is None and annotated.text is not None:
                described = describe_post(row, annotated.text, None)
                post |= {key: described[key] for key in ("text", "cut")}
    types = ordered_types([kind for pair in gold.confusion for kind in pair if kind != NOTHING])
    data["types"] = ordered_types([*data["types"], *types])
    view["tags"]["types"] = data["types"]
    view["gold"] = {
        "name": gold.name,
        "posts": len(gold.posts),
        "judged": len(gold.judged),
        "scores": gold.scores(),
        "types": types,
        "nothing": NOTHING,
        "confusion": gold.confusion,
    }


def _training_charts(training: Training | None) -> list[dict[str, Any]]:
    if training is None:
        return []
    return [
        {
            "id": chart.id,
            "title": chart.title,
            "percent": chart.percent,
            "epochs": training.epochs,
            "lines": chart.lines,
        }
        for chart in training.charts
    ]


def _name(uri: str) -> str:
    """The end of a URI by which people know it, such as tags/2026-11-22."""
    return "/".join([part for part in uri.rpartition("://")[2].split("/") if part][-2:]) or uri
