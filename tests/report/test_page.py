"""The page as text: the policy fits what stands in it, and nothing of a post is markup. The browser is another test."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mnerqg.config_jobs import ReportConfig
from mnerqg.report.page import as_json
from mnerqg.report.report import Asked, write_report
from tests.noisy_tags import HOSTILE, write_night, write_training


class Parsed(HTMLParser):
    """Tags, the texts of scripts and styles, and the attributes of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.parts: list[tuple[str, dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("script", "style"):
            self.parts.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1] in ("script", "style") and self.cdata_elem:
            tag, attributes, text = self.parts[-1]
            self.parts[-1] = tag, attributes, text + data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("night")
    night = write_night(str(folder), 30)
    training = write_training(folder / "run")
    asked = Asked((night.tags, night.tags), data=night.data, training=str(training))
    write_report(asked, str(folder / "report"), ReportConfig())
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


def test_the_policy_allows_these_scripts_and_styles_and_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    (policy,) = [
        value
        for tag, name, value in parsed.attributes
        if (tag, name) == ("meta", "content") and "src" in value
    ]
    rules = dict(rule.partition(" ")[::2] for rule in policy.split("; "))
    hashed = {"script-src": set(), "style-src": set()}  # type: dict[str, set[str]]
    for tag, attributes, text in parsed.parts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            hashed[f"{tag}-src"].add(f"'sha256-{digest}'")
    for rule, digests in hashed.items():
        assert set(rules.pop(rule).split()) == digests
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_nothing_is_loaded_and_no_attribute_runs(page: str) -> None:
    parsed = Parsed(page)
    assert not {"iframe", "object", "embed", "link", "base", "img", "form"} & set(parsed.tags) - {"form"}
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "style", "srcset"), (tag, name)
        assert name != "href" or value.startswith("#"), (tag, value)


def test_hostile_texts_are_data(page: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert not re.search("[<>&]", data)
    texts = {post["text"] for post in json.loads(data)["posts"]}
    for text in HOSTILE[:3]:
        start = text.partition("{")[0]
        assert any(shown.startswith(start) for shown in texts)
        assert start not in page
    assert any("\0" in text for text in texts)
    assert max(map(len, texts)) == 5_000
    assert all(
        "pwned" not in text for _, attributes, text in Parsed(page).parts if attributes.get("id") != "data"
    )


def test_json_in_a_script() -> None:
    value = {"a": "</script><!--\u2028\u2029&amp;", "b": [None, True, 0.5, "é😀"]}
    text = as_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="Out of range"):
        as_json(float("nan"))


def test_vendored_library_is_the_published_one() -> None:
    """dist/d3.min.js of d3 7.9.2 on npm, whose licence lies beside it."""
    file = Path(__file__).parents[2] / "mnerqg" / "report" / "page" / "vendor" / "d3.min.js"
    digest = "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert (file.parent / "d3.LICENSE").is_file()
