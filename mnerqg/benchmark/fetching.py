"""Pictures a second from where they lie, with so many requests in flight."""

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from mnerqg.archive.reading import open_archive, work_here
from mnerqg.benchmark.posts import spread_uris
from mnerqg.benchmark.rounds import Report, Round, paces, spread_of, turn_about
from mnerqg.config_jobs import PicturesConfig, TagConfig
from mnerqg.io import storage
from mnerqg.io.picture_places import with_absolute_roots
from mnerqg.io.picture_store import PictureStore

_URIS_A_CALL = 256
"""Of so many pictures the bytes are in memory at once. A fetch task of a tagging run is given 64 posts at a time."""


def measure(
    report: Report, config: TagConfig, archive: str, pictures: int, concurrency: Sequence[int], rounds: int
) -> None:
    """Fetch pictures of an archive with each number of requests in flight, turn about.

    Raises:
        MnerqgError: archive or settings are not as they should be.
    """
    opened = open_archive([storage.absolute(archive)], config.columns, work_here)
    uris = spread_uris(opened, config.columns, pictures)
    settings = with_absolute_roots(config.pictures, opened.folders)
    variants = {str(count): partial(fetch, uris, settings, count) for count in concurrency}
    measured = turn_about(variants, rounds, report)
    paces(report, measured, dict.fromkeys(variants, len(uris)))
    report.figures["pictures_per_second"] = report.figures.pop("posts_per_second")
    report.figures["mib_per_second"] = {
        name: spread_of(done, "mib_per_second") for name, done in measured.items()
    }
    for name, done in measured.items():
        failed = sum(one["posts"] - one["statuses"].get("ok", 0) for one in done)
        if failed:
            reason = next((reason for one in done for reason in one["errors"]), "no reason is known")
            report.failures.append(f"{failed:,} pictures failed with {name} requests in flight: {reason}")


def fetch(uris: Sequence[str], config: PicturesConfig, concurrency: int) -> Round:
    """Fetch every picture once, as a fetch task does."""
    store = PictureStore(config.model_copy(update={"concurrency": concurrency}))
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    size = 0
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(uris), _URIS_A_CALL):
        for one in store.fetch_many(uris[start : start + _URIS_A_CALL]):
            statuses[one.status] += 1
            size += len(one.data or b"")
            if one.error:
                errors[one.error] += 1
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "posts": sum(statuses.values()),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "mib_per_second": size / 2**20 / seconds,
        "statuses": dict(statuses),
        "errors": dict(errors.most_common(5)),
    }
