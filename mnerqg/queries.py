"""Entity types asked as natural-language queries (paper, "Query Construction")."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from mnerqg.config_types import Section
from mnerqg.errors import ConfigError, one_line


class EntityQuery(Section):
    """An entity type and the query that asks for it."""

    type: str
    query: str


# Printed in the paper: all four styles of ORG ("Effect of Query Transformations"), keyword + annotation of PER, LOC and
# ORG (Table 1), and of OTHER its beginning, "Other: Consisting of many..." (Figure 1). Where a style is printed of
# ORG alone, the other types have its wording; what defines them, and how OTHER goes on, is chosen.
QUERY_STYLES: dict[str, tuple[EntityQuery, ...]] = {
    style: tuple(EntityQuery(type=kind, query=query) for kind, query in queries.items())
    for style, queries in {
        "keyword": {"PER": "Person", "LOC": "Location", "ORG": "Organization", "OTHER": "Other"},
        "template": {
            "PER": "Please find Person",
            "LOC": "Please find Location",
            "ORG": "Please find Organization",
            "OTHER": "Please find Other",
        },
        "wikipedia": {
            "PER": "A person is a being, such as a man, a woman or a child, that has certain capacities and is part of "
            "a form of social relations.",
            "LOC": "A location is a region, such as a point, a line or an area, that lies on the surface of the Earth "
            "or elsewhere.",
            "ORG": "An organization is an entity, such as an institution or an association, that has a collective goal "
            "and is linked to an external environment.",
            "OTHER": "A name is a term, such as the title of a product, an event or a work, that is used for "
            "identification by an external observer.",
        },
        "keyword_annotation": {
            "PER": "Person: People's name and fictional character.",
            "LOC": "Location: Country, city, town continent by geographical location.",
            "ORG": "Organization: Include club, company, government party, school government, "
            "and news organization.",
            "OTHER": "Other: Consisting of many kinds of names, such as products, events, works "
            "and nationalities.",
        },
    }.items()
}


def asked_queries(style_or_path: str | None) -> tuple[EntityQuery, ...] | None:
    """The queries of a `queries` setting, errors as of `load_queries`; None, a model's own, where it is not set."""
    return None if style_or_path is None else load_queries(style_or_path)


def load_queries(style_or_path: str) -> tuple[EntityQuery, ...]:
    """The queries of one of the paper's styles, or those of a YAML file.

    Raises:
        ConfigError: neither a style nor a readable file of queries.
    """
    if style_or_path in QUERY_STYLES:
        return QUERY_STYLES[style_or_path]
    path = Path(style_or_path)
    if not path.is_file():
        raise ConfigError(
            f"queries is {style_or_path!r}; give a query style ({', '.join(QUERY_STYLES)}) or the path of a YAML file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    return parse_queries(text, source=str(path))


def parse_queries(text: str, *, source: str) -> tuple[EntityQuery, ...]:
    """Read a YAML list of `{type: ..., query: ...}`.

    Raises:
        ConfigError: not such a list, an empty field, or a type named twice.
    """
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {one_line(error)}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{source} must be a list of entries with the keys type and query")
    queries = []
    for number, entry in enumerate(entries, start=1):
        try:
            query = EntityQuery.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "entry"
            raise ConfigError(f"{source}, entry {number}: {key}: {first['msg'].lower()}") from None
        if not query.type.strip() or not query.query.strip():
            raise ConfigError(f"{source}, entry {number}: type and query must not be empty")
        queries.append(query)
    types = [query.type for query in queries]
    twice = sorted({kind for kind in types if types.count(kind) > 1})
    if twice:
        raise ConfigError(f"{source} names the type {twice[0]} twice; one query a type")
    return tuple(queries)


def dump_queries(queries: Sequence[EntityQuery]) -> str:
    """The queries as YAML that `parse_queries` reads back."""
    return yaml.safe_dump([query.model_dump() for query in queries], sort_keys=False, allow_unicode=True)
