import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.errors import ConfigError
from mnerqg.queries import QUERY_STYLES, EntityQuery, dump_queries, load_queries, parse_queries


def test_the_papers_four_styles_ask_for_four_types() -> None:
    assert set(QUERY_STYLES) == {"keyword", "template", "wikipedia", "keyword_annotation"}
    for style, queries in QUERY_STYLES.items():
        assert load_queries(style) == queries
        assert [query.type for query in queries] == ["PER", "LOC", "ORG", "OTHER"]
        assert len({query.query for query in queries}) == 4


def test_the_papers_printed_queries() -> None:
    """Table 1, "Effect of Query Transformations" and, of OTHER, the beginning in Figure 1."""
    asked = {query.type: query.query for query in QUERY_STYLES["keyword_annotation"]}
    assert asked["PER"] == "Person: People's name and fictional character."
    assert asked["LOC"] == "Location: Country, city, town continent by geographical location."
    assert asked["ORG"] == (
        "Organization: Include club, company, government party, school government, and news organization."
    )
    assert asked["OTHER"].startswith("Other: Consisting of many ")
    of_org = {
        style: {one.type: one.query for one in queries}["ORG"] for style, queries in QUERY_STYLES.items()
    }
    assert of_org["keyword"] == "Organization"
    assert of_org["template"] == "Please find Organization"
    assert of_org["wikipedia"] == (
        "An organization is an entity, such as an institution or an association, that has a collective goal and is "
        "linked to an external environment."
    )


def test_the_other_types_are_asked_in_the_wording_of_org() -> None:
    words = {"PER": "Person", "LOC": "Location", "OTHER": "Other"}
    for kind, word in words.items():
        asked = {
            style: next(one.query for one in queries if one.type == kind)
            for style, queries in QUERY_STYLES.items()
        }
        assert (asked["keyword"], asked["template"]) == (word, f"Please find {word}")
        assert re.fullmatch(r"An? \w+ is a \w+, such as .*, that .*\.", asked["wikipedia"])
        assert asked["keyword_annotation"].startswith(f"{word}: ")


def test_queries_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- {type: DISH, query: 'Crème brûlée: what people eat.'}\n", encoding="utf-8")
    assert load_queries(str(path)) == (EntityQuery(type="DISH", query="Crème brûlée: what people eat."),)


def test_neither_a_style_nor_a_file() -> None:
    with pytest.raises(
        ConfigError, match=r"^queries is 'keywords'; give a query style \(keyword, template, "
    ):
        load_queries("keywords")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "q.yaml must be a list of entries with the keys type and query"),
        ("[]", "q.yaml must be a list of entries with the keys type and query"),
        ("PER: Person", "q.yaml must be a list of entries with the keys type and query"),
        ("- [", "q.yaml is not valid YAML: "),
        ("- PER", "q.yaml, entry 1: entry: "),
        ("- {type: A, query: a}\n- {type: B}", "q.yaml, entry 2: query: field required"),
        ("- {type: A, query: a, colour: red}", "q.yaml, entry 1: colour: "),
        ("- {type: 3, query: a}", "q.yaml, entry 1: type: "),
        ("- {type: A, query: ' '}", "q.yaml, entry 1: type and query must not be empty"),
        ("- {type: '', query: a}", "q.yaml, entry 1: type and query must not be empty"),
        ("- {type: A, query: a}\n- {type: A, query: b}", "q.yaml names the type A twice; one query a type"),
    ],
)
def test_bad_queries_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_queries(text, source="q.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_bytes(b"\xff\xfe- {type")
    with pytest.raises(ConfigError, match=r"q\.yaml"):
        load_queries(str(path))


# PyYAML writes a NEL unquoted and reads it back as a space.
visible = st.text(st.characters(exclude_characters="\x85", codec="utf-8"), min_size=1, max_size=8).filter(
    str.strip
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(EntityQuery, type=visible, query=visible), min_size=1, unique_by=lambda q: q.type))
def test_dump_and_parse_are_inverse(queries: list[EntityQuery]) -> None:
    assert parse_queries(dump_queries(queries), source="q.yaml") == tuple(queries)
