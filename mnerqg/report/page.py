"""The page: one HTML file that needs no network and runs no script but its own.

What posts say is data. In the HTML it is escaped by Jinja; for the script it is JSON in which no `<` stands; the script
makes text nodes of it. Should any of it become markup all the same, the Content-Security-Policy allows no script, style
or picture but those that are hashed or inlined here, no request, no form, and no string as HTML at all.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_SCRIPTS = (
    "vendor/d3.min.js",
    "elements.js",
    "charts.js",
    "post.js",
    "query.js",
    "filters.js",
    "gallery.js",
    "main.js",
)
"""In this order, each a script of its own: inlined modules could not import each other."""

_STYLES = ("style.css", "gallery.css")
_SHOWN_MILLIONS = 1_000_000


def render_page(view: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """The HTML, UTF-8.

    Args:
        view: what the template shows.
        data: what the script is given: JSON values, no NaN.
    """
    scripts = [_part(name) for name in _SCRIPTS]
    styles = [_part(name) for name in _STYLES]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_source, scripts))}",
            f"style-src {' '.join(map(_source, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    page = _environment().get_template("report.html.jinja")
    # Markup: our own files, as they are; they stand in the repository.
    rendered = page.render(
        **view,
        policy=policy,
        styles=[Markup(style) for style in styles],
        scripts=[Markup(script) for script in scripts],
        data=Markup(as_json(data)),
    )
    return rendered.encode("utf-8", "replace")


def as_json(value: Any) -> str:
    """JSON that can stand in a `<script>`: it has no character with which HTML could be begun or ended."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    text = resources.files("mnerqg.report").joinpath("page", name).read_text(encoding="utf-8")
    assert "</script" not in text, name
    return text


def _source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mnerqg.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "rounded": _rounded,
        "percent": _percent,
        "words": _words,
        "moment": _moment,
    }
    return environment


def _count(value: int) -> str:
    return f"{value:,}"


def _rounded(value: int) -> str:
    """A count as it is said: 3.1 million, or all digits below a million."""
    return f"{value / _SHOWN_MILLIONS:.1f} million" if value >= _SHOWN_MILLIONS else f"{value:,}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _words(value: str) -> str:
    return value.replace("_", " ")


def _moment(value: str) -> str:
    """A time of a manifest for people; as it is where it is none."""
    try:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return value
