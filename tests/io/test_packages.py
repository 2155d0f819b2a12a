import json
from pathlib import Path

import pytest

from mnerqg.errors import ModelError
from mnerqg.io.packages import is_package, package_path

KEY = "model.encoder"


def test_a_package_and_what_lies_in_it() -> None:
    folder = Path(json.__file__).parent
    assert package_path("package:json", key=KEY) == folder
    assert package_path("package:json/", key=KEY) == folder
    assert package_path("package:json/decoder.py", key=KEY) == folder / "decoder.py"
    assert is_package("package:")
    assert not is_package("bert-base-uncased")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            "package:",
            r"'package:', where '' is no name of a package; write package:NAME or package:NAME/PATH",
        ),
        ("package:/etc", "where '' is no name of a package"),
        ("package:../etc", r"where '\.\.' is no name of a package"),
        ("package:json.decoder", "where 'json.decoder' is no name of a package"),
        ("package:gt-all/model", "with the NAME that Python imports"),
        ("package:non_existent", "the package non_existent is not installed; run pip install non-existent"),
        ("package:this", "not installed"),  # a module that is no folder
        ("package:json/../../etc", "leads out of the package"),
        ("package:json//etc", "leads out of the package"),
        ("package:json/absent", "holds no absent"),
    ],
)
def test_what_is_no_package_is_one_line_with_the_key(value: str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        package_path(value, key=KEY)
    assert str(caught.value).startswith(f"{KEY} is {value!r}, ")
    assert "\n" not in str(caught.value)
