"""The line every half minute, from the model actors' reports to a monitor on a real Ray."""

import logging
import sys
import time

import pytest
import ray

from mnerqg.distributed import tag_progress
from mnerqg.distributed.tag_monitor import ActorReport, started_monitor
from mnerqg.distributed.tag_progress import Progress, shown_progress


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(5000, 0, 0, 0.0), "0 of 5,000 posts (0.0%), starting, 0 with an error"),
        (
            Progress(5000, 1250, 3, 50.0),
            "1,250 of 5,000 posts (25.0%), 50.0 posts/s, 75 s left, 3 with an error",
        ),
        (
            Progress(3_100_000, 100_000, 0, 1000.0),
            "100,000 of 3,100,000 posts (3.2%), 1,000.0 posts/s, 50 min left, 0 with an error",
        ),
        (
            Progress(3_100_000, 100_000, 0, 100.0),
            "100,000 of 3,100,000 posts (3.2%), 100.0 posts/s, 8.3 h left, 0 with an error",
        ),
    ],
)
def test_a_line(progress: Progress, line: str) -> None:
    assert str(progress) == line


def test_lines_where_there_is_no_terminal(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tag_progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(tag_progress, "_SECONDS_BETWEEN_LOOKS", 0.05)
    assert not sys.stderr.isatty()
    with started_monitor() as monitor, caplog.at_level(logging.INFO, tag_progress.__name__):
        ray.get(monitor.report.remote("an earlier pass", ActorReport(1, 2, 3, 4, 500, 5)))
        with shown_progress(monitor, posts=100, before=40):
            for done, (actor, posts, failed) in {48: ("a", 8, 0), 56: ("b", 8, 1), 100: ("a", 99, 2)}.items():
                ray.get(monitor.report.remote(actor, ActorReport(1, 2, 3, 4, posts, failed)))
                deadline = time.monotonic() + 60
                while not any(line.startswith(f"{done} of 100 posts") for line in caplog.messages):
                    assert time.monotonic() < deadline, caplog.messages
                    time.sleep(0.02)
    *_, last = caplog.messages
    assert "posts/s, 0 s left, 3 with an error" in last
