"""A model that does nothing but take its time: what is left of the pace is the pipeline's."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from mnerqg.benchmark.rounds import Work
from mnerqg.inputs.posts import PreparedPost
from mnerqg.schema import TaggedPost


class SleepingTagger:
    """Stands for `mnerqg.tagger.Tagger` in a model actor, and sleeps where the device would work.

    Args:
        image_side: of the canvases that the pipeline prepares.
        model_id: that the tags are to name.
        seconds_a_post: that a post takes.
        tell: called with each batch.
    """

    def __init__(
        self, image_side: int, model_id: str, seconds_a_post: float, tell: Callable[[Work], object]
    ) -> None:
        self.config = SimpleNamespace(model=SimpleNamespace(image_side=image_side))
        self.model_id = model_id
        self._seconds_a_post = seconds_a_post
        self._tell = tell

    def tag_prepared(self, posts: Sequence[PreparedPost]) -> list[TaggedPost]:
        """Nothing is found in any of them."""
        began, started = time.time(), time.perf_counter()
        time.sleep(self._seconds_a_post * len(posts))
        self._tell(Work(len(posts), time.perf_counter() - started, began, time.time()))
        return [
            TaggedPost(
                image_status=post.image_status,
                text_status="ok" if post.text and not post.text.isspace() else "empty",
                text_read=len(post.text or ""),
            )
            for post in posts
        ]
