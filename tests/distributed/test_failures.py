from typing import Any

import pytest
import ray
import ray.data
from ray.data.exceptions import SystemException, omit_traceback_stdout
from ray.exceptions import RayTaskError

from mnerqg.distributed.failures import data_error, first_cause
from mnerqg.errors import DataError


def test_the_first_cause_is_what_a_person_can_act_on() -> None:
    """Ray's last lines say how to make it try again more often, and stand below the cause."""
    inner = OSError(
        "Traceback:\n  File x\nOSError: no access to posts.parquet\n"
        "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\n"
        "To change retry attempts, backoff, or which errors are retried, configure it\n"
    )
    outer = RuntimeError("Ray's own")
    outer.__cause__ = inner
    assert first_cause(outer) == "OSError: OSError: no access to posts.parquet"
    assert first_cause(ValueError()) == "ValueError"
    assert first_cause(OSError("To change retry attempts, backoff")).endswith("backoff")


def test_an_error_in_the_data_is_found_below_what_ray_says_of_it() -> None:
    inner = DataError(
        "a.parquet: row group 2 cannot be read; replace it\nFailed to apply UDF transform after 1/1"
    )
    outer = RuntimeError("Ray's own")
    outer.__cause__ = inner
    found = data_error(outer)
    assert isinstance(found, DataError)
    assert str(found) == "a.parquet: row group 2 cannot be read; replace it"
    assert data_error(RuntimeError("a node died")) is None


def test_what_ray_data_takes_for_an_error_of_its_own_is_named() -> None:
    """Such as what an actor raises before its first batch: Ray Data then names an empty error as the cause."""

    @omit_traceback_stdout
    def execute() -> None:
        raise RuntimeError("an actor died\nmnerqg.errors.ModelError: there is no GPU")

    with pytest.raises(RuntimeError) as caught:
        execute()
    assert isinstance(caught.value.__cause__, SystemException)
    assert first_cause(caught.value) == "RuntimeError: mnerqg.errors.ModelError: there is no GPU"


def test_what_a_stage_raises_is_named(ray_cluster: None) -> None:
    """Before, it was "UserCodeException: UDF failed to process a data block", for that is all that Ray pickles."""

    def broken(_: Any) -> Any:
        raise KeyError("no such column\nindeed") from ValueError("what came before")

    with pytest.raises(RayTaskError) as caught:
        ray.data.range(2).map_batches(broken).materialize()
    assert first_cause(caught.value) == "KeyError: 'no such column\\nindeed'"
